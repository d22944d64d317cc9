"""Splitting networks at a layer into head (before it, inclusive) and tail (after it)."""
