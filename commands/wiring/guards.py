"""Builds the guards of a run and reads the baseline for drift detection."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import print_line, read_text_file
from commands.wiring.detectors import is_detector
from overlays.sinks.settings import EventSettings, PlcSettings, StillsSettings
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.guards.box_stats import BOX
from pipeline.guards.config import check_boxes, check_cameras, check_labels
from pipeline.guards.drift import BaselineRecorder, DriftDetector, read_baseline
from pipeline.guards.history import RuleHistory
from pipeline.guards.monitor import DriftTracking, ExplanationMonitor
from pipeline.guards.parser import parse_condition
from pipeline.guards.variables import DROP

if TYPE_CHECKING:
    from engine.explainers.base import EngineExplainer

log = logging.getLogger("recipro-stream")


def check_guards(config: Config, cameras: Sequence[str]) -> None:
    """Check the guards and the sinks' conditions against the run's cameras, before anything is opened.

    Raises:
        ConfigError: a guard or a sink's condition uses an unknown name.
    """
    guards = config.guards
    names = [*cameras, *config.external_cameras]
    check_cameras(guards, names)
    detects = is_detector(config.engine.model)
    if not detects:
        check_boxes(guards)
    measures_drop = config.engine.boxes.mode == "drop" if detects else guards.needs_deletion
    _check_recorders(config, {
        "guard": {guard.name for guard in guards.rules}, "region": {region.name for region in guards.regions},
        "camera": names, "check": {DROP} if measures_drop else set(), "box": {BOX} if detects else set(),
        "place": {zone.name for each in config.sources for zone in each.zones}
        | {line.name for each in config.sources for line in each.lines},
        "trial": {each.title for each in config.models},
    })  # fmt: skip


def load_drift_tracking(
    config: Config, cameras: Sequence[str], recorder: BaselineRecorder | None = None
) -> DriftTracking:
    """Check the guards against the run's cameras and read the baseline, before anything is opened.

    Raises:
        ConfigError: a guard or a sink's condition uses an unknown name, or the baseline cannot be read.
    """
    check_guards(config, cameras)
    guards = config.guards
    if guards.baseline is None:
        return DriftTracking(recorder=recorder)
    drift = DriftDetector(read_baseline(_read_baseline_text(guards.baseline), guards.baseline), guards.drift_seconds)
    for camera in cameras:
        if camera not in drift.cameras:
            known = ", ".join(sorted(drift.cameras)) or "no camera"
            log.warning(
                "%s: has a baseline of %s only; the drift of camera %s is not reported",
                guards.baseline,
                known,
                camera,
            )
    return DriftTracking(drift, recorder)


def _check_recorders(config: Config, known: Mapping[str, Collection[str]]) -> None:
    for sink in config.sinks:
        if (condition := getattr(sink, "record_when", None)) is not None:
            parse_condition(condition, known)
        if isinstance(sink, StillsSettings | EventSettings) and sink.when is not None:
            parse_condition(sink.when, known, option="when")
        for option in ("ok_when", "part_when") if isinstance(sink, PlcSettings) else ():
            if (text := getattr(sink, option)) is not None:
                parse_condition(text, known, option=option)


def _read_baseline_text(baseline: str) -> str:
    try:
        return read_text_file(Path(baseline))
    except ConfigError as reason:
        raise ConfigError(f"baseline {reason}; give a file that `run.py baseline` wrote") from None


def check_classes(config: Config, labels: Collection[str]) -> None:
    """Check that rules and conditions use only classes of the network.

    Raises:
        ConfigError: a rule or a sink's condition names a class that the network does not have.
    """
    check_labels(config.guards, labels)
    _check_recorders(config, {"label": labels})


def build_monitor(
    config: Config, explainer: EngineExplainer, slow: DriftTracking, history: RuleHistory | None = None
) -> ExplanationMonitor:
    """Return the explainer wrapped in its guards; ``history`` receives the figures of each frame that rules use.

    Raises:
        ConfigError: a rule or a sink's condition names a class that the network does not have.
    """
    check_classes(config, explainer.labels)
    if slow.drift is not None and slow.drift.labels and slow.drift.labels.isdisjoint(explainer.labels):
        log.warning(
            "%s: has a baseline of the classes %s only, which the network does not have; no drift is reported",
            config.guards.baseline, ", ".join(sorted(slow.drift.labels)[:5]),
        )  # fmt: skip
    return ExplanationMonitor(explainer, config.guards, slow=slow, history=history)


def report_guards(monitor: ExplanationMonitor) -> None:
    """Print the number of alerts of each guard, and the share of engine time that deletion checks took."""
    for (camera, name), fired in monitor.fire_counts().items():
        print_line(f"guard {name} on {camera}: fired {fired} time{'' if fired == 1 else 's'}")
    if (budget := monitor.overhead_budget) is not None:
        print_line(f"deletion checks: {budget.checks}, {budget.fraction:.2%} of the engine's time")
