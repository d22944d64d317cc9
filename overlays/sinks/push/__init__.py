"""Sinks that push a stream to a media server."""
