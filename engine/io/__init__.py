"""Tensor files, and metadata read with validation."""
