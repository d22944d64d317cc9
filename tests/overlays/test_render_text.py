from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlays.render.gpu_tables import legend_patch
from overlays.render.text import (
    GREEN,
    LegendLayout,
    TextLine,
    draw_legend,
    ellipsize,
    legend_plate,
    printable,
    text_size,
    text_tile,
    text_width,
)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), size=st.integers(9, 40), room=st.integers(0, 300))
@example(text="caf\udce9.mp4", size=12, room=100)  # a file name that is not utf-8
@example(text="line\nbreak\ttab\x00", size=12, room=100)
@example(text="שלום 日本語 🙂", size=12, room=100)
@example(text="W" * 400, size=12, room=100)
def test_text_is_drawn_on_one_line_within_its_area(text, size, room):
    tile = text_tile(text, size, 500, room)
    assert tile.shape[1] <= room
    assert tile.shape[0] == round(size * 1.35)


@pytest.mark.parametrize("text", ["Größe", "日本語", "한국어", "Привет", "ラベル"])
def test_letters_of_other_scripts_are_drawn_without_question_marks(text):
    tile, marks = text_tile(text, 24, 500, 400), text_tile("?" * len(text), 24, 500, 400)
    assert tile.any()
    assert tile.shape != marks.shape or (tile != marks).any()


def test_descenders_and_accents_are_inside_the_tile():
    for text in ("gjpqy", "ÄÉÎÔ"):
        ink = np.nonzero(text_tile(text, 40, 500, 400).any(axis=1))[0]
        assert ink.min() > 0
        assert ink.max() < round(40 * 1.35) - 1


def test_long_label_is_shortened_with_an_ellipsis_as_late_as_possible():
    text = "a very long name of a class that nobody can read"
    short = ellipsize(text, 20, 500, 150)
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert text_width(short, 20, 500) <= 150
    assert text_width(text[: len(short) + 1] + "…", 20, 500) > 150
    assert ellipsize("short", 20, 500, 150) == "short"
    assert ellipsize("short", 20, 500, 3) == ""


def test_control_characters_become_spaces():
    assert printable("a\nb\x00c\udce9") == "a b c?"


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 64), (20, 2000), (2000, 20), (720, 1280), (1280, 720)])
def test_legend_fits_into_images_of_any_size(size):
    image = np.full((*size, 3), 128, np.uint8)
    draw_legend(image, [TextLine("97%  water bottle"), TextLine("12 ms · 30.0/s · line"), *[TextLine("another")] * 20])
    touched = np.argwhere((image != 128).any(axis=2))
    if min(size) >= 64:
        assert len(touched)
    if len(touched):
        assert touched[:, 0].max() <= size[0] // 2


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_legend_is_readable_on_any_background(ground):
    image = np.full((480, 640, 3), ground, np.uint8)
    draw_legend(image, [TextLine("97%  water bottle")])
    size = text_size(480, 640)
    plate = image[size // 2 : 2 * size, size // 2 : 6 * size].astype(int)
    assert plate.max() > 230, "the text is white"
    assert np.median(plate) < 90, "and its ground dark"


def test_legend_grows_with_the_frame():
    assert text_size(1080, 1920) > text_size(720, 1280) > text_size(480, 640) > text_size(64, 64)
    assert text_size(720, 1280) == text_size(1280, 720)


LEGEND = [TextLine("97%  water bottle", weight=700), TextLine("✓ correct", GREEN, scale=0.75)]


def exact_legend(image, lines):
    """Blend each line's colour by its coverage over the darkened image, in float64, without tables."""
    height, width = image.shape[:2]
    size, expected = text_size(height, width), image.astype(float)
    margin = size // 2
    tiles = [text_tile(line.text, round(size * line.scale), line.weight, width // 2) for line in lines]
    rows, columns = sum(len(tile) for tile in tiles) + margin, max(tile.shape[1] for tile in tiles) + 2 * margin
    plate = expected[margin : margin + rows, margin : margin + columns]
    plate *= 77 / 255
    top = margin // 2
    for line, tile in zip(lines, tiles, strict=True):
        area, coverage = plate[top : top + len(tile), margin : margin + tile.shape[1]], tile[..., None] / 255
        area[...] = area * (1 - coverage) + coverage * np.array(line.colour)
        top += len(tile)
    return expected


def test_legend_and_its_patch_equal_the_exact_blend_within_a_level():
    image = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    expected, drawn = exact_legend(image, LEGEND), image.copy()
    draw_legend(drawn, LEGEND)
    assert np.abs(drawn - expected).max() <= 1.5, "one level, and the rounding to whole levels"
    patch = legend_patch(480, 640, LEGEND)
    rows, columns = patch.tile.shape[:2]
    area = image[patch.top : patch.top + rows, patch.left : patch.left + columns]
    stamped = np.rint(area * (patch.tile[..., 3:] / 255)) + patch.tile[..., :3]
    seen = drawn[patch.top : patch.top + rows, patch.left : patch.left + columns]
    assert (drawn != image).any(axis=2).sum() > 0.9 * rows * columns
    assert np.abs(stamped - seen).max() <= 1


def test_legend_patch_is_made_without_drawing(monkeypatch):
    monkeypatch.setattr(LegendLayout, "fill", lambda *_: pytest.fail("drawing costs fifty times as much"))
    assert legend_patch(480, 640, LEGEND).tile.any()


def test_legend_renders_each_text_once():
    line = TextLine("0.123%  a text of this test only")
    (first,), (second,) = (legend_plate(480, 640, [line]).tiles for _ in range(2))
    assert first is second
    assert not first.flags.writeable
