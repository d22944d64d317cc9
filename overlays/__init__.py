"""Overlays: renders explanations into images and sends them to sinks."""
