"""Parts, crossings, zones and lines in the wire header: their JSON values, and the models that validate them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from overlays.wire.fields import Edges, Index, Name, Numbers, Point, Seconds, Text, WireModel
from overlays.wire.text import replace_undecodable
from pipeline.frames import Explanation
from pipeline.passages.passage import Direction, Passage, Place, PlaceCount

_DECIMALS = 5


class WirePassage(WireModel):
    """A part that has passed through a zone, or a crossing of a counting line."""

    kind: Literal["part", "crossing"]
    place: Name
    """Name of the zone or the line."""
    sequence: Index
    """Sequence number of this passage, counted over all places of the camera in this run."""
    number: Index
    """Sequence number of this passage, counted at this place only."""
    track: Index
    label: Text
    """The class chosen by the vote over all frames of the object."""
    class_index: Annotated[int, Field(ge=-1, le=1 << 31)]
    score: float
    """Mean score of the frames that voted for this class."""
    is_ok: bool | None = None
    """Verdict of a part; null for crossings, and for zones without good classes."""
    direction: Direction = ""
    """Direction of a crossing, ``forward`` or ``backward``; empty for a part."""
    frames: Index
    """Number of frames with the object in the zone, or before the line."""
    shares: Numbers = Field(default_factory=dict)
    """Fraction of these frames for each class."""
    first_seen_seconds: float
    """Time of the object's first frame, on the stream's clock, in seconds."""
    last_seen_seconds: float
    """Time of the object's last frame, on the stream's clock, in seconds."""
    last_seen_at_unix: float
    """Time when the last frame was decoded, on the publisher's clock, in Unix seconds."""
    latency_seconds: Seconds
    """Time from the last frame to the verdict."""
    evidence_outside_box: float | None = None
    """Mean fraction of the heat that lies outside the box, over the object's heat maps."""
    index: Index
    """Index of the frame with the deciding box."""
    box: Edges | None = None
    """Box of the object in the frame ``index``."""
    trial_label: Text | None = None
    """Class chosen by the same vote over a trial network's boxes; empty if most frames have no such box."""


class WirePlaceCount(WireModel):
    """Number of parts or crossings of one class at a place."""

    label: Text
    direction: Direction = ""
    is_ok: bool | None = None
    count: Index


class WirePlace(WireModel):
    """A zone or a counting line with its counts."""

    kind: Literal["zone", "line"]
    name: Name
    points: Annotated[tuple[Point, ...], Field(strict=False, min_length=2, max_length=256)]
    counts: Annotated[tuple[WirePlaceCount, ...], Field(strict=False, max_length=4096)] = ()
    inside: Index = 0
    """Number of objects in the zone now."""

    def scaled(self, x: float, y: float) -> Place:
        """Return the place scaled to an image that is ``x`` times as wide and ``y`` times as high."""
        counts = [PlaceCount(each.label, each.direction, each.is_ok, each.count) for each in self.counts]
        return Place(self.kind, self.name, tuple((a * x, b * y) for a, b in self.points), tuple(counts), self.inside)


def passage_record(passage: Passage, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return a part or a crossing as a JSON value; for the times, see ``explanation_record``."""
    box, outside = passage.finding.box, passage.evidence_outside_box
    trial = passage.trial_label
    return {
        "kind": passage.kind,
        "place": replace_undecodable(passage.place),
        "sequence": passage.sequence,
        "number": passage.number,
        "track": int(passage.track),
        "label": replace_undecodable(passage.label),
        "class_index": int(passage.class_index),
        "score": round(float(passage.score), _DECIMALS),
        "is_ok": passage.is_ok,
        "direction": passage.direction,
        "frames": passage.frames,
        "shares": {replace_undecodable(label): round(share, _DECIMALS) for label, share in passage.shares.items()},
        "first_seen_seconds": float(passage.first_seen_seconds),
        "last_seen_seconds": float(passage.last_seen_seconds),
        "last_seen_at_unix": round(sent_at_unix - (now_monotonic - passage.last_captured_at), 6),
        "latency_seconds": round(float(passage.latency_seconds), 6),
        "evidence_outside_box": None if outside is None else round(float(outside), _DECIMALS),
        "index": passage.index,
        "box": None if box is None else [float(edge) for edge in box],
        **({} if trial is None else {"trial_label": replace_undecodable(trial)}),
    }


def place_record(place: Place) -> dict[str, Any]:
    """Return a zone or a line with its counts as a JSON value."""
    return {
        "kind": place.kind,
        "name": replace_undecodable(place.name),
        "points": [[round(x, 2), round(y, 2)] for x, y in place.points],
        "counts": [
            {
                "label": replace_undecodable(each.label),
                "direction": each.direction,
                "is_ok": each.is_ok,
                "count": each.count,
            }
            for each in place.counts
        ],
        "inside": place.inside,
    }


def passages_record(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return the key ``passages`` of an explanation; {} without passages."""
    records = [
        passage_record(passage, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
        for passage in explanation.passages
    ]
    return {"passages": records} if records else {}
