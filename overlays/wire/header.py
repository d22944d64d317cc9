"""Model of the wire header, version 1: keys, types, limits and meanings.

``run.py schema --wire`` prints its JSON Schema, ``docs/wire.schema.json``. A header that does not fit the model raises
``WireError`` with the key, its value and the rule; unknown keys are ignored. Pure.
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
    """Statistics of the heat; docs/guards.md has the formulas. null: the heat map is flat."""

    focus_area: float | None = None
    entropy: float | None = None
    centre: Point | None = None
    stability: float | None = None
    heat_inside: Numbers = Field(default_factory=dict)
    """Fraction of the evidence by region."""

    def scaled(self, x: float, y: float) -> HeatmapStats:
        """Return the statistics for an image that is ``x`` times as wide and ``y`` times as high."""
        centre = None if self.centre is None else (self.centre[0] * x, self.centre[1] * y)
        return HeatmapStats(self.focus_area, self.entropy, centre, self.stability, self.heat_inside)


class WireBoxMap(WireModel):
    """The heat map of a detector's box; docs/detectors.md has the definition."""

    mode: Literal["keep", "drop"]
    """``keep``: scores with one cell of the features alone. ``drop``: scores without one cell."""
    cut: Text
    """The masked feature maps: ``complete``, or ``level`` for the box's own pyramid level."""
    region: Edges
    """The part of the frame that the grid covers."""
    scale: float
    """Decrease of the score (``drop``) or range of the log-scores (``keep``) that a heat of 1 stands for."""
    grid: Annotated[tuple[GridSide, GridSide], Field(strict=False)]
    """Rows and columns."""
    heat_u8: HeatBytes
    """Heat for the box, as in a finding."""
    against_u8: HeatBytes | None = None
    """``drop`` only: heat against the box, on the same grid."""
    lowest_score: float | None = None
    """``drop`` only: lowest score without one cell."""
    index: Index
    """Index of the frame that was explained."""
    age_seconds: Seconds
    """Time from that frame to this one."""
    _heat: Heat = PrivateAttr()
    _against: Heat | None = PrivateAttr(default=None)

    @property
    def heat(self) -> Heat:
        """The heat map, float32 in [0, 1], (rows, columns), read-only."""
        return self._heat

    def unpack_heat(self, key: str) -> None:
        """Set ``heat`` and the evidence against the box; raises ``WireError`` with the key of this object."""
        if 0 in self.grid:
            raise WireError(f"{key}.grid: {self.grid}; it must have at least one row and one column")
        self._heat = _unpacked_heat(self.heat_u8, self.grid, f"{key}.heat_u8")
        if self.against_u8 is not None:
            self._against = _unpacked_heat(self.against_u8, self.grid, f"{key}.against_u8")

    def scaled(self, x: float, y: float) -> BoxMap:
        """Return the map for an image that is ``x`` times as wide and ``y`` times as high."""
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
    """Index in the network's output; -1 if there is none."""
    score: float
    """Score in the plain network: softmax, or what a detector ranks boxes by."""
    heat_u8: HeatBytes
    """Rows * columns bytes, row by row: heat in [0, 1] times 255, rounded; zeros for a box with a ``map``."""
    box: Edges | None = None
    """A detector's box."""
    grounds: WireStats | None = None
    track: Index | None = None
    """Number of the followed object, unique in its camera."""
    map: WireBoxMap | None = None
    """The heat map of the box; absent while it has none."""
    _heat: Heat = PrivateAttr()

    @property
    def heat(self) -> Heat:
        """The heat map, float32 in [0, 1], (rows, columns), read-only: that of ``map`` where there is one."""
        return self._heat

    def unpack_heat(self, grid: tuple[int, int], key: str) -> None:
        """Set ``heat`` from its bytes, one per cell; raises ``WireError`` with the key of this finding."""
        self._heat = _unpacked_heat(self.heat_u8, grid, f"{key}.heat_u8")
        if self.map is not None:
            self.map.unpack_heat(f"{key}.map")
            self._heat = self.map.heat

    def scaled(self, x: float, y: float) -> Finding:
        """Return the finding for an image that is ``x`` times as wide and ``y`` times as high."""
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
    """Ground truth, if the source knows it."""

    label: Text
    boxes: Annotated[tuple[Edges, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]

    def scaled(self, x: float, y: float) -> GroundTruth:
        """Return the truth for an image that is ``x`` times as wide and ``y`` times as high."""
        return GroundTruth(self.label, tuple(scaled_box(box, x, y) for box in self.boxes))


class WireSignalLoss(WireModel):
    """The camera gives no frames; the message holds its last frame, drawn grey."""

    seconds: Seconds
    state: State
    """State of the source."""
    reason: Text

    def signal_loss(self) -> SignalLoss:
        """Return the signal loss."""
        return SignalLoss(self.seconds, self.state, self.reason)


class WireFigure(WireModel):
    """The number of a rule that is furthest from its bound."""

    name: Text
    """As in the rule: ``heat_inside(part)``."""
    value: float
    bound: float
    """The number that the rule compares it with."""
    slack: float
    """The largest margin with which the frame meets the rule; negative where it is violated."""

    def figure(self) -> GuardFigure:
        """Return the figure."""
        return GuardFigure(self.name, self.value, self.bound, self.slack)


class WireGuard(WireModel):
    """State of a guard of the camera."""

    name: Name
    firing: bool
    seconds: Seconds
    """Time since it began to fire, by the frames' clock; 0 if it does not fire."""
    says: Text
    """While it fires: the rule and the measured value."""
    fired: Index
    """Number of times that it began to fire in this run."""
    figure: WireFigure | None = None
    """The worst number of this frame; absent where the frame meets the rule."""

    def state(self) -> GuardState:
        """Return the state."""
        figure = None if self.figure is None else self.figure.figure()
        return GuardState(self.name, self.firing, self.seconds, self.says, self.fired, figure)


class WireRegion(WireModel):
    """A part of the frame that is to be outlined."""

    name: Name
    polygon: Corners

    def scaled(self, x: float, y: float) -> Region:
        """Return the region for an image that is ``x`` times as wide and ``y`` times as high."""
        return Region(self.name, scaled_polygon(self.polygon, x, y))


class WireDeletion(WireModel):
    """The camera's last deletion check, while it is recent."""

    label: Text
    score: float
    masked_score: float
    """Score of the same frame without its hottest area."""
    index: Index
    """Index of the checked frame."""
    age_seconds: Seconds

    def check(self) -> DeletionCheck:
        """Return the check."""
        return DeletionCheck(self.label, self.score, self.masked_score, self.index, self.age_seconds)


class WireTrialFinding(WireModel):
    """A class or a box that a network on trial finds; its heat is not sent."""

    label: Text
    class_index: Annotated[int, Field(ge=-1, le=1 << 31)]
    score: float
    box: Edges | None = None
    track: Index | None = None


class WireTrial(WireModel):
    """Findings of a second network on trial in the same frame; they decide nothing."""

    name: Name
    findings: Annotated[tuple[WireTrialFinding, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]
    difference: Text
    """Difference from the first network, as text; empty if they agree."""

    def scaled(self, x: float, y: float) -> Trial:
        """Return the trial for an image that is ``x`` times as wide and ``y`` times as high."""
        findings = [
            Finding(each.label, each.score, NO_HEAT, each.class_index, track=each.track,
                    box=None if each.box is None else scaled_box(each.box, x, y))
            for each in self.findings
        ]  # fmt: skip
        return Trial(self.name, tuple(findings), self.difference)


class Header(WireModel):
    """Second part of a message; docs/wire.md explains it. Readers ignore unknown keys."""

    model_config = ConfigDict(json_schema_extra=always_sent("encoding", "pts_seconds", "timings"))

    version: Version
    camera: Text
    source: SourcePath = ""
    """Path of the file the frame was read from."""
    epoch: Index | None = None
    """Number of the lease under which a fleet's worker read the camera; viewers drop lower ones than they have seen."""
    index: Index
    """Number of frames that the camera gave before this one."""
    width: Side
    """Width of the image in pixels; at most 16384 in a message."""
    height: Side
    """Height of the image in pixels; at most 16384 in a message."""
    encoding: State = ""
    """``jpeg``; absent in a log line, which has no image."""
    pts_seconds: float | None = None
    """The stream's own clock."""
    taken_at_unix: float
    """When the frame was decoded, by the publisher's clock."""
    sent_at_unix: float
    """When the message was encoded, by the same clock."""
    age_seconds: float
    model: Text
    method: Text
    layer: Text
    grid: Annotated[tuple[GridSide, GridSide], Field(strict=False)]
    """Rows and columns of the heat of every finding without a ``map``; [0, 0] without findings."""
    heat_region: Edges | None = None
    """The part of the frame that the grid covers; absent: the whole frame."""
    findings: Annotated[tuple[WireFinding, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()]
    """The explained classes, the most important first; a detector's boxes, the highest score first."""
    timings: Numbers = Field(default_factory=dict)
    """Seconds by stage."""
    truth: WireTruth | None = None
    guards: Annotated[tuple[WireGuard, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    regions: Annotated[tuple[WireRegion, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    deletion: WireDeletion | None = None
    roi: Annotated[tuple[Point, ...] | None, Field(strict=False, min_length=3, max_length=_MAX_VERTICES)] = None
    """The part of the frame that the network got; absent: the whole frame."""
    masks: Annotated[tuple[Corners, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """Polygons of the frame that were painted over before the network."""
    passages: Annotated[tuple[WirePassage, ...], Field(strict=False, max_length=MAX_FINDINGS), FailFast()] = ()
    """Parts and crossings that were finished at this frame."""
    places: Annotated[tuple[WirePlace, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """The camera's zones and counting lines, with their counts."""
    passage: WirePassage | None = None
    """Only in messages of the topic ``parts/CAMERA``, whose image is that of the part or the crossing."""
    trial: WireTrial | None = None
    next_classes: Annotated[tuple[WireClass, ...], Field(strict=False, max_length=_MAX_NAMES), FailFast()] = ()
    """A classifier's next classes, without heat maps, the highest score first."""
    frame_width: Annotated[Side, Field(default_factory=lambda values: values["width"])]
    """Width of the frame; absent: ``width``."""
    frame_height: Annotated[Side, Field(default_factory=lambda values: values["height"])]
    """Height of the frame; absent: ``height``."""
    silence: WireSignalLoss | None = None

    def area(self, x: float, y: float) -> InputArea | None:
        """Return the part of the frame that the network got, for an image of another size; None: the whole frame."""
        if self.roi is None and not self.masks:
            return None
        masks = [scaled_polygon(mask, x, y) for mask in self.masks]
        return InputArea.around(scaled_polygon(self.roi or (), x, y), masks, self.width, self.height)

    def model_post_init(self, context: object, /) -> None:  # noqa: ARG002 - pydantic's signature
        """Unpack the heat maps; raises ``WireError`` if their sizes are not the grid's."""
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
    """Return the box in an image that is ``x`` times as wide and ``y`` times as high."""
    return Box(box.left * x, box.top * y, box.right * x, box.bottom * y)


def decode_header(header: bytes) -> Header:
    """Decode a header or a log line. Unknown keys are ignored.

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
