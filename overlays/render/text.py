"""The legend: a few lines of text on a dark plate in a corner of the picture.

Pure, but for a cache of what text looks like. Knows nothing about heat or time; the lines are words by now.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from overlays.render.heatmap import Levels
from pipeline.frames import Image

WHITE: Final = (255, 255, 255)
GREY: Final = (190, 190, 190)
GREEN: Final = (120, 230, 140)
RED: Final = (255, 130, 110)

_PLATE_KEEP: Final = 0.3
"""What is left of the picture's light under the plate: white text stays readable on snow."""
_MIN_TEXT: Final = 9
"""Pixels; below it letters are no letters any more."""


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of the legend."""

    text: str
    colour: tuple[int, int, int] = WHITE
    """RGB."""
    weight: int = 500
    """Of the font: 400 is regular, 700 bold."""
    scale: float = 1.0
    """Of the text's size."""


def text_size(height: int, width: int) -> int:
    """Return the size of the legend's text in pixels: a 34th of the frame's shorter side, but readable."""
    return max(_MIN_TEXT, round(min(height, width) / 34))


def printable(text: str) -> str:
    """Return ``text`` on one line: control characters become spaces, undecodable bytes question marks."""
    known = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in known)


class _OfThread(threading.local):
    """What each thread has of its own: cameras are drawn in threads, and a font keeps what it has drawn."""

    def __init__(self) -> None:
        self.font = cv2.FontFace("sans")


_OF_THREAD = _OfThread()


def _font() -> cv2.FontFace:
    return _OF_THREAD.font


def text_width(text: str, size: int, weight: int) -> int:
    """Return how many pixels wide ``text`` is drawn."""
    x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, weight, 0, (0, 1 << 20))
    return int(x + width)


def ellipsize(text: str, size: int, weight: int, room: int) -> str:
    """Return ``text``, shortened with an ellipsis where it is wider than ``room`` pixels; empty where none fits."""
    if text_width(text, size, weight) <= room:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(text[:middle].rstrip() + "…", size, weight) <= room:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…" if fits else ""


@functools.lru_cache(maxsize=1024)
def text_tile(text: str, size: int, weight: int, room: int) -> Levels:
    """Draw one line: how much ink each pixel has, uint8, (line height, width <= room); width 0 where nothing fits.

    Args:
        text: what to say; made printable, and shortened with an ellipsis.
        size: of the letters, in pixels.
        weight: of the font.
        room: how many pixels wide it may be.
    """
    shown = ellipsize(printable(text[:400]), size, weight, room)
    width = min(text_width(shown, size, weight) + 1, room) if shown else 0
    tile = np.zeros((round(size * 1.35), max(width, 0)), np.uint8)
    if width > 0:
        cv2.putText(tile, shown, (0, round(size * 1.02)), (255,), _font(), size, weight, 0, (0, 1 << 20))
    tile.flags.writeable = False
    return tile


@dataclass(frozen=True, slots=True, eq=False)
class LegendLayout:
    """A legend before it is drawn: its lines as ink, and the dark plate they stand on."""

    tiles: tuple[tuple[Levels, tuple[int, int, int]], ...]
    """Each line's ink, and its colour."""
    margin: int
    """Pixels from the picture's upper left corner to the plate, and from the plate's edge to the text."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(max(tile.shape[1] for tile, _ in self.tiles)) + 2 * self.margin

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(sum(tile.shape[0] for tile, _ in self.tiles)) + self.margin

    def fill(self, place: Image) -> None:
        """Darken ``place``, the part of a picture under the plate, and put the ink on it."""
        place[...] = cv2.convertScaleAbs(np.ascontiguousarray(place), alpha=_PLATE_KEEP)
        top = self.margin // 2
        for tile, colour in self.tiles:
            _ink(place[top : top + tile.shape[0], self.margin : self.margin + tile.shape[1]], tile, colour)
            top += tile.shape[0]


def legend_plate(height: int, width: int, lines: Sequence[TextLine]) -> LegendLayout | None:
    """Lay the legend out for a picture of this size; None where no line finds room.

    It takes half of the picture's width and height at most (more of the width where the picture is tiny); lines that
    find no room are left out, from the last one on.
    """
    size = text_size(height, width)
    margin = max(2, size // 2)
    room = max(width // 2, min(width - 4 * margin, 8 * size))
    tiles = []
    used = 2 * margin
    for line in lines:
        tile = text_tile(line.text, max(_MIN_TEXT, round(size * line.scale)), line.weight, room)
        used += tile.shape[0]
        if used > height // 2:
            break
        if tile.shape[1]:
            tiles.append((tile, line.colour))
    return LegendLayout(tuple(tiles), margin) if tiles else None


def draw_legend(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw the legend into the upper left corner of ``image``, a picture of our own.

    Args:
        image: uint8 RGB, (height, width, 3).
        lines: what to say, the most important first.
    """
    plate = legend_plate(image.shape[0], image.shape[1], lines)
    if plate is not None:
        near = plate.margin
        plate.fill(image[near : near + plate.height, near : near + plate.width])


def draw_banner(image: Image, lines: Sequence[TextLine]) -> None:
    """Draw lines, centred, on a dark band across the middle of ``image``, a picture of our own."""
    height, width = image.shape[:2]
    size = text_size(height, width)
    tiles = [
        (text_tile(line.text, max(_MIN_TEXT, round(size * line.scale)), line.weight, width - 2), line.colour)
        for line in lines
    ]
    total = sum(tile.shape[0] for tile, _ in tiles) + size
    top = max(0, (height - total) // 2)
    band = image[top : top + total]
    band[...] = cv2.convertScaleAbs(np.ascontiguousarray(band), alpha=_PLATE_KEEP)
    row = top + size // 2
    for tile, colour in tiles:
        left = (width - tile.shape[1]) // 2
        _ink(image[row : row + tile.shape[0], left : left + tile.shape[1]], tile, colour)
        row += tile.shape[0]


def _ink(place: Image, tile: Levels, colour: tuple[int, int, int]) -> None:
    """Put text of one colour onto ``place``, which may be cut off by the picture's border."""
    ink = tile[: place.shape[0], : place.shape[1], None].astype(np.uint16)
    dark = place.astype(np.uint16)
    place[...] = (dark * (255 - ink) + ink * np.array(colour, np.uint16) + 127) // 255
