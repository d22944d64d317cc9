"""Sources of frames: cameras, network streams, files, and the simulated inspection line."""
