"""Draws text on images: lines on a dark plate in a corner, and banners. Rendered text is cached."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from overlays.render.heatmap import Levels
from pipeline.frames import Box, Image

WHITE: Final = (255, 255, 255)
GREY: Final = (190, 190, 190)
GREEN: Final = (120, 230, 140)
RED: Final = (255, 130, 110)

_PLATE_KEEP: Final = 77
"""Brightness of the image under the plate in 1/255, so that white text is readable on a white image."""
_MIN_TEXT_SIZE: Final = 9
"""Minimum text size in pixels; smaller letters are not readable."""

PackedTile = npt.NDArray[np.uint32]
"""Effect of text on the pixels of a plate, (rows, columns), four bytes per pixel: RGB to add, factor in 1/255."""


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of the legend."""

    text: str
    colour: tuple[int, int, int] = WHITE
    """Text colour, RGB."""
    weight: int = 500
    """Weight of the font: 400 is regular, 700 bold."""
    scale: float = 1.0
    """Size relative to ``text_size``."""


def text_size(height: int, width: int) -> int:
    """Return the text size for a frame in pixels: 1/34 of its shorter side, at least ``_MIN_TEXT_SIZE``."""
    return max(_MIN_TEXT_SIZE, round(min(height, width) / 34))


def printable(text: str) -> str:
    """Return ``text`` on one line; control characters become spaces, undecodable bytes become question marks."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in encodable)


_THREAD_LOCAL = threading.local()
"""The font of each thread, because a font caches its glyphs and cameras are rendered in threads."""


def _font() -> cv2.FontFace:
    font: cv2.FontFace | None = getattr(_THREAD_LOCAL, "font", None)
    if font is None:
        font = _THREAD_LOCAL.font = cv2.FontFace("sans")
    return font


def text_width(text: str, size: int, weight: int) -> int:
    """Return the width of a rendered text in pixels."""
    x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, weight, 0, (0, 1 << 20))
    return int(x + width)


def ellipsize(text: str, size: int, weight: int, max_width: int) -> str:
    """Return ``text``, shortened with an ellipsis if it exceeds ``max_width`` pixels; empty if nothing fits."""
    if text_width(text, size, weight) <= max_width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(text[:middle].rstrip() + "…", size, weight) <= max_width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…" if fits else ""


@functools.lru_cache(maxsize=1024)
def text_tile(text: str, size: int, weight: int, max_width: int) -> Levels:
    """Return one rendered line: coverage of each pixel, uint8, (line height, width); width 0 if nothing fits.

    Args:
        text: the text, which is made printable and shortened to ``max_width``.
        size: size of the letters in pixels.
        weight: weight of the font.
        max_width: maximum width in pixels.
    """
    shown = ellipsize(printable(text[:400]), size, weight, max_width)
    width = min(text_width(shown, size, weight) + 1, max_width) if shown else 0
    tile = np.zeros((round(size * 1.35), max(width, 0)), np.uint8)
    if width > 0:
        cv2.putText(tile, shown, (0, round(size * 1.02)), (255,), _font(), size, weight, 0, (0, 1 << 20))
    tile.flags.writeable = False
    return tile


@functools.lru_cache(maxsize=256)
def plate_tile(text: str, size: int, weight: int, max_width: int, colour: tuple[int, int, int]) -> PackedTile:
    """Return the effect of one line of text on a plate; arguments as in ``text_tile``."""
    tile = _blend_table(colour)[text_tile(text, size, weight, max_width)]
    tile.flags.writeable = False
    return tile


@dataclass(frozen=True, slots=True, eq=False)
class LegendLayout:
    """A legend, ready to be drawn: rendered lines on a dark plate."""

    tiles: tuple[PackedTile, ...]
    """The lines, from ``plate_tile``."""
    margin: int
    """Distance in pixels from the image's edges to the plate, and from the plate's edges to the text."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(max(tile.shape[1] for tile in self.tiles)) + 2 * self.margin

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(sum(tile.shape[0] for tile in self.tiles)) + self.margin

    def area(self, top: int) -> Box:
        """Return the area that the legend covers at the left edge of an image, from row ``top`` on."""
        return Box(self.margin, top, self.margin + self.width, top + self.height)

    def effect(self) -> npt.NDArray[np.uint8]:
        """Return the effect on the pixels under the legend, uint8 (height, width, 4): ``add`` (RGB) and ``keep``.

        A pixel becomes ``pixel * keep / 255 + add``.
        """
        plate = np.full((self.height, self.width), _blend_table(WHITE)[0])
        top, left = self.margin // 2, self.margin
        for tile in self.tiles:
            rows, columns = tile.shape
            plate[top : top + rows, left : left + columns] = tile
            top += rows
        return plate.view(np.uint8).reshape(self.height, self.width, 4)

    def fill(self, area: Image) -> None:
        """Darken ``area``, the part of an image under the plate, and draw the text onto it."""
        effect = self.effect()[: area.shape[0], : area.shape[1]]
        keep = cv2.cvtColor(cv2.extractChannel(effect, 3), cv2.COLOR_GRAY2RGB)
        kept = cv2.multiply(area, keep, scale=1.0 / 255.0)
        np.add(kept, cv2.cvtColor(effect, cv2.COLOR_RGBA2RGB), out=area)


@functools.lru_cache(maxsize=64)
def _blend_table(colour: tuple[int, int, int]) -> npt.NDArray[np.uint32]:
    """Return the effect of text in a colour on a plate for each coverage, (256,), packed as in ``PackedTile``."""
    coverage = np.arange(256)[:, None] / 255.0
    table = np.rint(np.hstack([coverage * colour, (1.0 - coverage) * _PLATE_KEEP])).astype(np.uint8)
    return np.ascontiguousarray(table).view(np.uint32)[:, 0]


def legend_plate(height: int, width: int, lines: Sequence[TextLine]) -> LegendLayout | None:
    """Return the layout of the legend for an image of this size; None if no line fits.

    The legend covers at most half of the image's width and height, except in tiny images, where it may be wider. The
    last lines are omitted if they do not fit.
    """
    size = text_size(height, width)
    margin = max(2, size // 2)
    max_width = max(width // 2, min(width - 4 * margin, 8 * size))
    tiles = []
    used = 2 * margin
    for line in lines:
        line_size = max(_MIN_TEXT_SIZE, round(size * line.scale))
        tile = plate_tile(line.text, line_size, line.weight, max_width, line.colour)
        used += tile.shape[0]
        if used > height // 2:
            break
        if tile.shape[1]:
            tiles.append(tile)
    return LegendLayout(tuple(tiles), margin) if tiles else None


def draw_legend(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw the legend into the upper left corner of ``image``.

    Args:
        image: uint8 RGB, (height, width, 3), writable.
        lines: the lines, most important first.
    """
    plate = legend_plate(image.shape[0], image.shape[1], lines)
    if plate is not None:
        start = plate.margin
        plate.fill(image[start : start + plate.height, start : start + plate.width])


def legend_area(height: int, width: int, lines: Sequence[TextLine]) -> Box | None:
    """Return the area that ``draw_legend`` covers in an image of this size; None if no line fits."""
    plate = legend_plate(height, width, lines)
    return None if plate is None else plate.area(plate.margin)


def draw_banner(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw centred lines on a dark band across the middle of ``image``, which must be writable."""
    height, width = image.shape[:2]
    size = text_size(height, width)
    tiles = [
        (text_tile(line.text, max(_MIN_TEXT_SIZE, round(size * line.scale)), line.weight, width - 2), line.colour)
        for line in lines
    ]
    total = sum(tile.shape[0] for tile, _ in tiles) + size
    top = max(0, (height - total) // 2)
    band = image[top : top + total]
    band[...] = cv2.convertScaleAbs(np.ascontiguousarray(band), alpha=_PLATE_KEEP / 255.0)
    row = top + size // 2
    for tile, colour in tiles:
        left = (width - tile.shape[1]) // 2
        _draw_tile(image[row : row + tile.shape[0], left : left + tile.shape[1]], tile, colour)
        row += tile.shape[0]


def _draw_tile(area: Image, tile: Levels, colour: tuple[int, int, int]) -> None:
    """Draw text of one colour onto ``area``, which may be clipped by the image's border."""
    coverage = tile[: area.shape[0], : area.shape[1], None].astype(np.uint16)
    below = area.astype(np.uint16)
    area[...] = (below * (255 - coverage) + coverage * np.array(colour, np.uint16) + 127) // 255
