"""Compares a second network on trial with the network that decides, on the same frames.

The second network delays frames of live cameras only up to a bound: a slow network skips frames.

Classifiers differ in a frame where their top classes differ, or the scores of the same top class by more than a bound.
Detectors differ where a box with a sufficient score in one has no box of its class in the other that overlaps it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from pipeline.finite import find_non_finite
from pipeline.frames import Box, Explanation, Finding, Frame, top_scoring
from pipeline.guards.box_stats import has_boxes
from pipeline.ports import Explainer, ExplainerWrapper, MetricSample
from pipeline.tracking import assign_pairs, pairwise_iou

log = logging.getLogger(__name__)
T = TypeVar("T")

LONG_SECONDS: Final = 1.0
"""A network on trial that takes longer for a frame is warned of: cameras look lost meanwhile."""
MIN_IOU: Final = 0.5
"""Smallest intersection over union (IoU) of two boxes that show the same object."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Findings of a network on trial in a frame."""

    name: str
    findings: tuple[Finding, ...]
    difference: str = ""
    """Difference from the first network, as text; empty if they agree."""
    is_compared: bool = True
    """False if the frame was left out, because the network is too slow for all frames of a live camera."""

    def at(self, box: Box) -> Finding | None:
        """Return the finding of any class whose box overlaps ``box`` most; None if no IoU reaches ``MIN_IOU``."""
        boxes = [(finding.box.iou(box), finding) for finding in self.findings if finding.box is not None]
        iou, best = max(boxes, key=lambda pair: pair[0], default=(0.0, None))
        return best if iou >= MIN_IOU else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Bounds of the comparison; ``TrialConfig`` describes them."""

    max_score_difference: float = 0.3
    min_box_score: float = 0.5

    def difference(self, first: Explanation, second: Explanation) -> str:
        """Return the difference between the findings of two networks as text; empty if they agree."""
        if has_boxes(first):
            return self._of_boxes(first.findings, second.findings)
        return self._of_classes(first.findings, second.findings)

    def _of_classes(self, first: Sequence[Finding], second: Sequence[Finding]) -> str:
        decided, tried = top_scoring(first), top_scoring(second)
        if decided is None or tried is None:
            return "" if decided is tried else "one of the two networks returned no class"
        if decided.label == tried.label and abs(decided.score - tried.score) <= self.max_score_difference:
            return ""
        return f"{tried.label} {tried.score:.0%} instead of {decided.label} {decided.score:.0%}"

    def _of_boxes(self, first: Sequence[Finding], second: Sequence[Finding]) -> str:
        pairs = _matched(first, second)
        missed = self._unmatched(first, {row for row, _ in pairs})
        added = self._unmatched(second, {column for _, column in pairs})
        texts = (f"without {_counted(missed)}" if missed else "", f"adds {_counted(added)}" if added else "")
        return ", ".join(filter(None, texts))

    def _unmatched(self, findings: Sequence[Finding], matched: set[int]) -> list[str]:
        return [
            finding.label
            for index, finding in enumerate(findings)
            if index not in matched and finding.score >= self.min_box_score
        ]


def _matched(first: Sequence[Finding], second: Sequence[Finding]) -> list[tuple[int, int]]:
    """Return the largest set of pairs of overlapping boxes of the same class, as pairs of indices."""
    corners = [np.reshape([tuple(each.box or ()) for each in side], (-1, 4)) for side in (first, second)]
    iou = pairwise_iou(*corners)
    same = np.array([[decided.label == tried.label for tried in second] for decided in first], bool).reshape(iou.shape)
    return assign_pairs(np.where(same & (iou >= MIN_IOU), 1.0 + iou, 0.0))


def _counted(labels: Sequence[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in Counter(labels).most_common())


@dataclass(slots=True)
class _Counts:
    """Numbers of compared, differing and skipped frames of a camera."""

    frames: int = 0
    differing: int = 0
    left_out: int = 0


@dataclass(slots=True)
class TimeBound:
    """Chooses the frames that a network on trial explains, so that it delays no live camera beyond a bound.

    In any period, the network on trial takes at most ``ratio`` times the time of the first network for the frames of
    each camera, plus the time of one frame. Each camera has its own bound, so that no camera is always left out.
    """

    ratio: float | None
    """The bound; None: all frames."""
    drops_frames: Callable[[str], bool] = lambda _camera: True
    """Returns whether the queue of a camera drops frames. Cameras whose queues wait lose no frames and have no
    bound."""
    _credit: dict[str, float] = field(default_factory=dict)
    """Seconds that the network on trial may still take, by camera; negative after a frame that took longer."""

    def admits(self, camera: str) -> bool:
        """Return whether the network on trial explains the next frame of a camera."""
        return self.ratio is None or self._credit.get(camera, 0.0) >= 0.0 or not self.drops_frames(camera)

    def spend(self, frames: Sequence[Frame], seconds: float, chosen: Sequence[Frame], trial_seconds: float) -> None:
        """Record a batch.

        Args:
            frames: all frames of the batch.
            seconds: time of the first network.
            chosen: the frames that the network on trial explained.
            trial_seconds: time of the network on trial.
        """
        if self.ratio is None:
            return
        earned = self.ratio * seconds / len(frames)
        for frame in frames:  # unused time is not kept: a network that was fast before may not delay frames later
            self._credit[frame.camera] = min(self._credit.get(frame.camera, 0.0), 0.0) + earned
        for frame in chosen:
            self._credit[frame.camera] -= trial_seconds / len(chosen)

    def forget_camera(self, camera: str) -> None:
        """Release the state of a camera that left."""
        self._credit.pop(camera, None)


@dataclass(slots=True)
class _SecondNetwork:
    """The network on trial; an exception ends the trial, but not the run."""

    explainer: Explainer
    name: str
    has_failed: bool = False

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation | None]]:
        """Start a batch; return a function that waits for its explanations, which are None after a failure."""
        finish = self._call(lambda: self.explainer.submit(frames))
        none: list[Explanation | None] = [None] * len(frames)
        return lambda: none if finish is None else self._call(lambda: _one_each(finish(), frames)) or none

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera in the network."""
        self._call(lambda: self.explainer.forget_camera(camera))

    def _call(self, call: Callable[[], T]) -> T | None:
        if self.has_failed:
            return None
        try:
            return call()
        except Exception:
            log.exception("network %s on trial has failed; the run continues without it", self.name)
            self.has_failed = True
            return None


def _one_each(explanations: Sequence[Explanation], frames: Sequence[Frame]) -> Sequence[Explanation]:
    if len(explanations) != len(frames):
        raise ValueError(
            f"it returned {len(explanations)} explanations for {len(frames)} frames, not one for each frame"
        )
    return explanations


class TrialExplainer(ExplainerWrapper):
    """Adds the findings of a second network to the explanations. For one thread; ``metrics`` for any thread.

    With an asynchronous explainer, one thread submits batches and another thread finishes them. Frames are chosen by
    the times of the finished batches.
    """

    def __init__(
        self,
        explainer: Explainer,
        second: Explainer,
        name: str,
        comparison: Comparison | None = None,
        bound: TimeBound | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Wrap the explainer that decides.

        Args:
            explainer: the first network, with its guards.
            second: the network on trial.
            name: its name.
            comparison: when the two differ.
            bound: which frames it explains; None: all.
            clock: returns seconds, for the time that the networks take.
        """
        super().__init__(explainer)
        self._second = _SecondNetwork(second, name)
        self._name, self._comparison = name, comparison or Comparison()
        self._bound, self._clock = bound or TimeBound(None), clock
        self._counts: dict[str, _Counts] = {}
        self._has_warned = False

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Start a batch in both networks and return a function that waits for both, and compares them."""
        chosen = [frame for frame in frames if self._bound.admits(frame.camera)]
        begun_at = self._clock()
        finish = self._explainer.submit(frames)
        first_begun_at = self._clock()
        finish_second = self._second.submit(chosen) if chosen else list
        first_seconds, second_seconds = first_begun_at - begun_at, self._clock() - first_begun_at

        def finish_both() -> list[Explanation]:
            begun_at = self._clock()
            first = finish()
            first_done_at = self._clock()
            second = finish_second()
            done_at = self._clock()
            seconds, trial_seconds = first_seconds + first_done_at - begun_at, second_seconds + done_at - first_done_at
            self._bound.spend(frames, seconds, chosen, trial_seconds)
            self._warn(trial_seconds / max(len(chosen), 1))
            found = dict(zip(map(id, chosen), second, strict=True))
            return [
                self._compared(each, found[id(frame)]) if id(frame) in found else self._left_out(each)
                for frame, each in zip(frames, first, strict=True)
            ]

        return finish_both

    def _warn(self, seconds: float) -> None:
        """Warn once of a network that takes long for a frame."""
        if seconds > LONG_SECONDS and not self._has_warned:
            self._has_warned = True
            log.warning(
                "network %s on trial takes %.1f s for a frame, during which no camera is explained; choose a smaller "
                "input_size or a faster backend for this network", self._name, seconds,
            )  # fmt: skip

    def _compared(self, first: Explanation, second: Explanation | None) -> Explanation:
        if second is None:
            return first
        if find_non_finite(second):
            return self._count(replace(first, trial=Trial(self._name, (), "its numbers are not finite")))
        difference = self._comparison.difference(first, second)
        return self._count(replace(first, trial=Trial(self._name, second.findings, difference)))

    def _left_out(self, first: Explanation) -> Explanation:
        if self._second.has_failed:
            return first
        return self._count(replace(first, trial=Trial(self._name, (), is_compared=False)))

    def _count(self, explanation: Explanation) -> Explanation:
        camera, trial = explanation.frame.camera, explanation.trial
        if camera not in self._counts:
            self._counts = {**self._counts, camera: _Counts()}  # other threads iterate over it
        counts = self._counts[camera]
        is_compared = trial is not None and trial.is_compared
        counts.frames += is_compared
        counts.left_out += not is_compared
        counts.differing += bool(trial and trial.difference)
        return explanation

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera in both networks; its counts stay."""
        super().forget_camera(camera)
        self._second.forget_camera(camera)
        self._bound.forget_camera(camera)

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the first network, and the numbers of compared and differing frames."""
        samples = list(super().metrics())
        for camera, counts in self._counts.items():
            labels = (("camera", camera), ("model", self._name))
            for name, value, text in (
                ("trial_frames", counts.frames, "Frames that a network on trial explained, too."),
                ("trial_left_out", counts.left_out, "Frames that a network on trial left out, because it is too slow."),
                ("disagreements", counts.differing, "Frames in which the network on trial differs from the first."),
            ):
                samples.append(MetricSample(name, value, text, "counter", labels))
        text = "1 if the network on trial has failed and explains no more frames."
        failed = MetricSample("trial_failed", float(self._second.has_failed), text, labels=(("model", self._name),))
        return [*samples, failed]

    def summary(self) -> list[str]:
        """Return the counts as text, one line for each camera."""
        failed = "; it has failed, see the log" if self._second.has_failed else ""
        return [
            f"{self._name} on {camera}: differs in {counts.differing} of {counts.frames} frames "
            f"({counts.differing / max(counts.frames, 1):.1%}){_left_out(counts.left_out)}{failed}"
            for camera, counts in self._counts.items()
        ]


def _left_out(frames: int) -> str:
    return f"; {frames} frames were left out, because it is slower than max_time_ratio allows" if frames else ""
