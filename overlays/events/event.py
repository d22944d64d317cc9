"""Data of an event, and of what is observed in one frame. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from pipeline.frames import Finding, Overlay

EventKind = Literal["guard", "condition", "signal_loss", "part", "crossing", "disagreement", "drift"]
State = Literal["new", "acknowledged", "snoozed"]

KINDS: Final[tuple[EventKind, ...]] = (
    "guard", "condition", "signal_loss", "part", "crossing", "disagreement", "drift",
)  # fmt: skip
STATES: Final[tuple[State, ...]] = ("new", "acknowledged", "snoozed")
MAX_TEXT: Final = 1000
"""Characters of a text of an event at most: a rule, a reason, a note."""


class Figure(NamedTuple):
    """The number of a frame that decides how well the frame stands for an event."""

    name: str
    """Such as ``heat_inside(part)``."""
    value: float
    bound: float | None
    """The number that a rule compares it with; None where there is none."""
    slack: float
    """The frame with the least slack stands for the event."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Something that holds in one frame; the event goes on while it is observed."""

    kind: EventKind
    rule: str
    """Name of the guard, or the condition as written: with the camera and the subject it identifies the event."""
    text: str
    """In words, with the values of this frame."""
    finding: Finding | None = None
    """The class or box that it concerns."""
    figure: Figure | None = None
    """The number of this frame that decides."""
    seconds: float = 0.0
    """Time since it began, where the observer knows it."""
    subject: str = ""
    """Tells events of one rule apart that go on at the same time."""
    is_instant: bool = False
    """True if the event begins and ends with this frame."""
    overlay: Overlay | None = None
    """The frame that stands for it, where it is not the one that is being observed."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event: times in Unix seconds."""

    id: str
    """Sorts by the time of the beginning; unique."""
    kind: EventKind
    camera: str
    rule: str
    text: str
    """In words, with the values of the worst frame."""
    start: float
    seen: float
    """Time of the last frame in which it was observed."""
    end: float | None = None
    """None while it goes on."""
    label: str | None = None
    score: float | None = None
    track: int | None = None
    figure: Figure | None = None
    """The worst number of the episode."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """An event that began, changed or ended."""

    event: Event
    overlay: Overlay | None = None
    """The frame that stands for it from now on; None: the one before."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The frame that stands for an event: JPEG images and figures."""

    plain: bytes | None = None
    heat: bytes | None = None
    """With heat, boxes and regions."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The explanation as plain JSON values, with the keys of the wire header."""


def new_event_id(start_unix: float) -> str:
    """Return an identifier that sorts by time: milliseconds since 1970 and a random part, hexadecimal."""
    return f"{lowest_id(start_unix)}{secrets.token_hex(3)}"


def lowest_id(start_unix: float) -> str:
    """Return the beginning of the identifiers of events that begin at this time."""
    return f"{max(round(start_unix * 1000), 0):012x}"
