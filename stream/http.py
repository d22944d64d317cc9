"""A stream behind a web address: MJPEG, HLS or MPEG-TS live; a recording by its suffix."""

from __future__ import annotations

from stream.addresses import is_recording
from stream.card import Decoder
from stream.file import FileSource, Reading
from stream.live import LiveSource
from stream.network import Patience, network_source


def http_source(
    uri: str, *, camera: str, patience: Patience, decoder: Decoder | None = None
) -> FileSource | LiveSource:
    """Return the recording or the live stream at ``uri``."""
    decoder = decoder or Decoder()
    if not is_recording(uri):
        options = {"analyzeduration": "1000000"}
        return network_source(uri, camera=camera, options=options, patience=patience, decoder=decoder)
    resume = {"reconnect": "1", "reconnect_on_network_error": "1", "reconnect_delay_max": "2"}
    reading = Reading(
        threads="SLICE",
        options=tuple(resume.items()),
        open_timeout_seconds=patience.open_timeout_seconds,
        # A reader that pauses must not be cut off by its own pause, only by the server's.
        read_timeout_seconds=max(patience.read_timeout_seconds, 5.0),
    )
    return FileSource(uri, camera=camera, remote=True, reading=reading, decoder=decoder)
