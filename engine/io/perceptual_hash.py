"""Perceptual hashes: which pictures look nearly alike, whatever their size, format, compression and exposure.

A hash has 256 bits: the signs of the 16 x 16 lowest frequencies of the grey picture's cosine transform, the constant
row and column left out, after Zauner, *Implementation and benchmarking of perceptual image hash functions*, 2010. Each
frequency is compared with its median over the data set, so that what all pictures share, such as the fixture a part
lies in, decides no bit: the hashes of two unrelated pictures differ in about half of their bits.
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
"""Hashes that differ in no more bits than this are of pictures that look nearly alike: 11 standard deviations below
unrelated ones."""

_SIDE, _FREQUENCIES = 64, 16
_MIN_FOR_MEDIANS: Final = 20
"""Medians of fewer pictures would be those pictures themselves."""
_BLOCK_PAIRS: Final = 1 << 23
"""Pairs compared at a time: about 70 MB."""

Spectrum = npt.NDArray[np.float32]
"""The frequencies of one picture, (256,), scaled to length 1: light and contrast do not count."""
Hashes = npt.NDArray[np.uint8]
"""One hash a row, (N, 32), eight bits a byte."""


def _cosines() -> npt.NDArray[np.float32]:
    places, frequencies = np.arange(_SIDE)[None] + 0.5, np.arange(1, _FREQUENCIES + 1)[:, None]
    return np.cos(np.pi * frequencies * places / _SIDE).astype(np.float32)


_COSINES: Final = _cosines()


def spectrum_of(image: Image) -> Spectrum:
    """Return what a picture's hash is made of; all zero for a picture of one colour.

    Args:
        image: uint8 RGB, (height, width, 3).
    """
    step = max(1, min(image.shape[:2]) // (4 * _SIDE))  # of a large picture every few pixels tell enough
    grey = image[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = F.interpolate(
        torch.from_numpy(grey)[None, None], size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    found = (_COSINES @ small @ _COSINES.T).ravel()
    length = float(np.linalg.norm(found))
    return np.asarray(found / length if length > 1.0 else np.zeros_like(found), np.float32)


def medians_of(spectra: Sequence[Spectrum]) -> Spectrum:
    """Return each frequency's median over a data set, (256,); zeros for fewer than 20 pictures."""
    if len(spectra) < _MIN_FOR_MEDIANS:
        return np.zeros(BITS, np.float32)
    return np.asarray(np.median(np.stack(spectra), axis=0), np.float32)


def hashes_of(spectra: Sequence[Spectrum], medians: Spectrum) -> Hashes:
    """Return the hashes of pictures, (N, 32)."""
    if not len(spectra):
        return np.zeros((0, BITS // 8), np.uint8)
    return np.packbits(np.stack(spectra) > medians, axis=1)


def nearest_hashes(hashes: Hashes, known: Hashes) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """Return for each hash the row of the known hash nearest to it, and in how many bits they differ.

    Takes N x M x 256 multiplications, in blocks: 2,000 hashes against 8,000 take less than a second.

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
    """The hashes of a data set, with the medians they were made with: can be kept in a file as text."""

    medians: Spectrum
    hashes: Hashes

    def find(self, spectra: Sequence[Spectrum]) -> npt.NDArray[np.bool_]:
        """Return which pictures look nearly like one of these, (N,)."""
        if not len(self.hashes) or not len(spectra):
            return np.zeros(len(spectra), bool)
        _, bits = nearest_hashes(hashes_of(spectra, self.medians), self.hashes)
        shows = np.array([bool(one.any()) for one in spectra])
        return np.asarray((bits <= MAX_DIFFERENT_BITS) & shows)

    def to_text(self) -> str:
        """Return these as JSON text."""
        packed = {"medians": self.medians.astype("<f4").tobytes(), "hashes": self.hashes.tobytes()}
        return json.dumps({key: base64.b64encode(value).decode("ascii") for key, value in packed.items()})

    @classmethod
    def from_text(cls, text: str) -> KnownImages:
        """Return what ``to_text`` wrote.

        Raises:
            ValueError: the text is of another form.
        """
        try:
            told = {key: base64.b64decode(value, validate=True) for key, value in json.loads(text).items()}
            medians = np.frombuffer(told["medians"], "<f4").astype(np.float32)
            hashes = np.frombuffer(told["hashes"], np.uint8).reshape(-1, BITS // 8)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("no hashes of pictures") from error
        if medians.shape != (BITS,) or not np.isfinite(medians).all():
            raise ValueError("no medians of 256 frequencies")
        return cls(medians, hashes)
