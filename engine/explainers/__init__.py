"""Explainers: frames in, explanations out."""
