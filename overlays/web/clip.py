"""The last half minute of each camera, as it was sent to those who looked on; and a clip made of it.

Nothing is compressed for it: the ring keeps pictures that were sent anyway. It is bounded in time, in frames a second
and in bytes.
"""

from __future__ import annotations

import asyncio
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
from overlays.wire.message import as_overlay, decode_header
from pipeline.errors import ReciproStreamError
from pipeline.workers.thread import ThreadWorker

log = logging.getLogger(__name__)

CLIP_SECONDS: Final = 30.0
CLIP_RATE: Final = 10.0
"""Frames per second that are kept: enough to see what happened."""
RING_BYTES: Final = 96 << 20
"""For all cameras together."""


class PacketBuffer:
    """The last packets of each camera. One thread adds, any reads."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        """Take how much may be kept for all cameras together."""
        self._limit_bytes = limit_bytes
        # Guards the queues; held while packets are listed, not while they are worked on.
        self._lock = threading.Lock()
        self._packets: dict[str, deque[tuple[float, bytes]]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, camera: str, captured_at: float, packet: bytes) -> None:
        """Keep a packet, unless the one before is too near; let go what is too old or too much."""
        with self._lock:
            kept = self._packets.setdefault(camera, deque())
            if kept and 0 <= captured_at - kept[-1][0] < 0.95 / CLIP_RATE:
                return
            kept.append((captured_at, packet))
            self._bytes[camera] = self._bytes.get(camera, 0) + len(packet)
            fraction = self._limit_bytes // len(self._packets)
            for name, queue in self._packets.items():
                while queue and (self._bytes[name] > fraction or not 0 <= captured_at - queue[0][0] <= CLIP_SECONDS):
                    self._bytes[name] -= len(queue.popleft()[1])

    def is_due(self, camera: str, captured_at: float) -> bool:
        """Say whether a packet of this moment would be kept."""
        with self._lock:
            kept = self._packets.get(camera)
            return not kept or not 0 <= captured_at - kept[-1][0] < 0.95 / CLIP_RATE

    def packets(self, camera: str) -> list[bytes]:
        """Return the camera's packets, the oldest first."""
        with self._lock:
            return [packet for _, packet in self._packets.get(camera, ())]

    @property
    def total_bytes(self) -> int:
        """How much is kept."""
        return sum(self._bytes.values())


@dataclass(frozen=True, slots=True)
class RenderStyle:
    """How a clip is painted."""

    colormap: str = "inferno"
    opacity: float = 0.6
    """0: no heat."""


def make_clip(packets: Sequence[bytes], look: RenderStyle, stopped: Callable[[], bool]) -> bytes:
    """Return an MP4 (H.264) of the packets, heat and legend drawn, timed as the frames were; b"" when stopped.

    Raises:
        SinkError, WireError: it cannot be encoded.
    """
    timestamp = [0.0]
    renderer = HeatRenderer(colormap=look.colormap, opacity=look.opacity, clock=lambda: timestamp[0])
    with tempfile.TemporaryDirectory(prefix="recipro-clip-") as folder:
        path = Path(folder) / "clip.mp4"
        with VideoSink(path) as recorder:
            for packet in packets:
                if stopped():
                    return b""
                packed, picture = unpack(packet)
                header = decode_header(packed)
                timestamp[0] = header.sent_at_unix
                plain = as_overlay(
                    header, decode_image(picture), now_unix=header.sent_at_unix, now_monotonic=header.sent_at_unix
                )
                recorder.put(renderer.render(plain.explanation))
        written = next(Path(folder).glob("*.mp4"), path)  # the recorder adds the camera's name
        return _index_first(written)


def _index_first(path: Path) -> bytes:
    """Return a film with its index at its beginning: a player may start before the rest has come."""
    whole = path.with_name("index-first.mp4")
    with av.open(str(path)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as film:
        pictures = source.streams.video[0]
        stream = film.add_stream_from_template(pictures)
        for packet in source.demux(pictures):
            if packet.dts is not None:
                packet.stream = stream
                film.mux(packet)
    return whole.read_bytes()


async def make_clip_async(packets: Sequence[bytes], look: RenderStyle, stopped: Callable[[], bool]) -> bytes:
    """Make a clip while the loop goes on; b"" when stopped, or when it cannot be made, which the log says."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    given_up = threading.Event()

    def settle(made: bytes) -> None:
        if not done.done():
            done.set_result(made)

    def make() -> None:
        made = b""
        try:
            made = make_clip(packets, look, lambda: given_up.is_set() or stopped())
        except (ReciproStreamError, OSError, av.error.FFmpegError) as error:
            log.warning("a clip could not be made: %s", error)
        finally:
            loop.call_soon_threadsafe(settle, made)

    with ThreadWorker("clip", make, given_up.set):
        return await done
