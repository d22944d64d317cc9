"""A second network on trial: it explains the same frames as the first, decides nothing, and is compared with it.

Classifiers differ in a frame where their top classes differ, or the scores of the same top class by more than a bound.
Detectors differ where a box with a sufficient score in one has no box of its class in the other that overlaps it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from pipeline.finite import find_non_finite
from pipeline.frames import Box, Explanation, Finding, Frame, top_scoring
from pipeline.guards.box_stats import has_boxes
from pipeline.ports import Explainer, ExplainerWrapper, MetricSample
from pipeline.tracking import assign_pairs, pairwise_iou

log = logging.getLogger(__name__)
T = TypeVar("T")

MIN_IOU: Final = 0.5
"""Smallest intersection over union of two boxes that show the same object."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Findings of a network on trial in a frame."""

    name: str
    findings: tuple[Finding, ...]
    difference: str = ""
    """Difference from the first network, as text; empty if they agree."""

    def at(self, box: Box) -> Finding | None:
        """Return the box, of any class, that overlaps another one best, by ``MIN_IOU`` at least."""
        boxes = [(finding.box.iou(box), finding) for finding in self.findings if finding.box is not None]
        iou, best = max(boxes, key=lambda pair: pair[0], default=(0.0, None))
        return best if iou >= MIN_IOU else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Bounds of the comparison; ``TrialConfig`` describes them."""

    max_score_difference: float = 0.3
    min_box_score: float = 0.5

    def difference(self, first: Explanation, second: Explanation) -> str:
        """Return how the findings of two networks in a frame differ, as text; empty if they agree."""
        if has_boxes(first):
            return self._of_boxes(first.findings, second.findings)
        return self._of_classes(first.findings, second.findings)

    def _of_classes(self, first: Sequence[Finding], second: Sequence[Finding]) -> str:
        decided, tried = top_scoring(first), top_scoring(second)
        if decided is None or tried is None:
            return "" if decided is tried else "one of the two has no class"
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
    """Return the largest set of pairs of boxes of one class that overlap, as indices."""
    corners = [np.reshape([tuple(each.box or ()) for each in side], (-1, 4)) for side in (first, second)]
    iou = pairwise_iou(*corners)
    same = np.array([[decided.label == tried.label for tried in second] for decided in first], bool).reshape(iou.shape)
    return assign_pairs(np.where(same & (iou >= MIN_IOU), 1.0 + iou, 0.0))


def _counted(labels: Sequence[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in Counter(labels).most_common())


@dataclass(slots=True)
class _Counts:
    """Frames of a camera."""

    frames: int = 0
    differing: int = 0


@dataclass(slots=True)
class _SecondNetwork:
    """The network on trial; its errors end the trial, not the run."""

    explainer: Explainer
    name: str
    has_failed: bool = False

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation | None]]:
        """Start a batch; without a network any more the explanations are None."""
        finish = self._call(lambda: self.explainer.submit(frames))
        none: list[Explanation | None] = [None] * len(frames)
        return lambda: none if finish is None else self._call(lambda: _one_each(finish(), frames)) or none

    def forget_camera(self, camera: str) -> None:
        """Release what the network holds for a camera."""
        self._call(lambda: self.explainer.forget_camera(camera))

    def _call(self, call: Callable[[], T]) -> T | None:
        if self.has_failed:
            return None
        try:
            return call()
        except Exception:
            log.exception("network %s on trial has failed and explains no more frames; the run goes on", self.name)
            self.has_failed = True
            return None


def _one_each(explanations: Sequence[Explanation], frames: Sequence[Frame]) -> Sequence[Explanation]:
    if len(explanations) != len(frames):
        raise ValueError(f"{len(explanations)} explanations of {len(frames)} frames; an explainer returns one for each")
    return explanations


class TrialExplainer(ExplainerWrapper):
    """Adds to the explanations what a second network finds. Used by one thread; ``metrics`` by any."""

    def __init__(
        self, explainer: Explainer, second: Explainer, name: str, comparison: Comparison | None = None
    ) -> None:
        """Wrap the explainer that decides.

        Args:
            explainer: the first network, with its guards.
            second: the network on trial.
            name: its name.
            comparison: when the two differ.
        """
        super().__init__(explainer)
        self._second = _SecondNetwork(second, name)
        self._name, self._comparison = name, comparison or Comparison()
        self._counts: dict[str, _Counts] = {}

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Start a batch in both networks and return a function that waits for both, and compares them."""
        finish, finish_second = self._explainer.submit(frames), self._second.submit(frames)
        return lambda: [self._compared(*pair) for pair in zip(finish(), finish_second(), strict=True)]

    def _compared(self, first: Explanation, second: Explanation | None) -> Explanation:
        if second is None:
            return first
        if find_non_finite(second):
            return self._count(replace(first, trial=Trial(self._name, (), "its numbers are not finite")))
        difference = self._comparison.difference(first, second)
        return self._count(replace(first, trial=Trial(self._name, second.findings, difference)))

    def _count(self, explanation: Explanation) -> Explanation:
        camera = explanation.frame.camera
        if camera not in self._counts:
            self._counts = {**self._counts, camera: _Counts()}  # other threads iterate over it
        counts = self._counts[camera]
        counts.frames += 1
        counts.differing += bool(explanation.trial and explanation.trial.difference)
        return explanation

    def forget_camera(self, camera: str) -> None:
        """Release what both networks hold for a camera; its counts stay."""
        super().forget_camera(camera)
        self._second.forget_camera(camera)

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the first network, and the numbers of compared and differing frames."""
        samples = list(super().metrics())
        for camera, counts in self._counts.items():
            labels = (("camera", camera), ("model", self._name))
            for name, value, text in (
                ("trial_frames", counts.frames, "Frames that a network on trial explained, too."),
                ("disagreements", counts.differing, "Frames in which the network on trial differs from the first."),
            ):
                samples.append(MetricSample(name, value, text, "counter", labels))
        text = "1 if the network on trial has failed and explains no more frames."
        failed = MetricSample("trial_failed", float(self._second.has_failed), text, labels=(("model", self._name),))
        return [*samples, failed]

    def summary(self) -> list[str]:
        """Return the counts as text, a line for each camera."""
        failed = "; it has failed, see the log" if self._second.has_failed else ""
        return [
            f"{self._name} on {camera}: differs in {counts.differing} of {counts.frames} frames "
            f"({counts.differing / counts.frames:.1%}){failed}"
            for camera, counts in self._counts.items()
        ]
