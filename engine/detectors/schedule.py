"""Chooses which boxes of a frame get a new heat map within the time budget.

Each frame of a camera adds time to the camera's budget, in proportion to the time of its forward pass; each map takes
time from it. So cameras do not affect each other, and on average an explained frame takes at most 1 + fraction times as
long as a plain one. Boxes are chosen alternately from two queues: boxes whose object has no map of its present state
(highest score first), and all others (oldest map first). So new boxes are explained soon, and every box at some time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.frames import Box

CHANGED_IOU: Final = 0.5
"""If the IoU of a box and the box of its track's last map is below this, the object has changed."""
SAVED_FRAMES: Final = 2.0
"""Maximum of saved time, in multiples of a frame's earned time or a map's cost; prevents a burst after a pause."""
MIN_ANSWER_FRACTION: Final = 0.25
"""Minimum time for answers to viewers, as a fraction of the time of forward passes."""
COST_WEIGHT: Final = 0.2
"""Weight of the newest measurement in the expected cost of a map."""


@dataclass(frozen=True, slots=True)
class MapState:
    """The last map of a track."""

    box: Box
    """The explained box, in frame pixels."""
    class_index: int
    made_at: float
    """In seconds, on the stream's clock."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """A box that may get a map."""

    box: Box
    class_index: int
    score: float
    level: int
    """Pyramid level, on which the cost of a map depends."""
    last: MapState | None
    """The last map of the box's track; None if there is none."""

    @property
    def is_new(self) -> bool:
        """True if the track has no map of its present state."""
        last = self.last
        return last is None or last.class_index != self.class_index or last.box.iou(self.box) < CHANGED_IOU


@dataclass(slots=True)
class _Account:
    """The time budget of one camera."""

    saved_seconds: float = 0.0
    earned_seconds: float = 0.0
    """Time that the last frame added."""


@dataclass(slots=True)
class MapScheduler:
    """Distributes the time for maps among the boxes of all cameras. Used by one thread."""

    fraction: float | None = 1.0
    """Time for maps as a fraction of the time of the plain pass; None: no limit."""
    max_boxes: int | None = None
    """Maximum number of maps per frame; None: no limit."""
    plain_seconds: float = 0.0
    """Total time of plain forward passes, in seconds."""
    map_seconds: float = 0.0
    """Total time of maps, in seconds."""
    _answer_debt_seconds: float = 0.0
    """Time of answers that exceeds the budget, in seconds."""
    _costs: dict[int, float] = field(default_factory=dict)
    """Expected seconds of a map, by level."""
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def expect(self, level: int, seconds: float) -> None:
        """Set the expected seconds of a map, as measured before the run."""
        self._costs[level] = seconds

    def forget_camera(self, camera: str) -> None:
        """Delete the time budget of a camera that was removed."""
        self._accounts.pop(camera, None)

    def record_plain(self, camera: str, seconds: float) -> None:
        """Record the time of the forward pass of a camera's frame."""
        self.plain_seconds += seconds
        account = self._accounts.setdefault(camera, _Account())
        account.earned_seconds = (self.fraction or 0.0) * seconds
        earned = math.inf if self.fraction is None else max(self.fraction, MIN_ANSWER_FRACTION) * seconds
        self._answer_debt_seconds = max(self._answer_debt_seconds - earned, 0.0)
        most = SAVED_FRAMES * max(account.earned_seconds, max(self._costs.values(), default=0.0))
        account.saved_seconds = min(account.saved_seconds + account.earned_seconds, most)

    def record_maps(self, camera: str, levels: Sequence[int], seconds: float) -> None:
        """Record the time of the maps of a camera's frame.

        Args:
            camera: the camera's name.
            levels: pyramid level of each explained box.
            seconds: total time of these maps; it is divided among them by their expected costs.
        """
        if not levels:
            return
        self.map_seconds += seconds
        self._accounts.setdefault(camera, _Account()).saved_seconds -= seconds
        expected = [self._costs.get(level, 0.0) for level in levels]
        total = sum(expected)
        for level, cost in dict(zip(levels, expected, strict=True)).items():
            part = seconds * cost / total if all(expected) else seconds / len(levels)
            self._costs[level] = cost + COST_WEIGHT * (part - cost) if cost else part

    @property
    def may_answer(self) -> bool:
        """True if the time of all answers is within the budget."""
        return self._answer_debt_seconds == 0.0

    def record_answer(self, camera: str, seconds: float) -> None:
        """Record the time of an answer to a viewer; it is taken from the camera's budget for maps."""
        self.map_seconds += seconds
        self._accounts.setdefault(camera, _Account()).saved_seconds -= seconds
        self._answer_debt_seconds += seconds

    def choose(self, camera: str, requests: Sequence[MapRequest]) -> list[int]:
        """Return the indices of the boxes that get a new map in this frame, at most ``max_boxes``.

        Args:
            camera: the camera's name.
            requests: the boxes of the frame that the condition selects.
        """
        chosen: list[int] = []
        saved = math.inf if self.fraction is None else self._accounts.setdefault(camera, _Account()).saved_seconds
        for index in _turns(requests):
            if self.max_boxes is not None and len(chosen) >= self.max_boxes:
                break
            cost = self._costs.get(requests[index].level, 0.0)
            if cost > saved:
                break  # wait for this box, which cheaper boxes after it could otherwise postpone for ever
            chosen.append(index)
            saved -= cost
        return chosen


def _turns(requests: Sequence[MapRequest]) -> Iterator[int]:
    """Yield the indices of all boxes in the order of their turns."""
    new = [index for index, request in enumerate(requests) if request.is_new]
    known = [index for index, request in enumerate(requests) if not request.is_new]
    new.sort(key=lambda index: -requests[index].score)
    known.sort(key=lambda index: _made_at(requests[index]))
    while new or known:
        for queue in (new, known):
            if queue:
                yield queue.pop(0)


def _made_at(request: MapRequest) -> float:
    return -math.inf if request.last is None else request.last.made_at
