"""Encodes an explanation as messages with Foxglove's schemas. Pure functions: no files, sockets or clocks.

Each camera has four topics: ``/CAMERA/image``, ``/CAMERA/heat``, ``/CAMERA/annotations`` and ``/CAMERA/explanation``. A
sink calls ``Topic.messages`` only for the topics that it sends; other messages are not encoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from foxglove_schemas_protobuf.Color_pb2 import Color
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
from foxglove_schemas_protobuf.KeyValuePair_pb2 import KeyValuePair
from foxglove_schemas_protobuf.Point2_pb2 import Point2
from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from foxglove_schemas_protobuf.TextAnnotation_pb2 import TextAnnotation
from google.protobuf.timestamp_pb2 import Timestamp
from mcap_protobuf.schema import build_file_descriptor_set

from overlays.render.boxes import evidence, track_colour
from overlays.render.guards import ALARM
from overlays.render.input_area import MASK, ROI
from overlays.render.jpeg import bounded_image, encode_image
from overlays.sinks.foxglove.outline import outlines
from overlays.wire.header import wire_schema
from overlays.wire.message import explanation_record, record_bytes
from overlays.wire.text import replace_undecodable
from pipeline.frames import Box, Explanation, Finding, Overlay

Colour = tuple[int, int, int]

HOT: Final = 0.5
"""Minimum heat of outlined cells; for the map of a box, minimum evidence (``overlays.render.boxes.evidence``)."""
_HOT_COLOUR: Final = (255, 149, 0)
_TEXT_COLOUR: Final = (255, 255, 255)
_REGION_COLOUR: Final = (90, 200, 250)
_LINE_HEIGHT: Final = 1.3
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """An explanation and the times of its messages."""

    explanation: Explanation
    captured_ns: int
    """Capture time of the frame in Unix nanoseconds: the camera's time stamp, or else the time of decoding."""
    now_unix: float
    """The current time, Unix seconds."""
    now_monotonic: float
    """The current time, ``time.monotonic()`` seconds."""
    jpeg: bytes | None = None
    """The frame as JPEG; None if it must be encoded."""
    quality: int = 80
    """JPEG quality, 1 to 100, for an image that must be encoded."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One kind of topic, which every camera has."""

    suffix: str
    """Last level of the topic's name ``/CAMERA/SUFFIX``."""
    encoding: str
    """Encoding of the messages in MCAP's registry: ``protobuf`` or ``json``."""
    schema_name: str
    schema_encoding: str
    """Encoding of the schema in MCAP's registry: ``protobuf`` or ``jsonschema``."""
    schema: Callable[[], bytes]
    """Returns the schema."""
    messages: Callable[[Sample], Iterator[bytes]]
    """Yields the encoded messages of a sample; no message if the sample has no content for this topic."""

    def name(self, camera: str) -> str:
        """Return the topic of a camera."""
        return f"/{replace_undecodable(camera)}/{self.suffix}"


def sample_of(overlay: Overlay, now_unix: float, now_monotonic: float, **fields: Any) -> Sample:  # noqa: ANN401
    """Return the sample of an overlay; ``fields`` are the optional fields of ``Sample``."""
    frame = overlay.explanation.frame
    captured_ns = frame.stamp_ns
    if captured_ns is None:
        captured_ns = round((now_unix - frame.age_seconds(now_monotonic)) * _NANOSECONDS)
    return Sample(overlay.explanation, max(0, captured_ns), now_unix, now_monotonic, **fields)


def frame_jpeg(explanation: Explanation, quality: int) -> bytes:
    """Return the frame without drawings as JPEG, reduced to the limits of encoders. Raises ``WireError``."""
    return encode_image(bounded_image(explanation.frame.image), quality)


def _image_messages(sample: Sample) -> Iterator[bytes]:
    payload = frame_jpeg(sample.explanation, sample.quality) if sample.jpeg is None else sample.jpeg
    message = CompressedImage(
        timestamp=_timestamp(sample), frame_id=_frame_id(sample.explanation), data=payload, format="jpeg"
    )
    yield message.SerializeToString()


def _heat_messages(sample: Sample) -> Iterator[bytes]:
    """Yield the heat of the first class, or of each box that has a map, as float32 on its own grid."""
    explanation = sample.explanation
    for finding in _with_heat(explanation):
        rows, columns = finding.heat.shape
        frame_id = _frame_id(explanation)
        if finding.track is not None:
            frame_id += f"/track/{finding.track}"
        message = RawImage(
            timestamp=_timestamp(sample),
            frame_id=frame_id,
            width=columns,
            height=rows,
            encoding="32FC1",
            step=4 * columns,
            data=np.ascontiguousarray(finding.heat, "<f4").tobytes(),
        )
        yield message.SerializeToString()


def _annotation_messages(sample: Sample) -> Iterator[bytes]:
    explanation, time = sample.explanation, _timestamp(sample)
    size = max(12.0, explanation.frame.height / 30)
    message = ImageAnnotations(timestamp=time)
    lines = 0
    for finding in explanation.findings:
        text = f"{replace_undecodable(finding.label)} {finding.score:.2f}"
        if finding.box is None:
            lines += 1
            message.texts.append(_text(time, (0.0, lines * size * _LINE_HEIGHT), text, size, _TEXT_COLOUR))
            continue
        colour = track_colour(finding)
        message.points.append(_polygon(time, _corners(finding.box), colour, _facts(finding)))
        message.texts.append(_text(time, (finding.box.left, finding.box.top), text, size, colour))
    for finding in _with_heat(explanation):
        message.points.extend(_hot_cells(time, finding, explanation.region_of(finding)))
    if (area := explanation.frame.area) is not None:
        parts = [("mask", mask, MASK) for mask in area.masks] + [("roi", area.roi, ROI)]
        message.points.extend(_polygon(time, part, colour, {"area": name}) for name, part, colour in parts if part)
    firing = explanation.firing
    for region in explanation.regions:
        facts = {"region": replace_undecodable(region.name)}
        message.points.append(_polygon(time, region.polygon, ALARM if firing else _REGION_COLOUR, facts))
    for number, guard in enumerate(firing):
        text = replace_undecodable(f"{guard.name}: {guard.message}")
        bottom = explanation.frame.height - (len(firing) - 1 - number) * size * _LINE_HEIGHT
        message.texts.append(_text(time, (0.0, bottom), text, size, ALARM))
    yield message.SerializeToString()


def _explanation_messages(sample: Sample) -> Iterator[bytes]:
    record = explanation_record(sample.explanation, sent_at_unix=sample.now_unix, now_monotonic=sample.now_monotonic)
    yield record_bytes(record)


def explanation_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record without references, because viewers of MCAP do not resolve references."""
    schema = wire_schema()
    definitions = schema.pop("$defs", {})

    def resolved(part: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            rest = {key: value for key, value in part.items() if key != "$ref"}
            return {**resolved(definitions[part["$ref"].rpartition("/")[2]]), **resolved(rest)}
        return {key: resolved(value) for key, value in part.items()}

    inlined: dict[str, Any] = resolved(schema)
    return inlined


def _protobuf(suffix: str, kind: Any, messages: Callable[[Sample], Iterator[bytes]]) -> Topic:  # noqa: ANN401
    def schema() -> bytes:
        return bytes(build_file_descriptor_set(kind).SerializeToString())

    return Topic(suffix, "protobuf", kind.DESCRIPTOR.full_name, "protobuf", schema, messages)


TOPICS: Final = (
    _protobuf("image", CompressedImage, _image_messages),
    _protobuf("heat", RawImage, _heat_messages),
    _protobuf("annotations", ImageAnnotations, _annotation_messages),
    Topic(
        "explanation",
        "json",
        "recipro_stream.Explanation",
        "jsonschema",
        lambda: json.dumps(explanation_schema()).encode(),
        _explanation_messages,
    ),
)
"""The topics of each camera."""


def _with_heat(explanation: Explanation) -> list[Finding]:
    """Return the first finding of a classifier, or the boxes that have a map."""
    classes = [finding for finding in explanation.findings if finding.box is None]
    return classes[:1] + [finding for finding in explanation.findings if finding.box_map is not None]


def _hot_cells(time: Timestamp, finding: Finding, region: Box) -> Iterator[PointsAnnotation]:
    heat = finding.heat if finding.box_map is None else evidence(finding.heat)
    colour = _HOT_COLOUR if finding.box is None else track_colour(finding)
    rows, columns = heat.shape
    x, y = region.width / columns, region.height / rows
    for polygon in outlines(heat >= HOT):
        corners = [(region.left + column * x, region.top + row * y) for column, row in polygon]
        yield _polygon(time, corners, colour, {"heat": replace_undecodable(finding.label)})


def _facts(finding: Finding) -> dict[str, str]:
    facts = {"label": replace_undecodable(finding.label), "score": f"{finding.score:.4f}"}
    return facts if finding.track is None else {**facts, "track": str(finding.track)}


def _polygon(time: Timestamp, corners: Any, colour: Colour, facts: dict[str, str]) -> PointsAnnotation:  # noqa: ANN401
    return PointsAnnotation(
        timestamp=time,
        type=PointsAnnotation.LINE_LOOP,
        points=[Point2(x=x, y=y) for x, y in corners],
        outline_color=_colour(colour),
        thickness=2.0,
        metadata=[KeyValuePair(key=key, value=value) for key, value in facts.items()],
    )


def _text(time: Timestamp, position: tuple[float, float], text: str, size: float, colour: Colour) -> TextAnnotation:
    return TextAnnotation(
        timestamp=time,
        position=Point2(x=position[0], y=position[1]),
        text=text,
        font_size=size,
        text_color=_colour(colour),
        background_color=Color(r=0.06, g=0.07, b=0.09, a=0.7),
    )


def _corners(box: Box) -> list[tuple[float, float]]:
    return [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]


def _colour(rgb: Colour) -> Color:
    return Color(r=rgb[0] / 255, g=rgb[1] / 255, b=rgb[2] / 255, a=1.0)


def _timestamp(sample: Sample) -> Timestamp:
    seconds, nanos = divmod(sample.captured_ns, _NANOSECONDS)
    return Timestamp(seconds=seconds, nanos=nanos)


def _frame_id(explanation: Explanation) -> str:
    return replace_undecodable(explanation.frame.camera)
