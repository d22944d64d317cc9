"""Model of the wire header, version 1: keys, types, limits and meanings.

``run.py schema --wire`` prints its JSON Schema, which is also in ``docs/wire.schema.json``. An invalid header raises
``WireError`` with the key, the value and the rule. Unknown keys are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, FailFast, Field, PrivateAttr

from overlays.wire.fields import (
    VERSION,
    Edges,
    GridSide,
    HeatBytes,
    Index,
    Name,
    Numbers,
    Point,
    Seconds,
    Side,
    SourcePath,
    State,
    Text,
    Version,
    WireClass,
    WireModel,
    always_sent,
    scaled_polygon,
)
from overlays.wire.passages import WirePassage, WirePlace
from pipeline.errors import WireError, WireLimitError
from pipeline.frames import (
    NO_HEAT,
    Box,
    BoxMap,
    DeletionCheck,
    Finding,
    GroundTruth,
    Heat,
    HeatmapStats,
    Region,
    SignalLoss,
)
from pipeline.guards.state import GuardFigure, GuardState
from pipeline.input_area import InputArea
from pipeline.trial import Trial

MAX_HEADER_BYTES: Final = 32 << 20
MAX_FINDINGS: Final = 4096
_MAX_NAMES: Final = 256
_MAX_VERTICES: Final = 256
Corners = Annotated[tuple[Point, ...], Field(strict=False, min_length=3, max_length=_MAX_VERTICES), FailFast()]


class WireStats(WireModel):
    """Statistics of a heat map; docs/guards.md defines them. A flat heat map has null values."""

    focus_area: float | None = None
    entropy: float | None = None
    centre: Point | None = None
    stability: float | None = None
    heat_inside: Numbers = Field(default_factory=dict)
    """Fraction of the heat inside each region, by the region's name."""

    def scaled(self, x: float, y: float) -> HeatmapStats:
        """Return the statistics scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        centre = None if self.centre is None else (self.centre[0] * x, self.centre[1] * y)
        return HeatmapStats(self.focus_area, self.entropy, centre, self.stability, self.heat_inside)


class WireBoxMap(WireModel):
    """The heat map of a detector's box, as docs/detectors.md defines it."""

    mode: Literal["keep", "drop"]
    """``keep``: score of the box with one cell of the features only. ``drop``: score of the box without one cell."""
    cut: Text
    """The masked feature maps: ``complete`` for all, or ``level`` for the pyramid level of the box only."""
    region: Edges
    """The part of the frame that the grid covers."""
    scale: float
    """Decrease of the score (``drop``) or range of the log-scores (``keep``) that corresponds to a heat of 1."""
    grid: Annotated[tuple[GridSide, GridSide], Field(strict=False)]
    """Rows and columns."""
    heat_u8: HeatBytes
    """Heat in favour of the box, encoded as in a finding."""
    against_u8: HeatBytes | None = None
    """``drop`` only: heat against the box, on the same grid."""
    lowest_score: float | None = None
    """``drop`` only: the lowest score of the box without one cell."""
    index: Index
    """Index of the explained frame."""
    age_seconds: Seconds
    """Time from the explained frame to this frame."""
    _heat: Heat = PrivateAttr()
    _against: Heat | None = PrivateAttr(default=None)

    @property
    def heat(self) -> Heat:
        """The heat map, float32 in [0, 1], (rows, columns), read-only."""
        return self._heat

    def unpack_heat(self, key: str) -> None:
        """Decode both heat maps; raises ``WireError`` if a size is wrong. ``key`` names this object in messages."""
        if 0 in self.grid:
            raise WireError(f"{key}.grid: {self.grid}; it must have at least one row and one column")
        self._heat = _unpacked_heat(self.heat_u8, self.grid, f"{key}.heat_u8")
        if self.against_u8 is not None:
            self._against = _unpacked_heat(self.against_u8, self.grid, f"{key}.against_u8")

    def scaled(self, x: float, y: float) -> BoxMap:
        """Return the map scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        return BoxMap(
            mode=self.mode,
            cut=self.cut,
            region=scaled_box(self.region, x, y),
            scale=self.scale,
            against=self._against,
            lowest_score=self.lowest_score,
            index=self.index,
            age_seconds=self.age_seconds,
        )


class WireFinding(WireModel):
    """An explained class, or a detector's box."""

    model_config = ConfigDict(json_schema_extra=always_sent("box"))

    label: Text
    class_index: Annotated[int, Field(ge=-1, le=1 << 31)]
    """Index of the class in the network's output; -1 if unknown."""
    score: float
    """Score of the network for the unmasked frame: softmax, or a detector's ranking score."""
    heat_u8: HeatBytes
    """Heat in [0, 1] times 255, rounded, one byte per cell, row by row; zeros for a box with a ``map``."""
    box: Edges | None = None
    """The box, for a detector."""
    grounds: WireStats | None = None
    track: Index | None = None
    """Number of the tracked object, unique per camera."""
    map: WireBoxMap | None = None
    """The heat map of the box; absent if the box has none yet."""
    _heat: Heat = PrivateAttr()

    @property
    def heat(self) -> Heat:
        """The heat map (from ``map`` if present), float32 in [0, 1], (rows, columns), read-only."""
        return self._heat

    def unpack_heat(self, grid: tuple[int, int], key: str) -> None:
        """Decode the heat map; raises ``WireError`` if its size is wrong. ``key`` names this finding in messages."""
        self._heat = _unpacked_heat(self.heat_u8, grid, f"{key}.heat_u8")
        if self.map is not None:
            self.map.unpack_heat(f"{key}.map")
            self._heat = self.map.heat

    def scaled(self, x: float, y: float) -> Finding:
        """Return the finding scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        return Finding(
            label=self.label,
            score=self.score,
            heat=self.heat,
            class_index=self.class_index,
            box=None if self.box is None else scaled_box(self.box, x, y),
            heatmap_stats=None if self.grounds is None else self.grounds.scaled(x, y),
            track=self.track,
            box_map=None if self.map is None else self.map.scaled(x, y),
        )


class WireTruth(WireModel):
    """Ground truth of a frame, if the source has it."""

    label: Text
    boxes: Annotated[tuple[Edges, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]

    def scaled(self, x: float, y: float) -> GroundTruth:
        """Return the ground truth scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        return GroundTruth(self.label, tuple(scaled_box(box, x, y) for box in self.boxes))


class WireSignalLoss(WireModel):
    """The camera sends no frames; the message contains its last frame in grey."""

    seconds: Seconds
    state: State
    """State of the source."""
    reason: Text

    def signal_loss(self) -> SignalLoss:
        """Return the object as a ``SignalLoss``."""
        return SignalLoss(self.seconds, self.state, self.reason)


class WireFigure(WireModel):
    """The measured number that violates a guard's rule most."""

    name: Text
    """Name of the number as in the rule, such as ``heat_inside(part)``."""
    value: float
    bound: float
    """The bound with which the rule compares the value."""
    slack: float
    """Margin with which the frame meets the rule; negative if the frame violates the rule."""

    def figure(self) -> GuardFigure:
        """Return the object as a ``GuardFigure``."""
        return GuardFigure(self.name, self.value, self.bound, self.slack)


class WireGuard(WireModel):
    """State of one of the camera's guards."""

    name: Name
    firing: bool
    seconds: Seconds
    """Time since the guard started to fire, on the frames' clock; 0 if it does not fire."""
    says: Text
    """The rule and the measured value while the guard fires; otherwise empty."""
    fired: Index
    """Number of times the guard started to fire in this run."""
    figure: WireFigure | None = None
    """The worst number of this frame; absent if the frame meets the rule."""

    def state(self) -> GuardState:
        """Return the object as a ``GuardState``."""
        figure = None if self.figure is None else self.figure.figure()
        return GuardState(self.name, self.firing, self.seconds, self.says, self.fired, figure)


class WireRegion(WireModel):
    """A named region of the frame that viewers outline."""

    name: Name
    polygon: Corners

    def scaled(self, x: float, y: float) -> Region:
        """Return the region scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        return Region(self.name, scaled_polygon(self.polygon, x, y))


class WireDeletion(WireModel):
    """The camera's last deletion check, if it is recent."""

    label: Text
    score: float
    masked_score: float
    """Score of the same frame with its hottest area masked."""
    index: Index
    """Index of the checked frame."""
    age_seconds: Seconds

    def check(self) -> DeletionCheck:
        """Return the object as a ``DeletionCheck``."""
        return DeletionCheck(self.label, self.score, self.masked_score, self.index, self.age_seconds)


class WireTrialFinding(WireModel):
    """A class or a box found by a network on trial, without its heat map."""

    label: Text
    class_index: Annotated[int, Field(ge=-1, le=1 << 31)]
    score: float
    box: Edges | None = None
    track: Index | None = None


class WireTrial(WireModel):
    """Findings of a second network, on trial, in the same frame. Guards and verdicts do not use them."""

    name: Name
    findings: Annotated[tuple[WireTrialFinding, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]
    difference: Text
    """Difference from the first network's findings as text; empty if they agree."""

    def scaled(self, x: float, y: float) -> Trial:
        """Return the trial scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        findings = [
            Finding(each.label, each.score, NO_HEAT, each.class_index, track=each.track,
                    box=None if each.box is None else scaled_box(each.box, x, y))
            for each in self.findings
        ]  # fmt: skip
        return Trial(self.name, tuple(findings), self.difference)


class Header(WireModel):
    """Second part of a message, described in docs/wire.md. Readers ignore unknown keys."""

    model_config = ConfigDict(json_schema_extra=always_sent("encoding", "pts_seconds", "timings"))

    version: Version
    camera: Text
    source: SourcePath = ""
    """Path of the file from which the frame was read; empty for other sources."""
    epoch: Index | None = None
    """Epoch of the lease under which a fleet's worker read the camera. Viewers drop frames with a lower epoch."""
    index: Index
    """Number of frames that the camera delivered before this frame."""
    width: Side
    """Width of the image in pixels; at most 16384 in a message."""
    height: Side
    """Height of the image in pixels; at most 16384 in a message."""
    encoding: State = ""
    """``jpeg``; absent in a log line, which contains no image."""
    pts_seconds: float | None = None
    """Presentation time on the stream's clock, in seconds."""
    taken_at_unix: float
    """Time when the frame was decoded, on the publisher's clock, in Unix seconds."""
    sent_at_unix: float
    """Time when the message was encoded, on the publisher's clock, in Unix seconds."""
    age_seconds: float
    model: Text
    method: Text
    layer: Text
    grid: Annotated[tuple[GridSide, GridSide], Field(strict=False)]
    """Rows and columns of ``heat_u8`` in every finding; [0, 0] without findings."""
    heat_region: Edges | None = None
    """The part of the frame that the grid covers; absent: the whole frame."""
    findings: Annotated[tuple[WireFinding, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]
    """The explained classes, most important first, or a detector's boxes, highest score first."""
    timings: Numbers = Field(default_factory=dict)
    """Duration of each processing stage in seconds."""
    truth: WireTruth | None = None
    guards: Annotated[tuple[WireGuard, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    regions: Annotated[tuple[WireRegion, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    deletion: WireDeletion | None = None
    roi: Annotated[tuple[Point, ...] | None, Field(strict=False, min_length=3, max_length=_MAX_VERTICES)] = None
    """Polygon of the part of the frame that the network receives; absent: the whole frame."""
    masks: Annotated[tuple[Corners, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """Polygons of the frame that were masked before the network."""
    passages: Annotated[tuple[WirePassage, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()] = ()
    """Parts and line crossings that finished at this frame."""
    places: Annotated[tuple[WirePlace, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """The camera's zones and counting lines, with their counts."""
    passage: WirePassage | None = None
    """Only in messages with the topic ``parts/CAMERA``: the part or crossing that the image shows."""
    trial: WireTrial | None = None
    next_classes: Annotated[tuple[WireClass, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """A classifier's next classes without heat maps, highest score first."""
    frame_width: Annotated[Side, Field(default_factory=lambda values: values["width"])]
    """Width of the camera's frame in pixels; absent: same as ``width``."""
    frame_height: Annotated[Side, Field(default_factory=lambda values: values["height"])]
    """Height of the camera's frame in pixels; absent: same as ``height``."""
    silence: WireSignalLoss | None = None

    def area(self, x: float, y: float) -> InputArea | None:
        """Return the input area scaled by ``x`` and ``y``; None if the network receives the whole frame."""
        if self.roi is None and not self.masks:
            return None
        masks = [scaled_polygon(mask, x, y) for mask in self.masks]
        return InputArea.around(scaled_polygon(self.roi or (), x, y), masks, self.width, self.height)

    def model_post_init(self, context: object, /) -> None:  # noqa: ARG002 - pydantic's signature
        """Decode all heat maps; raises ``WireError`` if a size differs from its grid."""
        if self.findings and 0 in self.grid:
            raise WireError(f"grid: {self.grid}; with findings it must have at least one row and one column")
        for index, finding in enumerate(self.findings):
            finding.unpack_heat(self.grid, f"findings[{index}]")


def _unpacked_heat(levels: bytes, grid: tuple[int, int], key: str) -> Heat:
    cells = grid[0] * grid[1]
    if len(levels) != cells:
        raise WireError(f"{key}: {len(levels)} bytes; it must be {cells} bytes in base64, one per cell")
    heat: Heat = np.frombuffer(levels, np.uint8).reshape(grid).astype(np.float32) / np.float32(255.0)
    heat.flags.writeable = False
    return heat


def scaled_box(box: Box, x: float, y: float) -> Box:
    """Return a box scaled to an image that is ``x`` times as wide and ``y`` times as high."""
    return Box(box.left * x, box.top * y, box.right * x, box.bottom * y)


def decode_header(header: bytes) -> Header:
    """Return the decoded header of a message or a log line. Unknown keys are ignored.

    Raises:
        WireVersionError: the version is newer than this reader supports.
        WireError: a value is invalid or exceeds a limit.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise WireLimitError(f"header: {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    return Header.parse(header)


def wire_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a header."""
    schema = Header.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"Wire header of recipro-stream, version {VERSION}",
    }
