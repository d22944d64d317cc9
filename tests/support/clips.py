"""Recorders of clips, and what their files hold."""

from __future__ import annotations

import json

import av
import numpy as np

from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.settings import ClipSettings
from pipeline.settings import SinkContext

RATE = 30


def grey(index):
    return np.full((48, 64, 3), 20 + (index * 7) % 200, np.uint8)


def greys(path):
    with av.open(str(path)) as film:
        return [round(frame.to_ndarray(format="rgb24").mean()) for frame in film.decode(video=0)]


def videos(folder):
    return sorted(folder.glob("*.mp4"))


def lines(path):
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def clip_settings(folder, **options):
    """Settings of any value: short clips and small budgets keep the tests quick."""
    for name in ("budget_bytes", "rotate_bytes", "ring_bytes"):
        if name in options:
            mib = {"budget_bytes": "disk_budget_mib", "rotate_bytes": "rotate_mib", "ring_bytes": "preroll_memory_mib"}
            options[mib[name]] = options.pop(name) / (1 << 20)
    return ClipSettings.model_construct(uri=f"{folder}/", **options)


def recorder(folder, *, camera="line", **options):
    return ClipSink(clip_settings(folder, **options), SinkContext(cameras=(camera,)))
