"""Renders an explanation as an overlay: heat map over the frame, legend and guards.

The renderer stores a small state per camera: the frame rate and, if smoothing is on, the smoothed heat map.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from overlays.render.boxes import box_lines, draw_boxes, paint_box_heat
from overlays.render.colormaps import COLORMAPS, palette
from overlays.render.gpu_tables import guard_patches, legend_patch
from overlays.render.guards import alarm_lines, draw_guards, footer_area
from overlays.render.heatmap import draw_box, draw_contour, hottest_box, paint_heat
from overlays.render.input_area import draw_input_area, input_area_patch
from overlays.render.places import draw_places
from overlays.render.stale import stale_overlay
from overlays.render.text import GREEN, GREY, RED, TextLine, draw_legend, legend_area, text_size
from pipeline.errors import ConfigError
from pipeline.frame_rate import FrameRate
from pipeline.frames import Box, Explanation, Finding, Frame, GroundTruth, Heat, Overlay, SignalLoss
from pipeline.image_patch import ImagePatch
from pipeline.ports import Renderer

__all__ = ["COLORMAPS", "HeatRenderer"]

_SMOOTHING_PAUSE_SECONDS = 2.0
"""Pause between frames in seconds after which smoothing restarts."""
_MAX_OTHERS = 3
"""Maximum number of further findings in the legend."""


@dataclass(slots=True)
class _CameraState:
    """State of one camera between its frames."""

    frame_rate: FrameRate = field(default_factory=FrameRate)
    """Rate at which frames are rendered, which differs from the rate at which a file's frames are decoded."""
    smoothed_at: float = 0.0
    """Time of the last smoothed frame on the stream's clock, in seconds."""
    heat: Heat | None = None
    explained: tuple[int, str] | None = None
    """Class index and label that ``heat`` explains."""


class HeatRenderer(Renderer):
    """Renders explanations: heat map, legend and, by option, a contour and the box of the hottest cells.

    Args:
        colormap: a name in ``COLORMAPS``.
        opacity: opacity of the hottest level, in [0, 1]; opacity is linear in the heat.
        legend: write label, score, camera, age and frame rate into a corner.
        contour: draw the contour at half of the heat's peak.
        hottest_box: draw a box around the connected cells with at least half of the peak's heat.
        input_area: draw the region of interest and the masks of the camera.
        smoothing_seconds: time constant of exponential smoothing per camera; 0 turns it off. Smoothing restarts when
            the explained class or the grid changes, and after a pause. It uses the stream's clock if there is one.
        clock: returns monotonic seconds, for the age.

    Raises:
        ConfigError: the colour map is unknown, the opacity is outside [0, 1], or the time constant is negative.
    """

    def __init__(
        self,
        *,
        colormap: str = "inferno",
        opacity: float = 0.6,
        legend: bool = True,
        contour: bool = False,
        hottest_box: bool = False,
        input_area: bool = True,
        smoothing_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0.0 <= smoothing_seconds < math.inf:
            raise ConfigError(
                f"smoothing_seconds: {smoothing_seconds}: must be finite and at least 0 (0 turns smoothing off)"
            )
        self._palette = palette(colormap, opacity)
        self._opacity = opacity
        self._legend = legend
        self._contour = contour
        self._hottest_box = hottest_box
        self._input_area = input_area
        self._smoothing_seconds = smoothing_seconds
        self._clock = clock
        self._cameras: dict[str, _CameraState] = {}

    def render(self, explanation: Explanation) -> Overlay:
        """Return an overlay in the frame's size: the first class's heat map, or all boxes, with areas and legend."""
        frame, region = explanation.frame, explanation.region
        state = self._record_frame(frame)
        if not explanation.findings:
            image = frame.image.copy()
        elif explanation.first.box is not None:
            image = paint_box_heat(frame.image, explanation, self._opacity)
            draw_boxes(image, explanation, covered=self._covered_areas(explanation, state))
        else:
            heat = self._smoothed(explanation.first, frame, state)
            image = paint_heat(frame.image, heat, region, self._palette)
            stroke = max(1, text_size(frame.height, frame.width) // 8)
            if self._contour:
                draw_contour(image, heat, region, (255, 255, 255), stroke)
            box = hottest_box(heat, region) if self._hottest_box else None
            if box is not None:
                draw_box(image, box, (255, 255, 255), stroke)
        if self._input_area and frame.area is not None:
            draw_input_area(image, frame.area)
        draw_places(image, explanation)
        draw_guards(image, explanation)
        if self._legend:
            draw_legend(image, self._legend_lines(explanation, state))
        image.flags.writeable = False
        return Overlay(image, explanation=explanation)

    def render_patches(self, explanation: Explanation) -> list[ImagePatch]:
        """Return input area, guards and legend as patches, for an image that is drawn on a GPU.

        This updates the camera's state, so call only one of ``render`` and ``render_patches`` per frame.
        """
        frame = explanation.frame
        state = self._record_frame(frame)
        area = frame.area if self._input_area else None
        outline = None if area is None else input_area_patch(area, frame.height, frame.width)
        patches = [*([] if outline is None else [outline]), *guard_patches(explanation)]
        if self._legend:
            legend = legend_patch(frame.height, frame.width, self._legend_lines(explanation, state))
            patches += [] if legend is None else [legend]
        return patches

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Return a camera's last frame in grey, with its age and the reason of the signal loss."""
        return stale_overlay(explanation, signal_loss)

    def forget_camera(self, camera: str) -> None:
        """Release the smoothed heat map and the frame rate of a camera."""
        self._cameras.pop(camera, None)

    def _record_frame(self, frame: Frame) -> _CameraState:
        """Record a rendered frame in the camera's frame rate, and return the camera's state."""
        state = self._cameras.setdefault(frame.camera, _CameraState())
        state.frame_rate.record(self._clock())
        return state

    def _legend_lines(self, explanation: Explanation, state: _CameraState) -> list[TextLine]:
        """Return the lines of the legend with the frame's present age."""
        return legend_lines(explanation, self._clock(), state.frame_rate.interval_seconds)

    def _covered_areas(self, explanation: Explanation, state: _CameraState) -> list[Box]:
        """Return the areas of the image that the legend and the reasons of firing guards will cover."""
        height, width = explanation.frame.height, explanation.frame.width
        alarms = footer_area(height, width, alarm_lines(explanation.firing))
        legend = legend_area(height, width, self._legend_lines(explanation, state)) if self._legend else None
        return [area for area in (legend, alarms) if area is not None]

    def _smoothed(self, finding: Finding, frame: Frame, state: _CameraState) -> Heat:
        """Return the finding's heat map, smoothed with the previous heat maps if smoothing is on."""
        if self._smoothing_seconds == 0.0:
            return finding.heat
        timestamp = frame.captured_at if frame.pts_seconds is None else frame.pts_seconds
        explained = (finding.class_index, finding.label)
        elapsed = timestamp - state.smoothed_at
        heat = finding.heat
        same = state.heat is not None and state.explained == explained and state.heat.shape == heat.shape
        if same and state.heat is not None and 0.0 <= elapsed <= _SMOOTHING_PAUSE_SECONDS:
            weight = np.float32(math.exp(-elapsed / self._smoothing_seconds))
            heat = state.heat * weight + heat * (np.float32(1.0) - weight)
        state.heat, state.explained, state.smoothed_at = heat, explained, timestamp
        return heat


def legend_lines(explanation: Explanation, now: float, interval_seconds: float) -> list[TextLine]:
    """Return the lines of the legend, most important first.

    Args:
        explanation: the explanation.
        now: current monotonic seconds, for the age.
        interval_seconds: mean time between frames; 0 if unknown.
    """
    frame, findings = explanation.frame, explanation.findings
    age = max(frame.age_seconds(now), 0.0)
    age_text = f"{age * 1000:.0f} ms" if age < 1.0 else f"{age:.1f} s"
    rate = f" · {1.0 / interval_seconds:.1f}/s" if interval_seconds else ""
    age_line = TextLine(f"{age_text}{rate} · {frame.camera}", GREY, scale=0.75)
    if findings and findings[0].box is not None:
        counts, explained = box_lines(explanation)
        return [counts, *_trial_lines(explanation), age_line, explained]
    top = explanation.top_scoring
    lines = [TextLine("nothing found", GREY) if top is None else TextLine(_score_and_label(top), weight=700)]
    if frame.truth is not None and top is not None:
        lines.append(_truth_line(top, frame.truth))
    if top is not None and findings[0] is not top:
        lines.append(TextLine(f"heat map of: {_score_and_label(findings[0])}", scale=0.75))
    others = [f for f in findings[1:] if f is not top]
    return [
        *lines,
        *_trial_lines(explanation),
        age_line,
        *(TextLine(_score_and_label(f), GREY, scale=0.75) for f in others[:_MAX_OTHERS]),
    ]


def _trial_lines(explanation: Explanation) -> list[TextLine]:
    """Return a line that states whether a trial network differs, and how; no line without a trial."""
    trial = explanation.trial
    if trial is None:
        return []
    if not trial.is_compared:
        return [TextLine(f"{trial.name} on trial: frame left out", GREY, scale=0.75)]
    if trial.difference:
        return [TextLine(f"{trial.name}: {trial.difference}", RED, scale=0.75)]
    return [TextLine(f"{trial.name} on trial agrees", GREEN, scale=0.75)]


def _truth_line(finding: Finding, truth: GroundTruth) -> TextLine:
    """Return a line that states whether the top class is the frame's true class."""
    if finding.label == truth.label:
        return TextLine("✓ correct", GREEN, scale=0.75)
    return TextLine(f"\N{MULTIPLICATION SIGN} true class: {truth.label}", RED, scale=0.75)


def _score_and_label(finding: Finding) -> str:
    """Return score and label as text; the score is first, so that a long label cannot displace it."""
    percent = "<1%" if 0.0 < finding.score < 0.01 else f"{finding.score:.0%}"
    return f"{percent}  {finding.label}"
