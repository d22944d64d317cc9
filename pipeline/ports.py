"""The interfaces between the packages. Read this first.

    Source --Frame--> SourceWorker --[Frame, ...]--> Explainer --Explanation--> Renderer --Overlay--> Sink

Each interface is a base class with a registry in its package and one file per member. What has a default here is
optional: a subclass overrides what it needs. All are called from the threads of ``pipeline.workers`` and the thread of
``Pipeline.run``, each object from one thread at a time where its methods do not say otherwise.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss

if TYPE_CHECKING:
    from pipeline.input_area import InputAreaOptions
    from pipeline.queries import PlaceQueries
    from pipeline.result import RunResult

Overflow = Literal["drop-oldest", "wait"]
"""Behaviour of a full queue: ``drop-oldest`` keeps the newest frames (live), ``wait`` keeps all frames (files)."""

State = Literal["connecting", "live", "stalled", "waiting", "failed", "ended"]
"""State of a source. ``waiting``: for the next attempt to connect; ``failed``: there are no more attempts."""

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
"""Reason that a source is not live, as a category for counters and alerts; empty while it is live."""


@dataclass(frozen=True, slots=True)
class Health:
    """State of a source, as one value that its reader thread replaces and any thread may read."""

    state: State = "connecting"
    reason: str = ""
    """Reason that it is not live, as text without credentials."""
    reconnects: int = 0
    """Number of times that it was opened again after its connection was lost."""
    corrupt: int = 0
    """Number of damaged frames that were left out."""
    missed: int = 0
    """Number of frames of another run that did not arrive, or were replaced by newer ones before they were read."""
    cause: Cause = ""
    """Category of ``reason``."""


class Source(ABC):
    """Gives frames: a camera, a stream, a file.

    Entering checks what can be checked at once (the file exists and decodes, the folder holds images) and raises
    ``SourceError``; it does not wait for a network. ``frames`` reads, in the source worker's thread, and is the only
    method called there; the source is left after that thread has ended.
    """

    camera: str
    """The camera's name; unique in a run."""
    uri: str
    """Address that it reads from, credentials redacted."""
    live: bool = False
    """True if frames are lost while they are not read (cameras, streams), or wait (files).

    May change until the first frame: the kind of a web address is known once the server has replied.
    """
    frames_total: int | None = None
    """Number of frames of a file where it is known, for progress; None for a live source."""
    rate: float | None = None
    """Declared frames per second, None if it is not declared. For pacing only: declared rates may be wrong."""
    overflow: Overflow | None = None
    """Behaviour of a full queue unless the configuration says it; None: by ``live``."""
    health: Health = Health()
    """The current state; the thread of ``frames`` replaces it."""
    input_area: InputAreaOptions | None = None
    """The part of its frames that the network gets; the source's worker sets ``Frame.area`` by it. None: all."""
    min_silence_seconds: float = 0.0
    """A live source has lost its signal after this time without a frame at the earliest (``pipeline.signal_loss``)."""

    @abstractmethod
    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the end, or until ``stop`` is set: then it ends within the read timeout.

        A live source reconnects here and ends only when no attempt can succeed. Raises ``SourceError``: for a file that
        is damaged after some frames, once all good frames were given.
        """

    def take_stale(self) -> Overlay | None:
        """Return a new image of a signal loss that the source shows itself, each once; for another thread."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close what entering or ``frames`` opened."""


def overflow_of(source: Source, configured: Overflow | None) -> Overflow:
    """Return what the full queue of a source does: as configured, or else as its kind does."""
    return configured or ("drop-oldest" if source.live else "wait")


class SourceWrapper(Source):
    """A source whose state is that of ``inner``."""

    inner: Source

    @property
    def live(self) -> bool:  # type: ignore[override]
        """True if the inner source is live."""
        return self.inner.live

    @property
    def frames_total(self) -> int | None:  # type: ignore[override]
        """Number of frames of the inner source."""
        return self.inner.frames_total

    @property
    def rate(self) -> float | None:  # type: ignore[override]
        """Declared frames per second of the inner source."""
        return self.inner.rate

    @property
    def health(self) -> Health:  # type: ignore[override]
        """The current state of the inner source."""
        return self.inner.health


class Discovery(ABC):
    """Finds the sources of a run while it goes on, and removes sources from it.

    The methods are called several times a second in the thread of ``Pipeline.run``, and must not block.
    """

    notify: Callable[[], None] = staticmethod(lambda: None)
    """Set by the pipeline; to be called, from any thread, when a source has appeared or is to be removed."""

    @abstractmethod
    def take(self) -> Sequence[Source]:
        """Return the sources that have appeared since the last call, entered; raise what ends the run."""

    def take_removed(self) -> Sequence[str]:
        """Return the cameras that are to leave the run, each once. Their frames in progress are still delivered."""
        return ()

    def on_removed(self, source: Source) -> None:
        """Receive a source that no thread uses any more; its name may be given to another one from now on."""


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One value of a metric."""

    name: str
    """Snake case, with its unit: ``viewers``, ``recorder_bytes``; it is published as ``recipro_<name>``."""
    value: float
    help: str
    """The measured quantity, in one sentence; the same for all samples of that name."""
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs that distinguish samples of one name; never a credential."""


class Part:
    """A part of a run that may report on itself. Any thread may use these members; they must not block."""

    uri: str = ""
    """Address that a sink writes to; empty for other parts."""

    def metrics(self) -> Sequence[MetricSample]:
        """Return the current values of its own metrics."""
        return ()

    @property
    def problem(self) -> str:
        """Reason why the part does not work fully, without credentials: a full disk, a lost broker; else empty."""
        return ""

    @property
    def account(self) -> str:
        """The numbers of delivered, skipped and lost overlays of a sink that does not deliver all; else empty."""
        return ""


@dataclass(frozen=True, slots=True)
class MaskingOptions:
    """The masked part of a frame in a deletion check, which shows whether the score depends on it."""

    area: float = 0.05
    """Fraction of the grid's cells that are masked, the hottest first; cells without heat are not masked."""
    fill: Literal["mean", "blur"] = "mean"
    """Their replacement: the mean colour of the input, or the blurred input."""


class Explainer(Part, ABC):
    """Gives each frame its classes, their scores and their heat maps."""

    asynchronous: bool = False
    """True if ``submit`` starts a batch before the previous one is finished, because a device works in parallel."""
    can_mask: bool = False
    """True if ``score_when_masked`` is implemented: deletion checks need it."""
    box_mode: Literal["keep", "drop"] | None = None
    """Mode of the heat maps of a detector's boxes; None for a classifier."""

    @abstractmethod
    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Start a batch and return a function that waits for its explanations; it is called once, in order."""
        return partial(self.explain, frames)

    def after_batch(self) -> None:
        """Do what is due after a batch, in the thread that explains; the next frames wait for it."""

    def idle(self) -> None:
        """Do what waits while no frame comes; called several times a second, not for asynchronous explainers."""

    def forget_camera(self, camera: str) -> None:
        """Release what is held for a camera that left the run; called in the thread that submits."""

    def accept(self, queries: PlaceQueries) -> None:
        """Answer questions from now on, in the thread that explains; explainers without boxes leave them refused."""

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the score of the finding's class in the plain network with the frame's hottest area masked."""
        raise NotImplementedError


class ExplainerWrapper(Explainer):
    """An explainer that adds to the explanations of another one; ``submit`` says what."""

    def __init__(self, explainer: Explainer) -> None:
        """Set the other explainer."""
        self._explainer, self.asynchronous = explainer, explainer.asynchronous

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch."""
        return self.submit(frames)()

    @abstractmethod
    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Start a batch and return a function that waits for its explanations."""

    def after_batch(self) -> None:
        """Do what the explainer has to do after a batch."""
        self._explainer.after_batch()

    def idle(self) -> None:
        """Do what the explainer has to do while no frame comes."""
        self._explainer.idle()

    def accept(self, queries: PlaceQueries) -> None:
        """Pass questions to the explainer."""
        self._explainer.accept(queries)

    def forget_camera(self, camera: str) -> None:
        """Release what the explainer holds for a camera."""
        self._explainer.forget_camera(camera)

    def metrics(self) -> Sequence[MetricSample]:
        """Return the metrics of the explainer."""
        return self._explainer.metrics()


class Renderer(ABC):
    """Draws explanations over their frames."""

    @abstractmethod
    def render(self, explanation: Explanation) -> Overlay:
        """Return an overlay with a new image of the frame's size; the frame is not changed."""

    @abstractmethod
    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Return a camera's last frame, drawn so that it does not look live."""

    def forget_camera(self, camera: str) -> None:
        """Release what is held for a camera that left the run; none of its frames is being drawn."""


class Sink(Part, ABC):
    """Publishes overlays: a recorder, a log, a window, a web page, a socket.

    Entering opens it (binds, creates, shows) and raises ``SinkError`` with the remedy. ``put`` may block: each sink has
    a thread and a bounded queue of its own, so that a slow sink delays no other. Leaving completes what it wrote.
    """

    uri: str
    """Address that it writes to, as configured, credentials redacted."""
    lossless: bool = False
    """True if every frame counts (recorder, log) or the newest frame is enough (window, network)."""
    reports_signal_loss: bool = False
    """True if it receives the signal losses of cameras also where it needs no image."""

    @abstractmethod
    def put(self, overlay: Overlay) -> None:
        """Deliver an overlay. Raises ``FrameError`` for this frame alone, ``SinkError`` if the sink has failed."""

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether a drawn image of this camera is needed now; without any such sink no image is drawn."""
        return False

    def idle(self) -> None:
        """Handle keys and new viewers; called every tenth of a second while no overlay comes."""

    def prepare(self, overlay: Overlay) -> None:
        """Do a costly step (compression) before ``put``, in the thread of the frame's camera.

        Called in several threads; for one camera in one thread at a time.
        """

    def forget_camera(self, camera: str) -> None:
        """Complete what was written for a camera that left the run, and release what is held for it.

        Called in the thread of ``put``, after the camera's last overlay. A camera of this name may come again.
        """

    def on_run_start(self, result: RunResult) -> None:
        """Receive the state of the run, once, before the first frame. It keeps changing; any thread may read it."""

    def on_run_end(self) -> None:
        """Wait, for a few seconds at most, until ``account`` is final; called once, after the last frame."""

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """JPEG quality, 1 to 100, at which the engine may encode images for this sink; None: the sink needs arrays."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Complete and close what it wrote."""


class StopRequested(Exception):  # noqa: N818 - not an error: the window was closed
    """Raised by a sink's ``put`` or ``idle`` when the user asks for the end: q or Esc in the window."""
