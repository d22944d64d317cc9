"""Detects validation and test images that look nearly like training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.io.perceptual_hash import MAX_DIFFERENT_BITS, KnownImages, Spectrum, hashes_of, medians_of, nearest_hashes

_BEFORE = "an image of an earlier training"


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two images in different splits that look nearly alike."""

    split: str
    """The split of the first image."""
    path: str
    learned: str
    """The path of the other image."""
    different_bits: int
    """Hamming distance of their 256-bit hashes."""
    labels: tuple[str, str] = ("", "")
    """Their labels; different labels may be a mistake. Empty where they are not known."""


def near_duplicates(
    parts: Mapping[str, Sequence[Sample]], spectra: Mapping[str, Spectrum], known: Sequence[KnownImages] = ()
) -> tuple[list[NearDuplicate], KnownImages]:
    """Return near duplicates across splits, the most similar first, and the hashes of the training images.

    Test images are compared with all others, validation images with training images. Each appears once, with the image
    nearest to it. Images of a single colour are left out.

    Args:
        parts: the train, validation and test splits.
        spectra: by path; see ``engine.io.perceptual_hash``.
        known: hashes of the images of earlier trainings.
    """
    showing = {part: [one.path for one in several if spectra[one.path].any()] for part, several in parts.items()}
    medians = medians_of([spectra[path] for several in showing.values() for path in several])
    hashes = {part: hashes_of([spectra[path] for path in several], medians) for part, several in showing.items()}
    found: list[NearDuplicate] = []
    for part, others in ((VALIDATION, (TRAIN,)), (TEST, (TRAIN, VALIDATION))):
        for other in others:
            if len(hashes[part]) and len(hashes[other]):
                rows, bits = nearest_hashes(hashes[part], hashes[other])
                found += [
                    NearDuplicate(part, path, showing[other][row], int(apart))
                    for path, row, apart in zip(showing[part], rows.tolist(), bits.tolist(), strict=True)
                    if apart <= MAX_DIFFERENT_BITS
                ]
    label_of = {one.path: one.label for several in parts.values() for one in several}
    held_out = [one.path for one in parts[TEST]]
    for before in known:
        alike = before.find([spectra[path] for path in held_out])
        found += [
            NearDuplicate(TEST, path, _BEFORE, MAX_DIFFERENT_BITS)
            for path, same in zip(held_out, alike, strict=True)
            if same
        ]
    nearest: dict[str, NearDuplicate] = {}
    for one in sorted(found, key=lambda one: (one.different_bits, one.path, one.learned)):
        labels = (label_of[one.path], label_of[one.learned]) if one.learned in label_of else ("", "")
        nearest.setdefault(one.path, replace(one, labels=labels))
    learned = [spectra[path] for part in (TRAIN, VALIDATION) for path in showing[part]]
    return list(nearest.values()), KnownImages(medians, hashes_of(learned, medians))
