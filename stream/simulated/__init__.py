"""The simulated inspection line: parts, defects, camera, and the source of its frames."""
