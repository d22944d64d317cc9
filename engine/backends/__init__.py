"""Backends, one module each: compile a PyTorch module for an example input."""
