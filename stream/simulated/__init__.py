"""The simulated inspection line: its parts, its defects, its camera and the source that shows them."""
