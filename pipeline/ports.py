"""What the rooms promise each other. Read this first.

    Source --Frame--> Pump --[Frame, ...]--> Explainer --Explanation--> Renderer --Overlay--> Sink

Each port is one small protocol; a kind of thing is a protocol, a table in its room, and one file per member. All of
them are called from threads that ``pipeline.workers`` owns, each from one thread at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss

Overflow = Literal["drop-oldest", "wait"]
"""What a full queue does: ``drop-oldest`` keeps the newest (live), ``wait`` keeps them all (files)."""

State = Literal["connecting", "live", "stalled", "waiting", "failed", "ended"]
"""Where a source stands. ``waiting``: until the next attempt to connect; ``failed``: it will not be tried again."""

Cause = Literal[
    "",
    "refused",
    "unauthorised",
    "not found",
    "timeout",
    "codec",
    "stalled",
    "ended",
    "corrupt",
    "unreachable",
    "server",
]
"""What kind of trouble keeps a source from being live, for counters and alarms; empty while there is none."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a source does, as one value that its reader thread replaces and anyone may read."""

    state: State = "connecting"
    reason: str = ""
    """Why it is not live, in words, without credentials."""
    reconnects: int = 0
    """How often it was opened again after it had been lost."""
    corrupt: int = 0
    """How many damaged pictures were dropped."""
    cause: Cause = ""
    """The kind of ``reason``."""


@runtime_checkable
class Source(Protocol):
    """Something that gives frames.

    Entering checks what can be checked at once (the file exists and decodes, the folder holds images) and raises
    ``SourceError``; it does not wait for a network. ``frames`` does the reading, in the pump's thread, and is the only
    method called there; leaving comes after that thread has ended.
    """

    camera: str
    """The camera's name; unique in a run."""
    uri: str
    """Where it reads from, credentials redacted."""

    @property
    def live(self) -> bool:
        """Whether the world goes on when nobody reads: cameras and streams do, files wait.

        It may change until the first frame comes: a web address tells only when it is asked.
        """
        ...

    @property
    def frames_total(self) -> int | None:
        """How many frames it will give, where that is known (for progress); None for a live source."""
        ...

    @property
    def rate(self) -> float | None:
        """Frames per second it says it gives, None where it does not say. Declared rates lie: for pacing."""
        ...

    @property
    def health(self) -> Health:
        """How it does right now."""
        ...

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give frames until the end, or until ``stop`` is set: then within the read timeout.

        A live source reconnects inside and ends only when it cannot be had at all. Raises ``SourceError``: for a file
        that is damaged part-way, after every good frame.
        """
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Explainer(Protocol):
    """Something that tells what a frame shows and why."""

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""
        ...


@dataclass(frozen=True, slots=True)
class MaskingOptions:
    """What is taken out of a frame to see whether the verdict stood on it."""

    area: float = 0.05
    """Share of the grid's cells that are masked, the hottest first; cells without heat stay."""
    fill: Literal["mean", "blur"] = "mean"
    """What takes their place: the input's mean colour, or the input, blurred."""


@runtime_checkable
class MaskedScorer(Protocol):
    """An explainer that can also be asked what a verdict is worth without what it points at."""

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the finding's class's score in the plain network when the frame's hottest area is masked."""
        ...


@runtime_checkable
class PostBatchHook(Protocol):
    """An explainer that has something to do once a batch is on its way and nobody waits for it."""

    def after_batch(self) -> None:
        """Do it; called after each batch, in the thread that explains. Frames that come meanwhile wait."""
        ...


@runtime_checkable
class AsyncExplainer(Protocol):
    """An explainer that need not finish a batch before it begins the next: a device works while the host goes on."""

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Send a batch on its way and return at once; what is returned is called once, in order, and waits for it."""
        ...


@runtime_checkable
class Renderer(Protocol):
    """Something that draws an explanation."""

    def render(self, explanation: Explanation) -> Overlay:
        """Draw it on a new picture of the frame's size; the frame itself is left as it is."""
        ...

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Draw a camera's last frame so that nobody takes it for live."""
        ...


@runtime_checkable
class Sink(Protocol):
    """A door through which overlays leave.

    Entering opens it (binds, creates, shows) and raises ``SinkError`` with the cure. ``put`` may block: each sink has
    a thread and a bounded queue of its own, so a slow one delays nobody. Leaving finishes what it wrote. A sink that
    also has ``on_run_start`` (``pipeline.loop.RunObserver``) is handed the run's counters before the first frame.
    """

    uri: str
    """Where it writes to, as given, credentials redacted."""
    lossless: bool
    """Whether every frame counts (recorder, log) or the newest is enough (window, network)."""

    def needs_image(self, camera: str) -> bool:
        """Say whether a picture of this camera would be looked at now; where all say no, none is rendered."""
        ...

    def put(self, overlay: Overlay) -> None:
        """Deliver one. Raises ``SinkError`` when the door is broken for good; it is then closed and said so."""
        ...

    def idle(self) -> None:
        """Do what is due while nothing comes (keys, late viewers); called every tenth of a second then."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One number that tells how something does, for whoever watches the run: Prometheus, a person."""

    name: str
    """Snake case, with its unit: ``viewers``, ``recorder_bytes``; it is published as ``recipro_<name>``."""
    value: float
    help: str
    """What it counts, in one sentence; the same for every figure of that name."""
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs that tell figures of one name apart; never a credential."""


@runtime_checkable
class HasMetrics(Protocol):
    """A part of the run that has figures of its own: a sink, an explainer, whatever stands between."""

    def metrics(self) -> Sequence[MetricSample]:
        """Return them as they are now. Called from any thread, now and then; never waits."""
        ...


@runtime_checkable
class HasProblems(Protocol):
    """A sink that goes on although something keeps it from doing all it should: a disk is full, a broker is gone."""

    uri: str
    """The sink's."""

    @property
    def problem(self) -> str:
        """What and why, in words and without credentials; empty while all is well. For any thread."""
        ...


@runtime_checkable
class Accounting(Protocol):
    """A sink that does not pass on all that it is given, and says what became of it."""

    uri: str
    """The sink's."""

    @property
    def account(self) -> str:
        """How many it passed on, left out and lost, in words. For any thread."""
        ...


@runtime_checkable
class AcceptsJpeg(Protocol):
    """A sink that sends drawn pictures as JPEG, and takes them as such where the engine has made them."""

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """The quality it sends them at; None: it needs arrays after all."""
        ...


@runtime_checkable
class Preparer(Protocol):
    """A sink that does what a frame costs (compressing it) before ``put``, in a thread of the frame's camera."""

    def prepare(self, overlay: Overlay) -> None:
        """Do it, for a frame that is put next. Called in several threads, of one camera in one thread at a time."""
        ...


class StopRequested(Exception):  # noqa: N818 - not an error: somebody closed the window
    """Raised by a sink's ``put`` when a person asks for the end: q or Esc in the window."""
