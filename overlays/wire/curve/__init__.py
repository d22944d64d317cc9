"""CURVE authentication of ZeroMQ connections, and limits of connections and subscriptions."""
