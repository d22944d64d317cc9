"""Clips of the page: a buffer of the last 30 s of each camera as sent to viewers, and an MP4 made of it.

The buffer costs no compression: it keeps images that were sent anyway. It is bounded in time, frame rate and bytes.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av

from overlays.render.jpeg import decode_image
from overlays.render.renderer import HeatRenderer
from overlays.sinks.video import VideoSink
from overlays.web.framing import unpack
from overlays.web.thread_call import call_in_thread
from overlays.wire.header import decode_header
from overlays.wire.message import as_overlay
from pipeline.errors import ReciproStreamError

log = logging.getLogger(__name__)

CLIP_SECONDS: Final = 30.0
CLIP_RATE: Final = 10.0
"""Frames per second that are kept."""
RING_BYTES: Final = 96 << 20
"""Maximum size of the buffer, for all cameras together."""


class PacketBuffer:
    """The last packets of each camera. One thread adds, any reads."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        """Set the maximum size in bytes for all cameras together."""
        self._limit_bytes = limit_bytes
        # Guards the queues; held while packets are listed, not while they are processed.
        self._lock = threading.Lock()
        self._packets: dict[str, deque[tuple[float, bytes]]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, camera: str, captured_at: float, packet: bytes) -> None:
        """Add a packet, unless it follows the last one too closely; drop packets that are too old or too many."""
        with self._lock:
            packets = self._packets.setdefault(camera, deque())
            if packets and 0 <= captured_at - packets[-1][0] < 0.95 / CLIP_RATE:
                return
            packets.append((captured_at, packet))
            self._bytes[camera] = self._bytes.get(camera, 0) + len(packet)
            camera_bytes = self._limit_bytes // len(self._packets)
            for name, queue in self._packets.items():
                while queue and (
                    self._bytes[name] > camera_bytes or not 0 <= captured_at - queue[0][0] <= CLIP_SECONDS
                ):
                    self._bytes[name] -= len(queue.popleft()[1])

    def forget(self, camera: str) -> None:
        """Release the packets of a camera."""
        with self._lock:
            self._packets.pop(camera, None)
            self._bytes.pop(camera, None)

    def is_due(self, camera: str, captured_at: float) -> bool:
        """Return whether ``add`` would keep a packet captured at this time."""
        with self._lock:
            packets = self._packets.get(camera)
            return not packets or not 0 <= captured_at - packets[-1][0] < 0.95 / CLIP_RATE

    def packets(self, camera: str) -> list[bytes]:
        """Return the camera's packets, oldest first."""
        with self._lock:
            return [packet for _, packet in self._packets.get(camera, ())]

    @property
    def total_bytes(self) -> int:
        """Size of all packets in bytes."""
        return sum(self._bytes.values())


@dataclass(frozen=True, slots=True)
class RenderStyle:
    """Options of a clip's rendering."""

    colormap: str = "inferno"
    opacity: float = 0.6
    """0: without the heat map."""


def make_clip(packets: Sequence[bytes], style: RenderStyle, is_stopped: Callable[[], bool]) -> bytes:
    """Return an MP4 (H.264) of the packets with heat map and legend, with the frames' timing.

    Args:
        packets: packets of one camera, oldest first (``overlays.web.framing``).
        style: colours and opacity.
        is_stopped: checked before each frame; b"" is returned if it is True.

    Raises:
        SinkError: the clip cannot be encoded.
        WireError: a packet is damaged.
    """
    timestamp = [0.0]
    renderer = HeatRenderer(colormap=style.colormap, opacity=style.opacity, clock=lambda: timestamp[0])
    with tempfile.TemporaryDirectory(prefix="recipro-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        with VideoSink(path) as recorder:
            for packet in packets:
                if is_stopped():
                    return b""
                packed, jpeg = unpack(packet)
                header = decode_header(packed)
                timestamp[0] = header.sent_at_unix
                plain = as_overlay(
                    header, decode_image(jpeg), now_unix=header.sent_at_unix, now_monotonic=header.sent_at_unix
                )
                recorder.put(renderer.render(plain.explanation))
        written = next(Path(folder).glob("*.mp4"), path)  # the sink adds the camera's name
        return _move_index_to_front(written)


def _move_index_to_front(path: Path) -> bytes:
    """Return a video with its index at its beginning: players can start before the rest has arrived."""
    target = path.with_name("index-first.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as output:
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target.read_bytes()


async def make_clip_async(packets: Sequence[bytes], style: RenderStyle, is_stopped: Callable[[], bool]) -> bytes:
    """Make a clip in a thread; b"" if stopped, or if it fails, which is logged."""
    cancelled = threading.Event()

    def make() -> bytes:
        try:
            return make_clip(packets, style, lambda: cancelled.is_set() or is_stopped())
        except (ReciproStreamError, OSError, av.error.FFmpegError) as error:
            log.warning("a clip could not be made: %s", error)
            return b""

    return await call_in_thread("clip", make, cancelled.set)
