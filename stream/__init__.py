"""Sources of frames: cameras, streams, files, the simulated inspection line."""
