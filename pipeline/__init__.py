"""The hallway: nouns, promises, threads and knobs that every room shares. It imports no room."""
