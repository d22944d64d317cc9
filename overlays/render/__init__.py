"""Explanations drawn onto images."""
