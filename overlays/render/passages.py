"""Draws the image of a part or a crossing: a crop of the deciding frame, with heat map and box."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from overlays.render.boxes import paint_box_heat, track_colour
from overlays.render.heatmap import draw_box
from pipeline.frames import Box, Explanation, Finding, Frame, Image
from pipeline.passages.passage import Passage

PREFIX: Final = "parts/"
"""Prefix of the topic of a camera's parts and crossings."""
OPACITY: Final = 0.6


def passage_explanation(passage: Passage, explanation: Explanation) -> Explanation:
    """Return an explanation of a passage's image, with box and heat map in pixels of this image.

    Args:
        passage: the part or the crossing.
        explanation: explanation of the frame at which the passage finished; provides model, method and layer.
    """
    frame = Frame(
        passage.image,
        PREFIX + passage.camera,
        passage.sequence,
        passage.last_captured_at,
        pts_seconds=passage.last_seen_seconds,
    )
    return Explanation(frame, (_placed(passage),), explanation.method, explanation.layer, model=explanation.model)


def passage_image(passage: Passage, opacity: float = OPACITY) -> Image:
    """Return a new image of a passage with its heat map and box, uint8 RGB, (height, width, 3)."""
    frame = Frame(passage.image, passage.camera, passage.index, passage.last_captured_at)
    finding = _placed(passage)
    image = paint_box_heat(passage.image, Explanation(frame, (finding,), "", ""), opacity)
    if finding.box is not None:
        draw_box(image, finding.box, track_colour(finding), 1)
    return image


def _placed(passage: Passage) -> Finding:
    """Return the deciding finding with its coordinates in pixels of the passage's image."""
    finding, shown = passage.finding, passage.image_box
    height, width = passage.image.shape[:2]
    x, y = width / shown.width, height / shown.height

    def moved(box: Box) -> Box:
        return Box(
            (box.left - shown.left) * x, (box.top - shown.top) * y,
            (box.right - shown.left) * x, (box.bottom - shown.top) * y,
        )  # fmt: skip

    return replace(
        finding,
        box=None if finding.box is None else moved(finding.box),
        box_map=None if finding.box_map is None else replace(finding.box_map, region=moved(finding.box_map.region)),
        heatmap_stats=None,
    )
