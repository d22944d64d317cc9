"""Compressed images that wait between the thread of a camera, which makes them, and the thread of a sink."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from pipeline.frames import Overlay

T = TypeVar("T")

_MAX_VALUES: Final = 4
"""Maximum number of values per camera."""
_MAX_CAMERAS: Final = 256


class PreparedImages(Generic[T]):
    """The values of the newest frames by camera. A camera's thread adds, the sink's thread reads."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, tuple[tuple[Overlay, str, T], ...]] = OrderedDict()

    def add(self, overlay: Overlay, kind: str, value: T) -> None:
        """Add the value of a frame, in place of its camera's oldest value."""
        camera = overlay.explanation.frame.camera
        # A tuple is replaced as a whole: the other thread may be reading it.
        self._values[camera] = (*self._values.get(camera, ()), (overlay, kind, value))[-_MAX_VALUES:]
        while len(self._values) > _MAX_CAMERAS:
            self._values.popitem(last=False)

    def of(self, overlay: Overlay, kind: str) -> T | None:
        """Return the value of a frame; None if there is none, or it was dropped."""
        values = self._values.get(overlay.explanation.frame.camera, ())
        return next((value for source, name, value in values if source is overlay and name == kind), None)
