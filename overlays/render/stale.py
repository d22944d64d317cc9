"""Draws images for a signal loss: dark grey, with the duration of the loss, so that they do not look live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from overlays.render.text import RED, WHITE, TextLine, draw_banner
from pipeline.frames import Explanation, Image, Overlay, SignalLoss

_BRIGHTNESS: Final = 0.45
"""Factor of the image's brightness."""


def grayscale_with_banner(image: Image, lines: Sequence[TextLine]) -> Image:
    """Return a dark grey copy of ``image`` (uint8 RGB) with lines of text in a band across its middle."""
    grey = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=_BRIGHTNESS)
    result: Image = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    draw_banner(result, lines)
    return result


def stale_overlay(explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
    """Return the camera's last frame in grey, with the duration and the reason of the signal loss."""
    frame = explanation.frame
    lines = [TextLine(f"NO SIGNAL FOR {format_duration(signal_loss.seconds)}", RED, weight=700, scale=1.5)]
    lines.append(TextLine(frame.camera, WHITE))
    if signal_loss.reason:
        lines.append(TextLine(signal_loss.reason, WHITE, scale=0.85))
    image = grayscale_with_banner(frame.image, lines)
    image.flags.writeable = False
    return Overlay(image, explanation=explanation, signal_loss=signal_loss)


def format_duration(seconds: float) -> str:
    """Return a duration as text: 3 s, 4 min 10 s, 2 h 5 min."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
