"""Draws any frame of one belt under one camera, with its ground truth.

``draw_frame(scene, index)`` depends only on the scene's size, seed and rate and on the index, so frames can be drawn in
any order. A slot of the belt is drawn once and cached while it is in view; a frame is a few copies plus the camera.

Rule of the ground truth: the box of a defect, enlarged by ``MARGIN_UNITS``, can be completely inside the image: then
the frame has the label and box of the defect; completely outside: then the defect does not count; or cut by the image's
edge: then the ground truth is None, and the frame is not scored. A frame without a counted defect is ``ok``, with or
without a part in it. Boxes enclose the painted pixels, padded by ``PAD_UNITS`` and with sides of at least
``MIN_UNITS``, so that the box of a thin scratch also has an area.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.frames import Box, GroundTruth, Image
from stream.simulated.belt import bare_belt, draw_distractors, dust, rails
from stream.simulated.camera import CameraModel
from stream.simulated.defects import PAINTERS, undrilled
from stream.simulated.parts import SHAPES, PartCanvas, canvas_side, draw_part
from stream.simulated.schedule import HEIGHT_UNITS, OK, SLOT_UNITS, Part, part_at

SPEED_UNITS = 260.0
"""Belt speed in units per second."""
MARGIN_UNITS = 12.0
"""Minimum distance of a defect's box from the image's edge."""
PAD_UNITS = 4.0
"""Padding of a box around the painted pixels."""
MIN_UNITS = 36.0
"""Minimum width and height of a box."""
MIN_VISIBLE = 0.3
"""Lowest visible fraction of a part's width at which the part counts."""
MAX_ASPECT, MIN_ASPECT = 1.8, 0.75
"""Limits of width / height: a wider image could show two defects, a narrower image no whole part."""
MIN_HEIGHT, MAX_HEIGHT = 120, 2160
"""Limits of the image's height in pixels."""
_CACHED_SLOTS = 12
_DOTTED_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class Segment:
    """The drawn image of one slot of the belt."""

    image: Image
    label: str
    box: Box | None
    """The defect's box in pixels of the segment."""
    part_box: Box | None = None
    """The part's box in pixels of the segment; None: no part."""


class Scene:
    """A belt, its camera, and a cache of segments. Not thread-safe."""

    def __init__(
        self, *, size: tuple[int, int] = (640, 480), seed: int = 7, fps: float = 30.0, clutter: float = 1.0
    ) -> None:
        width, height = size
        if not MIN_HEIGHT <= height <= MAX_HEIGHT or not MIN_ASPECT <= width / height <= MAX_ASPECT:
            raise ValueError(
                f"a size of {width}x{height} is out of range: the height must be {MIN_HEIGHT} to {MAX_HEIGHT} pixels "
                f"and the width {MIN_ASPECT} to {MAX_ASPECT} times the height; for example 640x480 or 1280x720"
            )
        if not 0.1 <= fps <= 1000.0:
            raise ValueError(f"a rate of {fps} frames per second is out of range: it must be 0.1 to 1000")
        if seed < 0:
            raise ValueError(f"a seed of {seed} is out of range: it must be 0 or more")
        self.size = size
        self.seed = seed
        self.fps = fps
        self.clutter = clutter
        self.scale = height / HEIGHT_UNITS
        self.slot_pixels = round(SLOT_UNITS * self.scale)
        self.camera = CameraModel(seed=seed, size=size, scale=self.scale)
        self._segments: dict[int, Segment] = {}

    def offset(self, index: int) -> int:
        """Return how far the belt has moved at frame ``index``, in pixels."""
        return round(SPEED_UNITS * self.scale * index / self.fps)

    def slots_in_view(self, index: int) -> range:
        """Return the slots that are completely or partly visible in frame ``index``."""
        offset = self.offset(index)
        return range(offset // self.slot_pixels, (offset + self.size[0] - 1) // self.slot_pixels + 1)

    def segment(self, slot: int) -> Segment:
        """Return the drawn segment of a slot; the last few are cached."""
        if slot not in self._segments:
            if len(self._segments) >= _CACHED_SLOTS:
                del self._segments[next(iter(self._segments))]
            self._segments[slot] = self._draw_segment(slot)
        return self._segments[slot]

    def _draw_segment(self, slot: int) -> Segment:
        part = part_at(self.seed, slot)
        rng = np.random.default_rng((self.seed, 8, slot))
        canvas = bare_belt(self.seed, slot, self.scale)
        draw_distractors(canvas, rng, self.scale, self.clutter)
        if part is None:
            return Segment(canvas, OK, None)
        box, part_box = _lay(canvas, part, self.scale)
        dust(canvas, rng, self.scale, int(rng.integers(0, 8)))
        return Segment(canvas, part.defect, box, part_box)


def draw_frame(scene: Scene, index: int) -> tuple[Image, GroundTruth | None]:
    """Return frame ``index`` and its ground truth, which is None if the frame is not scored.

    The image is a new uint8 RGB array, (height, width, 3).
    """
    width, height = scene.size
    view = np.empty((height, width, 3), np.uint8)
    offset = scene.offset(index)
    for slot in scene.slots_in_view(index):
        left = slot * scene.slot_pixels - offset
        first, last = max(left, 0), min(left + scene.slot_pixels, width)
        view[:, first:last] = scene.segment(slot).image[:, first - left : last - left]
    rail = rails(width, scene.scale)
    view[: rail.shape[0]] = rail
    view[height - rail.shape[0] :] = rail[::-1]
    return scene.camera.expose(view, index, index / scene.fps), ground_truth_of(scene, index)


def ground_truth_of(scene: Scene, index: int) -> GroundTruth | None:
    """Return the ground truth of frame ``index``, without drawing the frame."""
    width, _ = scene.size
    margin = MARGIN_UNITS * scene.scale
    counted = None
    for slot in scene.slots_in_view(index):
        segment = scene.segment(slot)
        if segment.box is None:
            continue
        shift = slot * scene.slot_pixels - scene.offset(index)
        box = Box(segment.box.left + shift, segment.box.top, segment.box.right + shift, segment.box.bottom)
        if box.right + margin <= 0 or box.left - margin >= width:
            continue
        if box.left - margin < 0 or box.right + margin > width:
            return None
        counted = GroundTruth(segment.label, (box,))
    return counted or GroundTruth(OK)


def parts_in_view(scene: Scene, index: int) -> tuple[GroundTruth, ...]:
    """Return the label and the visible box of each part in frame ``index``, from left to right.

    A part does not count if less than ``MIN_VISIBLE`` of its width is in the image. A part whose defect is outside the
    image is ``ok``, as in ``ground_truth_of``.
    """
    width, height = scene.size
    shown = ground_truth_of(scene, index)
    defects = shown.boxes if shown is not None else ()
    parts = []
    for slot in scene.slots_in_view(index):
        box = scene.segment(slot).part_box
        if box is None:
            continue
        shift = slot * scene.slot_pixels - scene.offset(index)
        left, right = max(box.left + shift, 0.0), min(box.right + shift, float(width))
        if right - left < MIN_VISIBLE * box.width:
            continue
        visible = Box(left, max(box.top, 0.0), right, min(box.bottom, float(height)))
        middles = [(defect.left + defect.right) / 2 for defect in defects]
        is_defective = any(box.left + shift <= middle <= box.right + shift for middle in middles)
        parts.append(GroundTruth(scene.segment(slot).label if is_defective else OK, (visible,)))
    return tuple(parts)


def _lay(canvas: Image, part: Part, scale: float) -> tuple[Box | None, Box]:
    """Draw a part on the belt; return the boxes of its defect and of the part, in ``canvas`` pixels."""
    rng = np.random.default_rng(part.seed)
    shape = SHAPES[part.kind]
    holes = shape.holes
    missing = None
    if part.defect == "missing_hole":
        missing = holes[int(rng.integers(len(holes)))]
        holes = tuple(hole for hole in holes if hole is not missing)
    part_canvas = draw_part(part, shape, holes, scale)
    dots = np.random.default_rng((*part.seed, 2))
    if dots.random() < _DOTTED_FRACTION:
        _paint_dot(part_canvas, dots)
    tight = None
    if missing is not None:
        tight = undrilled(part_canvas, missing)
    elif part.defect != OK:
        tight = PAINTERS[part.defect](part_canvas, rng)
    side = canvas_side(scale)
    # In a small image, rounding may make the canvas one pixel larger than the slot.
    left = min(round(part.x * scale) - side // 2, canvas.shape[1] - side)
    top = min(round(part.y * scale) - side // 2, canvas.shape[0] - side)
    _compose(canvas[top : top + side, left : left + side], part_canvas, scale)
    x, y, columns, rows = cv2.boundingRect((part_canvas.whole > 127).astype(np.uint8))
    part_box = Box(float(left + x), float(top + y), float(left + x + columns), float(top + y + rows))
    return None if tight is None else _grown(tight, left, top, scale), part_box


def _compose(ground: Image, canvas: PartCanvas, scale: float) -> None:
    """Blend a part into ``ground``, its section of the belt, in place."""
    shift = np.array([[1.0, 0.0, 5.0 * scale], [0.0, 1.0, 7.0 * scale]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(canvas.solid, shift, canvas.solid.shape[::-1]), (0, 0), 4.0 * scale)
    depth = cv2.subtract(canvas.whole, canvas.solid)
    dark = 1.0 - (0.55 / 255.0) * shadow.astype(np.float32)
    dark *= 1.0 - (0.55 / 255.0) * depth.astype(np.float32)
    under = ground.astype(np.float32) * dark[..., None]
    metal = canvas.colour + canvas.light[..., None]
    fraction = (canvas.solid.astype(np.float32) / 255.0)[..., None]
    under += (metal - under) * fraction
    ground[:] = np.clip(under, 0.0, 255.0).astype(np.uint8)


def _paint_dot(canvas: PartCanvas, rng: np.random.Generator) -> None:
    """Paint an inspector's pen mark on the metal, which looks like a defect but is not one."""
    rows, columns = np.nonzero(
        cv2.erode(canvas.solid, np.ones((3, 3), np.uint8), iterations=max(1, round(8 * canvas.scale)))
    )
    if not len(rows):
        return
    pick = int(rng.integers(len(rows)))
    dot = np.zeros_like(canvas.solid)
    centre = (int(columns[pick]) * 16, int(rows[pick]) * 16)
    cv2.circle(dot, centre, round(5.5 * canvas.scale * 16), 255, -1, cv2.LINE_AA, 4)
    colour = ((226, 206, 60), (70, 190, 90), (236, 236, 232))[int(rng.integers(3))]
    fraction = (dot.astype(np.float32) / 255.0)[..., None]
    canvas.colour += (np.array(colour, np.float32) - canvas.colour) * fraction


def _grown(box: Box, left: int, top: int, scale: float) -> Box:
    """Return a tight box, moved by (left, top) and enlarged by the padding to at least ``MIN_UNITS``."""
    half_width = max(box.width / 2 + PAD_UNITS * scale, MIN_UNITS * scale / 2)
    half_height = max(box.height / 2 + PAD_UNITS * scale, MIN_UNITS * scale / 2)
    x, y = left + (box.left + box.right) / 2, top + (box.top + box.bottom) / 2
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)
