"""Networks of detectors, each normalised to a graph from images to raw maps."""
