"""Finds images of an evaluation that are training images of the network, or near duplicates of training images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.frames import Image

if TYPE_CHECKING:
    from engine.io.perceptual_hash import KnownImages

log = logging.getLogger("recipro-stream")

MAX_NAMES = 3
"""Maximum number of images in a message."""


class TrainedImages:
    """Perceptual hashes of a network's training images, from a file of ``train``; empty for other networks."""

    def __init__(self, model: str) -> None:
        """Read the hashes if ``model`` is a file of ``train``; other models have no hashes."""
        from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint
        from engine.models.checkpoint import load_checkpoint
        from engine.models.loader import MODEL_FILE

        self._known: Sequence[KnownImages] = ()
        if is_detector_file(model):
            self._known = load_detector_checkpoint(Path(model)).perceptual_hashes
        elif model.endswith(MODEL_FILE) and Path(model).is_file():
            self._known = load_checkpoint(model).perceptual_hashes

    def mark(self, image: Image) -> dict[str, Any]:
        """Return the key ``like_learned``: whether an image is a near duplicate of a training image.

        Without hashes, return an empty dictionary.
        """
        from engine.io.perceptual_hash import spectrum_of

        if not self._known:
            return {}
        spectrum = spectrum_of(image)
        return {"like_learned": any(bool(known.find([spectrum])[0]) for known in self._known)}


def warn_of_trained_images(records: Sequence[Mapping[str, Any]]) -> None:
    """Log a warning if evaluated images are near duplicates of training images."""
    alike = [str(record["image"]) for record in records if record.get("like_learned")]
    if alike:
        more = f" and {len(alike) - MAX_NAMES} more" if len(alike) > MAX_NAMES else ""
        log.warning(
            "%d of %d images are near duplicates of training images: %s%s (column like_learned). Results on them do "
            "not hold for new images", len(alike), len(records), ", ".join(alike[:MAX_NAMES]), more,
        )  # fmt: skip
