"""Converts log records to rows of an Arrow table, and back. ``docs/log.md`` describes the columns.

Heat maps are stored as bytes instead of base64. The top finding's label and score have their own columns, so that most
queries need no nested columns. Keys without a column are stored as JSON in the column ``more``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

Record = Mapping[str, Any]
"""A result of ``overlays.wire.message.explanation_record``: JSON values."""

_BOX: Final = pa.list_(pa.float64(), 4)
_HEATMAP_STATS: Final = pa.struct(
    [
        pa.field("focus_area", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("stability", pa.float64()),
        pa.field("centre", pa.list_(pa.float64(), 2)),
        pa.field("heat_inside", pa.map_(pa.string(), pa.float64())),
    ]
)
_BOX_MAP: Final = pa.struct(
    [
        pa.field("mode", pa.string(), nullable=False),
        pa.field("cut", pa.string(), nullable=False),
        pa.field("region", _BOX),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("grid", pa.list_(pa.int32(), 2)),
        pa.field("heat_u8", pa.binary(), nullable=False),
        pa.field("against_u8", pa.binary()),
        pa.field("lowest_score", pa.float64()),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("age_seconds", pa.float64(), nullable=False),
    ]
)
_FINDING: Final = pa.struct(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("heat_u8", pa.binary(), nullable=False),
        pa.field("box", _BOX),
        pa.field("grounds", _HEATMAP_STATS),
        pa.field("track", pa.int64()),
        pa.field("map", _BOX_MAP),
    ]
)
_TRUTH: Final = pa.struct(
    [pa.field("label", pa.string(), nullable=False), pa.field("boxes", pa.list_(_BOX), nullable=False)]
)
_PASSAGE: Final = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("track", pa.int64(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("is_ok", pa.bool_()),
        pa.field("direction", pa.string(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("shares", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("first_seen_seconds", pa.float64(), nullable=False),
        pa.field("last_seen_seconds", pa.float64(), nullable=False),
        pa.field("last_seen_at_unix", pa.float64(), nullable=False),
        pa.field("latency_seconds", pa.float64(), nullable=False),
        pa.field("evidence_outside_box", pa.float64()),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("box", _BOX),
        pa.field("trial_label", pa.string()),
    ]
)
SCHEMA: Final = pa.schema(
    [
        pa.field("camera", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("pts_seconds", pa.float64()),
        pa.field("taken_at_unix", pa.float64(), nullable=False),
        pa.field("sent_at_unix", pa.float64(), nullable=False),
        pa.field("age_seconds", pa.float64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("grid_rows", pa.int32(), nullable=False),
        pa.field("grid_columns", pa.int32(), nullable=False),
        pa.field("heat_region", _BOX, nullable=False),
        pa.field("findings", pa.list_(_FINDING), nullable=False),
        pa.field("timings", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("truth", _TRUTH),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("more", pa.string()),
        pa.field("source", pa.string()),
        pa.field("passages", pa.list_(_PASSAGE)),
    ]
)
ADDED: Final = frozenset({"source", "passages"})
"""Columns that tables of older versions lack."""
_HEATS: Final = frozenset({"heat_u8", "against_u8"})
"""Keys whose values are heat: base64 in a record, bytes in a row."""
_DERIVED: Final = frozenset({"label", "score", "grid_rows", "grid_columns", "more"})
"""Columns that are not keys of a record."""
_KNOWN_KEYS: Final = frozenset(SCHEMA.names) - _DERIVED | {"grid"}


def to_row(record: Record) -> dict[str, Any]:
    """Return the row of ``SCHEMA`` for a record."""
    row = {name: record.get(name) for name in SCHEMA.names if name not in _DERIVED}
    findings = [_finding_row(each) for each in record["findings"]]
    top = max(findings, key=lambda each: each["score"], default={"label": None, "score": None})
    more = {key: value for key, value in record.items() if key not in _KNOWN_KEYS}
    return row | {
        "findings": findings,
        "label": top["label"],
        "score": top["score"],
        "grid_rows": record["grid"][0],
        "grid_columns": record["grid"][1],
        "timings": list(record["timings"].items()),
        "passages": [{**each, "shares": list(each["shares"].items())} for each in record.get("passages", ())] or None,
        "more": json.dumps(more, ensure_ascii=False) if more else None,
    }


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a row of ``SCHEMA``; the inverse of ``to_row``."""
    record = {name: row[name] for name in SCHEMA.names if name not in _DERIVED | ADDED}
    record |= {name: row[name] for name in ADDED if row.get(name) is not None}
    if "passages" in record:
        record["passages"] = [_passage_record(each) for each in record["passages"]]
    findings = [_finding_record(each) for each in row["findings"]]
    more = json.loads(row["more"]) if row["more"] else {}
    grid = [row["grid_rows"], row["grid_columns"]]
    return record | {"findings": findings, "grid": grid, "timings": dict(row["timings"])} | more


def _passage_record(passage: Mapping[str, Any]) -> dict[str, Any]:
    record = {**passage, "shares": dict(passage["shares"])}
    if record.get("trial_label") is None:
        record.pop("trial_label", None)
    return record


def _finding_row(finding: Record) -> dict[str, Any]:
    box_map = finding.get("map")
    return {
        **_decoded(finding),
        "grounds": _stats_row(finding.get("grounds")),
        "map": None if box_map is None else _decoded(box_map),
    }


def _decoded(record: Record) -> dict[str, Any]:
    """Return a record with its heat converted from base64 to bytes."""
    return {key: base64.b64decode(value) if key in _HEATS else value for key, value in record.items()}


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its heat converted from bytes to base64."""
    return {key: base64.b64encode(value).decode("ascii") if key in _HEATS else value for key, value in row.items()}


def _stats_row(stats: Record | None) -> dict[str, Any] | None:
    return None if stats is None else {**stats, "heat_inside": list(stats["heat_inside"].items())}


def _finding_record(finding: Mapping[str, Any]) -> dict[str, Any]:
    record = _encoded(finding)
    # Absent keys are null in a table, and tables of older versions have no such columns.
    added = {key: record.pop(key, None) for key in ("grounds", "track", "map")}
    if (stats := added["grounds"]) is not None:
        record["grounds"] = {**stats, "heat_inside": dict(stats["heat_inside"])}
    if added["track"] is not None:
        record["track"] = added["track"]
    if (box_map := added["map"]) is not None:
        record["map"] = _encoded({key: value for key, value in box_map.items() if value is not None})
    return record
