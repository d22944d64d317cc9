"""Builders of finished passages, for tests of what sinks do with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.frames import Box, Explanation
from pipeline.passages.passage import Passage, Place
from tests.support.detections import detection

BOX = Box(20.0, 30.0, 60.0, 70.0)


def part(sequence: int = 1, **changes: Any) -> Passage:
    """Return a part that is ok; ``changes`` are fields of ``Passage``."""
    whole = Passage(
        kind="part", camera="road", place="station", sequence=sequence, number=sequence, track=sequence,
        label="ok", class_index=0, score=0.9, is_ok=True, direction="", frames=12, shares={"ok": 0.75, "dent": 0.25},
        first_seen_seconds=1.0, last_seen_seconds=1.5, last_captured_at=1.5, latency_seconds=0.04,
        evidence_outside_box=0.2, finding=detection(BOX, label="ok"), index=40,
        image=np.full((24, 32, 3), 90, np.uint8), image_box=Box(10.0, 20.0, 42.0, 44.0),
    )  # fmt: skip
    return replace(whole, **changes)


def with_passages(explanation: Explanation, *new: Passage, places: tuple[Place, ...] = ()) -> Explanation:
    """Return an explanation at whose frame the passages were finished."""
    return replace(explanation, passages=new, recent_passages=new, places=places)
