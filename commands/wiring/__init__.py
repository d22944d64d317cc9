"""The composition root: sources, engine, guards and sinks made from the configuration."""
