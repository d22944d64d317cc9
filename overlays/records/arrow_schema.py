"""An explanation as a row of a table: the log's keys as columns, and back. ``docs/log.md`` describes them.

Heat stands in it as bytes, not as base64, and the first finding's label and score have columns of their own, so that
most questions to a log need no nested ones. Keys without a column (those a later version adds) stand in ``more`` as
JSON: nothing is lost on the way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

Record = Mapping[str, Any]
"""What ``overlays.wire.message.explanation_record`` gives: plain JSON values."""

_BOX: Final = pa.list_(pa.float64(), 4)
_GROUNDS: Final = pa.struct(
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
        pa.field("grounds", _GROUNDS),
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
"""Columns that came later: a table of an older version lacks them."""
_MADE: Final = frozenset({"label", "score", "grid_rows", "grid_columns", "more"})
"""Columns that are no keys of a record."""
_TOLD: Final = frozenset(SCHEMA.names) - _MADE | {"grid"}


def to_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of ``SCHEMA``."""
    row = {name: record.get(name) for name in SCHEMA.names if name not in _MADE}
    findings = [
        each | {"heat_u8": base64.b64decode(each["heat_u8"]), "grounds": _grounds_row(each.get("grounds"))}
        for each in record["findings"]
    ]
    verdict = max(findings, key=lambda each: each["score"], default={"label": None, "score": None})
    more = {key: value for key, value in record.items() if key not in _TOLD}
    return row | {
        "findings": findings,
        "label": verdict["label"],
        "score": verdict["score"],
        "grid_rows": record["grid"][0],
        "grid_columns": record["grid"][1],
        "timings": list(record["timings"].items()),
        "more": json.dumps(more, ensure_ascii=False) if more else None,
    }


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the record it was made of."""
    record = {name: row[name] for name in SCHEMA.names if name not in _MADE | ADDED}
    record |= {name: row[name] for name in ADDED if row.get(name) is not None}
    findings = [_finding_record(each) for each in row["findings"]]
    more = json.loads(row["more"]) if row["more"] else {}
    grid = [row["grid_rows"], row["grid_columns"]]
    return record | {"findings": findings, "grid": grid, "timings": dict(row["timings"])} | more


def _grounds_row(grounds: Record | None) -> dict[str, Any] | None:
    return None if grounds is None else {**grounds, "heat_inside": list(grounds["heat_inside"].items())}


def _finding_record(finding: Mapping[str, Any]) -> dict[str, Any]:
    record = {**finding, "heat_u8": base64.b64encode(finding["heat_u8"]).decode("ascii")}
    # A table that was written before there were grounds has no such column.
    grounds = record.pop("grounds", None)
    return record if grounds is None else record | {"grounds": {**grounds, "heat_inside": dict(grounds["heat_inside"])}}
