"""The nouns that flow: Frame, Finding, Explanation, Overlay.

All are frozen and their arrays read-only, so any number of threads and sinks may hold the same one. Knows nothing
about cameras, networks or sockets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""An RGB picture, uint8, (height, width, 3)."""

Heat = npt.NDArray[np.float32]
"""A heat map on the layer's grid, float32 in [0, 1], (rows, columns)."""


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``array`` closed for writing: a view where its owner may still write, itself otherwise."""
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

    def holds(self, x: float, y: float) -> bool:
        """Say whether the point (x, y) lies inside."""
        return self.left <= x < self.right and self.top <= y < self.bottom


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What a frame is known to show, when its maker knows: the simulated line, a labelled data set."""

    label: str
    """The true class."""
    boxes: tuple[Box, ...] = ()
    """Where the evidence lies, in frame pixels; empty where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture a camera gave."""

    image: Image
    """uint8 RGB, (height, width, 3), read-only."""
    camera: str
    """The camera's name: the topic on the wire, never a URI with credentials."""
    index: int
    """How many pictures the camera had given before this one: a gap is the number of dropped frames."""
    captured_at: float
    """``time.monotonic()`` seconds at which the picture had been decoded."""
    pts_seconds: float | None = None
    """The stream's own clock, rebased to start near 0; None where the stream has none."""
    truth: GroundTruth | None = None
    """What the frame is known to show; None for a real camera."""
    source_name: str = ""
    """The file the frame was read from, as a path relative to what the user named; empty for a live source. Together
    with ``pts_seconds`` it identifies a frame of a video file, by itself a photo."""

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
        """Return the seconds from decode to ``now`` (monotonic; this moment where None)."""
        return (time.monotonic() if now is None else now) - self.captured_at


@dataclass(frozen=True, slots=True)
class HeatmapStats:
    """Where a finding's heat lies, as numbers; ``pipeline.guards.heatmap_stats`` holds the formulas.

    The evidence of a cell is its heat beyond the map's median: on a fine grid the faint heat of a thousand cells that
    say nothing would outweigh the dozen that do. None: the map is flat, so nothing stands out.
    """

    focus_area: float | None
    """The smallest share of the grid's cells that together hold half of the evidence."""
    entropy: float | None
    """Of the evidence over the cells, as a share of the greatest there can be: 0 all in one cell, 1 spread evenly."""
    centre: tuple[float, float] | None
    """The evidence's centre of gravity (x, y) in frame pixels."""
    stability: float | None
    """Pearson correlation with the same class's map in the camera's previous frame, -1 to 1; None where there is
    none."""
    heat_inside: Mapping[str, float] = field(default_factory=dict)
    """Share of the evidence in each of the camera's regions; empty where nothing stands out."""


@dataclass(frozen=True, slots=True)
class Region:
    """A named part of a camera's picture."""

    name: str
    polygon: tuple[tuple[float, float], ...]
    """Corners (x, y) in frame pixels."""


@dataclass(frozen=True, slots=True)
class DeletionCheck:
    """What happened to a score when the hottest area of its frame was masked."""

    label: str
    """The class that was looked at."""
    score: float
    """Its score in the frame as it was."""
    masked_score: float
    """Its score in the same frame without the hottest area."""
    index: int
    """Which frame that was."""
    age_seconds: float
    """How long before this frame that one was taken."""

    @property
    def drop(self) -> float:
        """How much of the score went with the hottest area, -1 to 1."""
        return self.score - self.masked_score


@dataclass(frozen=True, slots=True)
class GuardState:
    """How one guard stands after a frame."""

    name: str
    firing: bool
    seconds: float
    """How long it has been firing, by the frames' own clock; 0 where it is not."""
    message: str
    """Where it fires: the rule, and what was seen instead, in words."""
    fire_count: int
    """How often it has begun to fire since the run began."""


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One explained class of one frame: what, how sure, and why."""

    label: str
    """The class's name."""
    score: float
    """Its softmax score in the plain network, in [0, 1]."""
    heat: Heat
    """Where the evidence lies: float32 in [0, 1] on the layer's grid, read-only; all zero when no cell stands out."""
    class_index: int = -1
    """The class's place in the network's output; -1 where there is none."""
    box: Box | None = None
    """A detector's box; None for a classifier."""
    heatmap_stats: HeatmapStats | None = None
    """Where the heat lies, as numbers; None where nobody measured it."""

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
    """Return the finding with the highest score, the first of equals; None where there is none."""
    return max(findings, key=lambda finding: finding.score, default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A frame with the reasons for its verdict."""

    frame: Frame
    findings: tuple[Finding, ...]
    """One per explained class; the first is the one whose heat is drawn. Of a classifier never empty, and always with
    the network's top class among them: ``verdict``."""
    method: str
    """The explaining method and its kernel: ``recipro-cam/point``."""
    layer: str
    """The explained layer's qualified name in the network."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: ``queue``, ``preprocess``, ``explain`` (a batch's are shared by its frames)."""
    model: str = ""
    """The network's name."""
    heat_region: Box | None = None
    """The rectangle of the frame, in pixels, that the heat grid covers. It is the whole frame for ``stretch``, lies
    inside it for ``crop`` and reaches beyond it for ``letterbox``. Never None after construction."""
    guards: tuple[GuardState, ...] = ()
    """How the camera's guards stand."""
    regions: tuple[Region, ...] = ()
    """The parts of the picture that guards look at and that are to be seen."""
    deletion: DeletionCheck | None = None
    """The camera's last deletion check, while it is fresh."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "timings", MappingProxyType(dict(self.timings)))
        if self.heat_region is None:
            object.__setattr__(self, "heat_region", Box(0.0, 0.0, float(self.frame.width), float(self.frame.height)))

    @property
    def region(self) -> Box:
        """The rectangle of the frame that the heat grid covers, in pixels."""
        assert self.heat_region is not None  # set in __post_init__  # noqa: S101
        return self.heat_region

    @property
    def first(self) -> Finding:
        """The first finding."""
        return self.findings[0]

    @property
    def top_scoring(self) -> Finding | None:
        """The finding with the highest score, the first of equals; None where there is none."""
        return top_scoring(self.findings)

    @property
    def firing(self) -> tuple[GuardState, ...]:
        """The guards that fire."""
        return tuple(guard for guard in self.guards if guard.firing)


@dataclass(frozen=True, slots=True)
class SignalLoss:
    """That nothing comes from a camera, and why."""

    seconds: float
    """Since its last frame was taken."""
    state: str = ""
    """Where the source stands: ``pipeline.ports.State``; empty where that is not known."""
    reason: str = ""
    """In words, without credentials."""


@dataclass(frozen=True, slots=True, eq=False)
class ImagePatch:
    """Words laid over a picture, as numbers: a pixel under it becomes ``pixel * keep / 255 + add``."""

    top: int
    """The first row of the picture that it covers."""
    left: int
    """The first column."""
    tile: npt.NDArray[np.uint8]
    """uint8, (rows, columns, 4): red, green and blue to add, and what is kept of 255."""


class Jpeg(NamedTuple):
    """A picture as JPEG."""

    payload: bytes
    quality: int
    """1 to 100, as it was asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """An explanation and its picture. Nothing is lost on the way: the frame is in the explanation."""

    image: Image
    """uint8 RGB of the frame's size, read-only; the plain frame where no sink asked for a picture."""
    explanation: Explanation
    signal_loss: SignalLoss | None = None
    """Set where nothing comes any more: the explanation is the camera's last, and the picture must not look live."""
    jpeg: Jpeg | None = None
    """The drawn picture, where the engine drew and compressed it on its own device. ``image`` then is the plain frame,
    unless a door asked for the drawn one as an array."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", read_only(self.image))
