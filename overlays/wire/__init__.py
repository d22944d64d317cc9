"""The wire format and the ZeroMQ viewer that receives it."""
