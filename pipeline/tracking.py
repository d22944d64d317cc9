"""Tracks the boxes of one camera from frame to frame, so that an object keeps its track number.

Boxes are matched to tracks by buffered IoU in two steps, small buffer first: Yang et al., *Hard to Track Objects with
Irregular Motions and Similar Appearances? Make It Easier by Buffering the Matching Space* (C-BIoU), arXiv:2211.14317.
Both boxes are enlarged by a fraction of their size, so that an object that moves by more than its own size between two
frames still overlaps its track. The pairs of a step maximise the sum of their IoU (Hungarian method,
``scipy.optimize.linear_sum_assignment``). The expected box of a track is its last box, moved by its velocity.

Pure state: time stamps come from the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.frames import Box

Boxes = npt.NDArray[np.float64]
"""float64, (n, 4): left, top, right, bottom in pixels."""

BUFFERS: Final = (0.3, 0.5)
"""Enlargement of each side in the two steps, as a fraction of the box's width and height."""
MIN_IOU: Final = 0.2
"""Smallest buffered IoU of a match."""
CLASS_CHANGE_IOU: Final = 0.5
"""Smallest buffered IoU of a match with another class: a detector may change the class of an object between frames."""
VELOCITY_SECONDS: Final = 0.3
"""Time constant of the velocity."""


@dataclass(slots=True)
class Track:
    """One tracked object."""

    number: int
    """Number of the track, from 1, unique for its camera."""
    box: Boxes
    """Last box: float64, (4,)."""
    class_index: int
    velocity: Boxes
    """Velocity of the centre (x, y) in pixels per second: float64, (2,)."""
    first_seen_at: float
    """Time of the first frame in seconds, on the stream's clock."""
    last_seen_at: float

    def expected(self, timestamp: float) -> Boxes:
        """Return the expected box at a time on the stream's clock: float64, (4,)."""
        return self.box + np.tile(self.velocity * (timestamp - self.last_seen_at), 2)


class BoxTracker:
    """Assigns a track number to each box of a camera."""

    def __init__(self, *, max_lost_seconds: float = 1.0) -> None:
        """Create a tracker without tracks; a track ends ``max_lost_seconds`` after its last box."""
        self._max_lost_seconds = max_lost_seconds
        self._tracks: list[Track] = []
        self._next_number = 1
        self._timestamp = -np.inf

    @property
    def tracks(self) -> Sequence[Track]:
        """The current tracks, including tracks that were lost less than ``max_lost_seconds`` ago."""
        return tuple(self._tracks)

    def update(self, boxes: Sequence[Box], classes: Sequence[int], timestamp: float) -> list[int]:
        """Match the boxes of the next frame with the tracks.

        Args:
            boxes: the boxes of the frame, in frame pixels.
            classes: class index of each box.
            timestamp: time of the frame in seconds, on the stream's clock. If it goes back, all tracks end.

        Returns:
            The track number of each box.
        """
        if timestamp < self._timestamp:
            self._tracks = []
        self._timestamp = timestamp
        self._tracks = [t for t in self._tracks if timestamp - t.last_seen_at <= self._max_lost_seconds]
        corners = np.asarray([tuple(box) for box in boxes], np.float64).reshape(-1, 4)
        found: dict[int, Track] = {}
        free = list(self._tracks)
        for buffer in BUFFERS:
            remaining = [index for index in range(len(corners)) if index not in found]
            overlap = _overlap(corners[remaining], [track.expected(timestamp) for track in free], buffer)
            pairs = _match(overlap, [classes[index] for index in remaining], free)
            found |= {remaining[row]: free[column] for row, column in pairs}
            matched = {column for _, column in pairs}
            free = [track for column, track in enumerate(free) if column not in matched]
        return [
            self._continue(found.get(index), corners[index], class_index, timestamp)
            for index, class_index in enumerate(classes)
        ]

    def _continue(self, track: Track | None, box: Boxes, class_index: int, timestamp: float) -> int:
        """Extend a track by a box, or create a track if ``track`` is None; return the track's number."""
        if track is None:
            track = Track(self._next_number, box, class_index, np.zeros(2), timestamp, timestamp)
            self._next_number += 1
            self._tracks.append(track)
            return track.number
        elapsed = timestamp - track.last_seen_at
        if elapsed > 0.0:
            measured = (_centre(box) - _centre(track.box)) / elapsed
            is_second_box = track.last_seen_at == track.first_seen_at
            weight = 1.0 if is_second_box else 1.0 - np.exp(-elapsed / VELOCITY_SECONDS)
            track.velocity = track.velocity + weight * (measured - track.velocity)
        track.box, track.class_index, track.last_seen_at = box, class_index, timestamp
        return track.number


def _centre(box: Boxes) -> Boxes:
    return (box[:2] + box[2:]) / 2.0


def _overlap(boxes: Boxes, expected: Sequence[Boxes], buffer: float) -> Boxes:
    """Return the buffered IoU of each box and each expected box.

    Args:
        boxes: float64, (n, 4).
        expected: expected box of each track, float64, (4,).
        buffer: enlargement of each side, as a fraction of the box's size.

    Returns:
        float64, (n, tracks), 0 to 1.
    """
    return pairwise_iou(_enlarged(boxes, buffer), _enlarged(np.reshape(expected, (-1, 4)), buffer))


def _match(overlap: Boxes, classes: Sequence[int], tracks: Sequence[Track]) -> list[tuple[int, int]]:
    """Return the matched pairs (box, track), as row and column of ``overlap``."""
    same = np.reshape([[c == track.class_index for track in tracks] for c in classes], overlap.shape)
    return assign_pairs(np.where(overlap >= np.where(same, MIN_IOU, CLASS_CHANGE_IOU), overlap, 0.0))


def assign_pairs(value: Boxes) -> list[tuple[int, int]]:
    """Return the pairs (row, column) with the largest sum of values; none has the value 0."""
    from scipy.optimize import linear_sum_assignment  # viewers and sinks of networks without boxes start without it

    rows, columns = linear_sum_assignment(value, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if value[row, column] > 0.0]


def _enlarged(boxes: Boxes, fraction: float) -> Boxes:
    margin = (boxes[:, 2:] - boxes[:, :2]) * fraction
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)


def pairwise_iou(a: Boxes, b: Boxes) -> Boxes:
    """Return the intersection over union of each pair of boxes; 0 for boxes without area.

    Args:
        a: float64, (n, 4).
        b: float64, (m, 4).

    Returns:
        float64, (n, m), 0 to 1.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    areas = [np.prod(np.clip(each[:, 2:] - each[:, :2], 0.0, None), axis=1) for each in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    iou: Boxes = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0)
    return iou
