"""Decides which of two directors is active. A state machine; the caller passes the monotonic time.

The rule only keeps the interruption short. Safety does not depend on it: two directors that are active at the same time
never grant the same camera to two workers (see ``Director``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

_SILENT_SECONDS: Final = 0.7
"""Time without an answer of the other director after which that director counts as lost."""
_START_SECONDS: Final = 2.0
"""Time to wait for the first answer of the other director, which may still be starting."""
_PATIENCE: Final = 2.5
"""Factor by which the second director waits longer, so that the first becomes active if both start together."""
_NEW_SECONDS: Final = 10.0
"""Time from its start within which workers may not have found a director."""
_STAY_SECONDS: Final = 2.0
"""Time for which a director may be on the wrong node before it is moved."""


@dataclass(frozen=True, slots=True)
class DirectorState:
    """State of a director, as the other director gets it."""

    is_active: bool
    node: str
    is_on_head: bool
    nodes: Collection[str] = ()
    """Nodes that have workers; only the active director knows them."""


class Standby:
    """Decides for one of two directors when it becomes active, and when the other director must move.

    The directors should be on different nodes, so that both are not lost with one node. The active director should not
    be on the head node, so that it is not lost together with the store.
    """

    def __init__(self, *, is_first: bool, now: float) -> None:
        """Create it in standby; if two directors start together, the one with ``is_first`` becomes active."""
        self._factor = 1.0 if is_first else _PATIENCE
        self._is_first, self._started_at = is_first, now
        self._heard_at, self._allowed_seconds = now, _START_SECONDS * self._factor
        self._is_heard = False
        self.is_doubtful = False
        """True if this director was deposed, and perhaps not by the other director that it sees. Ray may run a director
        twice, if a raylet is frozen, and these two do not see each other. The director must then read the store before
        it claims a term."""
        self._is_found = False
        """Whether a worker has sent a beat since this director was deposed, or shortly before it."""
        self._passive_since: float | None = None
        self._misplaced_since: float | None = None

    def on_deposed(self, now: float, *, is_heard: bool) -> None:
        """Record that another director has a later term than this director.

        Args:
            now: monotonic seconds.
            is_heard: whether a worker has sent a beat to this director recently.
        """
        # A process that has just started is the one that workers find: they had no time to.
        is_new = now < self._started_at + _NEW_SECONDS
        self.is_doubtful, self._is_found = True, is_heard or is_new

    def on_beat(self) -> None:
        """Record that a worker has sent a beat to this director, the standby."""
        self._is_found = True

    def is_due(self, state: DirectorState, other: DirectorState | None, now: float, *, is_lost: bool = False) -> bool:
        """Return whether this director, the standby, is to become active.

        Args:
            state: this director.
            other: the answer of the other director; None: there is none yet.
            now: monotonic seconds.
            is_lost: whether the call of the other director failed because its process does not run.
        """
        if other is None:
            self._passive_since = self._misplaced_since = None
            return (is_lost and self._is_heard) or now - self._heard_at >= self._allowed_seconds
        self._is_heard = True
        self._heard_at, self._allowed_seconds = now, _SILENT_SECONDS
        if other.is_active:
            self._passive_since = None
            self.is_doubtful = self.is_doubtful and not self._is_found
            return self._is_misplaced(other.is_on_head and not state.is_on_head, now)
        if self._passive_since is None:
            self._passive_since = now
        return self._is_first or now - self._passive_since >= _SILENT_SECONDS * self._factor

    def is_to_move(self, state: DirectorState, other: DirectorState | None, now: float) -> bool:
        """Return whether the standby must be restarted on another node; called by the active director."""
        shares_node = other is not None and not other.is_active and state.node == other.node
        return self._is_misplaced(shares_node and bool(frozenset(state.nodes) - {state.node}), now)

    def _is_misplaced(self, is_wrong: bool, now: float) -> bool:  # noqa: FBT001 - the condition
        if not is_wrong:
            self._misplaced_since = None
        elif self._misplaced_since is None:
            self._misplaced_since = now
        return self._misplaced_since is not None and now - self._misplaced_since >= _STAY_SECONDS
