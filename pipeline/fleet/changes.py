"""The differences between the cameras of a fleet and those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CameraChanges:
    """Differences between the cameras of a fleet and those of a file."""

    added: Sequence[str] = ()
    changed: Sequence[str] = ()
    removed: Sequence[str] = ()


def compare_cameras(before: Mapping[str, float], after: Mapping[str, float]) -> CameraChanges:
    """Return the differences between two mappings of cameras to their rates."""
    return CameraChanges(
        added=[camera for camera in after if camera not in before],
        changed=[camera for camera, rate in after.items() if camera in before and before[camera] != rate],
        removed=[camera for camera in before if camera not in after],
    )
