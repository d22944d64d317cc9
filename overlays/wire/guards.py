"""What the wire's header says of reasons and guards: to plain JSON values, and back. All its keys may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from overlays.wire.json_fields import JsonFields, replace_undecodable
from pipeline.frames import DeletionCheck, Explanation, GuardState, HeatmapStats, Region

_MAX_NAMES: Final = 256
_MIN_CORNERS: Final = 3
_MAX_CORNERS: Final = 256
_MAX_NAME: Final = 64
_MAX_TEXT: Final = 4096
_DIGITS: Final = 5


def grounds_record(grounds: HeatmapStats) -> dict[str, Any]:
    """Return a finding's grounds."""
    return {
        "focus_area": _rounded(grounds.focus_area),
        "entropy": _rounded(grounds.entropy),
        "centre": None if grounds.centre is None else [round(each, 2) for each in grounds.centre],
        "stability": _rounded(grounds.stability),
        "heat_inside": {
            replace_undecodable(name): _rounded(fraction) for name, fraction in grounds.heat_inside.items()
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


def guards_record(explanation: Explanation) -> dict[str, Any]:
    """Return the keys an explanation has on account of its guards: none where there are none."""
    record: dict[str, Any] = {}
    if explanation.guards:
        record["guards"] = [
            {
                "name": replace_undecodable(state.name),
                "firing": state.firing,
                "seconds": float(state.seconds),
                "says": replace_undecodable(state.message),
                "fired": state.fire_count,
            }
            for state in explanation.guards
        ]
    if explanation.regions:
        record["regions"] = [
            {
                "name": replace_undecodable(region.name),
                "polygon": [[round(x, 2), round(y, 2)] for x, y in region.polygon],
            }
            for region in explanation.regions
        ]
    if (checked := explanation.deletion) is not None:
        record["deletion"] = {
            "label": replace_undecodable(checked.label),
            "score": float(checked.score),
            "masked_score": float(checked.masked_score),
            "index": checked.index,
            "age_seconds": float(checked.age_seconds),
        }
    return record


def read_grounds(finding: JsonFields) -> HeatmapStats | None:
    """Read a finding's grounds, or None where it has none.

    Raises:
        WireError: they are damaged.
    """
    told = finding.object("grounds")
    if told is None:
        return None
    centre = told.point("centre")
    return HeatmapStats(
        focus_area=told.optional_number("focus_area"),
        entropy=told.optional_number("entropy"),
        centre=None if centre is None else (centre[0], centre[1]),
        stability=told.optional_number("stability"),
        heat_inside=MappingProxyType(told.numbers("heat_inside")),
    )


def read_guards(header: JsonFields) -> Mapping[str, Any]:
    """Read what a header says of guards: ``guards``, ``regions`` and ``deletion``, as an explanation has them.

    Raises:
        WireError: it is damaged.
    """
    guards = header.objects("guards", _MAX_NAMES) if "guards" in header else ()
    parts = header.objects("regions", _MAX_NAMES) if "regions" in header else ()
    checked = header.object("deletion")
    return {
        "guards": tuple(
            GuardState(
                name=each.text("name", _MAX_NAME),
                firing=each.flag("firing"),
                seconds=each.number("seconds"),
                message=each.text("says", _MAX_TEXT),
                fire_count=each.integer("fired", 0, 1 << 62),
            )
            for each in guards
        ),
        "regions": tuple(
            Region(each.text("name", _MAX_NAME), each.points("polygon", _MIN_CORNERS, _MAX_CORNERS)) for each in parts
        ),
        "deletion": None
        if checked is None
        else DeletionCheck(
            label=checked.text("label", _MAX_TEXT),
            score=checked.number("score"),
            masked_score=checked.number("masked_score"),
            index=checked.integer("index", 0, 1 << 62),
            age_seconds=checked.number("age_seconds"),
        ),
    }


def scaled_grounds(grounds: HeatmapStats | None, x: float, y: float) -> HeatmapStats | None:
    """Return grounds for a picture that is ``x`` times as wide and ``y`` times as high."""
    if grounds is None or grounds.centre is None:
        return grounds
    return replace(grounds, centre=(grounds.centre[0] * x, grounds.centre[1] * y))


def scaled_guards(guarded: Mapping[str, Any], x: float, y: float) -> Mapping[str, Any]:
    """Return what ``read_guards`` gave for a picture that is ``x`` times as wide and ``y`` times as high."""
    if not guarded.get("regions"):
        return guarded
    regions = (replace(one, polygon=tuple((a * x, b * y) for a, b in one.polygon)) for one in guarded["regions"])
    return {**guarded, "regions": tuple(regions)}
