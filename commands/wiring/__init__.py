"""Builds sources, engine, guards and sinks from the configuration (composition root)."""
