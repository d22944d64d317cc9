"""The wire, version 1: an overlay as three byte strings, and back. ``docs/wire.md`` describes it for other readers.

Pure: no sockets, no clocks. Nothing is unpickled; what arrives is checked against stated limits before it is believed.
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
    grounds_record,
    guards_record,
    read_grounds,
    read_guards,
    scaled_grounds,
    scaled_guards,
)
from overlays.wire.json_fields import JsonFields, escaped, replace_undecodable
from pipeline.errors import WireError, WireLimitError, WireVersionError
from pipeline.frames import Box, Explanation, Finding, Frame, GroundTruth, Heat, Image, Overlay, SignalLoss

VERSION: Final = 1
ENCODING: Final = "jpeg"
MAX_HEADER_BYTES: Final = 32 << 20
MAX_FRAME_SIDE: Final = 1 << 20
"""Of a frame, which may be larger than any picture that is sent of it."""
MAX_GRID_SIDE: Final = 4096
MAX_FINDINGS: Final = 4096
MAX_TEXT: Final = 4096
MAX_SOURCE: Final = 32768
"""Of a path: 4096 bytes, some of them escaped."""


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What a message says beside its picture. Fields are the header's keys; ``docs/wire.md`` tells what each means."""

    version: int
    camera: str
    index: int
    width: int
    height: int
    encoding: str
    """``jpeg``; empty in a line of the log, which has no picture."""
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
    """The frame's own width where the picture was sent smaller; the picture's otherwise."""
    frame_height: int
    source: str = ""
    """The file the frame was read from; empty for a live source."""
    silence: SignalLoss | None = None
    """Set where nothing comes from the camera any more: this is its last frame, drawn so."""
    guarded: Mapping[str, Any] = field(default_factory=dict)
    """``guards``, ``regions`` and ``deletion`` as an explanation has them; empty where there are none."""


def explanation_record(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return what the header says of an explanation, in plain JSON values; the log writes the same.

    Args:
        explanation: what to tell.
        sent_at_unix: wall-clock seconds at this moment.
        now_monotonic: ``time.monotonic()`` at this moment: the two together turn ``captured_at`` into wall-clock time.

    Raises:
        WireError: a number is NaN or infinite, or the findings' grids differ.
    """
    frame, region = explanation.frame, explanation.region
    grids = {finding.heat.shape for finding in explanation.findings}
    if len(grids) > 1:
        raise WireError(f"findings: grids {sorted(grids)} differ; all findings of one explanation share the layer's")
    age = frame.age_seconds(now_monotonic)
    named = {"source": escaped(frame.source_name)} if frame.source_name else {}
    return {
        "version": VERSION,
        "camera": replace_undecodable(frame.camera),
        **named,
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
    return record if finding.heatmap_stats is None else record | {"grounds": grounds_record(finding.heatmap_stats)}


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """Write a record as one line of JSON, utf-8.

    Raises:
        WireError: a number is NaN or infinite (JSON has neither), or the record is larger than a header may be.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(
            f"camera {record.get('camera')!r}: a number is NaN or infinite, which JSON cannot say"
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
    picture: bytes | None = None,
) -> list[bytes]:
    """Write an overlay as a message: [topic, header, payload].

    Args:
        overlay: what to send.
        sent_at_unix: wall-clock seconds at this moment.
        now_monotonic: ``time.monotonic()`` at this moment.
        jpeg_quality: 1 to 100.
        picture: the overlay's picture as ``encode_image`` gave it, where it is at hand.

    Raises:
        WireError: the overlay breaks a limit.
    """
    record = explanation_record(overlay.explanation, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    height, width = overlay.image.shape[:2]
    if (width, height) != (record["width"], record["height"]):
        record |= {"frame_width": record["width"], "frame_height": record["height"], "width": width, "height": height}
    record["encoding"] = ENCODING
    if (signal_loss := overlay.signal_loss) is not None:
        told = {
            "seconds": round(signal_loss.seconds, 3),
            "state": signal_loss.state,
            "reason": replace_undecodable(signal_loss.reason),
        }
        record["silence"] = told
    payload = encode_image(overlay.image, jpeg_quality) if picture is None else picture
    return [topic_of(overlay.explanation.frame.camera), record_bytes(record), payload]


def topic_of(camera: str) -> bytes:
    """Return the topic a camera is published under: its name in utf-8."""
    return replace_undecodable(camera).encode()


def decode_header(header: bytes) -> Header:
    """Read a header, or a line of the log. Unknown keys are ignored.

    Raises:
        WireVersionError: a newer version than this reader knows.
        WireError: it is damaged, or beyond a limit.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise WireLimitError(f"header: {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    fields = JsonFields.parse(header)
    version = fields.integer("version", 1, 1 << 31)
    if version > VERSION:
        raise WireVersionError(
            f"version: the message is version {version}, this reader knows up to {VERSION}; update recipro-stream here"
        )
    grid = fields.integers("grid", 2, 0, MAX_GRID_SIDE)
    if 0 in grid and fields.get("findings"):
        raise WireError(f"grid: {grid}; with findings it must have at least one row and one column")
    width, height = fields.integer("width", 1, MAX_FRAME_SIDE), fields.integer("height", 1, MAX_FRAME_SIDE)
    return Header(
        version=version,
        camera=fields.text("camera", MAX_TEXT),
        index=fields.integer("index", 0, 1 << 62),
        width=width,
        height=height,
        encoding=fields.text("encoding", 32) if "encoding" in fields else "",
        pts_seconds=fields.optional_number("pts_seconds"),
        taken_at_unix=fields.number("taken_at_unix"),
        sent_at_unix=fields.number("sent_at_unix"),
        age_seconds=fields.number("age_seconds"),
        model=fields.text("model", MAX_TEXT),
        method=fields.text("method", MAX_TEXT),
        layer=fields.text("layer", MAX_TEXT),
        grid=(grid[0], grid[1]),
        heat_region=fields.box("heat_region") or Box(0.0, 0.0, float(width), float(height)),
        findings=tuple(_finding(each, (grid[0], grid[1])) for each in fields.objects("findings", MAX_FINDINGS)),
        timings=fields.numbers("timings"),
        truth=_truth(fields),
        frame_width=fields.integer("frame_width", 1, MAX_FRAME_SIDE) if "frame_width" in fields else width,
        frame_height=fields.integer("frame_height", 1, MAX_FRAME_SIDE) if "frame_height" in fields else height,
        source=fields.text("source", MAX_SOURCE) if fields.get("source") is not None else "",
        silence=_silence(fields),
        guarded=read_guards(fields),
    )


def _silence(fields: JsonFields) -> SignalLoss | None:
    told = fields.object("silence")
    if told is None:
        return None
    return SignalLoss(told.number("seconds"), told.text("state", 32), told.text("reason", MAX_TEXT))


def _finding(fields: JsonFields, grid: tuple[int, int]) -> Finding:
    levels = fields.base64_bytes("heat_u8", grid[0] * grid[1])
    heat: Heat = np.frombuffer(levels, np.uint8).reshape(grid).astype(np.float32) / np.float32(255.0)
    heat.flags.writeable = False
    return Finding(
        label=fields.text("label", MAX_TEXT),
        score=fields.number("score"),
        heat=heat,
        class_index=fields.integer("class_index", -1, 1 << 31),
        box=fields.box("box"),
        heatmap_stats=read_grounds(fields),
    )


def _truth(fields: JsonFields) -> GroundTruth | None:
    truth = fields.object("truth")
    if truth is None:
        return None
    return GroundTruth(label=truth.text("label", MAX_TEXT), boxes=truth.boxes("boxes", MAX_FINDINGS))


def decode_message(parts: Sequence[bytes]) -> tuple[Header, bytes]:
    """Read a message up to its picture: (header, payload). The payload is measured, not yet decoded.

    Raises:
        WireVersionError: a newer version than this reader knows.
        WireError: it is damaged, or beyond a limit.
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
        raise WireError(f"payload: a picture of {size}, but the header says {(header.width, header.height)}")
    return header, payload


def as_overlay(header: Header, image: Image, *, now_unix: float, now_monotonic: float) -> Overlay:
    """Rebuild an overlay from what arrived: its frame is the received picture.

    Where the picture was sent smaller than the frame, boxes and the heat's region are scaled to the picture.

    Args:
        header: what arrived.
        image: the picture, uint8 RGB.
        now_unix: wall-clock seconds at this moment.
        now_monotonic: ``time.monotonic()`` at this moment: the two together turn ``taken_at_unix`` into this
            machine's monotonic time.
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
            f, box=None if f.box is None else _scaled(f.box, x, y), heatmap_stats=scaled_grounds(f.heatmap_stats, x, y)
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
            **scaled_guards(header.guarded, x, y),
        ),
        signal_loss=header.silence,
    )


def _scaled(box: Box, x: float, y: float) -> Box:
    return Box(box.left * x, box.top * y, box.right * x, box.bottom * y)
