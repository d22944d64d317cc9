"""Detects validation and test images that are nearly equal to training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.io.perceptual_hash import MAX_DIFFERENT_BITS, KnownImages, Spectrum, hashes_of, medians_of, nearest_hashes

_EARLIER = "an image of an earlier training"


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two images in different splits that are nearly equal."""

    split: str
    """The split of the first image."""
    path: str
    learned: str
    """Path of the other image."""
    different_bits: int
    """Hamming distance of their 256-bit hashes."""
    labels: tuple[str, str] = ("", "")
    """Labels of both images; different labels may be a mistake. Empty if unknown."""


def near_duplicates(
    parts: Mapping[str, Sequence[Sample]], spectra: Mapping[str, Spectrum], known: Sequence[KnownImages] = ()
) -> tuple[list[NearDuplicate], KnownImages]:
    """Return near duplicates across splits, most similar first, and the training images' hashes.

    Test images are compared with all other images, validation images with training images. Each image is listed once,
    with its nearest image. Images of a single colour are ignored.

    Args:
        parts: the train, validation and test splits.
        spectra: spectra by path; see ``engine.io.perceptual_hash``.
        known: hashes of the images of earlier training runs.
    """
    shown = {
        split: [sample.path for sample in samples if spectra[sample.path].any()] for split, samples in parts.items()
    }
    medians = medians_of([spectra[path] for paths in shown.values() for path in paths])
    hashes = {split: hashes_of([spectra[path] for path in paths], medians) for split, paths in shown.items()}
    pairs: list[NearDuplicate] = []
    for split, others in ((VALIDATION, (TRAIN,)), (TEST, (TRAIN, VALIDATION))):
        for other in others:
            if len(hashes[split]) and len(hashes[other]):
                rows, bits = nearest_hashes(hashes[split], hashes[other])
                pairs += [
                    NearDuplicate(split, path, shown[other][row], int(distance))
                    for path, row, distance in zip(shown[split], rows.tolist(), bits.tolist(), strict=True)
                    if distance <= MAX_DIFFERENT_BITS
                ]
    test_paths = [sample.path for sample in parts[TEST]]
    for earlier in known:
        matches = earlier.find([spectra[path] for path in test_paths])
        pairs += [
            NearDuplicate(TEST, path, _EARLIER, MAX_DIFFERENT_BITS)
            for path, match in zip(test_paths, matches, strict=True)
            if match
        ]
    train_spectra = [spectra[path] for split in (TRAIN, VALIDATION) for path in shown[split]]
    return _nearest_of_each(pairs, parts), KnownImages(medians, hashes_of(train_spectra, medians))


def _nearest_of_each(pairs: Sequence[NearDuplicate], parts: Mapping[str, Sequence[Sample]]) -> list[NearDuplicate]:
    """Return the nearest pair of each image, with labels."""
    label_of = {sample.path: sample.label for samples in parts.values() for sample in samples}
    nearest: dict[str, NearDuplicate] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.different_bits, pair.path, pair.learned)):
        labels = (label_of[pair.path], label_of[pair.learned]) if pair.learned in label_of else ("", "")
        nearest.setdefault(pair.path, replace(pair, labels=labels))
    return list(nearest.values())
