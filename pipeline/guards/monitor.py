"""Computes heat-map statistics, evaluates guards and runs deletion checks.

``ExplanationMonitor`` is an explainer that wraps another explainer. It adds statistics to every finding, and the state
of the camera's guards to every explanation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.finite import find_non_finite
from pipeline.frames import DeletionCheck, Explanation, Finding, Frame, Region, top_scoring
from pipeline.guards.alert import AlertState
from pipeline.guards.box_stats import BoxStatsTracker, has_boxes
from pipeline.guards.config import GuardsConfig
from pipeline.guards.drift import BaselineRecorder, DriftDetector
from pipeline.guards.heatmap_stats import HeatmapStatsTracker, stream_time
from pipeline.guards.history import RuleHistory
from pipeline.guards.metrics import guard_metrics, heatmap_metrics
from pipeline.guards.overhead import OverheadBudget
from pipeline.guards.state import GuardState
from pipeline.guards.variables import RuleContext
from pipeline.input_area import input_box
from pipeline.polygons import cell_weights
from pipeline.ports import Explainer, ExplainerWrapper, MaskingOptions, MetricSample

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _CameraState:
    """State of one camera."""

    alerts: list[AlertState]
    last_check: DeletionCheck | None = None
    checked_at: float = 0.0
    """Time of the checked frame, on the stream's clock."""
    seen: Explanation | None = None
    """The newest explanation, for metrics."""
    states: tuple[GuardState, ...] = ()


def _reason_unknown(explainer: Explainer) -> str:
    """Return the reason why an explainer cannot measure ``score_drop_when_masked``."""
    if explainer.box_mode is None:
        return "this explainer makes no deletion checks"
    return f"unknown for boxes in mode {explainer.box_mode}; set engine.boxes.mode: drop"


@dataclass(slots=True)
class DriftTracking:
    """Drift of statistics over minutes and hours: a detector, a recorder of a baseline, or neither."""

    drift: DriftDetector | None = None
    recorder: BaselineRecorder | None = field(default=None)


class ExplanationMonitor(ExplainerWrapper):
    """An explainer that adds heat-map statistics and guards. For one thread; ``metrics`` for any thread."""

    def __init__(
        self,
        explainer: Explainer,
        guards: GuardsConfig | None = None,
        *,
        slow: DriftTracking | None = None,
        history: RuleHistory | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Wrap an explainer.

        Args:
            explainer: explains the frames; deletion checks need its ``can_mask``.
            guards: regions, rules and options.
            slow: drift detector or baseline recorder.
            history: stores the figures that rules need of each frame.
            clock: returns seconds; measures the duration of checks.
        """
        super().__init__(explainer)
        self._guards = guards or GuardsConfig()
        self._new_guards: GuardsConfig | None = None
        """New guards, set by ``update`` and applied before the next frame."""
        self._heatmap_stats, self._box_stats = HeatmapStatsTracker(self._regions), BoxStatsTracker(self._regions)
        self._camera_states: dict[str, _CameraState] = {}
        self._drift_tracking = slow or DriftTracking()
        self._history = history
        self._clock = clock
        settings = self._guards.deletion
        self._masking = MaskingOptions(settings.area, settings.fill)
        self.overhead_budget: OverheadBudget | None = None
        self._begin_deletion_checks()
        self._past_fire_counts: dict[tuple[str, str], int] = {}
        """By camera and guard: number of alarms of cameras that left."""
        self._pending_checks: list[Explanation] = []
        """Explanations of the last batch for which a rule needs a deletion check."""
        self._checked_camera = ""
        """The camera of the last check."""

    def _begin_deletion_checks(self) -> None:
        """Enable deletion checks when the first rule needs them."""
        explainer = self._explainer
        if not self._guards.needs_deletion or self.overhead_budget is not None:
            return
        if explainer.can_mask:
            self.overhead_budget = OverheadBudget(self._guards.deletion.budget)
        elif explainer.box_mode != "drop":
            log.warning(
                "score_drop_when_masked is not measured: %s; rules that use it never fire", _reason_unknown(explainer)
            )

    def update(self, guards: GuardsConfig) -> None:
        """Use other regions and rules from the next frame on. For any thread.

        An unchanged guard keeps its state; a changed guard starts anew. The options of deletion checks and drift cannot
        be changed.
        """
        self._new_guards = guards

    def _adopt(self, guards: GuardsConfig) -> None:
        self._guards = guards
        self._begin_deletion_checks()
        for tracker in (self._heatmap_stats, self._box_stats):
            tracker.refresh_regions()
        for camera, state in self._camera_states.items():
            wanted = [guard for guard in guards.rules if guard.concerns(camera)]
            kept = [alert for alert in state.alerts if alert.guard in wanted]
            states = {guard.name: guard for guard in state.states}
            for alert in state.alerts:
                if alert not in kept and (seen := states.pop(alert.name, None)) is not None:
                    self._retire(camera, seen)
            state.alerts = [
                next((alert for alert in kept if alert.guard == guard), None) or AlertState(guard) for guard in wanted
            ]
            state.states = tuple(states.values())

    def _retire(self, camera: str, guard: GuardState) -> None:
        key = (camera, guard.name)
        self._past_fire_counts[key] = self._past_fire_counts.get(key, 0) + guard.fire_count

    def submit(self, frames: Sequence[Frame]) -> Callable[[], list[Explanation]]:
        """Start a batch; return a function that waits for it, computes statistics and evaluates guards."""
        finish = self._explainer.submit(frames)
        return lambda: self._finish(finish, len(frames))

    def _finish(self, finish: Callable[[], Sequence[Explanation]], count: int) -> list[Explanation]:
        started_at = self._clock()
        explained = finish()
        if self.overhead_budget is not None:
            self.overhead_budget.record_work(self._clock() - started_at, count)
        self._pending_checks = []
        new_guards, self._new_guards = self._new_guards, None
        if new_guards is not None:
            self._adopt(new_guards)
        # A frame with NaN or infinite numbers is not published, so no guard may fire for it.
        return [item if find_non_finite(item) else self.process(item) for item in explained]

    def after_batch(self) -> None:
        """Run one deletion check if a rule needs it and the budget allows it."""
        super().after_batch()
        budget = self.overhead_budget
        if budget is None or not self._pending_checks or not budget.can_run:
            return
        # The next camera after the last checked one, in turn.
        last = self._checked_camera
        chosen = min(self._pending_checks, key=lambda item: (item.frame.camera <= last, item.frame.camera))
        verdict = chosen.top_scoring
        assert verdict is not None  # noqa: S101 - only a finding can satisfy the condition of a rule
        started_at = self._clock()
        masked_score = self._explainer.score_when_masked(chosen, verdict, self._masking)
        budget.record_overhead(self._clock() - started_at)
        self._checked_camera = chosen.frame.camera
        state = self._camera_states[self._checked_camera]
        state.last_check = DeletionCheck(verdict.label, verdict.score, masked_score, chosen.frame.index, 0.0)
        state.checked_at = stream_time(chosen.frame)

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera's guards and statistics; their counts stay."""
        super().forget_camera(camera)
        self._heatmap_stats.forget(camera)
        self._box_stats.forget(camera)
        state = self._camera_states.pop(camera, None)
        for guard in state.states if state is not None else ():
            self._retire(camera, guard)

    def process(self, explanation: Explanation) -> Explanation:
        """Return an explanation with statistics and the state of the guards."""
        frame = explanation.frame
        state = self._camera_states.get(frame.camera)
        if state is None:
            alerts = [AlertState(guard) for guard in self._guards.rules if guard.concerns(frame.camera)]
            state = self._camera_states[frame.camera] = _CameraState(alerts)
        tracker = self._box_stats if has_boxes(explanation) else self._heatmap_stats
        findings, regions = tracker.measure(explanation)
        deletion = self._recent_check(state, stream_time(frame))
        facts = RuleContext(explanation, top_scoring(findings), deletion)
        states = self._update_alerts(state, facts, findings) if state.alerts else ()
        draw = self._guards.draw
        shown = regions if draw == "always" or (draw == "firing" and any(guard.firing for guard in states)) else ()
        measured = replace(explanation, findings=findings, deletion=deletion, guards=states, regions=shown)
        if self.overhead_budget is not None and any(
            alert.rule.needs_deletion and alert.condition_holds(facts) for alert in state.alerts
        ):
            self._pending_checks.append(measured)
        if self._drift_tracking.drift is not None:
            self._drift_tracking.drift.add(measured)
        if self._drift_tracking.recorder is not None:
            self._drift_tracking.recorder.add(measured)
        if self._history is not None:
            self._history.record(measured)
        state.seen = measured
        return measured

    @staticmethod
    def _update_alerts(state: _CameraState, facts: RuleContext, findings: Sequence[Finding]) -> tuple[GuardState, ...]:
        frame, before = facts.explanation.frame, {guard.name: guard for guard in state.states}
        timestamp = stream_time(frame)
        if has_boxes(facts.explanation):
            boxes = [facts._replace(finding=finding) for finding in findings]
            states = tuple([alert.update_boxes(facts, boxes, timestamp) for alert in state.alerts])
        else:
            states = tuple([alert.update(facts, timestamp) for alert in state.alerts])
        state.states = states
        for guard in states:
            old = before.get(guard.name)
            if guard.firing and (old is None or not old.firing):
                log.warning("%s: guard %s fires: %s", frame.camera, guard.name, guard.message)
            elif old is not None and old.firing and not guard.firing:
                log.info("%s: guard %s ended; it fired for %.1f s", frame.camera, guard.name, old.seconds)
        return states

    def _recent_check(self, state: _CameraState, timestamp: float) -> DeletionCheck | None:
        if state.last_check is None:
            return None
        age = timestamp - state.checked_at
        if not 0.0 <= age <= self._guards.deletion.max_age_seconds:
            state.last_check = None
            return None
        return replace(state.last_check, age_seconds=round(age, 3))

    def _regions(self, frame: Frame) -> tuple[Region, ...]:
        camera, part = frame.camera, input_box(frame)
        placed = [each.placed(frame.width, frame.height) for each in self._guards.regions if each.concerns(camera)]
        for region in placed:
            if not cell_weights(region.polygon, part, (1, 1)).any():
                name = "the image" if frame.area is None or not frame.area.roi else "the camera's roi"
                values = (camera, region.name, name, part.width, part.height)
                log.warning("%s: region %s lies outside %s of %dx%d pixels: it never contains heat", *values)
        return tuple(placed)

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of the explainer, heat-map statistics, guards, deletion checks and drift."""
        samples = list(super().metrics())
        for camera, state in list(self._camera_states.items()):
            samples.extend(guard_metrics(camera, state.states))
            samples.extend(heatmap_metrics(state.seen) if state.seen is not None else ())
        if self.overhead_budget is not None:
            text = "Fraction of the engine's time that deletion checks have taken."
            samples.append(MetricSample("deletion_time_share", self.overhead_budget.fraction, text))
            samples.append(
                MetricSample("deletion_checks", self.overhead_budget.checks, "Deletion checks made.", "counter")
            )
        for report in self._drift_tracking.drift.reports() if self._drift_tracking.drift is not None else ():
            labels = (("camera", report.camera), ("label", report.label), ("statistic", report.statistic))
            text = "Population stability index of a statistic against the baseline; above 0.25 is a large change."
            samples.append(MetricSample("drift_psi", report.psi, text, labels=labels))
            text = "Shift of a mean against the baseline, in standard deviations of the baseline."
            samples.append(MetricSample("drift_shift", report.shift, text, labels=labels))
            text = "Population stability index of a large and significant drift: 0.25, or more for few samples."
            samples.append(MetricSample("drift_psi_bound", report.bound, text, labels=labels))
        return samples

    def fire_counts(self) -> dict[tuple[str, str], int]:
        """Return how often each guard started to fire, by camera and name."""
        counts = dict(self._past_fire_counts)
        for camera, state in self._camera_states.items():
            for guard in state.states:
                counts[camera, guard.name] = counts.get((camera, guard.name), 0) + guard.fire_count
        return counts
