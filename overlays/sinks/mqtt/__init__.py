"""MQTT sink: publishes results as messages to a broker."""
