"""The MQTT sink: results as messages to a broker."""
