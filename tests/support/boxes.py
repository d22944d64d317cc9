"""Builders for explanations of a detector: boxes with tracks and maps, made by hand."""

import numpy as np

from pipeline.frames import NO_HEAT, Box, BoxMap, Explanation, Finding, Frame

WIDTH, HEIGHT = 640, 360
WHOLE = Box(0, 0, WIDTH, HEIGHT)


def frame(level=90, *, image=None, camera="north", index=0, captured_at=0.0, **fields):
    """Return a frame of 640 x 360 pixels, or of the image's size."""
    image = np.full((HEIGHT, WIDTH, 3), level, np.uint8) if image is None else image
    return Frame(image, camera, index, captured_at, **fields)


def box(left, top, *, track=1, label="car", score=0.8, heat=None, mode="keep", region=WHOLE, scale=1.0, **fields):
    """Return a box of 60 x 40 pixels; with a map if its heat is given."""
    box_map = None if heat is None else BoxMap(mode, "complete", region, scale, **fields)
    heat = NO_HEAT if heat is None else heat
    return Finding(label, score, heat, 2, box=Box(left, top, left + 60, top + 40), track=track, box_map=box_map)


def hot_cell(row, column, base=0.0, grid=(9, 16)):
    """Return a heat map with one hot cell."""
    heat = np.full(grid, base, np.float32)
    heat[row, column] = 1.0
    return heat


def explained_boxes(*findings, **fields):
    """Return an explanation of a detector."""
    return Explanation(frame(**fields), findings, "recipro-cam/keep", "complete", {"explain": 0.01}, "yolox-nano")


def street(count=30, *, grid=(9, 16), mode="drop", **fields):
    """Return an explanation with many boxes, two thirds of them with a map at their own place."""
    rng = np.random.default_rng(1)
    findings = []
    for number in range(count):
        left, top = rng.uniform((0, 0), (WIDTH - 60, HEIGHT - 40))
        row, column = int((top + 20) * grid[0] / HEIGHT), int((left + 30) * grid[1] / WIDTH)
        heat = None if number % 3 == 2 else np.maximum(hot_cell(row, column, grid=grid), 0.4 * rng.random(grid))
        drop = {"against": hot_cell(-1, -1, grid=grid), "lowest_score": 0.25} if mode == "drop" else {}
        made = {} if heat is None else {"heat": np.float32(heat), "mode": mode, "age_seconds": number / 10, **drop}
        label = ("car", "truck", "person")[number % 3]
        findings.append(box(float(left), float(top), track=number + 1, label=label, score=0.95 - number / 500, **made))
    return explained_boxes(*findings, **fields)
