"""Clips of the page: a buffer with the last 30 s of images sent to viewers, and the MP4 file made from it.

The buffer needs no extra compression, because it stores images that were sent. Its duration, frame rate and size are
limited.
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
"""Maximum rate of stored frames, in frames per second."""
RING_BYTES: Final = 96 << 20
"""Maximum size of the buffer for all cameras together, in bytes."""


class PacketBuffer:
    """The last packets of each camera (``overlays.web.framing``). One thread adds; any thread reads."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        """Set the maximum size in bytes for all cameras together."""
        self._limit_bytes = limit_bytes
        # Guards the queues. Held while packets are listed, released before they are encoded.
        self._lock = threading.Lock()
        self._packets: dict[str, deque[tuple[float, bytes]]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, camera: str, captured_at: float, packet: bytes) -> None:
        """Store a packet unless the frame rate exceeds ``CLIP_RATE``; remove the oldest packets above the limits."""
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
        """Return whether ``add`` would store a packet captured at this time (monotonic seconds)."""
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
    """Opacity of the heat map in [0, 1]; 0 omits it."""


def make_clip(packets: Sequence[bytes], style: RenderStyle, is_stopped: Callable[[], bool]) -> bytes:
    """Return an MP4 file (H.264) of the packets, with heat map, legend and the original timing.

    Args:
        packets: packets of one camera, oldest first (``overlays.web.framing``).
        style: colours and opacity.
        is_stopped: called before each frame; if it returns True, the clip is abandoned and b"" returned.

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
    """Return an MP4 file with its index moved to the start, so that players can start before all data arrives."""
    target = path.with_name("index-first.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as output:
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target.read_bytes()


async def make_clip_async(
    camera: str, packets: Sequence[bytes], style: RenderStyle, is_stopped: Callable[[], bool]
) -> bytes:
    """Return a clip made in a thread; b"" if it was stopped, or if it failed (then a warning is logged)."""
    cancelled = threading.Event()

    def make() -> bytes:
        try:
            return make_clip(packets, style, lambda: cancelled.is_set() or is_stopped())
        except (ReciproStreamError, OSError, av.error.FFmpegError) as error:
            log.warning("page: camera %s: a clip could not be made: %s", camera, error)
            return b""

    return await call_in_thread("clip", make, cancelled.set)
