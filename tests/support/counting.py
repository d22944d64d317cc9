"""Scripts of boxes that pass a zone or a line, and the passages that are counted in them."""

from __future__ import annotations

from pipeline.frames import Box
from pipeline.passages.config import LineConfig, ZoneConfig
from pipeline.passages.counter import PassageCounter
from tests.support.detections import WIDTH, detection, detection_frame, detections

ZONE = ZoneConfig(name="station", polygon=[(0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.3, 1.0)])
LINE = LineConfig(name="gate", points=[(0.5, 1.0), (0.5, 0.0)])
SIDE = 24.0


def box_at(x: float, y: float = 60.0) -> Box:
    return Box(x - SIDE / 2, y - SIDE / 2, x + SIDE / 2, y + SIDE / 2)


def passing(frames=40, speed=5.0, start=0.0, track=1, label="ok", **changes):
    """Return the boxes by frame of an object that moves from left to right."""
    return {
        k: [detection(box_at(start + speed * k), track=track, label=label, **changes)]
        for k in range(frames)
        if 0 <= start + speed * k <= WIDTH
    }


def run(places, boxes, frames=60, rate=25.0, counter=None, **options):
    """Return all passages of a script of boxes by frame."""
    counter = counter or PassageCounter("road", places, {"ok"}, **options)
    passages = []
    for k in range(frames):
        explained = counter.add(detections(detection_frame(k, rate=rate), boxes.get(k, ())))
        passages += [(k, passage) for passage in explained.passages]
    return passages
