"""The schedule of the simulated belt: each slot's part and defect.

A pure function of (seed, slot), so slots can be computed in any order. Lengths are in *units*: the image is always 480
units high, at any size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OK = "ok"
DEFECTS = ("scratch", "dent", "missing_hole", "stain")
LABELS = (OK, *DEFECTS)
"""All classes of the line, in the order of the bundled network's outputs."""

HEIGHT_UNITS = 480
"""Height of the image; defines the unit of length."""
SLOT_UNITS = 280
"""Length of belt per slot; a slot contains at most one part."""
GROUP_SLOTS = 5
"""Slots per defective part: enough that a 16:9 image never shows two defects."""

KINDS = ("flange", "plate", "bracket", "gear", "hexagon")
FINISHES = ("steel", "steel", "steel", "zinc", "brass", "copper", "blue", "red", "black")
_EMPTY_FRACTION = 0.08


@dataclass(frozen=True, slots=True)
class Part:
    """One part on the belt."""

    kind: str
    """Its shape: one of ``KINDS``."""
    finish: str
    """Its material or coating: one of ``FINISHES``."""
    angle: float
    """Its rotation in radians."""
    size: float
    """Its size relative to the shape's, near 1."""
    x: float
    """Centre, in units from the slot's left end."""
    y: float
    """Centre, in units from the image's top."""
    defect: str
    """Its defect, or ``ok``."""
    seed: tuple[int, ...]
    """Seed of the random numbers for drawing the part."""


def part_at(seed: int, slot: int) -> Part | None:
    """Return the part in a slot of the belt ``seed``; None: empty slot."""
    rng = np.random.default_rng((seed, 1, slot))
    defect = defect_at(seed, slot)
    empty = rng.random() < _EMPTY_FRACTION
    if empty and defect == OK:
        return None
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return Part(
        kind=kind,
        finish=FINISHES[int(rng.integers(len(FINISHES)))],
        angle=float(rng.uniform(0.0, 2.0 * np.pi)),
        size=float(rng.uniform(0.94, 1.06)),
        x=SLOT_UNITS / 2 + float(rng.uniform(-15.0, 15.0)),
        y=HEIGHT_UNITS / 2 + float(rng.uniform(-62.0, 62.0)),
        defect=defect,
        seed=(seed, 2, slot),
    )


def defect_at(seed: int, slot: int) -> str:
    """Return the defect of a slot's part, or ``ok``.

    Each group of slots contains one defect, in its first or second slot; four groups in a row show all four kinds.
    """
    group, position = divmod(slot, GROUP_SLOTS)
    if position != int(np.random.default_rng((seed, 3, group)).integers(2)):
        return OK
    cycle, index = divmod(group, len(DEFECTS))
    return DEFECTS[int(np.random.default_rng((seed, 4, cycle)).permutation(len(DEFECTS))[index])]
