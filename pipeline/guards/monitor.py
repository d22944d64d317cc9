"""Who looks at every verdict's reasons: measures them, asks the guards, and now and then takes the hottest area away.

Stands before an explainer and is one itself, so the journey (``pipeline.loop``) is the same with it: what comes out has
grounds on every finding, and says how the camera's guards stand.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.finite import unsound
from pipeline.frames import Box, DeletionCheck, Explanation, Frame, GuardState, Region, top_scoring
from pipeline.guards.alert import AlertState
from pipeline.guards.config import GuardsConfig
from pipeline.guards.drift import BaselineRecorder, DriftDetector
from pipeline.guards.heatmap_stats import HeatmapStatsTracker, cell_weights, stream_time
from pipeline.guards.metrics import guard_metrics, heatmap_metrics
from pipeline.guards.overhead import OverheadBudget
from pipeline.guards.variables import RuleContext
from pipeline.ports import AsyncExplainer, Explainer, HasMetrics, MaskedScorer, MaskingOptions, MetricSample

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _CameraState:
    """What is kept of one camera."""

    alerts: list[AlertState]
    last_check: DeletionCheck | None = None
    checked_at: float = 0.0
    """That frame's time, by its own clock."""
    seen: Explanation | None = None
    """The newest, for figures."""
    states: tuple[GuardState, ...] = ()


@dataclass(slots=True)
class DriftTracking:
    """What is made of the reasons over minutes and hours, where it is asked for."""

    drift: DriftDetector | None = None
    recorder: BaselineRecorder | None = field(default=None)


class ExplanationMonitor:
    """An explainer whose explanations are measured and guarded. Used by one thread; ``figures`` by any."""

    def __init__(
        self,
        explainer: Explainer,
        guards: GuardsConfig | None = None,
        *,
        slow: DriftTracking | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take whom to stand before, and what to look at.

        Args:
            explainer: frames to explanations; one that is a ``MaskedScorer`` can be asked for deletion checks.
            guards: regions, rules and knobs.
            slow: a baseline to compare with, or to record.
            clock: seconds, for what checks cost.
        """
        self._explainer = explainer
        self._guards = guards or GuardsConfig()
        self._heatmap_stats = HeatmapStatsTracker(self._regions if self._guards.regions else None)
        self._camera_states: dict[str, _CameraState] = {}
        self._drift_tracking = slow or DriftTracking()
        self._clock = clock
        settings = self._guards.deletion
        self._masking = MaskingOptions(settings.area, settings.fill)
        wanted = self._guards.needs_deletion
        self.overhead_budget = (
            OverheadBudget(settings.budget) if wanted and isinstance(explainer, MaskedScorer) else None
        )
        if wanted and self.overhead_budget is None:
            log.warning("score_drop_when_masked: this explainer cannot be asked for it; those rules never fire")
        self._pending_checks: list[Explanation] = []
        """Of the last batch, what a check would help to judge; the first is asked of next."""
        self._turn = ""

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Explain a batch, measure it, and judge it."""
        return self._timed(lambda: self._explainer.explain(frames), len(frames))

    def _timed(self, explain: Callable[[], Sequence[Explanation]], count: int) -> list[Explanation]:
        started_at = self._clock()
        explained = explain()
        if self.overhead_budget is not None:
            self.overhead_budget.record_work(self._clock() - started_at, count)
        self._pending_checks = []
        # A frame with a number that is not finite is told nowhere: no guard may fire for it.
        return [one if unsound(one) else self.process(one) for one in explained]

    def after_batch(self) -> None:
        """Make one deletion check, where a rule asks for it and the budget allows it."""
        budget, explainer = self.overhead_budget, self._explainer
        if budget is None or not self._pending_checks or not budget.can_run or not isinstance(explainer, MaskedScorer):
            return
        # Cameras take turns.
        chosen = min(self._pending_checks, key=lambda one: (one.frame.camera <= self._turn, one.frame.camera))
        verdict = chosen.top_scoring
        assert verdict is not None  # noqa: S101 - only those with one are doubtful
        started_at = self._clock()
        left = explainer.score_when_masked(chosen, verdict, self._masking)
        budget.record_overhead(self._clock() - started_at)
        self._turn = chosen.frame.camera
        post = self._camera_states[self._turn]
        post.last_check = DeletionCheck(verdict.label, verdict.score, left, chosen.frame.index, 0.0)
        post.checked_at = stream_time(chosen.frame)

    def process(self, explanation: Explanation) -> Explanation:
        """Measure one explanation and judge it."""
        frame = explanation.frame
        post = self._camera_states.get(frame.camera)
        if post is None:
            alarms = [AlertState(guard) for guard in self._guards.rules if guard.concerns(frame.camera)]
            post = self._camera_states[frame.camera] = _CameraState(alarms)
        findings, regions = self._heatmap_stats.measure(explanation)
        deletion = self._recent_check(post, stream_time(frame))
        facts = RuleContext(explanation, top_scoring(findings), deletion)
        states = self._update_alerts(post, facts) if post.alerts else ()
        draw = self._guards.draw
        shown = regions if draw == "always" or (draw == "firing" and any(one.firing for one in states)) else ()
        measured = replace(explanation, findings=findings, deletion=deletion, guards=states, regions=shown)
        if self.overhead_budget is not None and any(
            a.rule.needs_deletion and a.condition_holds(facts) for a in post.alerts
        ):
            self._pending_checks.append(measured)
        if self._drift_tracking.drift is not None:
            self._drift_tracking.drift.add(measured)
        if self._drift_tracking.recorder is not None:
            self._drift_tracking.recorder.add(measured)
        post.seen = measured
        return measured

    @staticmethod
    def _update_alerts(post: _CameraState, facts: RuleContext) -> tuple[GuardState, ...]:
        frame, before = facts.explanation.frame, post.states
        timestamp = stream_time(frame)
        post.states = states = tuple([alarm.update(facts, timestamp) for alarm in post.alerts])
        # A camera's guards are judged in the same order every time.
        for state, old in zip(states, before or (None,) * len(states), strict=True):
            if state.firing and (old is None or not old.firing):
                log.warning("%s: guard %s fires: %s", frame.camera, state.name, state.message)
            elif old is not None and old.firing and not state.firing:
                log.info("%s: guard %s is quiet again; it fired for %.1f s", frame.camera, state.name, old.seconds)
        return states

    def _recent_check(self, post: _CameraState, timestamp: float) -> DeletionCheck | None:
        if post.last_check is None:
            return None
        age = timestamp - post.checked_at
        if not 0.0 <= age <= self._guards.deletion.max_age_seconds:
            post.last_check = None
            return None
        return replace(post.last_check, age_seconds=round(age, 3))

    def _regions(self, camera: str, width: int, height: int) -> tuple[Region, ...]:
        placed = tuple(one.placed(width, height) for one in self._guards.regions if one.concerns(camera))
        for region in placed:
            if not cell_weights(region.polygon, Box(0, 0, width, height), (1, 1)).any():
                told = (camera, region.name, width, height)
                log.warning("%s: region %s lies outside its picture of %dx%d pixels: no heat is ever in it", *told)
        return placed

    def metrics(self) -> list[MetricSample]:
        """Return the explainer's figures, and those of reasons, guards, checks and drift."""
        told = list(self._explainer.metrics()) if isinstance(self._explainer, HasMetrics) else []
        for camera, post in list(self._camera_states.items()):
            told.extend(guard_metrics(camera, post.states))
            told.extend(heatmap_metrics(post.seen) if post.seen is not None else ())
        if self.overhead_budget is not None:
            said = "Share of the engine's time that deletion checks have taken."
            told.append(MetricSample("deletion_time_share", self.overhead_budget.fraction, said))
            told.append(
                MetricSample("deletion_checks", self.overhead_budget.checks, "Deletion checks made.", "counter")
            )
        for one in self._drift_tracking.drift.reports() if self._drift_tracking.drift is not None else ():
            labels = (("camera", one.camera), ("label", one.label), ("statistic", one.statistic))
            said = "Population stability index of a slow statistic against the baseline; above 0.25 is a great change."
            told.append(MetricSample("drift_psi", one.psi, said, labels=labels))
            said = "Shift of a slow mean against the baseline, in its standard deviations."
            told.append(MetricSample("drift_shift", one.shift, said, labels=labels))
        return told

    def fire_counts(self) -> dict[tuple[str, str], int]:
        """Return how often each guard has fired, by camera and name."""
        return {
            (camera, one.name): one.fire_count for camera, post in self._camera_states.items() for one in post.states
        }


class AsyncExplanationMonitor(ExplanationMonitor):
    """A guardian before an explainer that works ahead: one thread begins batches, one finishes and judges them."""

    def __init__(
        self, explainer: AsyncExplainer, guards: GuardsConfig | None = None, *, slow: DriftTracking | None = None
    ) -> None:
        """Take whom to stand before, and what to look at; see ``ExplanationMonitor``."""
        assert isinstance(explainer, Explainer)  # noqa: S101 - whoever can begin can explain
        super().__init__(explainer, guards, slow=slow)
        self._async_explainer = explainer

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Send a batch on its way; what is returned waits for it, measures it and judges it."""
        finish = self._async_explainer.submit(frames)
        return lambda: self._timed(finish, len(frames))
