"""Wire format, version 1: encodes an overlay as three byte strings, and decodes them. Specified in ``docs/wire.md``.

The module uses no sockets and no clocks. It does not use pickle, and checks received values against limits.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from overlays.render.jpeg import encode_image, jpeg_size
from overlays.render.passages import passage_explanation, passage_image
from overlays.wire.fields import VERSION
from overlays.wire.header import MAX_HEADER_BYTES, Header, decode_header, scaled_box
from overlays.wire.passages import passage_record, passages_record, place_record
from overlays.wire.text import escaped, replace_undecodable
from pipeline.errors import WireError, WireLimitError
from pipeline.frames import (
    NO_HEAT,
    Box,
    BoxMap,
    ClassScore,
    Explanation,
    Finding,
    Frame,
    Heat,
    HeatmapStats,
    Image,
    Overlay,
)
from pipeline.guards.state import GuardState
from pipeline.input_area import InputArea, Polygon
from pipeline.passages.passage import Passage
from pipeline.trial import Trial

ENCODING: Final = "jpeg"
_DECIMALS: Final = 5


def explanation_record(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return the header of an explanation as JSON values, as log lines contain it.

    Args:
        explanation: the explanation.
        sent_at_unix: current wall-clock time in Unix seconds.
        now_monotonic: ``time.monotonic()`` at the same time, used to convert ``captured_at`` to wall-clock time.

    Raises:
        WireError: the grids of findings without a ``box_map`` differ.
    """
    frame, region = explanation.frame, explanation.region
    grid = _shared_grid(explanation.findings)
    age = frame.age_seconds(now_monotonic)
    source = {"source": escaped(frame.source_name)} if frame.source_name else {}
    return {
        "version": VERSION,
        "camera": replace_undecodable(frame.camera),
        **source,
        **({} if frame.epoch is None else {"epoch": frame.epoch}),
        "index": frame.index,
        "width": frame.width,
        "height": frame.height,
        "pts_seconds": None if frame.pts_seconds is None else float(frame.pts_seconds),
        "taken_at_unix": round(sent_at_unix - age, 6),
        "sent_at_unix": round(sent_at_unix, 6),
        "age_seconds": round(age, 6),
        "model": replace_undecodable(explanation.model),
        "method": replace_undecodable(explanation.method),
        "layer": replace_undecodable(explanation.layer),
        "grid": list(grid),
        "heat_region": [float(edge) for edge in region],
        "findings": [finding_record(finding, grid) for finding in explanation.findings],
        "timings": {replace_undecodable(stage): float(seconds) for stage, seconds in explanation.timings.items()},
        "truth": None
        if frame.truth is None
        else {
            "label": replace_undecodable(frame.truth.label),
            "boxes": [[float(v) for v in box] for box in frame.truth.boxes],
        },
        **_guards_record(explanation),
        **_area_record(frame.area),
        **_trial_record(explanation.trial),
        **passages_record(explanation, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic),
    }


def _shared_grid(findings: Sequence[Finding]) -> tuple[int, ...]:
    """Return the grid (rows, columns) shared by all findings without a ``box_map``; 1 x 1 if all have one."""
    if not findings:
        return 0, 0
    grids = {finding.heat.shape for finding in findings if finding.box_map is None} or {NO_HEAT.shape}
    if len(grids) > 1:
        raise WireError(
            f"findings: grids {sorted(grids)} differ; all findings without a box_map must have the grid of the layer"
        )
    return grids.pop()


def finding_record(finding: Finding, grid: tuple[int, ...] = (1, 1)) -> dict[str, Any]:
    """Return a finding as a JSON value; ``grid`` is (rows, columns) of the header's key ``grid``."""
    # For a box with a map, readers that do not support the key "map" receive zero heat.
    heat = finding.heat if finding.box_map is None else np.zeros(grid, np.float32)
    record = {
        "label": replace_undecodable(finding.label),
        "class_index": int(finding.class_index),
        "score": float(finding.score),
        "heat_u8": _packed_heat(heat),
        "box": None if finding.box is None else [float(edge) for edge in finding.box],
    }
    if finding.heatmap_stats is not None:
        record["grounds"] = _stats_record(finding.heatmap_stats)
    if finding.track is not None:
        record["track"] = int(finding.track)
    if finding.box_map is not None:
        record["map"] = _box_map_record(finding.heat, finding.box_map)
    return record


def _box_map_record(heat: Heat, box_map: BoxMap) -> dict[str, Any]:
    """Return the heat map of a box as the JSON value of the key ``map``.

    Raises:
        WireError: the grid of ``box_map.against`` differs from the grid of ``heat``.
    """
    against = box_map.against
    if against is not None and against.shape != heat.shape:
        raise WireError(f"against: has the grid {against.shape}; it must have the grid of the heat, {heat.shape}")
    return {
        "mode": box_map.mode,
        "cut": replace_undecodable(box_map.cut),
        "region": [float(edge) for edge in box_map.region],
        "scale": float(box_map.scale),
        "grid": list(heat.shape),
        "heat_u8": _packed_heat(heat),
        **({} if against is None else {"against_u8": _packed_heat(against)}),
        **({} if box_map.lowest_score is None else {"lowest_score": float(box_map.lowest_score)}),
        "index": int(box_map.index),
        "age_seconds": float(box_map.age_seconds),
    }


def _packed_heat(heat: Heat) -> str:
    """Return heat in base64: one byte per cell, row by row, 255 for a heat of 1."""
    levels = np.rint(np.clip(heat, 0.0, 1.0) * 255.0).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode("ascii")


def _stats_record(stats: HeatmapStats) -> dict[str, Any]:
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


def _guards_record(explanation: Explanation) -> dict[str, Any]:
    """Return the keys ``guards``, ``regions`` and ``deletion`` of an explanation; absent values are omitted."""
    record: dict[str, Any] = {}
    if explanation.guards:
        record["guards"] = [_guard_record(state) for state in explanation.guards]
    if explanation.regions:
        record["regions"] = [
            {
                "name": replace_undecodable(region.name),
                "polygon": _polygon_record(region.polygon),
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


def _guard_record(state: GuardState) -> dict[str, Any]:
    """Return the state of a guard as a JSON value."""
    record: dict[str, Any] = {
        "name": replace_undecodable(state.name),
        "firing": state.firing,
        "seconds": float(state.seconds),
        "says": replace_undecodable(state.message),
        "fired": state.fire_count,
    }
    if (figure := state.figure) is not None and math.isfinite(figure.slack):
        name, numbers = replace_undecodable(figure.name), (figure.value, figure.bound, figure.slack)
        record["figure"] = {"name": name} | dict(zip(("value", "bound", "slack"), map(_rounded, numbers), strict=True))
    return record


def _area_record(area: InputArea | None) -> dict[str, Any]:
    """Return the keys ``roi`` and ``masks`` of a frame; absent values are omitted."""
    record: dict[str, Any] = {}
    if area is not None and area.roi:
        record["roi"] = _polygon_record(area.roi)
    if area is not None and area.masks:
        record["masks"] = [_polygon_record(mask) for mask in area.masks]
    return record


def _trial_record(trial: Trial | None) -> dict[str, Any]:
    """Return the key ``trial`` without heat maps; {} if no second network explained the frame."""
    if trial is None or not trial.is_compared:
        return {}
    findings = []
    for finding in trial.findings:
        record = finding_record(replace(finding, heat=NO_HEAT, box_map=None, heatmap_stats=None))
        del record["heat_u8"]
        findings.append(record)
    name, difference = replace_undecodable(trial.name), replace_undecodable(trial.difference)
    return {"trial": {"name": name, "findings": findings, "difference": difference}}


def _polygon_record(polygon: Polygon) -> list[list[float]]:
    return [[round(x, 2), round(y, 2)] for x, y in polygon]


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of JSON in UTF-8.

    Raises:
        WireError: a number is NaN or infinite, or the record exceeds ``MAX_HEADER_BYTES``.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(
            f"camera {record.get('camera')!r}: a number is NaN or infinite, which JSON cannot represent"
        ) from error
    if len(line) > MAX_HEADER_BYTES:
        raise WireLimitError(f"header: {len(line)} bytes, more than {MAX_HEADER_BYTES}; explain fewer classes at once")
    return line


def encode(
    overlay: Overlay,
    *,
    sent_at_unix: float,
    now_monotonic: float,
    jpeg_quality: int = 80,
    jpeg: bytes | None = None,
) -> list[bytes]:
    """Return an overlay as a message: [topic, header, payload].

    Args:
        overlay: the overlay.
        sent_at_unix: current wall-clock time in Unix seconds.
        now_monotonic: ``time.monotonic()`` at the same time.
        jpeg_quality: JPEG quality, 1 to 100.
        jpeg: the result of ``encode_image`` for the overlay's image; None encodes the image here.

    Raises:
        WireError: a number is NaN or infinite, or the overlay exceeds a limit.
    """
    record = header_record(overlay, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    payload = encode_image(overlay.image, jpeg_quality) if jpeg is None else jpeg
    return [topic_of(overlay.explanation.frame.camera), record_bytes(record), payload]


def header_record(overlay: Overlay, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return the header of an overlay as JSON values; the arguments have the same meaning as in ``encode``."""
    record = explanation_record(overlay.explanation, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    height, width = overlay.pixels.shape[:2]
    if (width, height) != (record["width"], record["height"]):
        record |= {"frame_width": record["width"], "frame_height": record["height"], "width": width, "height": height}
    record["encoding"] = ENCODING
    if overlay.explanation.next_classes:
        record["next_classes"] = [
            {"label": replace_undecodable(label), "score": _rounded(score)}
            for label, score in overlay.explanation.next_classes
        ]
    if overlay.explanation.places:
        record["places"] = [place_record(place) for place in overlay.explanation.places]
    if (signal_loss := overlay.signal_loss) is not None:
        record["silence"] = {
            "seconds": round(signal_loss.seconds, 3),
            "state": signal_loss.state,
            "reason": replace_undecodable(signal_loss.reason),
        }
    return record


def encode_passage(
    passage: Passage, explanation: Explanation, times: tuple[float, float], jpeg_quality: int = 80
) -> list[bytes]:
    """Return a part or a crossing as a message with the topic ``parts/CAMERA``: [topic, header, payload].

    The message has the normal format: the camera is ``parts/CAMERA``, the frame is the image of the part, and the
    finding is the deciding box with its heat map. The key ``passage`` contains the other values.

    Args:
        passage: the part or the crossing.
        explanation: explanation of the frame at which the passage finished.
        times: the current time in Unix seconds, and ``time.monotonic()`` at the same time.
        jpeg_quality: JPEG quality, 1 to 100.
    """
    sent_at_unix, now_monotonic = times
    shown, image = passage_explanation(passage, explanation), passage_image(passage)
    record = explanation_record(shown, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    record["encoding"] = ENCODING
    record["passage"] = passage_record(passage, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    return [topic_of(shown.frame.camera), record_bytes(record), encode_image(image, jpeg_quality)]


def topic_of(camera: str) -> bytes:
    """Return the topic of a camera: its name in UTF-8."""
    return replace_undecodable(camera).encode()


def decode_message(parts: Sequence[bytes]) -> tuple[Header, bytes]:
    """Return the decoded header and the payload of a message. Of the payload, only the image size is checked.

    Raises:
        WireVersionError: the version is newer than this reader supports.
        WireError: the message is invalid or exceeds a limit.
    """
    if len(parts) != 3:
        raise WireError(f"message: {len(parts)} parts; version {VERSION} has three: topic, header, payload")
    topic, packed, payload = parts
    header = decode_header(packed)
    if topic != header.camera.encode():
        raise WireError(f"topic: {topic[:80]!r} is not the header's camera {header.camera[:80]!r}")
    if header.encoding != ENCODING:
        raise WireError(f"encoding: {header.encoding!r} is unknown; version {VERSION} has {ENCODING!r}")
    size = jpeg_size(payload)
    if size != (header.width, header.height):
        raise WireError(f"payload: an image of {size}, but the header gives {(header.width, header.height)}")
    return header, payload


def as_overlay(header: Header, image: Image, *, now_unix: float, now_monotonic: float) -> Overlay:
    """Return the overlay of a received message, whose frame is the received image.

    If the received image is smaller than the camera's frame, all coordinates are scaled to the image.

    Args:
        header: the received header.
        image: the received image, RGB, ``(height, width, 3)``, uint8.
        now_unix: current wall-clock time in Unix seconds.
        now_monotonic: ``time.monotonic()`` at the same time, used to convert ``taken_at_unix`` to monotonic time.
    """
    x, y = header.width / header.frame_width, header.height / header.frame_height
    whole = Box(0.0, 0.0, float(header.frame_width), float(header.frame_height))
    frame = Frame(
        pixels=image,
        camera=header.camera,
        index=header.index,
        captured_at=now_monotonic - (now_unix - header.taken_at_unix),
        pts_seconds=header.pts_seconds,
        truth=None if header.truth is None else header.truth.scaled(x, y),
        source_name=header.source,
        area=header.area(x, y),
        epoch=header.epoch,
    )
    explanation = Explanation(
        frame=frame,
        findings=tuple(finding.scaled(x, y) for finding in header.findings),
        method=header.method,
        layer=header.layer,
        timings=header.timings,
        model=header.model,
        heat_region=scaled_box(header.heat_region or whole, x, y),
        guards=tuple(guard.state() for guard in header.guards),
        regions=tuple(region.scaled(x, y) for region in header.regions),
        deletion=None if header.deletion is None else header.deletion.check(),
        places=tuple(place.scaled(x, y) for place in header.places),
        trial=None if header.trial is None else header.trial.scaled(x, y),
        next_classes=tuple(ClassScore(each.label, each.score) for each in header.next_classes),
    )
    return Overlay(image, explanation, None if header.silence is None else header.silence.signal_loss())
