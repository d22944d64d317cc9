"""What was made of a frame before a sink takes it: compressed pictures, each camera's in a thread of that camera."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from pipeline.frames import Overlay

T = TypeVar("T")

_KEPT: Final = 4
"""Values of a camera that may wait between its thread and the sink's."""
_CAMERAS: Final = 256


class Prepared(Generic[T]):
    """The newest frames' values, by camera. A camera's thread adds, the sink's thread reads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[tuple[Overlay, str, T], ...]] = OrderedDict()

    def add(self, overlay: Overlay, kind: str, value: T) -> None:
        """Keep what was made of a frame in place of its camera's oldest."""
        camera = overlay.explanation.frame.camera
        # A tuple is replaced as a whole: the other thread may be reading it.
        self._kept[camera] = (*self._kept.get(camera, ()), (overlay, kind, value))[-_KEPT:]
        while len(self._kept) > _CAMERAS:
            self._kept.popitem(last=False)

    def of(self, overlay: Overlay, kind: str) -> T | None:
        """Return what was made of a frame; None where nothing was, or it is gone."""
        kept = self._kept.get(overlay.explanation.frame.camera, ())
        return next((value for one, what, value in kept if one is overlay and what == kind), None)
