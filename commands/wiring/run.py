"""Builds and runs a pipeline from a configuration."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import print_line
from commands.plausibility import warn_of_doubts
from commands.signals import shutdown_on_signal
from commands.wiring.cameras import Camera, CameraDiff, RunningCameras, make_cameras, with_all_cameras
from commands.wiring.gpu import build_gpu_explainer, make_renderer, renders_on_gpu, warn_of_downloads
from commands.wiring.guards import build_monitor, check_classes, check_guards, load_drift_tracking, report_guards
from commands.wiring.passages import ConfiguredPlaces
from commands.wiring.reload import ConfigFile, ConfigText, ConfigWatcher, reload_on_hangup
from commands.wiring.setup import RunSetup
from commands.wiring.sinks import open_sinks
from commands.wiring.trial import add_trial
from pipeline.camera_setup import CameraSetup
from pipeline.config import Config
from pipeline.guards.drift import BaselineRecorder
from pipeline.guards.history import RuleHistory
from pipeline.guards.monitor import ExplanationMonitor
from pipeline.ports import Explainer, Overflow, Renderer, Sink, Source
from pipeline.queries import PlaceQueries
from pipeline.result import RunLimits, RunResult
from pipeline.trial import TrialExplainer

if TYPE_CHECKING:
    from engine.explainers.base import EngineExplainer
    from engine.models.loader import LoadedModel

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("recipro-stream")

NO_SINK = (
    "no sink: frames are explained and counted only; add --sink window, http://127.0.0.1:8000, tcp://..., out.mp4 or "
    "out.jsonl"
)


def run_from_config(
    config: Config,
    tell: Callable[[str], None] | None = None,
    recorder: BaselineRecorder | None = None,
    watched: ConfigFile | None = None,
    text: ConfigText | None = None,
) -> RunResult:
    """Build the pipeline of a configuration and run it until it ends.

    Args:
        config: the validated configuration.
        tell: receives each line of progress.
        recorder: receives the statistics of a baseline.
        watched: the configuration file; its changes are applied during the run. None: changes are ignored.
        text: the text of the configuration; a web page can change it if its sink has ``edit``.

    Raises:
        ReciproStreamError: a part of the run cannot be opened.
    """
    from rich.console import Console

    from overlays.progress import Progress
    from pipeline.loop import Pipeline
    from pipeline.systemd import SystemdNotifier

    started = threading.Event()
    with shutdown_on_signal(started) as stop, ExitStack() as stack:
        if watched is not None:
            stack.enter_context(reload_on_hangup(watched))
        setup = (
            RunSetup(text) if text is not None and any(getattr(sink, "edit", False) for sink in config.sinks) else None
        )
        run = open_run(with_all_cameras(config), stack, recorder=recorder, setup=setup)
        started.set()
        changes = watched or (ConfigFile(text.path or Path(), text.read, is_watched=False) if setup and text else None)
        if changes is not None:
            watcher = stack.enter_context(ConfigWatcher(changes, run.config, run.apply))
            if setup is not None and run.history is not None:
                setup.bind(run, watcher, run.history)
        with Progress(Console(stderr=True), tell) as progress, SystemdNotifier(os.environ) as supervisor:
            outcome = Pipeline(
                run.sources, run.explainer, run.renderer, run.sinks,
                limits=run.limits, stop=stop, watch=progress.watch, alive=supervisor.notify_alive,
                discovery=None if changes is None else run.running,
            ).run()  # fmt: skip
        _report(outcome, run)  # also runs if a sink cannot be closed
    if not outcome.received and not outcome.errors and not stop.is_set():
        waited = (
            f"{worker.camera}: {worker.health.reason or worker.health.state}" for worker in outcome.source_workers
        )
        outcome.errors.append("no frame came from any camera; " + "; ".join(waited))
    return outcome


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The opened parts of a run."""

    config: Config
    running: RunningCameras
    sources: Sequence[tuple[Source, Overflow | None]]
    """The initial sources, with their overflow settings."""
    monitor: ExplanationMonitor
    """Applies the guards to each explanation."""
    explainer: Explainer
    """The network with its guards, zones and lines, and the network on trial if there is one."""
    trial: TrialExplainer | None
    places: ConfiguredPlaces
    renderer: Renderer
    sinks: Sequence[Sink]
    limits: RunLimits
    history: RuleHistory | None = None
    """The figures of the last minutes that rules use; None if no page can change rules."""

    def apply(self, new: Config) -> CameraDiff:
        """Apply the cameras and guards of a new configuration.

        Raises:
            ReciproStreamError: the cameras or guards do not fit the run; nothing is changed.
        """
        diff = self.running.apply(_cameras_for(self.config, new, self.places))
        self.monitor.update(new.guards)
        return diff


def open_run(
    config: Config,
    stack: ExitStack,
    *,
    recorder: BaselineRecorder | None = None,
    starts_empty: bool = False,
    setup: CameraSetup | None = None,
) -> OpenRun:
    """Open the parts of a run; ``stack`` closes them.

    Args:
        config: the configuration, with an entry for each camera.
        stack: closes the parts that this function opens.
        recorder: receives the statistics of a baseline.
        starts_empty: open no camera; the caller adds cameras later with ``OpenRun.running``.
        setup: lets a page change the run. If it is given, the figures that rules use are kept for some minutes.

    Raises:
        ReciproStreamError: a part cannot be opened.
    """
    from overlays.render.renderer import HeatRenderer
    from overlays.sinks.locks import Claims

    members = make_cameras(config)
    cameras = [member.name for member in members]
    slow = load_drift_tracking(config, cameras, recorder)
    if not config.sinks and recorder is None:
        log.warning("%s", NO_SINK)
    queries = PlaceQueries()
    stack.callback(queries.close)
    sinks = make_sinks(config, cameras, queries, setup)
    drawing = HeatRenderer(**config.overlay.model_dump())
    claims = stack.enter_context(Claims([sink.uri for sink in config.sinks]))
    present = [] if starts_empty else members
    running = stack.enter_context(
        RunningCameras(present, lambda camera: claims.add([*cameras, camera]), claims.release)
    )
    claims.add(cameras)
    for sink in sinks:
        stack.enter_context(sink)
    explainer = make_explainer(config)
    explainer.accept(queries)
    renderer = make_renderer(drawing, explainer, sinks)
    log.info("%s", explainer.info)
    warn_of_downloads(config, explainer)
    warn_of_doubts(config, explainer.labels, exclusive=explainer.classes_exclude_each_other)
    window = config.engine.batch_window_ms / 1e3 if len(members) > 1 else 0.0
    batch = choose_batch_size(config, explainer)
    limits = RunLimits(config.frames, config.seconds, batch, window, max_age_seconds=config.max_age_seconds)
    history = None if setup is None else RuleHistory()
    monitor = build_monitor(config, explainer, slow, history)
    trial = add_trial(config, monitor, explainer, running.drops_frames)
    places = ConfiguredPlaces(members, explainer.labels, has_boxes=explainer.box_mode is not None)
    gc.collect()
    gc.freeze()  # these objects live as long as the run: scanning them at each collection would delay every camera
    sources = [(member.source, member.source.overflow) for member in present]
    counting = places.monitor(trial or monitor)
    return OpenRun(config, running, sources, monitor, counting, trial, places, renderer, sinks, limits, history)


def make_sources(config: Config) -> list[tuple[Source, Overflow | None]]:
    """Return each source and its overflow setting; None selects the default of the source's kind."""
    return [(camera.source, camera.source.overflow) for camera in make_cameras(config)]


def _cameras_for(config: Config, new: Config, places: ConfiguredPlaces) -> list[Camera]:
    """Return the cameras of a new configuration for a run with the engine, guards and sinks of ``config``.

    Args:
        config: the configuration of the run.
        new: the new configuration.
        places: receives the new zones and lines.

    Raises:
        ReciproStreamError: the new configuration does not fit the run.
    """
    from overlays.sinks.paths import check_outputs

    new = with_all_cameras(new)
    cameras = make_cameras(new)
    names = [camera.name for camera in cameras]
    # The sinks do not change: their conditions must still find the guards, zones and lines that they name.
    joined = config.model_copy(
        update={"sources": new.sources, "guards": new.guards, "external_cameras": new.external_cameras}
    )
    check_guards(joined, names)
    check_classes(joined, places.labels)
    check_outputs([sink.uri for sink in config.sinks], names, _inputs(new), _bag_folders(new))
    places.update(cameras)
    return cameras


def _inputs(config: Config) -> list[str]:
    """Return the paths of the files that a run reads."""
    from stream.sources import path_of

    networks = [file for each in (config.engine, *config.models) for file in (each.model, each.weights, each.labels)]
    paths = [*(path_of(source.uri) for source in config.sources), *networks]
    return [path for path in paths if path]


def _bag_folders(config: Config) -> list[str]:
    """Return the bag folders that a run reads."""
    from stream.bags.paths import is_bag
    from stream.sources import path_of

    paths = [path for source in config.sources if (path := path_of(source.uri))]
    return [path for path in paths if is_bag(path) and Path(path).is_dir()]


def make_sinks(
    config: Config, cameras: list[str], queries: PlaceQueries | None = None, setup: CameraSetup | None = None
) -> list[Sink]:
    """Check and return the sinks, unopened.

    Args:
        config: the configuration of the run.
        cameras: names of the cameras.
        queries: passes queries of viewers to the network; None: not available.
        setup: lets a page change the run; None: not available.

    Raises:
        ReciproStreamError: a sink is invalid, or would overwrite an input or another sink's output.
    """
    from overlays.sinks.paths import check_outputs

    sinks = open_sinks(config.sinks, cameras, config.overlay, queries=queries, setup=setup)
    check_outputs([sink.uri for sink in config.sinks], cameras, _inputs(config), _bag_folders(config))
    return sinks


def make_explainer(config: Config, cameras: int | None = None, *, draws: bool = True) -> EngineExplainer:
    """Return the explainer of the configured model: a detector, an ONNX file, or a PyTorch classifier.

    Args:
        config: the configuration of the run.
        cameras: number of cameras that share a batch; None: the number of sources in ``config``.
        draws: render the overlays on the GPU if the network runs there and no option prevents it.

    Raises:
        ConfigError: an option does not fit the model.
    """
    from commands.wiring.detectors import build_detector_explainer, check_has_no_boxes, is_detector
    from engine.export.metadata import is_exported, is_foreign_classifier

    if is_detector(config.engine.model):
        return build_detector_explainer(config.engine)
    check_has_no_boxes(config.engine)
    if is_foreign_classifier(config.engine.model):
        from engine.explainers.foreign import ForeignExplainer

        return ForeignExplainer(Path(config.engine.model), config.engine)
    if is_exported(config.engine.model):
        from engine.explainers.exported import ExportedExplainer

        return ExportedExplainer(Path(config.engine.model), config.engine)
    from engine.explainers.base import default_batch_size
    from engine.explainers.network import NetworkExplainer
    from engine.runtime.compile_cache import default_folder
    from engine.runtime.devices import choose_device

    cache = config.engine.cache or default_folder()
    settings = config.engine.model_copy(update={"cache": cache})
    device = choose_device(config.engine.device).type
    network = make_network(config)
    cameras = len(config.sources) if cameras is None else cameras
    if draws and renders_on_gpu(config, device):
        batch_size = default_batch_size(cameras, device)
        return build_gpu_explainer(config.model_copy(update={"engine": settings}), network, batch_size=batch_size)
    return NetworkExplainer(network, settings, batch_size=min(cameras, default_batch_size(cameras, device)))


def choose_batch_size(config: Config, explainer: EngineExplainer, cameras: int | None = None) -> int:
    """Return the maximum number of frames per batch; ``cameras`` as in ``make_explainer``."""
    from engine.explainers.base import default_batch_size

    if config.engine.batch is not None:
        return config.engine.batch
    device = explainer.info.device
    cameras = len(config.sources) if cameras is None else cameras
    return explainer.worthwhile_batch(cameras) if device == "cpu" else default_batch_size(cameras, device)


def make_network(config: Config) -> LoadedModel:
    """Load the configured classifier; without ``weights``, use the bundled weights."""
    from engine.models.loader import load_network

    weights = config.engine.weights or bundled_weights(config.engine.model)
    labels = None if config.engine.labels is None else Path(config.engine.labels)
    return load_network(config.engine.model, weights=weights, labels=labels)


def bundled_weights(model: str) -> str | None:
    """Return the bundled weights file of a registered network or detector, or None."""
    from engine.detectors.networks.registry import OWN_DETECTORS
    from engine.models.registry import lookup

    entry = OWN_DETECTORS.get(model) or lookup(model)
    return None if entry is None or entry.file is None else str(ROOT / entry.file)


def redact_config(config: Config) -> Config:
    """Return the configuration without credentials in its URIs."""
    from overlays.sinks.push.address import without_key
    from stream.redact import redact

    sources = [entry.model_copy(update={"uri": redact(entry.uri)}) for entry in config.sources]
    sinks = [entry.model_copy(update={"uri": without_key(redact(entry.uri))}) for entry in config.sinks]
    return config.model_copy(update={"sources": sources, "sinks": sinks})


def _report(outcome: RunResult, run: OpenRun) -> None:
    from overlays.progress import summary

    print_line("\n".join(summary(outcome)))
    report_guards(run.monitor)
    for line in (*(run.trial.summary() if run.trial is not None else ()), *run.places.summary()):
        print_line(line)
