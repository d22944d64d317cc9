"""Verdicts for controllers: of each frame, and of each part by a vote over the frames of its passage. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pipeline.frames import Box, Explanation
from pipeline.guards.parser import Condition, parse_condition


@dataclass(frozen=True, slots=True)
class FrameVerdict:
    """The verdict of a frame."""

    is_ok: bool
    class_index: int
    """Index of the top class; -1 where a detector found no box."""
    label: str
    score: float
    index: int
    captured_at: float
    """``time.monotonic()`` seconds."""
    box: Box | None
    boxes: int
    """Number of a detector's boxes."""
    alarms: int
    """Number of guards that fire."""


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """The verdict of a part that has passed."""

    number: int
    """Number of parts of the camera so far, this one included."""
    is_ok: bool
    class_index: int
    """The class with the largest sum of scores."""
    label: str
    share: float
    """Fraction of its frames that have the verdict ``is_ok``, 0 to 1."""
    frames: int
    latency_seconds: float
    """Time from the capture of its first frame to the verdict."""


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """Decides what is ok, and which frames belong to a part."""

    ok_when: Condition | None
    """None: a frame is ok while no guard fires."""
    part_when: Condition | None
    """None: parts are not told apart."""
    part_gap_seconds: float
    """A part has passed when no frame met ``part_when`` for this time."""
    part_ok_share: float
    """A part is ok if at least this fraction of its frames is."""

    @classmethod
    def parse(cls, ok_when: str | None, part_when: str | None, gap_seconds: float, ok_share: float) -> VerdictRules:
        """Return the rules of a sink's options. Raises ``ConfigError``."""
        return cls(
            None if ok_when is None else parse_condition(ok_when, option="ok_when"),
            None if part_when is None else parse_condition(part_when, option="part_when"),
            gap_seconds,
            ok_share,
        )

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


@dataclass
class _Passage:
    """The frames of the part that is in view."""

    first_captured_at: float
    seen_at: float
    """Time of its last frame, on the frames' clock."""
    ok: int = 0
    frames: int = 0
    scores: dict[tuple[int, str], float] = field(default_factory=lambda: defaultdict(float))


class PartVote:
    """Tells the parts of one camera apart and votes over the frames of each."""

    def __init__(self, rules: VerdictRules) -> None:
        self._rules = rules
        self._passage: _Passage | None = None
        self._count = 0

    def add(self, explanation: Explanation, verdict: FrameVerdict, now_monotonic: float) -> PartVerdict | None:
        """Add a frame; return the verdict of a part that has passed with it.

        Args:
            explanation: the frame's explanation.
            verdict: the frame's verdict.
            now_monotonic: the current time, ``time.monotonic()`` seconds.
        """
        if self._rules.part_when is None:
            return None
        frame = explanation.frame
        seconds = frame.captured_at if frame.pts_seconds is None else frame.pts_seconds
        finished = None
        if self._passage is not None and not 0 <= seconds - self._passage.seen_at < self._rules.part_gap_seconds:
            finished = self._finish(now_monotonic)
        if self._rules.part_when(explanation):
            if self._passage is None:
                self._passage = _Passage(frame.captured_at, seconds)
            self._passage.seen_at = seconds
            self._passage.frames += 1
            self._passage.ok += verdict.is_ok
            self._passage.scores[verdict.class_index, verdict.label] += verdict.score
        return finished

    def _finish(self, now_monotonic: float) -> PartVerdict:
        assert self._passage is not None  # noqa: S101 - the caller checks it
        passage, self._passage = self._passage, None
        self._count += 1
        share = passage.ok / passage.frames
        is_ok = share >= self._rules.part_ok_share
        class_index, label = max(passage.scores, key=passage.scores.__getitem__)
        latency = max(0.0, now_monotonic - passage.first_captured_at)
        return PartVerdict(
            self._count, is_ok, class_index, label, share if is_ok else 1.0 - share, passage.frames, latency
        )
