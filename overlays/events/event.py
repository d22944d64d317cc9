"""Data classes for events, and for observations in single frames."""

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
"""Maximum length of an event's texts (rule, reason, note) in characters."""


class Figure(NamedTuple):
    """A measured number, by which the worst frame of an event is chosen."""

    name: str
    """Name of the number, such as ``heat_inside(part)``."""
    value: float
    bound: float | None
    """The bound with which a rule compares the value; None if there is no bound."""
    slack: float
    """Distance to the bound, negative beyond it. The frame with the least slack represents the event."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A fact observed in one frame. The event continues while it is observed."""

    kind: EventKind
    rule: str
    """Name of the guard, or text of the condition. Kind, camera, rule and subject identify an open event."""
    text: str
    """Description with the values of this frame."""
    finding: Finding | None = None
    """The class or box that the observation concerns."""
    figure: Figure | None = None
    """The number that ranks this frame among the event's frames."""
    seconds: float = 0.0
    """Time since the observed fact began, in seconds; 0 if the observer does not know it."""
    subject: str = ""
    """Distinguishes concurrent events of one rule."""
    is_instant: bool = False
    """True if the event starts and ends with this frame."""
    overlay: Overlay | None = None
    """The frame that represents the event; None: the observed frame."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event. Times are Unix seconds."""

    id: str
    """Unique identifier, which sorts by start time."""
    kind: EventKind
    camera: str
    rule: str
    text: str
    """Description with the values of the worst frame."""
    start: float
    seen: float
    """Time of the last frame in which the event was observed."""
    end: float | None = None
    """End of the event; None while it continues."""
    label: str | None = None
    score: float | None = None
    track: int | None = None
    figure: Figure | None = None
    """The worst number of the event."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A start, change or end of an event."""

    event: Event
    overlay: Overlay | None = None
    """The frame that represents the event from now on; None: unchanged."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Images (JPEG) and figures of the frame that represents an event."""

    plain: bytes | None = None
    heat: bytes | None = None
    """The image with heat map, boxes and regions."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The explanation as JSON values, with the keys of the wire header."""


def new_event_id(start_unix: float) -> str:
    """Return a hexadecimal identifier that sorts by time: milliseconds since 1970, then 24 random bits."""
    return f"{lowest_id(start_unix)}{secrets.token_hex(3)}"


def lowest_id(start_unix: float) -> str:
    """Return the time prefix of identifiers of events that start at ``start_unix``."""
    return f"{max(round(start_unix * 1000), 0):012x}"
