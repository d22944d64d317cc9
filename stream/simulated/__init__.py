"""The simulated inspection line: parts, defects, camera and source."""
