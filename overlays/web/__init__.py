"""The web page: access control, broadcasting of frames, status and metrics."""
