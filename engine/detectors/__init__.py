"""Object detectors: networks, output layouts, complete cuts, and explanations of single boxes."""
