"""Draws explanations onto images."""
