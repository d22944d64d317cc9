"""Networks with their explanation exported to one file."""
