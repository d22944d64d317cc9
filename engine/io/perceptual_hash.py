"""Finds near-duplicate images, regardless of size, format, compression and exposure, by hashes.

A hash has 256 bits: the signs of the 16 x 16 lowest frequencies of the grey image's cosine transform, without the
constant row and column, after Zauner, *Implementation and benchmarking of perceptual image hash functions*, 2010. Each
frequency is compared with its median over the data set, so that content common to all images, such as a fixture, does
not affect the bits: the hashes of two unrelated images differ in about half of their bits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pipeline.frames import Image

BITS: Final = 256
MAX_DIFFERENT_BITS: Final = 40
"""Images count as near-duplicates if their hashes differ in at most this many bits, 11 standard deviations below
unrelated images."""

_SIDE, _FREQUENCIES = 64, 16
_MIN_FOR_MEDIANS: Final = 20
"""With fewer images, the medians would nearly equal the images themselves."""
_BLOCK_PAIRS: Final = 1 << 23
"""Number of pairs compared at a time; about 70 MB."""

Spectrum = npt.NDArray[np.float32]
"""Frequencies of one image, (256,), scaled to length 1: invariant to brightness and contrast."""
Hashes = npt.NDArray[np.uint8]
"""Hashes, a row each, (N, 32), eight bits per byte."""


def _cosines() -> npt.NDArray[np.float32]:
    places, frequencies = np.arange(_SIDE)[None] + 0.5, np.arange(1, _FREQUENCIES + 1)[:, None]
    return np.cos(np.pi * frequencies * places / _SIDE).astype(np.float32)


_COSINES: Final = _cosines()


def spectrum_of(image: Image) -> Spectrum:
    """Return the frequencies of an image, for its hash; all zero for a uniform image.

    Args:
        image: uint8 RGB, (height, width, 3).
    """
    step = max(1, min(image.shape[:2]) // (4 * _SIDE))  # a subsampled large image suffices
    grey = image[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = F.interpolate(
        torch.from_numpy(grey)[None, None], size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    frequencies = (_COSINES @ small @ _COSINES.T).ravel()
    length = float(np.linalg.norm(frequencies))
    return np.asarray(frequencies / length if length > 1.0 else np.zeros_like(frequencies), np.float32)


def medians_of(spectra: Sequence[Spectrum]) -> Spectrum:
    """Return the median of each frequency over a data set, (256,); zeros for fewer than 20 images."""
    if len(spectra) < _MIN_FOR_MEDIANS:
        return np.zeros(BITS, np.float32)
    return np.asarray(np.median(np.stack(spectra), axis=0), np.float32)


def hashes_of(spectra: Sequence[Spectrum], medians: Spectrum) -> Hashes:
    """Return the hashes of images, (N, 32)."""
    if not len(spectra):
        return np.zeros((0, BITS // 8), np.uint8)
    return np.packbits(np.stack(spectra) > medians, axis=1)


def nearest_hashes(hashes: Hashes, known: Hashes) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Return for each hash the row of the nearest known hash, and the number of bits that differ.

    Takes N x M x 256 multiplications, in blocks: less than a second for 2,000 against 8,000 hashes.

    Args:
        hashes: (N, 32).
        known: (M, 32), at least one row.
    """
    wide = _signs(known).T
    rows, bits = [], []
    for block in _blocks(hashes, max(1, _BLOCK_PAIRS // len(known))):
        apart = (BITS - _signs(block) @ wide) / 2
        rows.append(apart.argmin(1))
        bits.append(apart.min(1).astype(int))
    return np.concatenate(rows), np.concatenate(bits)


def _signs(hashes: Hashes) -> npt.NDArray[np.float32]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2.0 - 1.0


def _blocks(hashes: Hashes, rows: int) -> Iterator[Hashes]:
    for first in range(0, len(hashes), rows):
        yield hashes[first : first + rows]


@dataclass(frozen=True, slots=True, eq=False)
class KnownImages:
    """Hashes of a data set with their medians; can be stored as text."""

    medians: Spectrum
    hashes: Hashes

    def find(self, spectra: Sequence[Spectrum]) -> npt.NDArray[np.bool_]:
        """Return which images are near-duplicates of the known images, bool (N,)."""
        if not len(self.hashes) or not len(spectra):
            return np.zeros(len(spectra), bool)
        _, bits = nearest_hashes(hashes_of(spectra, self.medians), self.hashes)
        shows = np.array([bool(spectrum.any()) for spectrum in spectra])
        return np.asarray((bits <= MAX_DIFFERENT_BITS) & shows)

    def to_text(self) -> str:
        """Return medians and hashes as JSON text."""
        packed = {"medians": self.medians.astype("<f4").tobytes(), "hashes": self.hashes.tobytes()}
        return json.dumps({key: base64.b64encode(value).decode("ascii") for key, value in packed.items()})

    @classmethod
    def from_text(cls, text: str) -> KnownImages:
        """Create an object from the text that ``to_text`` returned.

        Raises:
            ValueError: the text has another form.
        """
        try:
            arrays = {key: base64.b64decode(value, validate=True) for key, value in json.loads(text).items()}
            medians = np.frombuffer(arrays["medians"], "<f4").astype(np.float32)
            hashes = np.frombuffer(arrays["hashes"], np.uint8).reshape(-1, BITS // 8)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("the text contains no image hashes") from error
        if medians.shape != (BITS,) or not np.isfinite(medians).all():
            raise ValueError("the text does not contain 256 finite medians")
        return cls(medians, hashes)
