"""Wire format, version 1: encodes an overlay as three byte strings, and decodes it. Specified in ``docs/wire.md``.

Pure: no sockets, no clocks. Nothing is unpickled; received values are checked against limits before they are used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from overlays.render.jpeg import encode_image, jpeg_size
from overlays.wire.guards import (
    guards_record,
    heatmap_stats_record,
    read_guards,
    read_heatmap_stats,
    scale_guards,
    scale_heatmap_stats,
)
from overlays.wire.json_fields import JsonFields, escaped, replace_undecodable
from pipeline.errors import WireError, WireLimitError, WireVersionError
from pipeline.frames import Box, Explanation, Finding, Frame, GroundTruth, Heat, Image, Overlay, SignalLoss

VERSION: Final = 1
ENCODING: Final = "jpeg"
MAX_HEADER_BYTES: Final = 32 << 20
MAX_FRAME_SIDE: Final = 1 << 20
"""Maximum side of a frame, which may be larger than the image that is sent of it."""
MAX_GRID_SIDE: Final = 4096
MAX_FINDINGS: Final = 4096
MAX_TEXT_LENGTH: Final = 4096
MAX_SOURCE_LENGTH: Final = 32768
"""Maximum length of a path: 4096 bytes, some of them escaped."""


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """The header of a message. Fields have the names of the header's keys, which ``docs/wire.md`` explains."""

    version: int
    camera: str
    index: int
    width: int
    height: int
    encoding: str
    """``jpeg``; empty in a log line, which has no image."""
    pts_seconds: float | None
    taken_at_unix: float
    sent_at_unix: float
    age_seconds: float
    model: str
    method: str
    layer: str
    grid: tuple[int, int]
    heat_region: Box
    findings: tuple[Finding, ...]
    timings: Mapping[str, float]
    truth: GroundTruth | None
    frame_width: int
    """Width of the frame; differs from ``width`` if the image was sent smaller."""
    frame_height: int
    source: str = ""
    """Path of the file the frame was read from; empty for a live source."""
    silence: SignalLoss | None = None
    """Set during a signal loss: the image is then the camera's last frame, drawn grey."""
    guarded: Mapping[str, Any] = field(default_factory=dict)
    """``guards``, ``regions`` and ``deletion`` as arguments of ``Explanation``; empty if there are none."""


def explanation_record(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return the header of an explanation as plain JSON values, the same as in a log line.

    Args:
        explanation: the explanation.
        sent_at_unix: current wall-clock time in Unix seconds.
        now_monotonic: current ``time.monotonic()``: the two together turn ``captured_at`` into wall-clock time.

    Raises:
        WireError: a number is NaN or infinite, or the findings' grids differ.
    """
    frame, region = explanation.frame, explanation.region
    grids = {finding.heat.shape for finding in explanation.findings}
    if len(grids) > 1:
        raise WireError(f"findings: grids {sorted(grids)} differ; all findings of one explanation share the layer's")
    age = frame.age_seconds(now_monotonic)
    source = {"source": escaped(frame.source_name)} if frame.source_name else {}
    return {
        "version": VERSION,
        "camera": replace_undecodable(frame.camera),
        **source,
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
        "grid": list(grids.pop()) if grids else [0, 0],
        "heat_region": [float(edge) for edge in region],
        "findings": [_finding_record(finding) for finding in explanation.findings],
        "timings": {replace_undecodable(stage): float(seconds) for stage, seconds in explanation.timings.items()},
        "truth": None
        if frame.truth is None
        else {
            "label": replace_undecodable(frame.truth.label),
            "boxes": [[float(v) for v in box] for box in frame.truth.boxes],
        },
        **guards_record(explanation),
    }


def _finding_record(finding: Finding) -> dict[str, Any]:
    levels = np.rint(np.clip(finding.heat, 0.0, 1.0) * 255.0).astype(np.uint8)
    record = {
        "label": replace_undecodable(finding.label),
        "class_index": int(finding.class_index),
        "score": float(finding.score),
        "heat_u8": base64.b64encode(levels.tobytes()).decode("ascii"),
        "box": None if finding.box is None else [float(edge) for edge in finding.box],
    }
    if finding.heatmap_stats is None:
        return record
    return record | {"grounds": heatmap_stats_record(finding.heatmap_stats)}


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """Encode a record as one line of JSON in UTF-8.

    Raises:
        WireError: a number is NaN or infinite (JSON has neither), or the record exceeds the size of a header.
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
    """Encode an overlay as a message: [topic, header, payload].

    Args:
        overlay: the overlay.
        sent_at_unix: current wall-clock time in Unix seconds.
        now_monotonic: current ``time.monotonic()``.
        jpeg_quality: 1 to 100.
        jpeg: the overlay's image as returned by ``encode_image``, if it exists already.

    Raises:
        WireError: the overlay exceeds a limit.
    """
    record = explanation_record(overlay.explanation, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    height, width = overlay.image.shape[:2]
    if (width, height) != (record["width"], record["height"]):
        record |= {"frame_width": record["width"], "frame_height": record["height"], "width": width, "height": height}
    record["encoding"] = ENCODING
    if (signal_loss := overlay.signal_loss) is not None:
        record["silence"] = {
            "seconds": round(signal_loss.seconds, 3),
            "state": signal_loss.state,
            "reason": replace_undecodable(signal_loss.reason),
        }
    payload = encode_image(overlay.image, jpeg_quality) if jpeg is None else jpeg
    return [topic_of(overlay.explanation.frame.camera), record_bytes(record), payload]


def topic_of(camera: str) -> bytes:
    """Return the topic of a camera: its name in UTF-8."""
    return replace_undecodable(camera).encode()


def decode_header(header: bytes) -> Header:
    """Decode a header or a log line. Unknown keys are ignored.

    Raises:
        WireVersionError: the version is newer than this reader supports.
        WireError: a value is invalid or exceeds a limit.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise WireLimitError(f"header: {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    fields = JsonFields.parse(header)
    version = fields.integer("version", 1, 1 << 31)
    if version > VERSION:
        raise WireVersionError(
            f"version: {version} is newer than this reader supports ({VERSION}); update recipro-stream here"
        )
    grid = fields.integers("grid", 2, 0, MAX_GRID_SIDE)
    if 0 in grid and fields.get("findings"):
        raise WireError(f"grid: {grid}; with findings it must have at least one row and one column")
    width, height = fields.integer("width", 1, MAX_FRAME_SIDE), fields.integer("height", 1, MAX_FRAME_SIDE)
    return Header(
        version=version,
        camera=fields.text("camera", MAX_TEXT_LENGTH),
        index=fields.integer("index", 0, 1 << 62),
        width=width,
        height=height,
        encoding=fields.text("encoding", 32) if "encoding" in fields else "",
        pts_seconds=fields.optional_number("pts_seconds"),
        taken_at_unix=fields.number("taken_at_unix"),
        sent_at_unix=fields.number("sent_at_unix"),
        age_seconds=fields.number("age_seconds"),
        model=fields.text("model", MAX_TEXT_LENGTH),
        method=fields.text("method", MAX_TEXT_LENGTH),
        layer=fields.text("layer", MAX_TEXT_LENGTH),
        grid=(grid[0], grid[1]),
        heat_region=fields.box("heat_region") or Box(0.0, 0.0, float(width), float(height)),
        findings=tuple(_finding(each, (grid[0], grid[1])) for each in fields.objects("findings", MAX_FINDINGS)),
        timings=fields.numbers("timings"),
        truth=_truth(fields),
        frame_width=fields.integer("frame_width", 1, MAX_FRAME_SIDE) if "frame_width" in fields else width,
        frame_height=fields.integer("frame_height", 1, MAX_FRAME_SIDE) if "frame_height" in fields else height,
        source=fields.text("source", MAX_SOURCE_LENGTH) if fields.get("source") is not None else "",
        silence=_signal_loss(fields),
        guarded=read_guards(fields),
    )


def _signal_loss(fields: JsonFields) -> SignalLoss | None:
    loss = fields.object("silence")
    if loss is None:
        return None
    return SignalLoss(loss.number("seconds"), loss.text("state", 32), loss.text("reason", MAX_TEXT_LENGTH))


def _finding(fields: JsonFields, grid: tuple[int, int]) -> Finding:
    levels = fields.base64_bytes("heat_u8", grid[0] * grid[1])
    heat: Heat = np.frombuffer(levels, np.uint8).reshape(grid).astype(np.float32) / np.float32(255.0)
    heat.flags.writeable = False
    return Finding(
        label=fields.text("label", MAX_TEXT_LENGTH),
        score=fields.number("score"),
        heat=heat,
        class_index=fields.integer("class_index", -1, 1 << 31),
        box=fields.box("box"),
        heatmap_stats=read_heatmap_stats(fields),
    )


def _truth(fields: JsonFields) -> GroundTruth | None:
    truth = fields.object("truth")
    if truth is None:
        return None
    return GroundTruth(label=truth.text("label", MAX_TEXT_LENGTH), boxes=truth.boxes("boxes", MAX_FINDINGS))


def decode_message(parts: Sequence[bytes]) -> tuple[Header, bytes]:
    """Decode a message up to its image: (header, payload). Of the payload, only the size is checked.

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
    """Return the overlay of a received message; its frame is the received image.

    If the image was sent smaller than the frame, boxes and the region of the heat map are scaled to the image.

    Args:
        header: the received header.
        image: the received image, RGB, ``(height, width, 3)``, uint8.
        now_unix: current wall-clock time in Unix seconds.
        now_monotonic: current ``time.monotonic()``: the two together turn ``taken_at_unix`` into this machine's
            monotonic time.
    """
    x, y = header.width / header.frame_width, header.height / header.frame_height
    truth = header.truth
    frame = Frame(
        image=image,
        camera=header.camera,
        index=header.index,
        captured_at=now_monotonic - (now_unix - header.taken_at_unix),
        pts_seconds=header.pts_seconds,
        truth=None if truth is None else GroundTruth(truth.label, tuple(_scaled(box, x, y) for box in truth.boxes)),
        source_name=header.source,
    )
    findings = tuple(
        replace(
            f,
            box=None if f.box is None else _scaled(f.box, x, y),
            heatmap_stats=scale_heatmap_stats(f.heatmap_stats, x, y),
        )
        for f in header.findings
    )
    return Overlay(
        image=image,
        explanation=Explanation(
            frame=frame,
            findings=findings,
            method=header.method,
            layer=header.layer,
            timings=header.timings,
            model=header.model,
            heat_region=_scaled(header.heat_region, x, y),
            **scale_guards(header.guarded, x, y),
        ),
        signal_loss=header.silence,
    )


def _scaled(box: Box, x: float, y: float) -> Box:
    return Box(box.left * x, box.top * y, box.right * x, box.bottom * y)
