"""Pictures that examine a network and look nearly like one that it learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.io.perceptual_hash import MAX_DIFFERENT_BITS, KnownImages, Spectrum, hashes_of, medians_of, nearest_hashes

_BEFORE = "one that it learned from before"


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two pictures in different parts that look nearly alike."""

    split: str
    """The part of the first one."""
    path: str
    learned: str
    """The path of the other one."""
    different_bits: int
    """Of the 256 of their hashes."""
    labels: tuple[str, str] = ("", "")
    """Their classes: two different ones may be a mistake. Empty where it is not known."""


def near_duplicates(
    parts: Mapping[str, Sequence[Sample]], spectra: Mapping[str, Spectrum], known: Sequence[KnownImages] = ()
) -> tuple[list[NearDuplicate], KnownImages]:
    """Return what looks nearly alike across parts, the most alike first, and the hashes of what is learned from.

    Held-out pictures are compared with all others, stopping ones with those that are learned from. Each is named once,
    with the picture nearest to it. Pictures of one colour are left out: they show nothing.

    Args:
        parts: learning, stopping and held_out.
        spectra: by path; see ``engine.io.perceptual_hash``.
        known: the hashes of what the network has learned from before.
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
