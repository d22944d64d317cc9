"""RTSP cameras over TCP or UDP, with low latency."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import av.error
from av.container import InputContainer

from stream.attempt import Attempt
from stream.decode import VideoPacket
from stream.hwaccel import DecoderSelector
from stream.live import LiveSource, demuxed
from stream.network import Timeouts, network_source, open_container
from stream.rtsp_camera import RtspCamera
from stream.rtsp_relay import RtspRelay, rtsp_relay

Transport = Literal["tcp", "udp"]


def rtsp_source(
    uri: str,
    *,
    camera: str,
    timeouts: Timeouts,
    transport: Transport = "tcp",
    decoder: DecoderSelector | None = None,
    allowed_hosts: tuple[str, ...] = (),
) -> LiveSource:
    """Create the source of the camera at ``uri`` (``rtsp://`` or ``rtsps://``).

    ``allowed_hosts`` are other hosts that the camera may redirect to: ``HOST`` or ``HOST:PORT``.
    """
    decoder = decoder or DecoderSelector()
    connections = _Connections(RtspCamera(uri, allowed_hosts), rtsp_options(transport), decoder)
    return network_source(
        uri, camera=camera, timeouts=timeouts, decoder=decoder, opened=connections.open, packets=connections.packets
    )


class _Connections:
    """Opens one camera through a relay, one connection at a time."""

    def __init__(self, camera: RtspCamera, options: dict[str, str], decoder: DecoderSelector) -> None:
        self._camera = camera
        self._options = options
        self._decoder = decoder
        self._relay: RtspRelay | None = None

    @contextmanager
    def open(self, attempt: Attempt) -> Iterator[InputContainer]:
        """Open the camera; raise the relay's error instead of FFmpeg's."""
        with rtsp_relay(self._camera, seconds=attempt.answer_seconds) as relay:
            self._relay = relay
            try:
                container = open_container(relay.url, options=self._options, attempt=attempt, decoder=self._decoder)
            except av.error.FFmpegError:
                relay.check()
                raise
            with container:
                yield container

    def packets(self, container: InputContainer, stop: threading.Event) -> Iterator[VideoPacket]:
        """Yield the packets of the last opened connection; raise its error."""
        yield from demuxed(container, stop)
        if self._relay is not None:
            self._relay.check()


def rtsp_options(transport: Transport) -> dict[str, str]:
    """Return FFmpeg's options for a live RTSP camera.

    The camera's description states the codec, so probing would only delay the first frame by a second. ``nobuffer`` is
    not set, because it drops the first keyframe. With ``explode``, FFmpeg reports a damaged frame as an error instead
    of concealing it; ``aggressive`` also reports surplus data after a frame's last block, the sign of a packet lost
    within the frame.
    """
    return {
        "rtsp_transport": transport,
        "allowed_media_types": "video",
        "probesize": "32",
        "analyzeduration": "0",
        "err_detect": "explode+aggressive",
    }
