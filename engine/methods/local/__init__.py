"""Exact masking by local recomputation: only what a masked cell reaches is computed again."""
