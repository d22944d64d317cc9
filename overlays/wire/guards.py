"""Heat-map statistics and guards in the wire header: encoding and decoding. All of these keys are optional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from overlays.wire.json_fields import JsonFields, replace_undecodable
from pipeline.frames import DeletionCheck, Explanation, GuardState, HeatmapStats, Region

_MAX_NAMES: Final = 256
_MIN_VERTICES: Final = 3
_MAX_VERTICES: Final = 256
_MAX_NAME_LENGTH: Final = 64
_MAX_TEXT_LENGTH: Final = 4096
_DECIMALS: Final = 5


def heatmap_stats_record(stats: HeatmapStats) -> dict[str, Any]:
    """Return the heat-map statistics of a finding as the JSON value of the key ``grounds``."""
    return {
        "focus_area": _rounded(stats.focus_area),
        "entropy": _rounded(stats.entropy),
        "centre": None if stats.centre is None else [round(each, 2) for each in stats.centre],
        "stability": _rounded(stats.stability),
        "heat_inside": {replace_undecodable(name): _rounded(fraction) for name, fraction in stats.heat_inside.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DECIMALS)


def guards_record(explanation: Explanation) -> dict[str, Any]:
    """Return the keys ``guards``, ``regions`` and ``deletion`` of an explanation, as far as it has them."""
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
    if (check := explanation.deletion) is not None:
        record["deletion"] = {
            "label": replace_undecodable(check.label),
            "score": float(check.score),
            "masked_score": float(check.masked_score),
            "index": check.index,
            "age_seconds": float(check.age_seconds),
        }
    return record


def read_heatmap_stats(finding: JsonFields) -> HeatmapStats | None:
    """Read the heat-map statistics of a finding, or None if it has none.

    Raises:
        WireError: a value has the wrong type or range.
    """
    stats = finding.object("grounds")
    if stats is None:
        return None
    centre = stats.point("centre")
    return HeatmapStats(
        focus_area=stats.optional_number("focus_area"),
        entropy=stats.optional_number("entropy"),
        centre=None if centre is None else (centre[0], centre[1]),
        stability=stats.optional_number("stability"),
        heat_inside=MappingProxyType(stats.numbers("heat_inside")),
    )


def read_guards(header: JsonFields) -> Mapping[str, Any]:
    """Read ``guards``, ``regions`` and ``deletion`` of a header, as the arguments of ``Explanation``.

    Raises:
        WireError: a value has the wrong type or range.
    """
    guards = header.objects("guards", _MAX_NAMES) if "guards" in header else ()
    regions = header.objects("regions", _MAX_NAMES) if "regions" in header else ()
    check = header.object("deletion")
    return {
        "guards": tuple(
            GuardState(
                name=each.text("name", _MAX_NAME_LENGTH),
                firing=each.flag("firing"),
                seconds=each.number("seconds"),
                message=each.text("says", _MAX_TEXT_LENGTH),
                fire_count=each.integer("fired", 0, 1 << 62),
            )
            for each in guards
        ),
        "regions": tuple(
            Region(each.text("name", _MAX_NAME_LENGTH), each.points("polygon", _MIN_VERTICES, _MAX_VERTICES))
            for each in regions
        ),
        "deletion": None
        if check is None
        else DeletionCheck(
            label=check.text("label", _MAX_TEXT_LENGTH),
            score=check.number("score"),
            masked_score=check.number("masked_score"),
            index=check.integer("index", 0, 1 << 62),
            age_seconds=check.number("age_seconds"),
        ),
    }


def scale_heatmap_stats(stats: HeatmapStats | None, x: float, y: float) -> HeatmapStats | None:
    """Return the statistics for an image that is ``x`` times as wide and ``y`` times as high."""
    if stats is None or stats.centre is None:
        return stats
    return replace(stats, centre=(stats.centre[0] * x, stats.centre[1] * y))


def scale_guards(fields: Mapping[str, Any], x: float, y: float) -> Mapping[str, Any]:
    """Return the result of ``read_guards`` for an image that is ``x`` times as wide and ``y`` times as high."""
    if not fields.get("regions"):
        return fields
    regions = (
        replace(region, polygon=tuple((a * x, b * y) for a, b in region.polygon)) for region in fields["regions"]
    )
    return {**fields, "regions": tuple(regions)}
