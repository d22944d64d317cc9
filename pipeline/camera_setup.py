"""The interface through which the web page changes the shapes and rules of a camera during a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


class CameraSetup(ABC):
    """Reads and changes the set-up of a camera: regions, rules, region of interest, masks, zones and lines.

    All values are JSON values. The methods may be called by any thread. They block until the run has applied the
    change, so asyncio code must call them in a thread. They raise ``ReciproStreamError`` with the reason, and
    ``SetupConflictError`` if another user or program has changed the configuration meanwhile.
    """

    @abstractmethod
    def read(self, camera: str) -> Mapping[str, Any]:
        """Return the set-up of a camera, with the ``revision`` that ``change`` expects."""

    @abstractmethod
    def change(self, camera: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply a whole set-up, write it to the configuration file, and return the new set-up."""

    @abstractmethod
    def undo(self, camera: str, revision: str) -> Mapping[str, Any]:
        """Undo the last change, if ``revision`` is still the current one; return the set-up."""

    @abstractmethod
    def apply_file(self, camera: str, file_revision: str) -> Mapping[str, Any]:
        """Apply the configuration file after another user or program changed it; return the set-up.

        Args:
            camera: the camera whose set-up is returned.
            file_revision: the revision in the ``SetupConflictError``; a file with another revision is not applied.
        """

    @abstractmethod
    def check(
        self, camera: str, rule: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:  # fmt: skip
        """Return the error in a rule, or the times at which the rule would have fired in the last minutes."""
