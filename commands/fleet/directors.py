"""Sends calls to the active one of the two directors."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from commands.fleet.director import NAMES, NOT_ACTIVE, NotActiveError
from pipeline.errors import ReciproStreamError
from pipeline.fleet.messages import Beat, Grant

log = logging.getLogger("recipro-stream")

CALL_SECONDS: Final = 15.0
"""Default time limit for the answer to a command."""
_BEAT_SECONDS: Final = 0.8
"""Time limit for the answer to a beat."""
_AVOID_SECONDS: Final = 3.0
"""Time in seconds for which beats avoid a director after a failed call."""
_PAUSE_SECONDS: Final = 0.1


class Directors:
    """Client of a fleet's two directors. Not thread-safe."""

    def __init__(self, fleet: str, handles: Sequence[Any]) -> None:
        """Store the name of the fleet and the handles of its directors, in the order of ``NAMES``."""
        self.handles = list(handles)
        self._fleet = fleet
        self._current = 0
        self._failed_at = [float("-inf")] * len(self.handles)

    def beat(self, beat: Beat) -> Grant | None:
        """Send a beat and return the answer of the active director; None if no answer comes in time."""
        import ray

        asked = self._current
        try:
            grant: Grant = ray.get(self.handles[asked].beat.remote(beat), timeout=_BEAT_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            log.debug("%s: a director does not answer: %s", beat.slot, error)
            if isinstance(error, ray.exceptions.ActorDiedError) and self._find(asked):
                return None  # the director was restarted on another node; the next beat goes there
            self._failed_at[asked] = time.monotonic()
            self._switch()
            return None
        if grant.term != NOT_ACTIVE:
            return grant
        if time.monotonic() - self._failed_at[1 - asked] > _AVOID_SECONDS:
            self._switch()
        return None

    def call(self, method: str, *arguments: Any, seconds: float = CALL_SECONDS, **options: Any) -> Any:  # noqa: ANN401
        """Call a method of the active director and return its result.

        Raises:
            ReciproStreamError: no director answered within ``seconds``, or the method raised this error.
        """
        import ray

        deadline = time.monotonic() + seconds
        reason = "neither director is active"
        while (left := deadline - time.monotonic()) > 0:
            handle = self.handles[self._current]
            try:
                return ray.get(getattr(handle, method).remote(*arguments, **options), timeout=min(left, seconds / 3))
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, NotActiveError):
                    raise error.cause from None
            except (ray.exceptions.RayError, TimeoutError) as error:
                if isinstance(error, ray.exceptions.ActorDiedError):
                    self._find(self._current)
                reason = last_line(error)
            self._switch()
            time.sleep(_PAUSE_SECONDS)
        raise ReciproStreamError(f"fleet: no answer within {seconds:g} s: {reason}") from None

    def _switch(self) -> None:
        self._current = 1 - self._current

    def _find(self, number: int) -> bool:
        """Update the handle of a director by its name; return whether the director was created anew."""
        import ray

        try:
            found = ray.get_actor(NAMES[number], namespace=self._fleet)
        except (ValueError, ray.exceptions.RayError) as error:
            log.debug("there is no director of the name %s: %s", NAMES[number], error)
            return False
        is_new = bool(found != self.handles[number])
        self.handles[number] = found
        return is_new


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, where Ray states the reason; without a text, the error's type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
