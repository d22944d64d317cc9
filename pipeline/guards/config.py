"""What must be true of a verdict's reasons, per camera: the knobs under ``guards:``, checked when they are read.

Knows nothing about time; ``pipeline.guards.alert`` holds when a guard fires, ``pipeline.guards.monitor`` asks it at
every frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import ConfigError, did_you_mean, unknown_name_message
from pipeline.frames import Region
from pipeline.guards.parser import Rule, parse_rule

Coordinate = Annotated[float, Field(ge=0, le=1 << 20, allow_inf_nan=False)]
Corner = tuple[Coordinate, Coordinate]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"""^[^\s"'()=<>!]+$""")]
_MAX_CORNERS: Final = 64
_MIN_FRACTION: Final = 1e-6


def _somebody(cameras: list[str] | None) -> list[str] | None:
    if cameras is not None and not cameras:
        raise ValueError("names nobody; name a camera, or leave cameras out for every one")
    return cameras


Cameras = Annotated[list[str] | None, AfterValidator(_somebody)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RegionConfig(_Settings):
    """A named part of the picture."""

    name: Name
    """As rules call it: heat_inside(NAME)."""
    polygon: list[Corner] = Field(min_length=3, max_length=_MAX_CORNERS)
    """Corners [x, y]: shares of the frame where none is above 1, such as [0.5, 1], pixels otherwise."""
    cameras: Cameras = None
    """Whose pictures it is a part of. Default: every camera's."""

    @field_validator("polygon")
    @classmethod
    def _is_plain(cls, polygon: list[Corner]) -> list[Corner]:
        if _self_intersects(polygon):
            raise ValueError("its sides cross each other; give the corners in order, one way round")
        fractions = _are_fractions(polygon)
        if _area(polygon) < (_MIN_FRACTION if fractions else 1.0):
            of = "no area" if fractions else "less than a pixel (a number above 1 makes all of them pixels)"
            raise ValueError(f"holds {of}; give corners as shares of the frame, none above 1, or as pixels")
        return polygon

    def placed(self, width: int, height: int) -> Region:
        """Return it in the pixels of a frame of some size."""
        across, down = (width, height) if _are_fractions(self.polygon) else (1, 1)
        return Region(self.name, tuple((x * across, y * down) for x, y in self.polygon))

    def concerns(self, camera: str) -> bool:
        """Say whether it is a part of this camera's picture."""
        return self.cameras is None or camera in self.cameras


class GuardConfig(_Settings):
    """One guard: a rule, and how long it may be broken."""

    name: Name
    """As it is shown, counted and recorded."""
    rule: str
    """What must hold of the verdict, such as heat_inside(part) >= 0.6 when label=scratch and score>0.5"""
    cameras: Cameras = None
    """Whom it guards. Default: every camera."""
    hold_seconds: float = Field(default=0.5, ge=0, le=3600)
    """It fires when the rule has been broken for so long, without a frame in between that keeps it."""
    clear_seconds: float = Field(default=1.0, ge=0, le=3600)
    """It ends when the rule has been kept for so long, or has not applied."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """While it fires every number must keep this far away from its bound: 0.6 becomes 0.65 with 0.05."""

    @field_validator("rule")
    @classmethod
    def _is_readable(cls, rule: str) -> str:
        try:
            parse_rule(rule)
        except ConfigError as reason:
            raise ValueError(str(reason)) from None
        return rule

    @property
    def parsed(self) -> Rule:
        """The rule, ready to be asked."""
        return parse_rule(self.rule)

    def concerns(self, camera: str) -> bool:
        """Say whether it guards this camera."""
        return self.cameras is None or camera in self.cameras


class DeletionConfig(_Settings):
    """The live deletion check: how much of the score goes when the hottest area is masked."""

    budget: float = Field(default=0.02, gt=0, le=0.5)
    """Share of the engine's time that checks may take."""
    area: float = Field(default=0.05, gt=0, le=0.9)
    """Share of the grid's cells that are masked, the hottest first."""
    fill: Literal["mean", "blur"] = "mean"
    """What takes their place: the frame's mean colour, or the frame, blurred."""
    max_age_seconds: float = Field(default=5.0, gt=0, le=3600)
    """How long a result counts for the frames that follow."""


class GuardsConfig(_Settings):
    """Guards of all cameras."""

    regions: list[RegionConfig] = []
    """Named parts of the picture."""
    rules: list[GuardConfig] = []
    """What must hold."""
    draw: Literal["always", "firing", "never"] = "always"
    """When the outlines of regions are drawn: always, while a guard of the camera fires, or never."""
    deletion: DeletionConfig = DeletionConfig()
    """The check behind score_drop_when_masked; it runs where a rule asks for it."""
    baseline: str | None = None
    """A file that `run.py baseline` wrote: how far scores and reasons have drifted from it is reported."""
    drift_seconds: float = Field(default=600.0, ge=10, le=604800)
    """Time constant over which drift is looked at."""

    @property
    def needs_deletion(self) -> bool:
        """Whether a rule goes by the deletion check."""
        return any(guard.parsed.needs_deletion for guard in self.rules)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for kind, names in (("regions", self.regions), ("rules", self.rules)):
            seen: list[RegionConfig | GuardConfig] = []
            for one in names:
                if twin := next((other for other in seen if _same_place(one, other)), None):
                    raise ValueError(
                        f"{kind}: {twin.name!r} is given twice; give each its own name, or its own cameras"
                    )
                seen.append(one)
        known = {region.name for region in self.regions}
        for place, guard in enumerate(self.rules):
            for name in sorted(guard.parsed.regions - known):
                where = f"rules[{place}].rule: {guard.rule!r}: character {_where(guard.rule, name)}"
                raise ValueError(f"{where}: {unknown_name_message('region', name, known)}")
        return self


def check_cameras(guards: GuardsConfig, cameras: Sequence[str]) -> None:
    """Refuse a guard or a region of a camera that nobody has.

    Raises:
        ConfigError: it names the camera and those there are.
    """
    listed: list[tuple[str, Sequence[RegionConfig | GuardConfig]]]
    listed = [("regions", guards.regions), ("rules", guards.rules)]
    for kind, entries in listed:
        for place, entry in enumerate(entries):
            for camera in entry.cameras or ():
                if camera not in cameras:
                    known = ", ".join(map(repr, cameras))
                    hint = did_you_mean(camera, cameras)
                    raise ConfigError(f"guards.{kind}[{place}].cameras: {camera!r}: the run has {known}.{hint}")
    for place, guard in enumerate(guards.rules):
        _check_named(place, guard, "camera", guard.parsed.cameras, cameras)
        concerned = [camera for camera in cameras if guard.concerns(camera)]
        if concerned and (why := guard.parsed.impossible(concerned)):
            raise ConfigError(f"guards.rules[{place}].rule: {guard.rule!r}: of {', '.join(concerned[:5])}: {why}")
        for camera in filter(guard.concerns, cameras):
            for name in sorted(guard.parsed.regions):
                if not any(region.name == name and region.concerns(camera) for region in guards.regions):
                    raise ConfigError(
                        f"guards.rules[{place}].rule: {guard.rule!r}: {camera!r} has no region {name!r}; add one for "
                        "it, or say whom the rule guards: cameras: [...]"
                    )


def check_labels(guards: GuardsConfig, labels: Collection[str]) -> None:
    """Refuse a rule about a class that the network does not have: it would never apply, or always.

    Raises:
        ConfigError: it names the class and the nearest there is.
    """
    for place, guard in enumerate(guards.rules):
        _check_named(place, guard, "class", guard.parsed.labels - {""}, labels)


def _check_named(place: int, guard: GuardConfig, kind: str, named: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(named) - set(known)):
        raise ConfigError(
            f"guards.rules[{place}].rule: {guard.rule!r}: {name!r}: {unknown_name_message(kind, name, known)}"
        )


def _same_place(one: RegionConfig | GuardConfig, other: RegionConfig | GuardConfig) -> bool:
    if one.name != other.name:
        return False
    return one.cameras is None or other.cameras is None or bool(set(one.cameras) & set(other.cameras))


def _where(rule: str, name: str) -> int:
    return rule.find(name, rule.find("heat_inside")) + 1


def _are_fractions(polygon: Sequence[Corner]) -> bool:
    return all(max(corner) <= 1.0 for corner in polygon)


def _area(polygon: Sequence[Corner]) -> float:
    (x, y), rest = polygon[0], polygon[1:]
    return abs(sum(_turn((x, y), one, other) for one, other in itertools.pairwise(rest))) / 2.0


def _self_intersects(polygon: Sequence[Corner]) -> bool:
    """Say whether two sides that are no neighbours meet."""
    sides = [(polygon[place - 1], corner) for place, corner in enumerate(polygon)]
    for (first, one), (second, other) in itertools.combinations(enumerate(sides), 2):
        neighbours = second - first in {1, len(sides) - 1}
        if not neighbours and _meet(one, other):
            return True
    return False


def _meet(one: tuple[Corner, Corner], other: tuple[Corner, Corner]) -> bool:
    (a, b), (c, d) = one, other
    return _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0


def _turn(a: Corner, b: Corner, c: Corner) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
