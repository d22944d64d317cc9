"""The interface through which a page changes what is drawn and required of a camera while it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


class CameraSetup(ABC):
    """Reads and changes the set-up of a camera: regions, rules, region of interest, masks, zones and lines.

    All values are plain JSON values. Any thread may call; the calls wait for the run, so an event loop makes them in a
    thread. They raise ``ReciproStreamError`` with the reason: ``SetupConflictError`` if somebody else changed the
    configuration meanwhile.
    """

    @abstractmethod
    def read(self, camera: str) -> Mapping[str, Any]:
        """Return the set-up of a camera, with the ``revision`` that a change names."""

    @abstractmethod
    def change(self, camera: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply a changed set-up as a whole, and write it to the configuration file; return the new one."""

    @abstractmethod
    def undo(self, camera: str, revision: str) -> Mapping[str, Any]:
        """Take the last change back, if nothing changed since; return the set-up."""

    @abstractmethod
    def apply_file(self, camera: str, file_revision: str) -> Mapping[str, Any]:
        """Apply the configuration file as somebody else changed it; return the set-up.

        Args:
            camera: the camera whose set-up is returned.
            file_revision: that of ``SetupConflictError``: a file that was changed again since is not applied.
        """

    @abstractmethod
    def check(
        self, camera: str, rule: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:  # fmt: skip
        """Return what is wrong with a rule, or when it would have fired in the last minutes."""
