"""Observes finished parts and crossings as instantaneous events, with the image of the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from overlays.events.event import Observation
from overlays.events.tracker import Observer
from overlays.wire.header import scaled_box
from pipeline.frames import Box, Finding, Overlay
from pipeline.passages.passage import Passage, PassageCursor

Recorded = Literal["rejected", "all", "none"]


def make_passage_observer(recorded: Recorded, cursor: PassageCursor) -> Observer:
    """Return an observer of finished passages, and of passages that a trial network decides differently.

    Args:
        recorded: the passages that become events: rejected parts, all parts and crossings, or none.
        cursor: selects the passages that were not observed before.
    """

    def observe(overlay: Overlay) -> Sequence[Observation]:
        if not overlay.explanation.recent_passages:
            return ()
        new = cursor.take(overlay.explanation)
        chosen = new if recorded == "all" else [each for each in new if recorded == "rejected" and each.is_ok is False]
        observed = [_observation(each, overlay) for each in chosen]
        return observed + [_disagreement(each, overlay) for each in new if each.disagrees]

    return observe


def _disagreement(passage: Passage, overlay: Overlay) -> Observation:
    """Return the observation of a passage that a trial network decides differently."""
    trial = overlay.explanation.trial
    text = f"{passage.kind} {passage.number} at {passage.place}: {passage.trial_label or 'no box'} instead of "
    first = _observation(passage, overlay)
    return replace(first, kind="disagreement", rule="" if trial is None else trial.name, text=text + passage.label)


def _observation(passage: Passage, overlay: Overlay) -> Observation:
    if passage.kind == "part":
        verdict = {True: ", ok", False: ", rejected", None: ""}[passage.is_ok]
        text = f"part {passage.number} at {passage.place}: {passage.label} {passage.score:.0%}{verdict}"
        text += f", {passage.frames} frames in {passage.dwell_seconds:.1f} s"
    else:
        text = f"crossing {passage.number} of {passage.place}: {passage.label} {passage.score:.0%}, {passage.direction}"
    finding = replace(passage.finding, label=passage.label, score=passage.score, track=passage.track)
    return Observation(passage.kind, passage.place, text, finding, subject=str(passage.sequence), is_instant=True,
                       overlay=_overlay_of(passage, overlay))  # fmt: skip


def _overlay_of(passage: Passage, overlay: Overlay) -> Overlay:
    """Return the deciding frame, cropped to the object, as an overlay."""
    height, width = passage.image.shape[:2]
    area = passage.image_box
    x, y = width / max(area.width, 1e-6), height / max(area.height, 1e-6)
    explanation = overlay.explanation
    frame = replace(explanation.frame, pixels=passage.image, index=passage.index, captured_at=passage.last_captured_at)
    finding = _moved(passage.finding, area, x, y)
    cut = replace(explanation, frame=frame, findings=(finding,), heat_region=Box(0.0, 0.0, width, height), guards=(),
                  regions=(), deletion=None, passages=(), recent_passages=(), places=(), trial=None)  # fmt: skip
    return Overlay(passage.image, cut)


def _moved(finding: Finding, area: Box, x: float, y: float) -> Finding:
    """Return a finding with its box and map in the coordinates of the scaled crop ``area``."""

    def moved(box: Box) -> Box:
        return scaled_box(
            Box(box.left - area.left, box.top - area.top, box.right - area.left, box.bottom - area.top), x, y
        )

    box_map = finding.box_map
    return replace(
        finding,
        box=None if finding.box is None else moved(finding.box),
        box_map=None if box_map is None else replace(box_map, region=moved(box_map.region)),
    )
