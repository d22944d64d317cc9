"""Sinks: outputs that receive overlays, one module per kind, and their registry."""
