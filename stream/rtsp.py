"""An RTSP camera: its video over TCP or UDP, with as little delay as the decoder allows."""

from __future__ import annotations

from typing import Literal

from stream.hwaccel import DecoderSelector
from stream.live import LiveSource
from stream.network import Timeouts, network_source

Transport = Literal["tcp", "udp"]


def rtsp_source(
    uri: str, *, camera: str, timeouts: Timeouts, transport: Transport = "tcp", decoder: DecoderSelector | None = None
) -> LiveSource:
    """Return the camera at ``uri`` (``rtsp://`` or ``rtsps://``)."""
    options = rtsp_options(transport)
    return network_source(uri, camera=camera, options=options, timeouts=timeouts, decoder=decoder or DecoderSelector())


def rtsp_options(transport: Transport) -> dict[str, str]:
    """Return FFmpeg's options for a camera that is watched live.

    The description tells the codec, so probing would only delay the first picture by a second. ``nobuffer`` is left
    out: it throws away the first key picture. Damage must be an error to be counted, not a picture made up;
    ``aggressive`` makes one of what is left over behind a picture's last block: the sign of a packet lost within.
    """
    return {
        "rtsp_transport": transport,
        "allowed_media_types": "video",
        "probesize": "32",
        "analyzeduration": "0",
        "err_detect": "explode+aggressive",
    }
