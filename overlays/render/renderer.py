"""Explanation -> Overlay: the heat laid over the frame, and what a person wants to know beside it.

The state it keeps is small and per camera: when its last frames were drawn (for the rate), and the smoothed heat where
smoothing is asked for. Knows nothing about sinks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from overlays.render.colormaps import COLORMAPS, palette
from overlays.render.gpu_tables import legend_patch
from overlays.render.guards import draw_guards
from overlays.render.heatmap import draw_box, draw_contour, hottest_box, paint_heat
from overlays.render.stale import stale_overlay
from overlays.render.text import GREEN, GREY, RED, TextLine, draw_legend, text_size
from pipeline.errors import ConfigError
from pipeline.frames import Explanation, Finding, Frame, GroundTruth, Heat, ImagePatch, Overlay, SignalLoss

__all__ = ["COLORMAPS", "HeatRenderer"]

_PAUSE_SECONDS = 10.0
"""After a pause this long the rate starts anew."""
_SMOOTHING_PAUSE_SECONDS = 2.0
"""After a pause this long smoothing starts anew."""
_RATE_SECONDS = 2.0
"""The rate shown is an average over so long, and at least over two frames."""
_OTHERS_LISTED = 3
"""How many findings beside the first one the legend names."""


@dataclass(slots=True)
class _Memory:
    """What the renderer remembers of one camera."""

    drawn_at: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    """When its last frames were drawn. A file's frames are decoded faster than they are shown, so their own times do
    not tell the rate."""
    moment: float = 0.0
    """The last frame's time on the clock that smoothing goes by."""
    heat: Heat | None = None
    explained: tuple[int, str] | None = None
    """Which class ``heat`` explains."""

    @property
    def interval_seconds(self) -> float | None:
        """Average seconds between the last frames; None before the second."""
        passed = self.drawn_at[-1] - self.drawn_at[0] if self.drawn_at else 0.0
        return passed / (len(self.drawn_at) - 1) if passed > 0.0 else None


class HeatRenderer:
    """Draws explanations: heat, legend and, by option, a contour and the hottest box.

    Args:
        colormap: a name in ``COLORMAPS``.
        opacity: how much of a pixel the hottest heat hides, in [0, 1]; opacity follows the heat in a straight line.
        legend: name label, score, camera, age and rate in a corner.
        contour: draw the line along which the heat is half its peak.
        hottest_box: draw a box around the cells that are at least half as hot as the peak and join it.
        smoothing_seconds: time constant of exponential smoothing per camera; 0: each frame stands alone. Smoothing
            starts anew when the explained class or the grid changes, and after a pause: heat of two classes is not
            mixed. Time is the stream's own where it has one.
        clock: monotonic seconds, for the age.

    Raises:
        ConfigError: an unknown colour map, an opacity outside [0, 1], a negative time constant.
    """

    def __init__(
        self,
        *,
        colormap: str = "inferno",
        opacity: float = 0.6,
        legend: bool = True,
        contour: bool = False,
        hottest_box: bool = False,
        smoothing_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0.0 <= smoothing_seconds < math.inf:
            raise ConfigError(f"smoothing_seconds: {smoothing_seconds} is not a time constant; 0 turns smoothing off")
        self._palette = palette(colormap, opacity)
        self._legend = legend
        self._contour = contour
        self._hottest_box = hottest_box
        self._smoothing_seconds = smoothing_seconds
        self._clock = clock
        self._memories: dict[str, _Memory] = {}

    def render(self, explanation: Explanation) -> Overlay:
        """Draw the first finding's heat and the legend on a new picture of the frame's size."""
        frame, region = explanation.frame, explanation.region
        memory = self._remember(frame)
        if not explanation.findings:
            image = frame.image.copy()
        else:
            heat = self._smoothed(explanation.first, frame, memory)
            image = paint_heat(frame.image, heat, region, self._palette)
            stroke = max(1, text_size(frame.height, frame.width) // 8)
            if self._contour:
                draw_contour(image, heat, region, (255, 255, 255), stroke)
            box = hottest_box(heat, region) if self._hottest_box else None
            if box is not None:
                draw_box(image, box, (255, 255, 255), stroke)
        draw_guards(image, explanation)
        if self._legend:
            draw_legend(image, legend_lines(explanation, self._clock(), memory.interval_seconds))
        image.flags.writeable = False
        return Overlay(image=image, explanation=explanation)

    def stamp(self, explanation: Explanation) -> ImagePatch | None:
        """Return what ``render`` writes beside the heat, for a picture that is drawn elsewhere; None without legend.

        It counts as the frame's rendering: call one or the other.
        """
        memory = self._remember(explanation.frame)
        if not self._legend:
            return None
        lines = legend_lines(explanation, self._clock(), memory.interval_seconds)
        return legend_patch(explanation.frame.height, explanation.frame.width, lines)

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Draw a camera's last frame in grey, stamped with its age and the reason."""
        return stale_overlay(explanation, signal_loss)

    def _remember(self, frame: Frame) -> _Memory:
        """Take note that a frame of the camera is drawn now."""
        memory = self._memories.setdefault(frame.camera, _Memory())
        now, drawn = self._clock(), memory.drawn_at
        if drawn and not 0.0 <= now - drawn[-1] <= _PAUSE_SECONDS:
            drawn.clear()
        drawn.append(now)
        while len(drawn) > 2 and now - drawn[0] > _RATE_SECONDS:
            drawn.popleft()
        return memory

    def _smoothed(self, finding: Finding, frame: Frame, memory: _Memory) -> Heat:
        """Return the finding's heat, or its average with what came before where smoothing is on."""
        if self._smoothing_seconds == 0.0:
            return finding.heat
        timestamp = frame.captured_at if frame.pts_seconds is None else frame.pts_seconds
        explained = (finding.class_index, finding.label)
        passed = timestamp - memory.moment
        heat = finding.heat
        same = memory.heat is not None and memory.explained == explained and memory.heat.shape == heat.shape
        if same and memory.heat is not None and 0.0 <= passed <= _SMOOTHING_PAUSE_SECONDS:
            fraction = np.float32(math.exp(-passed / self._smoothing_seconds))
            heat = memory.heat * fraction + heat * (np.float32(1.0) - fraction)
        memory.heat, memory.explained, memory.moment = heat, explained, timestamp
        return heat


def legend_lines(explanation: Explanation, now: float, interval_seconds: float | None) -> list[TextLine]:
    """Say in a few lines what the frame shows and how fresh it is, the most important first.

    Args:
        explanation: what to tell of.
        now: monotonic seconds, for the age.
        interval_seconds: average time between frames; None where it is not known yet.
    """
    frame, findings = explanation.frame, explanation.findings
    verdict = explanation.top_scoring
    lines = [TextLine("nothing found", GREY) if verdict is None else TextLine(_named(verdict), weight=700)]
    if frame.truth is not None and verdict is not None:
        lines.append(_judged(verdict, frame.truth))
    if verdict is not None and findings[0] is not verdict:
        lines.append(TextLine(f"heat of: {_named(findings[0])}", scale=0.75))
    age = max(frame.age_seconds(now), 0.0)
    fresh = f"{age * 1000:.0f} ms" if age < 1.0 else f"{age:.1f} s"
    rate = f" · {1.0 / interval_seconds:.1f}/s" if interval_seconds else ""
    lines.append(TextLine(f"{fresh}{rate} · {frame.camera}", GREY, scale=0.75))
    others = [f for f in findings[1:] if f is not verdict]
    lines.extend(TextLine(_named(f), GREY, scale=0.75) for f in others[:_OTHERS_LISTED])
    return lines


def _judged(finding: Finding, truth: GroundTruth) -> TextLine:
    """Say whether the verdict is what the frame is known to show."""
    if finding.label == truth.label:
        return TextLine("✓ right", GREEN, scale=0.75)
    return TextLine(f"\N{MULTIPLICATION SIGN} it is {truth.label}", RED, scale=0.75)


def _named(finding: Finding) -> str:
    """Say score and class; the score first, so that a long name cannot push it out."""
    percent = "<1%" if 0.0 < finding.score < 0.01 else f"{finding.score:.0%}"
    return f"{percent}  {finding.label}"
