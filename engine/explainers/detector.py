"""The explainer of detectors: boxes in every frame, heat maps of boxes as the time budget allows."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from engine.detectors.detector import Detector
from engine.detectors.input_format import InputFormat, clip_boxes
from engine.detectors.plain_pass import compile_plain_pass
from engine.detectors.regions import Regions
from engine.detectors.runtime import BoxEngine, ImageBoxes, build_engine, cut_choice
from engine.detectors.schedule import MapRequest, MapScheduler, MapState
from engine.detectors.two_stage import RegionDetector
from engine.detectors.why import PlaceExplainer
from engine.explainers.answers import PlaceAnswers
from engine.explainers.base import EngineExplainer, EngineInfo
from engine.methods.plan import PlanInfo
from engine.runtime.compile_cache import CompileCache
from pipeline.config import EngineConfig
from pipeline.errors import BackendError, ConfigError
from pipeline.frames import NO_HEAT, Box, BoxMap, Explanation, Finding, Frame, Heat
from pipeline.guards.heatmap_stats import stream_time
from pipeline.guards.parser import Condition, parse_condition
from pipeline.input_area import input_box
from pipeline.ports import MetricSample
from pipeline.queries import PlaceQueries
from pipeline.tracking import BoxTracker

log = logging.getLogger(__name__)

MIN_SIDE_PX: Final = 0.5
"""Minimum width and height of the visible part of a box, in frame pixels."""

_WHEN_FIELDS: Final = ("label", "score", "camera", "track")
"""Fields of ``boxes.when``: those that are known before maps are made."""


@dataclass(frozen=True, slots=True, eq=False)
class _TrackMap:
    """The newest map of a track."""

    heat: Heat
    box_map: BoxMap
    state: MapState


@dataclass(slots=True)
class _CameraState:
    """Tracks and maps of one camera."""

    tracker: BoxTracker = field(default_factory=BoxTracker)
    maps: dict[int, _TrackMap] = field(default_factory=dict)
    """By the number of the track."""
    source_name: str = ""


class DetectorExplainer(EngineExplainer):
    """Detects, tracks and explains boxes. For one thread; ``metrics`` may be called from any thread."""

    classes_exclude_each_other = False

    def __init__(self, detector: Detector | RegionDetector, config: EngineConfig) -> None:
        """Build the engine of a detector.

        Args:
            detector: the detector.
            config: the engine's settings; ``config.boxes`` contains those for detectors.

        Raises:
            ConfigError: an option does not fit this detector.
            BackendError: the device, precision or backend is not available for detectors.
            LayerError, EngineError: the detector cannot be split.
        """
        started_at = time.perf_counter()
        _check_device(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._settings = settings = config.boxes
        self.box_mode = settings.mode
        self.labels = detector.labels
        self._when = _parse_when(settings.when, detector.labels) if settings.when else None
        size = config.input_size or detector.input.size
        self._detector = replace(detector, score=settings.min_score, iou=settings.iou)
        self._input: InputFormat = replace(detector.input, size=size)
        cache = None if config.cache in {None, "off"} else CompileCache(Path(config.cache or ""))
        self._engine: BoxEngine = build_engine(
            self._detector,
            size,
            cut=cut_choice(settings.cut),
            compile_plain=lambda module, example: compile_plain_pass(module, example, config.backend, cache),
        )
        self._scheduler = MapScheduler(settings.budget, settings.max_maps)
        if settings.budget != 0.0:
            for level, seconds in self._engine.warm_up(settings.cell_px, settings.mode).items():
                self._scheduler.expect(level, seconds)
        self._cameras: dict[str, _CameraState] = {}
        self._boxes = self._maps = 0
        build_seconds = time.perf_counter() - started_at
        grid = Regions(size, settings.cell_px).grid
        plan = PlanInfo(self._engine.plan, "computes only what a mask changes and a box depends on", one_module=False)
        self.info = EngineInfo(
            detector.name, self._engine.cut, grid, size, plan, config.backend, config.precision, "cpu", build_seconds
        )
        self._method = f"recipro-cam/{settings.mode}"
        self._answers: PlaceAnswers | None = None

    def accept(self, queries: PlaceQueries) -> None:
        """Answer questions about boxes and places, with cells of the configured size."""
        places = PlaceExplainer(self._engine, self._detector, self._input, self._settings.cell_px, needs_cones=True)
        self._answers = PlaceAnswers(queries, places, self._scheduler)

    def forget_camera(self, camera: str) -> None:
        """Delete the tracks, the maps and the time budget of a camera."""
        self._cameras.pop(camera, None)
        self._scheduler.forget_camera(camera)

    def after_batch(self) -> None:
        """Make a step of an answer if the time budget allows it."""
        if self._answers is not None:
            self._answers.after_batch()

    def idle(self) -> None:
        """Make a step of an answer."""
        if self._answers is not None:
            self._answers.step()

    def worthwhile_batch(self, cameras: int) -> int:  # noqa: ARG002 - the signature of the other explainers
        """Return 1, because batches of frames are not faster on a CPU."""
        return 1

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return one explanation per frame, in order; frames may have different sizes and cameras."""
        if not frames:
            return []
        started_at = time.perf_counter()
        images = self._input.prepare_frames(frames)
        ready = time.perf_counter()
        found = self._engine.run(images)
        seconds = (time.perf_counter() - ready) / len(frames)
        timings = {"preprocess": (ready - started_at) / len(frames), "detect": seconds}
        return [self._explained(frame, boxes, timings) for frame, boxes in zip(frames, found, strict=True)]

    def _explained(self, frame: Frame, boxes: ImageBoxes, timings: dict[str, float]) -> Explanation:
        started_at = time.perf_counter()
        if self._answers is not None:
            self._answers.remember(frame)
        self._scheduler.record_plain(frame.camera, timings["detect"])
        state = self._state(frame)
        boxes, findings = self._visible(frame, boxes)
        tracks = state.tracker.update(
            [_box_of(finding) for finding in findings], [f.class_index for f in findings], stream_time(frame)
        )
        known = {track.number for track in state.tracker.tracks}
        state.maps = {track: made for track, made in state.maps.items() if track in known}
        findings = [replace(finding, track=track) for finding, track in zip(findings, tracks, strict=True)]
        self._make_maps(frame, boxes, findings, state)
        self._boxes += len(findings)
        explained = tuple(_with_map(finding, state.maps.get(finding.track or 0), frame) for finding in findings)
        return Explanation(
            frame=frame,
            findings=explained,
            method=self._method,
            layer=self._engine.cut,
            timings={**timings, "explain": time.perf_counter() - started_at},
            model=self.info.model,
        )

    def _state(self, frame: Frame) -> _CameraState:
        """Return the state of the frame's camera; it is reset at each new file of a folder."""
        state = self._cameras.get(frame.camera)
        if state is None or state.source_name != frame.source_name:
            self._cameras[frame.camera] = state = _CameraState(source_name=frame.source_name)
        return state

    def _visible(self, frame: Frame, boxes: ImageBoxes) -> tuple[ImageBoxes, list[Finding]]:
        """Return the boxes with a visible part, and their findings without maps.

        Boxes of findings are in frame pixels, clipped to the network's input area. A box in the border around the image
        is left out: it would have almost no area, and a guard would find no evidence inside it.
        """
        edges = self._input.place_frame(frame).to_image(boxes.detections.boxes).cpu()
        clipped = clip_boxes(edges, input_box(frame))
        seen = (clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE_PX).all(1)
        detections = boxes.detections.only(seen)
        return replace(boxes, detections=detections), [
            Finding(self.labels[class_index], score, NO_HEAT, class_index, box=Box(*corners))
            for corners, score, class_index in zip(
                clipped[seen].tolist(),
                detections.scores.clamp(max=1.0).tolist(),
                detections.classes.tolist(),
                strict=True,
            )
        ]

    def _make_maps(self, frame: Frame, boxes: ImageBoxes, findings: Sequence[Finding], state: _CameraState) -> None:
        """Compute the maps of this frame that the schedule allows."""
        candidates = [index for index, finding in enumerate(findings) if self._is_selected(frame, finding)]
        levels = [self._engine.level(boxes, index) for index in candidates]
        requests = [
            MapRequest(_box_of(finding), finding.class_index, finding.score, level, _state_of(state, finding))
            for level, finding in zip(levels, (findings[index] for index in candidates), strict=True)
        ]
        turns = self._scheduler.choose(frame.camera, requests)
        if not turns:
            return
        started_at = time.perf_counter()
        chosen = [candidates[turn] for turn in turns]
        heats = self._engine.heat(boxes, chosen, self._settings.cell_px, self._settings.mode)
        self._scheduler.record_maps(frame.camera, [levels[turn] for turn in turns], time.perf_counter() - started_at)
        self._maps += len(chosen)
        placement = self._input.place_frame(frame)
        for index, heat in zip(chosen, heats, strict=True):
            finding, shown = findings[index], heat.normalised()
            region = Box(*placement.to_image(torch.tensor(heat.rectangle)).tolist())
            box_map = BoxMap(
                heat.mode, heat.cut, region, shown.scale, _array(shown.against), shown.lowest_score, frame.index
            )
            made = MapState(_box_of(finding), finding.class_index, stream_time(frame))
            state.maps[finding.track or 0] = _TrackMap(shown.heat.numpy(), box_map, made)

    def _is_selected(self, frame: Frame, finding: Finding) -> bool:
        """Return whether the settings select this box for maps."""
        if self._settings.budget == 0.0:
            return False
        return self._when is None or self._when(Explanation(frame, (finding,), self._method, self._engine.cut))

    def metrics(self) -> list[MetricSample]:
        """Return the engine's description and the numbers of boxes and maps."""
        info, scheduler = self.info, self._scheduler
        names = {"model": info.model, "backend": info.backend, "precision": info.precision, "device": info.device}
        spent, plain = scheduler.map_seconds, scheduler.plain_seconds
        return [
            MetricSample("engine_info", 1, "Always 1; the labels describe the engine.",
                         labels=(*names.items(), ("plan", info.plan.name))),
            MetricSample("engine_build_seconds", info.build_seconds, "Time to split, compile and verify."),
            MetricSample("boxes", self._boxes, "Boxes found.", "counter"),
            MetricSample("box_maps", self._maps, "Heat maps of boxes made.", "counter"),
            MetricSample("box_map_time_ratio", spent / plain if plain else 0.0,
                         "Time for heat maps of boxes as a fraction of the time of plain forward passes."),
        ]  # fmt: skip


def _parse_when(text: str, labels: Sequence[str]) -> Condition:
    """Parse the condition that selects boxes for maps; it cannot use values computed from maps."""
    fields = re.sub(r"\b(label|camera)\s*(==?|!=)\s*('[^']*'|\"[^\"]*\"|[^\s()]+)", "", text)
    later = re.search(
        r"\b(heat_inside|evidence_outside_box|focus_area|entropy|stability|centre_[xy]|score_drop\w*|guard|part|crossing"
        r"|boxes)\b", fields,
    )  # fmt: skip
    if later is not None:
        raise ConfigError(
            f"engine.boxes.when: {text!r}: {later[0]} is computed from maps, but this condition decides which maps "
            "are computed; use label, score, camera and track"
        )
    return parse_condition(text, {"label": labels, "box": ("box",)}, option="engine.boxes.when", fields=_WHEN_FIELDS)


def _check_device(config: EngineConfig) -> None:
    if config.device.startswith("cuda"):
        raise BackendError(f"device {config.device!r}: detectors run on the CPU; use --device cpu")
    if config.precision != "fp32":
        raise BackendError(f"precision {config.precision!r}: detectors run in fp32; use --precision fp32")
    if config.layer is not None:
        raise ConfigError(
            f"layer {config.layer!r}: a detector has a cut in place of a layer; remove the layer, and use boxes.cut: "
            "complete, level or names"
        )


def _box_of(finding: Finding) -> Box:
    assert finding.box is not None  # noqa: S101 - every finding of a detector has a box
    return finding.box


def _state_of(state: _CameraState, finding: Finding) -> MapState | None:
    made = state.maps.get(finding.track or 0)
    return None if made is None else made.state


def _array(heat: Tensor | None) -> Heat | None:
    return None if heat is None else heat.numpy()


def _with_map(finding: Finding, made: _TrackMap | None, frame: Frame) -> Finding:
    """Add the newest map of its track to a finding; an older map is moved with the box."""
    if made is None:
        return finding
    old, new, region = made.state.box, _box_of(finding), made.box_map.region
    x = (new.left + new.right - old.left - old.right) / 2.0
    y = (new.top + new.bottom - old.top - old.bottom) / 2.0
    moved = Box(region.left + x, region.top + y, region.right + x, region.bottom + y)
    age = max(stream_time(frame) - made.state.made_at, 0.0)
    return replace(finding, heat=made.heat, box_map=replace(made.box_map, region=moved, age_seconds=age))
