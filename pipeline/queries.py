"""Queries of viewers to the running network: the heat map of a class at a place of a frame, or in the whole frame.

A detector answers queries about places, a classifier queries about whole frames. Any thread may ask; the thread that
runs the network answers one query between two batches. Frames are stored for a short time, so that the answer is about
the frame that the viewer sees. Nothing in this module blocks.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pipeline.errors import EngineError, FrameGoneError
from pipeline.frames import Box, Finding, Frame

MapMode = Literal["keep", "drop"]

MAX_WAITING: Final = 16
"""Maximum number of queries that wait for the engine."""
RECENT_BYTES: Final = 128 << 20
"""Maximum memory of the recent frames of all cameras."""
RECENT_SECONDS: Final = 5.0
MAX_HELD: Final = 16
"""Maximum number of held frames; a further frame replaces the frame that was held first."""
HELD_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class PlaceQuery:
    """Asks for the evidence of a class at a place of a frame."""

    camera: str
    index: int
    """Index of the frame."""
    box: Box
    """The place in frame pixels: a box of the frame, or any other rectangle."""
    label: str
    """The class."""
    modes: tuple[MapMode, ...] = ("keep", "drop")
    """The requested maps; only ``drop`` fills ``supporting`` and ``suppressing`` of the answer."""


@dataclass(frozen=True, slots=True)
class Influence:
    """Effect of a region of the image on a score."""

    box: Box
    """The region in pixels of the frame."""
    score_without: float
    """The score with this region masked."""


@dataclass(frozen=True, eq=False)
class PlaceAnswer:
    """The explanation of one place and class."""

    score: float
    """The score of the class at the best anchor, 0 to 1."""
    threshold: float
    """The lowest score of a detection (``engine.boxes.min_score``)."""
    overlap: float
    """IoU of the anchor's box with the place."""
    stride: int
    """Pixels of the network's input per cell of the anchor's pyramid level; 0 for a two-stage detector."""
    maps: tuple[Finding, ...]
    """The anchor's box with its map, once for each mode of the query."""
    supporting: tuple[Influence, ...] = ()
    """The regions that raise the score: it is lower when they are masked. The strongest first."""
    suppressing: tuple[Influence, ...] = ()
    """The regions that lower the score: it is higher when they are masked. The strongest first."""


@dataclass(frozen=True, slots=True)
class ClassQuery:
    """Asks a classifier for the heat map of a class in the newest frame of a camera."""

    camera: str
    label: str
    """The class."""


@dataclass(frozen=True, eq=False)
class ClassAnswer:
    """The heat map of a class. It does not change the verdict on the frame."""

    finding: Finding
    frame: Frame
    """The explained frame."""


Query: TypeAlias = PlaceQuery | ClassQuery
Answer: TypeAlias = PlaceAnswer | ClassAnswer
QueryKind = Literal["places", "classes"]


class RecentFrames:
    """The newest frames of all cameras within limits of memory and age, and frames kept for a viewer (``hold``)."""

    def __init__(self, max_bytes: int = RECENT_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty store of at most ``max_bytes`` bytes."""
        self._max_bytes, self._clock = max_bytes, clock
        # Guards all frames: the engine adds and finds them, viewers hold them.
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, Frame]] = deque()
        self._bytes = 0
        self._held: OrderedDict[Hashable, tuple[float, Frame]] = OrderedDict()

    def add(self, frame: Frame) -> None:
        """Store a frame, and remove the oldest frames while a limit is exceeded."""
        with self._lock:
            now = self._clock()
            self._recent.append((now, frame))
            self._bytes += frame.pixels.nbytes
            while self._recent and (self._bytes > self._max_bytes or now - self._recent[0][0] > RECENT_SECONDS):
                self._bytes -= self._recent.popleft()[1].pixels.nbytes
            self._expire(now)

    def clear(self) -> None:
        """Remove all frames."""
        with self._lock:
            self._recent.clear()
            self._held.clear()
            self._bytes = 0

    def find(self, camera: str, index: int) -> Frame:
        """Return the frame of a camera with an index.

        Raises:
            FrameGoneError: the frame is no longer stored.
        """
        with self._lock:
            for _, frame in (*self._recent, *self._held.values()):
                if frame.index == index and frame.camera == camera:
                    return frame
        raise FrameGoneError(f"frame {index} of {camera}: is not kept any more; ask about a newer frame")

    def hold(self, viewer: Hashable, camera: str, index: int) -> None:
        """Keep a frame for a viewer until the viewer releases it or holds another frame, for ``HELD_SECONDS`` at most.

        Raises:
            FrameGoneError: the frame is no longer stored.
        """
        frame = self.find(camera, index)
        with self._lock:
            self._held.pop(viewer, None)
            self._held[viewer] = (self._clock(), frame)
            if len(self._held) > MAX_HELD:
                self._held.popitem(last=False)

    def release(self, viewer: Hashable) -> None:
        """Release the frame that a viewer holds."""
        with self._lock:
            self._held.pop(viewer, None)

    def _expire(self, now: float) -> None:
        for viewer, (since, _) in list(self._held.items()):
            if now - since > HELD_SECONDS:
                del self._held[viewer]


class PlaceQueries:
    """A queue of queries for the thread that runs the network. Thread-safe."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        """Create an empty queue, which refuses queries until ``open``."""
        self._max_waiting = max_waiting
        # Guards the waiting questions and the number of viewers.
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Query, Future[Answer]]] = deque()
        self._viewers = 0
        self._refusal = (
            "no network answers questions yet: the run is still building it, or has none that can; ask again later"
        )
        self.labels: tuple[str, ...] = ()
        """The class names; empty until ``open``."""
        self.kind: QueryKind = "places"
        """The kind of queries that the network answers; valid after ``open``."""
        self.frames = RecentFrames()

    @property
    def is_viewed(self) -> bool:
        """True while at least one block of ``viewing`` is active."""
        return self._viewers > 0

    def open(self, labels: tuple[str, ...], kind: QueryKind = "places") -> None:
        """Accept queries of a kind about these classes."""
        self.labels, self.kind, self._refusal = labels, kind, ""

    def close(self) -> None:
        """Refuse all queries, because the run has ended."""
        with self._lock:
            self._refusal = "the run has ended"
            waiting = list(self._waiting)
            self._waiting.clear()
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(self._refusal))
        self.frames.clear()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Return a context manager; frames are stored while at least one such block is active."""
        with self._lock:
            self._viewers += 1
        try:
            yield
        finally:
            with self._lock:
                self._viewers -= 1
                if not self._viewers:
                    self.frames.clear()

    def ask(self, query: Query) -> Future[Answer]:
        """Queue a query and return the future of its answer; cancel it when the answer is not needed any more.

        Raises:
            EngineError: the run does not answer this kind of query, or too many queries wait.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._refusal:
                raise EngineError(self._refusal)
            if isinstance(query, ClassQuery) != (self.kind == "classes"):
                subject = "a place of a frame" if self.kind == "places" else "a class"
                raise EngineError(f"the run's network answers only questions about {subject}")
            if len(self._waiting) >= self._max_waiting:
                raise EngineError(f"{len(self._waiting)} questions wait for the network; ask again later")
            self._waiting.append((query, future))
        return future

    def remember(self, frame: Frame) -> None:
        """Store an explained frame if a block of ``viewing`` is active."""
        if self._viewers:
            self.frames.add(frame)

    def take(self) -> tuple[Query, Future[Answer]] | None:
        """Return the next query that was not cancelled, and its future, which is set to running; None if none waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                query, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                return query, future
