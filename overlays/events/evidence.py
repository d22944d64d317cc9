"""Creates the images and figures of the frame that represents an event, and the page's still images."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from overlays.events.event import Evidence
from overlays.render.boxes import draw_boxes, paint_box_heat
from overlays.render.colormaps import palette
from overlays.render.guards import ALARM, CALM, draw_regions
from overlays.render.heatmap import paint_heat
from overlays.render.jpeg import encode_image, scale_image
from overlays.wire.header import scaled_box
from overlays.wire.message import explanation_record
from pipeline.errors import WireError
from pipeline.frames import Explanation, Finding, Image, Overlay, Region

JPEG_QUALITY: Final = 80
MAX_FIGURES_BYTES: Final = 32 << 10
"""Maximum size of an event's figures as JSON in bytes; above it, only the first finding is stored, or none."""
MAX_FINDINGS: Final = 20


def make_evidence(
    overlay: Overlay, max_pixels: int, style: tuple[str, float], *, sent_at_unix: float, now_monotonic: float,
    painted: bool = False,
) -> Evidence:  # fmt: skip
    """Return the images and figures of a frame.

    Args:
        overlay: the frame.
        max_pixels: maximum longer side of the images in pixels.
        style: colour map and opacity.
        sent_at_unix: current wall-clock time in Unix seconds.
        now_monotonic: ``time.monotonic()`` at the same time.
        painted: True if the frame's image already has the heat map; then there is no plain image.
    """
    explanation = overlay.explanation
    small = scaled_explanation(explanation, max_pixels)
    plain = encode_image(small.frame.image, JPEG_QUALITY)
    figures = _figures(explanation, sent_at_unix, now_monotonic)
    if painted:
        return Evidence(None, plain, figures)
    return Evidence(plain, encode_image(draw(small, *style), JPEG_QUALITY), figures)


def draw(
    explanation: Explanation, colormap: str, opacity: float, *, heat: bool = True, boxes: bool = True
) -> Image:  # fmt: skip
    """Return a new image of the frame, optionally with heat map, boxes and regions; uint8 RGB."""
    image, findings = explanation.frame.image, explanation.findings
    is_detector = bool(findings) and findings[0].box is not None
    if heat and is_detector:
        image = paint_box_heat(image, explanation, opacity)
    elif heat and findings:
        image = paint_heat(image, findings[0].heat, explanation.region, palette(colormap, opacity))
    else:
        image = image.copy()
    if boxes:
        draw_boxes(image, explanation)
        draw_regions(image, explanation.regions, ALARM if explanation.firing else CALM)
    return image


def scaled_explanation(explanation: Explanation, max_pixels: int) -> Explanation:
    """Return an explanation scaled so that its frame's longer side has at most ``max_pixels``."""
    frame = explanation.frame
    image = scale_image(frame.image, min(1.0, max_pixels / max(frame.width, frame.height)))
    if image is frame.image:
        return explanation
    x, y = image.shape[1] / frame.width, image.shape[0] / frame.height
    trial = explanation.trial
    regions = tuple(Region(each.name, tuple((a * x, b * y) for a, b in each.polygon)) for each in explanation.regions)
    return replace(
        explanation,
        frame=replace(frame, pixels=image),
        findings=tuple(_scaled(finding, x, y) for finding in explanation.findings),
        trial=None if trial is None else replace(trial, findings=tuple(_scaled(each, x, y) for each in trial.findings)),
        heat_region=scaled_box(explanation.region, x, y),
        regions=regions,
    )


def _scaled(finding: Finding, x: float, y: float) -> Finding:
    if finding.box is None:
        return finding
    box_map = finding.box_map
    scaled_map = None if box_map is None else replace(box_map, region=scaled_box(box_map.region, x, y))
    return replace(finding, box=scaled_box(finding.box, x, y), box_map=scaled_map)


def _figures(explanation: Explanation, sent_at_unix: float, now_monotonic: float) -> dict[str, Any]:
    """Return the explanation as JSON values of at most ``MAX_FIGURES_BYTES``; {} if that is impossible."""
    for count in (MAX_FINDINGS, 1, 0):
        try:
            part = replace(
                explanation, findings=explanation.findings[:count], passages=(), recent_passages=(), places=()
            )
            figures = explanation_record(part, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
            if len(json.dumps(figures, allow_nan=False)) <= MAX_FIGURES_BYTES:
                return figures
        except (WireError, ValueError):
            continue
    return {}
