"""What lies on the simulated belt, slot by slot: which part, how it is turned, what is wrong with it.

A pure function of (seed, slot): any stretch of the belt can be asked for in any order. Lengths are in *units*: the
picture is always 480 units high, whatever its size in pixels. Knows nothing about pixels or drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OK = "ok"
DEFECTS = ("scratch", "dent", "missing_hole", "stain")
LABELS = (OK, *DEFECTS)
"""Every class of the line, in the order that the shipped network's outputs have."""

HEIGHT_UNITS = 480
"""The picture's height, and with it the length of a unit."""
SLOT_UNITS = 280
"""Length of belt that one part has to itself."""
GROUP_SLOTS = 5
"""One slot in so many carries a defective part: far enough apart that a 16:9 picture never shows two defects."""

KINDS = ("flange", "plate", "bracket", "gear", "hexagon")
FINISHES = ("steel", "steel", "steel", "zinc", "brass", "copper", "blue", "red", "black")
_EMPTY_FRACTION = 0.08


@dataclass(frozen=True, slots=True)
class Part:
    """One part on the belt."""

    kind: str
    """Its shape: one of ``KINDS``."""
    finish: str
    """What it is made of or coated with: one of ``FINISHES``."""
    angle: float
    """Radians it is turned by."""
    size: float
    """Its size as a share of the drawing's, near 1."""
    x: float
    """Centre, in units from the slot's left end."""
    y: float
    """Centre, in units from the picture's top."""
    defect: str
    """Its defect, or ``ok``."""
    seed: tuple[int, ...]
    """What the drawing of this part draws its random numbers from."""


def part_at(seed: int, slot: int) -> Part | None:
    """Return the part in a slot (0, 1, ...) of the belt that ``seed`` names, or None where the slot is empty."""
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

    Each group of slots carries one defect, in its first or second slot; four groups in a row show all four kinds.
    """
    group, place = divmod(slot, GROUP_SLOTS)
    if place != int(np.random.default_rng((seed, 3, group)).integers(2)):
        return OK
    cycle, turn = divmod(group, len(DEFECTS))
    return DEFECTS[int(np.random.default_rng((seed, 4, cycle)).permutation(len(DEFECTS))[turn])]
