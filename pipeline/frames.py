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

from pipeline.device_image import DeviceImage

if TYPE_CHECKING:
    from pipeline.guards.state import GuardState
    from pipeline.input_area import InputArea
    from pipeline.passages.passage import Passage, Place
    from pipeline.trial import Trial

Image = npt.NDArray[np.uint8]
"""An RGB image, uint8, (height, width, 3)."""

Pixels = Image | DeviceImage
"""An RGB image, or an image in device memory that becomes one when it is downloaded."""

Heat = npt.NDArray[np.float32]
"""A heat map on the layer's grid, float32 in [0, 1], (rows, columns)."""


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view of ``array``; the array itself if it is read-only already."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _on_host(pixels: Pixels) -> Image:
    """Return an image in host memory; downloads it at the first call."""
    return pixels.download() if isinstance(pixels, DeviceImage) else pixels


class Box(NamedTuple):
    """A rectangle in frame pixels; ``left`` and ``top`` belong to it, ``right`` and ``bottom`` do not."""

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
        """Return the intersection over union with another box, 0 to 1; 0 if a box has no area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(width, 0.0) * max(height, 0.0)
        union = self.width * self.height + other.width * other.height - shared
        return shared / union if shared > 0.0 and union > 0.0 else 0.0

    def holds(self, x: float, y: float) -> bool:
        """Return whether the point (x, y) lies inside the rectangle."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The true class and boxes of a frame, from the simulated line or a labelled data set."""

    label: str
    """The true class."""
    boxes: tuple[Box, ...] = ()
    """Bounding boxes of the object, in frame pixels; empty if they are not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image from a camera."""

    pixels: Pixels
    """The image: uint8 RGB, (height, width, 3), read-only; or an image in device memory, which ``image`` downloads."""
    camera: str
    """The camera's name: the topic on the wire, never a URI with credentials."""
    index: int
    """Number of frames of the camera before this one, dropped and skipped frames included."""
    captured_at: float
    """``time.monotonic()`` seconds at which the image was decoded."""
    pts_seconds: float | None = None
    """Presentation time stamp of the stream, shifted to start near 0; None if the stream has none."""
    truth: GroundTruth | None = None
    """Ground truth of the frame; None for a real camera."""
    source_name: str = ""
    """Path of the image file or the video, relative to the configured source; empty for a live source."""
    stamp_ns: int | None = None
    """Unix time of the capture in nanoseconds by the camera's clock (``header.stamp`` in a bag); None if not known."""
    area: InputArea | None = None
    """The part of the image that the network gets; None for the whole image."""
    epoch: int | None = None
    """Number of the lease under which a fleet's worker read the camera; None outside a fleet."""

    def __post_init__(self) -> None:
        image = self.pixels
        if isinstance(image, DeviceImage):
            return
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            message = f"image: {image.dtype} {image.shape}; should be uint8 RGB of shape (height, width, 3)"
            raise ValueError(message)
        object.__setattr__(self, "pixels", read_only(image))

    @property
    def image(self) -> Image:
        """The image in host memory: uint8 RGB, (height, width, 3), read-only."""
        return _on_host(self.pixels)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    def age_seconds(self, now: float | None = None) -> float:
        """Return the seconds from decoding to ``now`` (monotonic; None = the current time)."""
        return (time.monotonic() if now is None else now) - self.captured_at


@dataclass(frozen=True, slots=True)
class HeatmapStats:
    """Statistics of a finding's heat map; ``pipeline.guards.heatmap_stats`` has the formulas.

    The evidence of a cell is its heat above the median of the map; otherwise the faint heat of a thousand irrelevant
    cells of a fine grid would outweigh a dozen relevant cells. The statistics of a flat map are None.
    """

    focus_area: float | None
    """The smallest fraction of the grid's cells that together have half of the evidence, 0 to 1."""
    entropy: float | None
    """Entropy of the evidence over the cells, as a fraction of its maximum: 0 if all is in one cell, 1 if all is
    even."""
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
    """Result of a deletion check: the score of a class with and without the hottest area of a frame."""

    label: str
    """The checked class."""
    score: float
    """Score of the class in the unchanged frame."""
    masked_score: float
    """Score of the class in the same frame with the hottest area masked."""
    index: int
    """Index of the checked frame."""
    age_seconds: float
    """Time from the checked frame to the frame that carries this result."""

    @property
    def drop(self) -> float:
        """Decrease of the score when the hottest area is masked, -1 to 1."""
        return self.score - self.masked_score


@dataclass(frozen=True, slots=True, eq=False)
class BoxMap:
    """Describes how the heat map of a detector's box was computed.

    The input is divided into square cells. The box's score is computed once for each cell: with ``keep`` all features
    outside the cell are set to zero, with ``drop`` the features in the cell (``docs/detectors.md``).
    """

    mode: Literal["keep", "drop"]
    """``keep``: the heat is the min-max normalised logarithm of the score. ``drop``: the heat is the decrease of the
    score without the cell, divided by ``scale``."""
    cut: str
    """The masked feature maps: ``complete`` for all pyramid levels, ``level`` for the box's own level only."""
    region: Box
    """The rectangle of the frame, in pixels, that the grid of the heat map covers."""
    scale: float
    """The value that a heat of 1 stands for. ``drop``: a decrease of the score; ``keep``: the range of log-scores."""
    against: Heat | None = None
    """``drop`` only: the increase of the score without the cell, divided by ``scale``: evidence against the box."""
    lowest_score: float | None = None
    """``drop`` only: the lowest score without one cell."""
    index: int = 0
    """Index of the frame that the map explains; an earlier one of the track if there was no time for this one."""
    age_seconds: float = 0.0
    """Time from the frame that the map explains to the frame of the finding."""

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
    """Name of the class."""
    score: float
    """Score of the class in the plain network, in [0, 1]: softmax for a classifier, the ranking score of a detector."""
    heat: Heat
    """Heat map: float32 in [0, 1], (rows, columns), read-only, on the grid of the layer or of ``box_map``. All zero if
    the score matrix is flat; ``NO_HEAT`` for a box without a map."""
    class_index: int = -1
    """Index of the class in the network's output; -1 if it is not known."""
    box: Box | None = None
    """A detector's box; None for a classifier."""
    heatmap_stats: HeatmapStats | None = None
    """Statistics of the heat map; None if they were not computed."""
    track: int | None = None
    """Number of the tracked object, unique for its camera; None without tracking."""
    box_map: BoxMap | None = None
    """Describes how ``heat`` was computed for a box; None for a classifier, and for a box without a map."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heat", read_only(self.heat))

    def peak(self, region: Box) -> tuple[float, float] | None:
        """Return the centre (x, y) of the hottest cell in frame pixels; None if the heat is all zero.

        Args:
            region: the rectangle of the frame that the grid covers, in pixels: ``Explanation.region_of``.
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
    """Return the finding with the highest score, the first of equal scores; None without findings."""
    return max(findings, key=lambda finding: finding.score, default=None)


class ClassScore(NamedTuple):
    """A class name and its score in [0, 1]."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A frame with its explained classes."""

    frame: Frame
    findings: tuple[Finding, ...]
    """Classifier: one finding per explained class, always including the top class; the heat map of the first is drawn.
    Detector: one finding per box, the highest score first; empty without boxes."""
    method: str
    """The explanation method and its kernel: ``recipro-cam/point``."""
    layer: str
    """The explained layer's qualified name in the network."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: ``queue``, ``preprocess``, ``explain``; all frames of a batch have the times of the batch."""
    model: str = ""
    """The network's name."""
    heat_region: Box | None = None
    """The rectangle of the frame, in pixels, that the heat grid covers: the whole frame for ``stretch``, a part of the
    frame for ``crop``, more than the frame for ``letterbox``. None is replaced by the whole frame."""
    guards: tuple[GuardState, ...] = ()
    """State of the camera's guards."""
    regions: tuple[Region, ...] = ()
    """The regions of the camera's guards that are drawn."""
    deletion: DeletionCheck | None = None
    """The camera's last deletion check; None if there is none, or it is too old."""
    passages: tuple[Passage, ...] = ()
    """Parts and crossings that were finished at this frame, in the order of their ``sequence``."""
    recent_passages: tuple[Passage, ...] = ()
    """The last passages of the camera, ``passages`` included, the newest last; ``PassageCursor`` reads them."""
    places: tuple[Place, ...] = ()
    """The camera's zones and counting lines, with their counts after this frame."""
    next_classes: tuple[ClassScore, ...] = ()
    """The classes of a classifier with the next highest scores, which are not explained; the highest first."""
    trial: Trial | None = None
    """Findings of a second network on trial in the same frame; they do not change the verdict."""

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
        """The finding with the highest score, the first of equal scores; None without findings."""
        return top_scoring(self.findings)

    @property
    def firing(self) -> tuple[GuardState, ...]:
        """The guards that fire at this frame."""
        return tuple(guard for guard in self.guards if guard.firing)


@dataclass(frozen=True, slots=True)
class SignalLoss:
    """State of a camera that delivers no frames, and the reason."""

    seconds: float
    """Time since the camera's last frame was decoded."""
    state: str = ""
    """State of the source (``pipeline.ports.State``); empty if it is not known."""
    reason: str = ""
    """Reason as text, without credentials; empty if it is not known."""


class Jpeg(NamedTuple):
    """An image as JPEG."""

    payload: bytes
    quality: int
    """The requested quality, 1 to 100."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """An explanation and its drawn image."""

    pixels: Pixels
    """uint8 RGB of the frame's size, read-only; the ``pixels`` of the frame, without drawings, if no sink needs
    them."""
    explanation: Explanation
    signal_loss: SignalLoss | None = None
    """Set while the camera delivers no frames: the explanation is its last, and the image is marked as old."""
    jpeg: Jpeg | None = None
    """The drawn image, if the engine drew it; ``image`` is then not drawn, unless a sink needs a drawn array."""

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, DeviceImage):
            object.__setattr__(self, "pixels", read_only(self.pixels))

    @property
    def image(self) -> Image:
        """The image in host memory: uint8 RGB of the frame's size, read-only."""
        return _on_host(self.pixels)

    @property
    def is_drawn(self) -> bool:
        """True if ``pixels`` is not the plain image of the frame."""
        return self.pixels is not self.explanation.frame.pixels
