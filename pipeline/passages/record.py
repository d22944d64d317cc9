"""Collects the frames of an object in a zone or at a line: votes, evidence, and the image that decided."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.frames import Box, Finding, Frame, Image
from pipeline.guards.box_stats import BOX
from pipeline.guards.heatmap_stats import stream_time
from pipeline.passages.passage import MAX_IMAGE_PIXELS
from pipeline.passages.vote import Ballot, Vote
from pipeline.trial import Trial

_MARGIN: Final = 0.15
"""Margin of the image around the box, as a fraction of the box's sides."""


class _Shot(NamedTuple):
    """The most certain frame of a class."""

    finding: Finding
    frame_index: int
    image: Image
    box: Box
    """The rectangle of the frame that ``image`` shows."""


class PassageRecord:
    """Collects the frames of one object in one zone or at one line."""

    def __init__(self, vote: Vote, ok: Collection[str] = ()) -> None:
        """Create a record without frames.

        Args:
            vote: the rule by which the frames decide the class.
            ok: the classes that are ok.
        """
        self._whole, self._clipped = Ballot(vote, ok), Ballot(vote, ok)
        self._trial = {is_clipped: Ballot(vote, ok) for is_clipped in (False, True)}
        """Of a network on trial, by whether the box touches the edge of the image."""
        self._least = vote.least
        self._compared = {is_clipped: Ballot(vote, ok) for is_clipped in (False, True)}
        """Those frames that a network on trial explained, too, in the same way."""
        self._shots: dict[tuple[str, bool], _Shot] = {}
        """The most certain frame by class and by whether the box touches the edge of the image."""
        self._outside: list[float] = [0.0, 0]
        """Sum of the fractions of evidence outside the box, and the number of these fractions."""
        self._map_index: int | None = None
        """Index of the frame whose heat map was counted last."""
        self.first_seen_at = self.last_seen_at = 0.0
        self.last_captured_at = 0.0

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self._whole.frames + self._clipped.frames

    def add(self, finding: Finding, box: Box, frame: Frame, *, is_clipped: bool, trial: Trial | None = None) -> None:
        """Add a frame of the object.

        Args:
            finding: the box of the object.
            box: the rectangle of the finding, in frame pixels.
            frame: the frame.
            is_clipped: whether the box touches the edge of the image. This frame shows only a part of the object, and
                votes only if no other frame does.
            trial: the findings of a network on trial in the frame.
        """
        if not self.frames:
            self.first_seen_at = stream_time(frame)
        self.last_seen_at, self.last_captured_at = stream_time(frame), frame.captured_at
        ballot = self._clipped if is_clipped else self._whole
        ballot.add(finding.label, finding.class_index, float(finding.score))
        best = self._shots.get((finding.label, is_clipped))
        if best is None or _certainty(finding) > _certainty(best.finding):
            self._shots[finding.label, is_clipped] = _Shot(finding, frame.index, *_cropped(frame, box))
        self._measure(finding)
        if trial is not None and trial.is_compared:
            self._compared[is_clipped].add(finding.label, finding.class_index, float(finding.score))
            if (other := trial.at(box)) is not None:
                self._trial[is_clipped].add(other.label, other.class_index, float(other.score))

    def _trial_label(self, label: str, *, is_clipped: bool) -> str | None:
        """Return the class that a network on trial decides; None if it explained too few frames for the vote.

        Where the frames that both explained decide one class in both networks, it is that of all frames, ``label``.
        """
        ballot, first = self._trial[is_clipped], self._compared[is_clipped]
        if first.frames < self._least:
            return None
        decided = ballot.decide()[0] if 2 * ballot.frames > first.frames else ""
        return label if decided == first.decide()[0] else decided

    def _measure(self, finding: Finding) -> None:
        """Count the evidence outside the box of a new heat map."""
        stats, box_map = finding.heatmap_stats, finding.box_map
        if stats is None or box_map is None or box_map.index == self._map_index or BOX not in stats.heat_inside:
            return
        self._map_index = box_map.index
        self._outside[0] += 1.0 - stats.heat_inside[BOX]
        self._outside[1] += 1

    def result(self) -> dict[str, Any]:
        """Return the fields of a ``Passage`` that depend on the frames. At least one frame must have been added."""
        is_clipped = not self._whole.frames
        ballot = self._clipped if is_clipped else self._whole
        label, class_index, score = ballot.decide()
        shot = self._shots[label, is_clipped]
        return {
            "label": label,
            "class_index": class_index,
            "score": score,
            "frames": self.frames,
            "shares": ballot.shares(),
            "first_seen_seconds": self.first_seen_at,
            "last_seen_seconds": self.last_seen_at,
            "last_captured_at": self.last_captured_at,
            "evidence_outside_box": self._outside[0] / self._outside[1] if self._outside[1] else None,
            "finding": shot.finding,
            "index": shot.frame_index,
            "image": shot.image,
            "image_box": shot.box,
            "trial_label": self._trial_label(label, is_clipped=is_clipped),
        }


def _certainty(finding: Finding) -> tuple[bool, float]:
    """Return the sort key of a frame's certainty: frames with a heat map first, then by score."""
    return finding.box_map is not None, float(finding.score)


def _cropped(frame: Frame, box: Box) -> tuple[Image, Box]:
    """Return a copy of the image around a box, and its rectangle; a large image is reduced by a whole factor."""
    x, y = _MARGIN * box.width, _MARGIN * box.height
    left, top = max(int(box.left - x), 0), max(int(box.top - y), 0)
    left, top = min(left, frame.width - 1), min(top, frame.height - 1)
    right = min(max(int(np.ceil(box.right + x)), left + 1), frame.width)
    bottom = min(max(int(np.ceil(box.bottom + y)), top + 1), frame.height)
    step = -(-max(right - left, bottom - top) // MAX_IMAGE_PIXELS)
    image = np.ascontiguousarray(frame.image[top:bottom:step, left:right:step])
    if image.base is not None or image is frame.image:
        image = image.copy()  # a view would keep the whole frame in memory
    return image, Box(float(left), float(top), float(right), float(bottom))
