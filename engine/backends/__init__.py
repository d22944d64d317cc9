"""The backends, one file each: module and example input to a callable."""
