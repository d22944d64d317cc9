"""CurveZMQ: keys, authorized clients and failed handshakes."""
