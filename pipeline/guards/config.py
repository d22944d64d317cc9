"""The configuration under ``guards:``: rules on scores and heat maps, which are checked when they are parsed.

``pipeline.guards.alert`` decides when a guard fires, ``pipeline.guards.monitor`` evaluates guards at every frame.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.errors import ConfigError, did_you_mean, unknown_name_message
from pipeline.guards.box_stats import BOX
from pipeline.guards.parser import Rule, parse_rule
from pipeline.shapes import PolygonSettings, ShapeName, StrictModel

_parsed: Final = functools.lru_cache(maxsize=512)(parse_rule)
"""Parses a rule. Cached: the check of all cases takes up to 0.1 s, and a configuration is checked several times."""


def _check_not_empty(cameras: list[str] | None) -> list[str] | None:
    if cameras is not None and not cameras:
        raise ValueError("is empty; name a camera, or remove the key to select all cameras")
    return cameras


Cameras = Annotated[list[str] | None, AfterValidator(_check_not_empty)]


class RegionConfig(PolygonSettings):
    """A named polygon in the image."""

    name: ShapeName
    """Its name in rules: heat_inside(NAME). The name `box` is reserved for a detector's box."""
    cameras: Cameras = None
    """The cameras that have the region. Default: all cameras."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name == BOX:
            raise ValueError(f"{BOX!r} is reserved for a detector's box; give the region another name")
        return name

    def concerns(self, camera: str) -> bool:
        """Return whether a camera has the region."""
        return self.cameras is None or camera in self.cameras


class GuardConfig(StrictModel):
    """A guard: a rule, and the time for which it may be violated."""

    name: ShapeName
    """Its name in images, metrics and logs."""
    rule: str
    """Requirement on the top class, such as heat_inside(part) >= 0.6 when label=scratch and score>0.5; for a detector
    on each box, such as evidence_outside_box <= 0.5 when label=person."""
    cameras: Cameras = None
    """The cameras that the guard watches. Default: all cameras."""
    hold_seconds: float = Field(default=0.5, ge=0, le=3600)
    """The guard fires when every frame has violated the rule for this time; for a detector, every frame of a track."""
    clear_seconds: float = Field(default=1.0, ge=0, le=3600)
    """The alarm ends after no frame has violated the rule for this time."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """Hysteresis: while the guard fires, the rule has stricter bounds by this number: with 0.05, >= 0.6 becomes >=
    0.65. For a detector, each track for which the guard fires has the stricter bounds.
    """

    @field_validator("rule")
    @classmethod
    def _is_readable(cls, rule: str) -> str:
        try:
            _parsed(rule)
        except ConfigError as reason:
            raise ValueError(str(reason)) from None
        return rule

    @property
    def parsed(self) -> Rule:
        """The parsed rule."""
        return _parsed(self.rule)

    def concerns(self, camera: str) -> bool:
        """Return whether the guard watches a camera."""
        return self.cameras is None or camera in self.cameras


class DeletionConfig(StrictModel):
    """The deletion check during a run: masks the hottest area and measures the drop of the score."""

    budget: float = Field(default=0.02, gt=0, le=0.5)
    """Fraction of the engine's time that checks may take."""
    area: float = Field(default=0.05, gt=0, le=0.9)
    """Fraction of the grid's cells that are masked, the hottest first."""
    fill: Literal["mean", "blur"] = "mean"
    """Content of the masked area: the mean colour of the frame, or the blurred frame."""
    max_age_seconds: float = Field(default=5.0, gt=0, le=3600)
    """Time for which rules use the result of a check for later frames."""


class GuardsConfig(StrictModel):
    """The guards of all cameras."""

    regions: list[RegionConfig] = Field(default=[])
    """Named polygons in the image, which rules can use."""
    rules: list[GuardConfig] = Field(default=[])
    """The guards."""
    draw: Literal["always", "firing", "never"] = "always"
    """When to draw the outlines of regions: always, firing (while a guard of the camera fires), or never."""
    deletion: DeletionConfig = DeletionConfig()
    """The check that measures score_drop_when_masked; it runs only if a rule uses this number."""
    baseline: str | None = None
    """A file that `run.py baseline` wrote. The run reports the drift of scores and heat statistics from this
    baseline.
    """
    drift_seconds: float = Field(default=600.0, ge=10, le=604800)
    """Time constant of the drift statistics."""

    @property
    def needs_deletion(self) -> bool:
        """True if a rule uses the deletion check."""
        return any(guard.parsed.needs_deletion for guard in self.rules)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for kind, entries in (("regions", self.regions), ("rules", self.rules)):
            seen: list[RegionConfig | GuardConfig] = []
            for entry in entries:
                if any(_overlap(entry, other) for other in seen):
                    raise ValueError(
                        f"{kind}: {entry.name!r} is given twice; give each entry its own name, or its own cameras"
                    )
                seen.append(entry)
        known = {region.name for region in self.regions}
        for index, guard in enumerate(self.rules):
            for name in sorted(guard.parsed.regions - known):
                where = f"rules[{index}].rule: {guard.rule!r}: character {_position(guard.rule, name)}"
                raise ValueError(f"{where}: {unknown_name_message('region', name, known)}")
        return self


def check_cameras(guards: GuardsConfig, cameras: Sequence[str]) -> None:
    """Check that all cameras and regions that guards and regions name exist in the run.

    Raises:
        ConfigError: a name is unknown; the message lists the known names.
    """
    listed: list[tuple[str, Sequence[RegionConfig | GuardConfig]]]
    listed = [("regions", guards.regions), ("rules", guards.rules)]
    for kind, entries in listed:
        for index, entry in enumerate(entries):
            for camera in entry.cameras or ():
                if camera not in cameras:
                    known = ", ".join(map(repr, cameras))
                    hint = did_you_mean(camera, cameras)
                    raise ConfigError(
                        f"guards.{kind}[{index}].cameras: {camera!r}: the run has no such camera, only {known}.{hint}"
                    )
    for index, guard in enumerate(guards.rules):
        _check_named(index, guard, "camera", guard.parsed.cameras, cameras)
        concerned = [camera for camera in cameras if guard.concerns(camera)]
        if concerned and (why := guard.parsed.impossible(concerned)):
            raise ConfigError(
                f"guards.rules[{index}].rule: {guard.rule!r}: for camera {', '.join(concerned[:5])}: {why}"
            )
        for camera in filter(guard.concerns, cameras):
            for name in sorted(guard.parsed.regions):
                if not any(region.name == name and region.concerns(camera) for region in guards.regions):
                    raise ConfigError(
                        f"guards.rules[{index}].rule: {guard.rule!r}: {camera!r} has no region {name!r}; add it, "
                        "or restrict the rule to other cameras: cameras: [...]"
                    )


def check_labels(guards: GuardsConfig, labels: Collection[str]) -> None:
    """Check that all classes that rules name are classes of the network.

    Raises:
        ConfigError: a class is unknown; the message names the most similar class.
    """
    for index, guard in enumerate(guards.rules):
        _check_named(index, guard, "class", guard.parsed.labels - {""}, labels)


def check_boxes(guards: GuardsConfig) -> None:
    """Check that the rules for a classifier use no number that only a detector's boxes have.

    Raises:
        ConfigError: a rule uses this kind of number.
    """
    for index, guard in enumerate(guards.rules):
        for name in guard.parsed.needs_boxes:
            raise ConfigError(
                f"guards.rules[{index}].rule: {guard.rule!r}: {name} exists only for the boxes of a detector, "
                "but the network is a classifier; use a detector, or another number, such as heat_inside(REGION)"
            )


def _check_named(index: int, guard: GuardConfig, kind: str, named: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(named) - set(known)):
        raise ConfigError(
            f"guards.rules[{index}].rule: {guard.rule!r}: {name!r}: {unknown_name_message(kind, name, known)}"
        )


def _overlap(entry: RegionConfig | GuardConfig, other: RegionConfig | GuardConfig) -> bool:
    """Return whether two entries have the same name for the same camera."""
    if entry.name != other.name:
        return False
    return entry.cameras is None or other.cameras is None or bool(set(entry.cameras) & set(other.cameras))


def _position(rule: str, name: str) -> int:
    return rule.find(name, rule.find("heat_inside")) + 1
