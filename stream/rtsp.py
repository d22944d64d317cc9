"""RTSP cameras over TCP or UDP, with low latency."""

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
    """Return FFmpeg's options for a live RTSP camera.

    The description states the codec, so probing would only delay the first frame by a second. ``nobuffer`` is not set:
    it drops the first keyframe. ``explode`` makes damage an error that is counted, instead of a concealed frame;
    ``aggressive`` also reports surplus data after a frame's last block: the sign of a packet lost within the frame.
    """
    return {
        "rtsp_transport": transport,
        "allowed_media_types": "video",
        "probesize": "32",
        "analyzeduration": "0",
        "err_detect": "explode+aggressive",
    }
