"""Which pictures of an evaluation the network has learned from, or from copies of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.frames import Image

if TYPE_CHECKING:
    from engine.io.perceptual_hash import KnownImages

log = logging.getLogger("recipro-stream")

_NAMED = 3
"""How many pictures a message names."""


class Learned:
    """What a model file remembers of its training pictures; of another network nothing is known."""

    def __init__(self, model: str) -> None:
        """Read it from the file that ``train`` wrote, if it is one."""
        from engine.models.checkpoint import load_checkpoint
        from engine.models.loader import MODEL_FILE

        self._known: Sequence[KnownImages] = ()
        if model.endswith(MODEL_FILE) and Path(model).is_file():
            self._known = load_checkpoint(model).looks

    def mark(self, image: Image) -> dict[str, Any]:
        """Return ``like_learned``: whether a picture looks nearly like one of them; nothing where none is known."""
        from engine.io.perceptual_hash import spectrum_of

        if not self._known:
            return {}
        spectrum = spectrum_of(image)
        return {"like_learned": any(bool(known.find([spectrum])[0]) for known in self._known)}


def warn_of_learned(records: Sequence[Mapping[str, Any]]) -> None:
    """Name the pictures that look nearly like learned ones."""
    alike = [str(one["image"]) for one in records if one.get("like_learned")]
    if alike:
        more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        log.warning(
            "%d of %d pictures look nearly like one that the network learned from: %s%s (column like_learned). What is "
            "measured on them tells little of other parts", len(alike), len(records), ", ".join(alike[:_NAMED]), more,
        )  # fmt: skip
