"""The rule by which one of two directors is active. A state machine; the caller passes the monotonic time.

The rule decides about time only: two directors that are active at once break no law, see ``Director``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

_SILENT_SECONDS: Final = 0.7
"""Time without an answer of the other director after which it counts as lost."""
_START_SECONDS: Final = 2.0
"""Time for the first answer of the other director, which may be starting."""
_PATIENCE: Final = 2.5
"""The second director waits so much longer: both begin together, and the first is to become active."""
_STAY_SECONDS: Final = 2.0
"""Time for which a director is on the wrong node before that is mended."""


@dataclass(frozen=True, slots=True)
class DirectorState:
    """A director as the other one sees it."""

    is_active: bool
    node: str
    is_on_head: bool
    nodes: Collection[str] = ()
    """Nodes that have workers; known to the active one."""


class Standby:
    """Decides for one of two directors when it becomes active, and when the other one is to be on another node.

    Both should not be lost with one node, nor the active one with the head, which keeps the store.
    """

    def __init__(self, *, is_first: bool, now: float) -> None:
        """Begin as the standby. Of two that begin together, the first becomes active."""
        self._factor = 1.0 if is_first else _PATIENCE
        self._is_first = is_first
        self._heard_at, self._allowed_seconds = now, _START_SECONDS * self._factor
        self._is_heard = False
        self.is_doubtful = False
        """True if this director was deposed, and not by the one that it sees: Ray may run a director twice, beside a
        raylet that is frozen, and the two do not see each other. It is to look into the store before it claims a term.
        """
        self._passive_since: float | None = None
        self._misplaced_since: float | None = None

    def on_deposed(self) -> None:
        """Note that another director has a later term."""
        self.is_doubtful = True

    def is_due(self, state: DirectorState, other: DirectorState | None, now: float, *, is_lost: bool = False) -> bool:
        """Return whether this director, the standby, is to become active.

        Args:
            state: this director.
            other: the answer of the other director; None: there is none yet.
            now: monotonic seconds.
            is_lost: the call has failed: the process of the other one does not run.
        """
        if other is None:
            self._passive_since = self._misplaced_since = None
            return (is_lost and self._is_heard) or now - self._heard_at >= self._allowed_seconds
        self._is_heard = True
        self._heard_at, self._allowed_seconds = now, _SILENT_SECONDS
        if other.is_active:
            self._passive_since = None
            self.is_doubtful = False
            return self._is_misplaced(other.is_on_head and not state.is_on_head, now)
        if self._passive_since is None:
            self._passive_since = now
        return self._is_first or now - self._passive_since >= _SILENT_SECONDS * self._factor

    def is_to_move(self, state: DirectorState, other: DirectorState | None, now: float) -> bool:
        """Return whether the standby is to be started on another node than this, the active director's."""
        shares_node = other is not None and not other.is_active and state.node == other.node
        return self._is_misplaced(shares_node and bool(frozenset(state.nodes) - {state.node}), now)

    def _is_misplaced(self, is_wrong: bool, now: float) -> bool:  # noqa: FBT001 - the condition
        if not is_wrong:
            self._misplaced_since = None
        elif self._misplaced_since is None:
            self._misplaced_since = now
        return self._misplaced_since is not None and now - self._misplaced_since >= _STAY_SECONDS
