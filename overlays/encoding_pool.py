"""Passes compressed images from the threads of cameras, which create them, to the thread of a sink."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from pipeline.frames import Overlay

T = TypeVar("T")

_MAX_VALUES: Final = 4
"""Maximum number of encoded images per camera."""
_MAX_CAMERAS: Final = 256


class PreparedImages(Generic[T]):
    """Encoded images of each camera's newest frames. The camera's thread adds; the sink's thread reads."""

    def __init__(self) -> None:
        self._values: OrderedDict[str, tuple[tuple[Overlay, str, T], ...]] = OrderedDict()

    def add(self, overlay: Overlay, kind: str, value: T) -> None:
        """Store the encoded image of a frame; above the limit, the camera's oldest image is removed.

        Args:
            overlay: the frame.
            kind: name of the image's form, for frames with several encoded images.
            value: the encoded image.
        """
        camera = overlay.explanation.frame.camera
        # The tuple is replaced, not changed, because the other thread may be reading it.
        self._values[camera] = (*self._values.get(camera, ()), (overlay, kind, value))[-_MAX_VALUES:]
        while len(self._values) > _MAX_CAMERAS:
            self._values.popitem(last=False)

    def of(self, overlay: Overlay, kind: str) -> T | None:
        """Return the encoded image of a frame in a form; None if it was not stored, or was removed."""
        values = self._values.get(overlay.explanation.frame.camera, ())
        return next((value for source, name, value in values if source is overlay and name == kind), None)
