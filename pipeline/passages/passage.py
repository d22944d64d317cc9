"""Counted passages of objects through zones and over lines. Pure data.

A *part* is the passage of one object through a zone, a *crossing* its passage over a counting line. Each is finished at
one frame; ``Explanation.passages`` of this frame contains it. If a full queue drops this frame, ``PassageCursor`` finds
the passage in ``recent_passages`` of a later frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from pipeline.frames import Box, Explanation, Finding, Image, read_only

PassageKind = Literal["part", "crossing"]
Direction = Literal["", "forward", "backward"]
"""Direction of a crossing: ``forward`` is from the left to the right of the line, seen from its first point towards
its second; empty for a part."""

MAX_IMAGE_PIXELS: Final = 320
"""Longest side of the image of a passage; a larger one is reduced."""
MAX_RECENT: Final = 32
"""Number of passages of a camera that each of its explanations carries."""


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """One counted object: a part that has passed a zone, or a crossing of a line.

    It does not change any more. Its times are those of its frames, not of the verdict.
    """

    kind: PassageKind
    camera: str
    place: str
    """Name of the zone or the line."""
    sequence: int
    """Number of passages of the camera so far in this run, this one included: unique, increasing, without gaps."""
    number: int
    """Number of passages of this zone or line so far, this one included."""
    track: int
    """Number of the object's first track in its zone, or of its track at the line."""
    label: str
    """The class that the vote decided."""
    class_index: int
    score: float
    """Mean score of the frames with this class, in [0, 1]."""
    is_ok: bool | None
    """Verdict of a part: whether ``label`` is one of the ok classes; None if its zone has no ok classes, and for
    crossings."""
    direction: Direction
    frames: int
    """Number of frames of the object in the zone; for a crossing, from its first frame to the line."""
    shares: Mapping[str, float]
    """Fraction of ``frames`` by class."""
    first_seen_seconds: float
    """Time of the object's first frame in the zone, on the stream's clock; for a crossing, of its first frame."""
    last_seen_seconds: float
    """Time of the object's last frame in the zone; for a crossing, of its first frame behind the line."""
    last_captured_at: float
    """``time.monotonic()`` seconds at which the frame of ``last_seen_seconds`` was decoded."""
    latency_seconds: float
    """Time from ``last_captured_at`` to the verdict."""
    evidence_outside_box: float | None
    """Mean fraction of the evidence of the object's heat maps outside its box, 0 to 1; None without heat maps."""
    finding: Finding
    """The box and its heat map in the frame that decided: the most certain frame with ``label``."""
    index: int
    """Index of the frame that decided."""
    image: Image
    """The part of that frame around the box, uint8 RGB, read-only, at most ``MAX_IMAGE_PIXELS`` on each side."""
    image_box: Box
    """The rectangle of the frame that ``image`` shows, in pixels."""
    trial_label: str | None = None
    """The class by the same vote of the frames of a network on trial; empty if it found no box in most frames. None if
    there is no such network, or if it explained too few frames.
    """

    @property
    def disagrees(self) -> bool:
        """True if the network on trial decides another class."""
        return self.trial_label is not None and self.trial_label != self.label

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", MappingProxyType(dict(self.shares)))
        object.__setattr__(self, "image", read_only(self.image))

    @property
    def dwell_seconds(self) -> float:
        """Time from ``first_seen_seconds`` to ``last_seen_seconds``."""
        return self.last_seen_seconds - self.first_seen_seconds


@dataclass(frozen=True, slots=True)
class PlaceCount:
    """Number of passages of one class, direction and verdict at a zone or line."""

    label: str
    direction: Direction
    is_ok: bool | None
    count: int


@dataclass(frozen=True, slots=True)
class Place:
    """A zone or a counting line of a camera, with its counts after a frame."""

    kind: Literal["zone", "line"]
    name: str
    points: tuple[tuple[float, float], ...]
    """Corners of the zone, or the two ends of the line, (x, y) in frame pixels."""
    counts: tuple[PlaceCount, ...] = ()
    """Counts by class, direction and verdict, in the order in which these were counted first."""
    inside: int = 0
    """Number of objects that are in the zone now."""

    @property
    def total(self) -> int:
        """Number of all passages."""
        return sum(each.count for each in self.counts)

    @property
    def rejected(self) -> int:
        """Number of parts that are not ok."""
        return sum(each.count for each in self.counts if each.is_ok is False)


@dataclass(slots=True)
class PassageCursor:
    """Returns each passage of each camera once, also if the sink did not get the passage's frame. For one thread."""

    _last: dict[str, int] = field(default_factory=dict)
    """Sequence number of the last returned passage by camera."""

    def take(self, explanation: Explanation) -> tuple[Passage, ...]:
        """Return the passages that were not returned before, the oldest first.

        Passages that are no longer among the last ``MAX_RECENT`` are lost; ``Passage.sequence`` then has a gap.
        """
        last = self._last.get(explanation.frame.camera, 0)
        new = tuple([passage for passage in explanation.recent_passages if passage.sequence > last])
        if new:
            self._last[explanation.frame.camera] = new[-1].sequence
        return new

    def forget(self, camera: str) -> None:
        """Remove the state of a camera that left; if it returns, all its passages are new."""
        self._last.pop(camera, None)

    def update(self, explanation: Explanation) -> Explanation:
        """Return the explanation with the result of ``take`` as its ``passages``."""
        new = self.take(explanation)
        return explanation if new == explanation.passages else replace(explanation, passages=new)
