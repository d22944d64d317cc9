"""The last counted parts and line crossings of each camera for the page, with their images."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from overlays.render.jpeg import encode_image, scale_image
from overlays.render.passages import passage_image
from overlays.wire.passages import passage_record
from overlays.wire.text import replace_undecodable
from pipeline.frames import Explanation
from pipeline.passages.passage import Passage, PassageCursor

SHOWN: Final = 12
"""Maximum number of parts and crossings that the page shows per camera."""
_SIDE: Final = 160
"""Maximum longer side of the images in pixels."""
_QUALITY: Final = 80


@dataclass(slots=True)
class PassageBoard:
    """The last passages by camera. The sink's thread writes; any thread reads."""

    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    _cursor: PassageCursor = field(default_factory=PassageCursor)
    _last: dict[str, deque[Passage]] = field(default_factory=dict)

    def record(self, explanation: Explanation) -> None:
        """Store the passages that finished since the last recorded frame."""
        if new := self._cursor.take(explanation):
            camera = replace_undecodable(explanation.frame.camera)
            self._last.setdefault(camera, deque(maxlen=SHOWN)).extend(new)

    def forget(self, camera: str) -> None:
        """Remove the passages of a camera that left the run."""
        self._cursor.forget(camera)
        self._last.pop(replace_undecodable(camera), None)

    def records(self, camera: str, after: int = 0) -> list[dict[str, Any]]:
        """Return the camera's passages with a sequence number above ``after`` as JSON values, oldest first."""
        times = {"sent_at_unix": self.wall_clock(), "now_monotonic": self.clock()}
        return [
            passage_record(passage, **times) | {"jpeg": _packed(passage)}
            for passage in tuple(self._last.get(camera, ()))
            if passage.sequence > after
        ]


def _packed(passage: Passage) -> str:
    image = passage_image(passage)
    small = scale_image(image, min(1.0, _SIDE / max(image.shape[:2])))
    return base64.b64encode(encode_image(small, _QUALITY)).decode("ascii")
