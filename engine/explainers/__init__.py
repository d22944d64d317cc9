"""Explainers: compute explanations from frames."""
