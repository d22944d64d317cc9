"""Messages with Foxglove's schemas, and the sinks that send them: an MCAP file and a live server."""
