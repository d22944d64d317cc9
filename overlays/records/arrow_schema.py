"""Conversion between log records and rows of an Arrow table. ``docs/log.md`` describes the columns.

Heat maps are stored as bytes, not as base64, and the top finding's label and score have their own columns, so that most
queries need no nested columns. Keys without a column (of a later version) are stored in ``more`` as JSON: no key is
lost.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

Record = Mapping[str, Any]
"""The result of ``overlays.wire.message.explanation_record``: plain JSON values."""

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
_FINDING: Final = pa.struct(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("heat_u8", pa.binary(), nullable=False),
        pa.field("box", _BOX),
        pa.field("grounds", _HEATMAP_STATS),
    ]
)
_TRUTH: Final = pa.struct(
    [pa.field("label", pa.string(), nullable=False), pa.field("boxes", pa.list_(_BOX), nullable=False)]
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
    ]
)
ADDED: Final = frozenset({"source"})
"""Columns that were added later: a table of an older version lacks them."""
_DERIVED: Final = frozenset({"label", "score", "grid_rows", "grid_columns", "more"})
"""Columns that are no keys of a record."""
_KNOWN_KEYS: Final = frozenset(SCHEMA.names) - _DERIVED | {"grid"}


def to_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of ``SCHEMA``."""
    row = {name: record.get(name) for name in SCHEMA.names if name not in _DERIVED}
    findings = [
        each | {"heat_u8": base64.b64decode(each["heat_u8"]), "grounds": _stats_row(each.get("grounds"))}
        for each in record["findings"]
    ]
    top = max(findings, key=lambda each: each["score"], default={"label": None, "score": None})
    more = {key: value for key, value in record.items() if key not in _KNOWN_KEYS}
    return row | {
        "findings": findings,
        "label": top["label"],
        "score": top["score"],
        "grid_rows": record["grid"][0],
        "grid_columns": record["grid"][1],
        "timings": list(record["timings"].items()),
        "more": json.dumps(more, ensure_ascii=False) if more else None,
    }


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record that a row was made of."""
    record = {name: row[name] for name in SCHEMA.names if name not in _DERIVED | ADDED}
    record |= {name: row[name] for name in ADDED if row.get(name) is not None}
    findings = [_finding_record(each) for each in row["findings"]]
    more = json.loads(row["more"]) if row["more"] else {}
    grid = [row["grid_rows"], row["grid_columns"]]
    return record | {"findings": findings, "grid": grid, "timings": dict(row["timings"])} | more


def _stats_row(stats: Record | None) -> dict[str, Any] | None:
    return None if stats is None else {**stats, "heat_inside": list(stats["heat_inside"].items())}


def _finding_record(finding: Mapping[str, Any]) -> dict[str, Any]:
    record = {**finding, "heat_u8": base64.b64encode(finding["heat_u8"]).decode("ascii")}
    # Tables of older versions have no column "grounds".
    stats = record.pop("grounds", None)
    return record if stats is None else record | {"grounds": {**stats, "heat_inside": dict(stats["heat_inside"])}}
