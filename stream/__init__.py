"""Where frames come from: cameras, streams, files, and the simulated inspection line."""
