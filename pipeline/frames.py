"""The data that flows through the pipeline: Frame, Finding, Explanation, Overlay.

All are frozen and their arrays are read-only, so that any number of threads and sinks may share an object.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pipeline.guards.state import GuardState
    from pipeline.input_area import InputArea
    from pipeline.passages.passage import Passage, Place
    from pipeline.trial import Trial

Image = npt.NDArray[np.uint8]
"""An RGB image, uint8, (height, width, 3)."""

Heat = npt.NDArray[np.float32]
"""A heat map on the layer's grid, float32 in [0, 1], (rows, columns)."""


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``array`` read-only: a view where the array is writeable, else the array itself."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


class Box(NamedTuple):
    """A rectangle in frame pixels: ``left`` and ``top`` inside, ``right`` and ``bottom`` just outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Height in pixels."""
        return self.bottom - self.top

    def iou(self, other: Box) -> float:
        """Return the intersection over union with another box; 0 where either has no area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(width, 0.0) * max(height, 0.0)
        union = self.width * self.height + other.width * other.height - shared
        return shared / union if shared > 0.0 and union > 0.0 else 0.0

    def holds(self, x: float, y: float) -> bool:
        """Return whether the point (x, y) lies inside."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Ground truth of a frame: from the simulated line or a labelled data set."""

    label: str
    """The true class."""
    boxes: tuple[Box, ...] = ()
    """Bounding box of the object, in frame pixels; empty without a box."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image from a camera."""

    image: Image
    """uint8 RGB, (height, width, 3), read-only."""
    camera: str
    """The camera's name: the topic on the wire, never a URI with credentials."""
    index: int
    """Number of frames that the camera gave before this one; a gap counts frames that were dropped or skipped."""
    captured_at: float
    """``time.monotonic()`` seconds at which the image was decoded."""
    pts_seconds: float | None = None
    """The stream's own clock, rebased to start near 0; None if the stream has none."""
    truth: GroundTruth | None = None
    """Ground truth of the frame; None for a real camera."""
    source_name: str = ""
    """Path of the photo or, with ``pts_seconds``, of the video, relative to the configured source; empty if live."""
    stamp_ns: int | None = None
    """Unix time of the capture in nanoseconds by the camera's clock (a bag's header stamp); None if it is not given."""
    area: InputArea | None = None
    """The part that the network gets; None: the whole image."""
    epoch: int | None = None
    """Number of the lease under which a fleet's worker read the camera; None outside a fleet."""

    def __post_init__(self) -> None:
        image = self.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            message = f"a frame's image is uint8 RGB (height, width, 3); got {image.dtype} {image.shape}"
            raise ValueError(message)
        object.__setattr__(self, "image", read_only(image))

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.image.shape[1])

    def age_seconds(self, now: float | None = None) -> float:
        """Return the seconds from decoding to ``now`` (monotonic; None = the current time)."""
        return (time.monotonic() if now is None else now) - self.captured_at


@dataclass(frozen=True, slots=True)
class HeatmapStats:
    """Statistics of a finding's heat map; ``pipeline.guards.heatmap_stats`` has the formulas.

    The evidence of a cell is its heat above the median of the map: on a fine grid the faint heat of a thousand
    irrelevant cells would outweigh a dozen relevant ones. None: the map is flat.
    """

    focus_area: float | None
    """The smallest fraction of the grid's cells that together hold half of the evidence."""
    entropy: float | None
    """Entropy of the evidence over the cells, as a fraction of its maximum: 0 in one cell, 1 spread evenly."""
    centre: tuple[float, float] | None
    """Centroid (x, y) of the evidence in frame pixels."""
    stability: float | None
    """Pearson correlation with the map of the same class in the camera's previous frame, -1 to 1; None without such a
    map."""
    heat_inside: Mapping[str, float] = field(default_factory=dict)
    """Fraction of the evidence in each of the camera's regions; empty if the map is flat."""


@dataclass(frozen=True, slots=True)
class Region:
    """A named part of a camera's image."""

    name: str
    polygon: tuple[tuple[float, float], ...]
    """Corners (x, y) in frame pixels."""


@dataclass(frozen=True, slots=True)
class DeletionCheck:
    """Result of a deletion check: a score with the hottest area of its frame masked."""

    label: str
    """The checked class."""
    score: float
    """Its score in the unchanged frame."""
    masked_score: float
    """Its score in the same frame with the hottest area masked."""
    index: int
    """Index of the checked frame."""
    age_seconds: float
    """Time from the checked frame to the frame that carries this result."""

    @property
    def drop(self) -> float:
        """Difference of the two scores, -1 to 1."""
        return self.score - self.masked_score


@dataclass(frozen=True, slots=True, eq=False)
class BoxMap:
    """Describes how the heat map of a detector's box was made, and what it refers to.

    The input is divided into square cells, and the box's score is computed once for each cell: ``keep`` with only this
    cell of the features and zeros elsewhere, ``drop`` with all features but this cell (``docs/detectors.md``).
    """

    mode: Literal["keep", "drop"]
    """``keep``: the heat is the min-max normalised logarithm of the score. ``drop``: the heat is the decrease of the
    score without the cell, divided by ``scale``."""
    cut: str
    """The masked feature maps: ``complete``, or ``level`` for the box's own pyramid level alone."""
    region: Box
    """The rectangle of the frame, in pixels, that the grid of the heat map covers."""
    scale: float
    """Meaning of a heat of 1. ``drop``: a decrease of the score; ``keep``: the range of the log-scores."""
    against: Heat | None = None
    """``drop`` only: the increase of the score without the cell, divided by ``scale``: evidence against the box."""
    lowest_score: float | None = None
    """``drop`` only: the lowest score without one cell."""
    index: int = 0
    """Index of the frame that was explained: an earlier frame of the same track where there was no time for this."""
    age_seconds: float = 0.0
    """Time from that frame to this one."""

    def __post_init__(self) -> None:
        if self.against is not None:
            object.__setattr__(self, "against", read_only(self.against))


NO_HEAT: Final[Heat] = np.zeros((1, 1), np.float32)
"""The heat of a box that has no map: one cell, zero."""
NO_HEAT.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One explained class of one frame, or one box of a detector: label, score and heat map."""

    label: str
    """The class's name."""
    score: float
    """Its score in the plain network, in [0, 1]: softmax for a classifier; for a detector, what it ranks boxes by."""
    heat: Heat
    """Heat map: float32 in [0, 1], read-only, on the layer's grid or that of ``box_map``; all zero where the score
    matrix is flat, ``NO_HEAT`` for a box without a map."""
    class_index: int = -1
    """Index of the class in the network's output; -1 where there is none."""
    box: Box | None = None
    """A detector's box; None for a classifier."""
    heatmap_stats: HeatmapStats | None = None
    """Statistics of the heat map; None if they were not computed."""
    track: int | None = None
    """Number of the followed object, unique in its camera; None without tracking."""
    box_map: BoxMap | None = None
    """Describes how the heat map of ``box`` was made; None for a classifier, and for a box that has no map yet."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heat", read_only(self.heat))

    def peak(self, region: Box) -> tuple[float, float] | None:
        """Return the centre (x, y) of the hottest cell in frame pixels, or None when the heat is all zero.

        ``region`` is the explanation's ``heat_region``: the rectangle of the frame that the grid covers.
        """
        if not self.heat.any():
            return None
        rows, columns = self.heat.shape
        row, column = divmod(int(self.heat.argmax()), columns)
        return (
            region.left + (column + 0.5) * region.width / columns,
            region.top + (row + 0.5) * region.height / rows,
        )


def top_scoring(findings: Sequence[Finding]) -> Finding | None:
    """Return the finding with the highest score (the first of equal ones), or None without findings."""
    return max(findings, key=lambda finding: finding.score, default=None)


class ClassScore(NamedTuple):
    """A class with its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A frame with its explained classes."""

    frame: Frame
    findings: tuple[Finding, ...]
    """One per explained class; the heat map of the first is drawn. Never empty for a classifier, whose top class is
    always among them (``top_scoring``). For a detector one per box, the highest score first; empty without boxes."""
    method: str
    """The explanation method and its kernel: ``recipro-cam/point``."""
    layer: str
    """The explained layer's qualified name in the network."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: ``queue``, ``preprocess``, ``explain`` (a batch's are shared by its frames)."""
    model: str = ""
    """The network's name."""
    heat_region: Box | None = None
    """The rectangle of the frame, in pixels, that the heat grid covers: the whole frame for ``stretch``, a part of it
    for ``crop``, more than the frame for ``letterbox``. Never None after construction."""
    guards: tuple[GuardState, ...] = ()
    """State of the camera's guards."""
    regions: tuple[Region, ...] = ()
    """The regions of the camera's guards that are drawn."""
    deletion: DeletionCheck | None = None
    """The camera's last deletion check, up to its maximum age."""
    passages: tuple[Passage, ...] = ()
    """Parts and crossings that were finished at this frame, in the order of their ``sequence``."""
    recent_passages: tuple[Passage, ...] = ()
    """The last passages of the camera, the newest last, those of ``passages`` included, for a ``PassageCursor``."""
    places: tuple[Place, ...] = ()
    """The camera's zones and counting lines, with their counts after this frame."""
    next_classes: tuple[ClassScore, ...] = ()
    """A classifier's next classes that are not explained, the highest score first: with the findings about three."""
    trial: Trial | None = None
    """Findings of a second network on trial in the same frame; they decide nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "timings", MappingProxyType(dict(self.timings)))
        if self.heat_region is None:
            object.__setattr__(self, "heat_region", Box(0.0, 0.0, float(self.frame.width), float(self.frame.height)))

    @property
    def region(self) -> Box:
        """The rectangle of the frame that the heat grid covers, in pixels."""
        assert self.heat_region is not None  # set in __post_init__  # noqa: S101
        return self.heat_region

    def region_of(self, finding: Finding) -> Box:
        """Return the rectangle of the frame that the heat grid of a finding covers, in pixels."""
        return self.region if finding.box_map is None else finding.box_map.region

    @property
    def first(self) -> Finding:
        """The first finding."""
        return self.findings[0]

    @property
    def top_scoring(self) -> Finding | None:
        """The finding with the highest score, the first of equals; None if there is none."""
        return top_scoring(self.findings)

    @property
    def firing(self) -> tuple[GuardState, ...]:
        """The guards that fire."""
        return tuple(guard for guard in self.guards if guard.firing)


@dataclass(frozen=True, slots=True)
class SignalLoss:
    """State of a camera that gives no frames, with the reason."""

    seconds: float
    """Time since its last frame was decoded."""
    state: str = ""
    """State of the source (``pipeline.ports.State``); empty if it is not known."""
    reason: str = ""
    """As text, without credentials."""


@dataclass(frozen=True, slots=True, eq=False)
class ImagePatch:
    """A drawn part to blend into an image: each pixel becomes ``pixel * keep / 255 + add``."""

    top: int
    """First row of the image that it covers."""
    left: int
    """First column."""
    tile: npt.NDArray[np.uint8]
    """uint8, (rows, columns, 4): red, green and blue to add, and ``keep``, 0 to 255."""
    reusable: bool = False
    """True if the same object comes again with later frames, so that its tile may stay on a device."""


class Jpeg(NamedTuple):
    """An image as JPEG."""

    payload: bytes
    quality: int
    """The requested quality, 1 to 100."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """An explanation and its drawn image."""

    image: Image
    """uint8 RGB of the frame's size, read-only; the frame's own image where no sink needed a drawn one."""
    explanation: Explanation
    signal_loss: SignalLoss | None = None
    """Set while the camera gives no frames: the explanation is its last, and the image must not look live."""
    jpeg: Jpeg | None = None
    """The image as drawn by the engine; ``image`` then is the frame's own, unless a sink needs the drawn one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", read_only(self.image))
