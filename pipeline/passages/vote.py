"""Decides the class of an object by a vote of its frames. Pure functions and state, no I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AfterValidator

MAX_WINDOW: Final = 1000
"""Largest M of ``N of M``."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The rule by which frames decide the class; ``ZoneConfig.vote`` describes the kinds."""

    kind: Literal["mean", "best", "worst", "n of m"] = "mean"
    least: int = 1
    """N of ``N of M``."""
    window: int = 1
    """M of ``N of M``."""

    @property
    def needs_ok(self) -> bool:
        """True if the vote depends on which classes are ok."""
        return self.kind in {"worst", "n of m"}


def parse_vote(text: str) -> Vote:
    """Parse a vote: ``mean``, ``best``, ``worst``, or ``N of M``.

    Raises:
        ValueError: the text is not a vote, N is not from 1 to M, or M is above ``MAX_WINDOW``.
    """
    words = " ".join(text.lower().split())
    if words == "mean":
        return Vote("mean")
    if words == "best":
        return Vote("best")
    if words == "worst":
        return Vote("worst")
    match = re.fullmatch(r"(\d{1,6}) of (\d{1,6})", words)
    if match is None:
        raise ValueError("should be mean, best, worst, or N of M, such as 3 of 5")
    least, window = int(match[1]), int(match[2])
    if not 1 <= least <= window <= MAX_WINDOW:
        raise ValueError(f"should be N of M with N from 1 to M, and M at most {MAX_WINDOW}, such as 3 of 5")
    return Vote("n of m", least, window)


def _is_a_vote(text: str) -> str:
    parse_vote(text)
    return text


VoteRule = Annotated[str, AfterValidator(_is_a_vote)]
"""The text of a vote."""


@dataclass(slots=True)
class _ClassVotes:
    """The votes of frames for one class."""

    class_index: int
    frames: int = 0
    total: float = 0.0
    """Sum of the scores."""
    best: float = 0.0
    """Largest score."""
    most: int = 0
    """Largest number of frames of the class in a window."""


class Ballot:
    """Collects the class and the score of each frame of an object."""

    def __init__(self, vote: Vote, ok: Collection[str] = ()) -> None:
        """Create a ballot without frames.

        Args:
            vote: the rule by which the frames decide the class.
            ok: the classes that are ok.
        """
        self._vote, self._ok = vote, frozenset(ok)
        self._classes: dict[str, _ClassVotes] = {}
        self._window: deque[str] = deque(maxlen=vote.window)
        self.frames = 0

    def add(self, label: str, class_index: int, score: float) -> None:
        """Add a frame."""
        self.frames += 1
        votes = self._classes.setdefault(label, _ClassVotes(class_index))
        votes.frames += 1
        votes.total += score
        votes.best = max(votes.best, score)
        self._window.append(label)
        votes.most = max(votes.most, self._window.count(label) if self._vote.kind == "n of m" else 0)

    def decide(self) -> tuple[str, int, float]:
        """Return the class, its index, and the mean score of its frames. At least one frame must have been added."""
        classes = self._classes
        if self._vote.kind == "best":
            label = max(classes, key=lambda each: classes[each].best)
        elif bad := self._seen_bad():
            label = max(bad, key=lambda each: bad[each].total)
        else:
            label = self._largest_sum()
        votes = classes[label]
        return label, votes.class_index, votes.total / votes.frames

    def _largest_sum(self) -> str:
        good = {label: votes for label, votes in self._classes.items() if label in self._ok}
        among = good if self._vote.needs_ok and good else self._classes
        return max(among, key=lambda each: among[each].total)

    def _seen_bad(self) -> Mapping[str, _ClassVotes]:
        """Return the votes of the classes that decide ``worst`` and ``N of M``; empty for other votes."""
        if not self._vote.needs_ok:
            return {}
        least = self._vote.least if self._vote.kind == "n of m" else 0
        return {label: votes for label, votes in self._classes.items() if label not in self._ok and votes.most >= least}

    def shares(self) -> dict[str, float]:
        """Return the fraction of the frames by class."""
        return {label: votes.frames / self.frames for label, votes in self._classes.items()}
