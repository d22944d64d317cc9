"""Computes verdicts for controllers (PLCs): for each frame, and for each part that has passed.

The parts of a detector are counted by the camera's zones (``pipeline.passages``). Without zones, or for a classifier,
consecutive frames that meet ``part_when`` are one part, and its class is decided by a vote of its frames
(``pipeline.passages.vote``), as for a zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from overlays.sinks.settings import PlcSettings
from pipeline.frames import Box, Explanation
from pipeline.guards.heatmap_stats import stream_time
from pipeline.guards.parser import Condition, parse_condition
from pipeline.passages.passage import Passage, PassageCursor
from pipeline.passages.vote import Ballot, Vote, parse_vote

_OK: Final = "ok"
_NOT_OK: Final = "not ok"


@dataclass(frozen=True, slots=True)
class FrameVerdict:
    """The verdict of a frame."""

    is_ok: bool
    class_index: int
    """Index of the top class; -1 if a detector found no box."""
    label: str
    score: float
    index: int
    captured_at: float
    """Capture time of the frame in ``time.monotonic()`` seconds."""
    box: Box | None
    boxes: int
    """Number of a detector's boxes."""
    alarms: int
    """Number of guards that fire."""


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """The verdict of a part that has passed."""

    number: int
    """Number of parts of the camera so far, including this part."""
    is_ok: bool
    class_index: int
    """The class that the vote decided."""
    label: str
    share: float
    """Fraction of the part's frames that agree with the verdict, 0 to 1; in a zone, fraction with the part's class."""
    frames: int
    latency_seconds: float
    """Time from the capture of the part's first frame to the verdict."""
    zone: str = ""
    """Name of the part's zone; empty without zones."""


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """The rules that decide which frames are ok, and which frames belong to a part."""

    ok_when: Condition | None
    """Condition on frames that are ok; None: a frame is ok if no guard fires."""
    part_when: Condition | None
    """Condition on frames that show a part; None: parts are counted by zones."""
    part_gap_seconds: float
    """Time without a frame that meets ``part_when`` after which a part has passed."""
    part_vote: Vote
    """The vote of the frames that met ``part_when``."""

    @classmethod
    def of(cls, settings: PlcSettings) -> VerdictRules:
        """Return the rules of a sink's options. Raises ``ConfigError``."""
        ok_when, part_when = (
            None if text is None else parse_condition(text, option=option)
            for option, text in (("ok_when", settings.ok_when), ("part_when", settings.part_when))
        )
        return cls(ok_when, part_when, settings.part_gap_seconds, parse_vote(settings.part_vote))

    def frame_verdict(self, explanation: Explanation) -> FrameVerdict:
        """Return the verdict of a frame."""
        top, frame = explanation.top_scoring, explanation.frame
        is_ok = not explanation.firing if self.ok_when is None else self.ok_when(explanation)
        return FrameVerdict(
            is_ok,
            -1 if top is None else top.class_index,
            "" if top is None else top.label,
            0.0 if top is None else float(top.score),
            frame.index,
            frame.captured_at,
            None if top is None else top.box,
            sum(finding.box is not None for finding in explanation.findings),
            len(explanation.firing),
        )


class _FrameVotes:
    """The votes of the frames of the current part."""

    def __init__(self, vote: Vote, first_captured_at: float) -> None:
        self.first_captured_at = first_captured_at
        self.seen_at = 0.0
        """Time of the part's last frame, on the stream's clock."""
        self._verdicts, self._classes = Ballot(vote, (_OK,)), Ballot(Vote())

    def add(self, verdict: FrameVerdict, seconds: float) -> None:
        """Add the verdict of a frame at a time on the stream's clock."""
        self.seen_at = seconds
        certainty = verdict.score if verdict.label else 1.0  # without a box, a detector returns no score
        self._verdicts.add(_OK if verdict.is_ok else _NOT_OK, 0, certainty)
        self._classes.add(verdict.label, verdict.class_index, verdict.score)

    def decide(self, number: int, now_monotonic: float) -> PartVerdict:
        """Return the verdict."""
        decided, _, _ = self._verdicts.decide()
        label, class_index, _ = self._classes.decide()
        latency = max(0.0, now_monotonic - self.first_captured_at)
        share, frames = self._verdicts.shares()[decided], self._verdicts.frames
        return PartVerdict(number, decided == _OK, class_index, label, share, frames, latency)


class PartVerdicts:
    """The verdicts of the parts of one camera."""

    def __init__(self, rules: VerdictRules) -> None:
        self._rules = rules
        self._votes: _FrameVotes | None = None
        self._cursor = PassageCursor()
        self._count = 0

    def add(self, explanation: Explanation, verdict: FrameVerdict, now_monotonic: float) -> PartVerdict | None:
        """Add a frame; return the verdict of the last part that has passed at this frame, or None.

        Args:
            explanation: the frame's explanation.
            verdict: the frame's verdict.
            now_monotonic: the current time, ``time.monotonic()`` seconds.
        """
        if self._rules.part_when is None:
            return self._of_zones(explanation)
        timestamp, finished = stream_time(explanation.frame), None
        if self._votes is not None and not 0 <= timestamp - self._votes.seen_at < self._rules.part_gap_seconds:
            self._count += 1
            finished, self._votes = self._votes.decide(self._count, now_monotonic), None
        if self._rules.part_when(explanation):
            self._votes = self._votes or _FrameVotes(self._rules.part_vote, explanation.frame.captured_at)
            self._votes.add(verdict, timestamp)
        return finished

    def _of_zones(self, explanation: Explanation) -> PartVerdict | None:
        parts = [passage for passage in self._cursor.take(explanation) if passage.kind == "part"]
        self._count += len(parts)
        return _of_passage(parts[-1], self._count) if parts else None


def _of_passage(part: Passage, number: int) -> PartVerdict:
    """Return the verdict of a part of a zone; it is not ok if the zone has no ok classes."""
    return PartVerdict(
        number, part.is_ok is True, part.class_index, part.label, part.shares.get(part.label, 0.0), part.frames,
        part.dwell_seconds + part.latency_seconds, part.place,
    )  # fmt: skip
