"""Metrics of explanations as pure functions; each docstring names the source.

Scores are softmax scores of the explained class, in [0, 1]. Maps are in [0, 1] and have the size of the network's input
unless stated otherwise. Results are fractions, not percentages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.frames import Box

Map = npt.NDArray[np.floating]
"""A map of any floating type, (rows, columns)."""

TOLERANCE_PIXELS = 15.0
"""Maximum distance in pixels between a peak and the object in the pointing game (Zhang et al., 2018)."""

FLAT = 1e-12
"""A variance below this fraction of the squared mean is a rounding error: the map is flat."""


def drop(plain: float, masked: float) -> float:
    """Return the score drop after masking the image by the map, as a fraction: max(0, Y - O) / Y.

    The mean over images is the Average Drop. Chattopadhay et al., *Grad-CAM++*, arXiv:1710.11063, section 4.1. 0 for a
    score of 0.
    """
    return max(0.0, plain - masked) / plain if plain > 0.0 else 0.0


def increase(plain: float, masked: float) -> bool:
    """Return whether the score rises when the image is masked by the map.

    The fraction of such images is the Increase in Confidence. Chattopadhay et al., arXiv:1710.11063, section 4.1.
    """
    return masked > plain


def correlation(first: Map, second: Map) -> float:
    """Return the Pearson correlation of two maps, in [-1, 1]; 0 if a map is flat."""
    a, b = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if _is_flat(a) or _is_flat(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(np.dot(a, b) / math.sqrt(float(np.dot(a, a)) * float(np.dot(b, b))), -1.0, 1.0))


def _is_flat(values: npt.NDArray[np.float64]) -> bool:
    return float(values.var()) <= FLAT * float(values.mean()) ** 2


def coherency(heat: Map, heat_of_masked: Map) -> float:
    """Return the similarity of two maps of one class: of an image, and of this image masked by its map.

    The similarity is ``(r + 1) / 2``; ``r`` is the Pearson correlation. Poppi et al., *Revisiting the evaluation of
    class activation mapping for explainability*, arXiv:2104.10252, section 3.2; mapped to [0, 1] as in the authors'
    code. 0 for a flat map.
    """
    a, b = np.asarray(heat, np.float64).ravel(), np.asarray(heat_of_masked, np.float64).ravel()
    return 0.0 if _is_flat(a) or _is_flat(b) else (correlation(a, b) + 1.0) / 2.0


def complexity(heat: Map) -> float:
    """Return the mean of the map: its L1 norm divided by its size.

    Poppi et al., arXiv:2104.10252, section 3.2.
    """
    return float(np.abs(np.asarray(heat, np.float64)).mean())


def adcc(average_drop: float, coherent: float, complex_: float) -> float:
    """Return the harmonic mean of coherency, 1 - complexity and 1 - average drop; 0 if a term is 0.

    Poppi et al., arXiv:2104.10252, section 3.3.
    """
    parts = (coherent, 1.0 - complex_, 1.0 - average_drop)
    return 3.0 / sum(1.0 / part for part in parts) if min(parts) > 0.0 else 0.0


def adcc_of_means(drops: Sequence[float], coherencies: Sequence[float], complexities: Sequence[float]) -> float:
    """Return ADCC of the data set's mean coherency, complexity and drop.

    Byun and Lee, *Recipro-CAM*, arXiv:2209.14074, table 1. NaN without images.
    """
    return adcc(mean(drops), mean(coherencies), mean(complexities)) if drops else math.nan


def adcc_per_image(drops: Sequence[float], coherencies: Sequence[float], complexities: Sequence[float]) -> float:
    """Return the mean over images of each image's own ADCC.

    Poppi et al., arXiv:2104.10252; the authors' code averages in this order. NaN without images.
    """
    return mean([adcc(*values) for values in zip(drops, coherencies, complexities, strict=True)])


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return math.fsum(values) / len(values) if values else math.nan


def area_under(scores: Sequence[float]) -> float:
    """Return the area under scores at evenly spaced fractions 0 to 1, by the trapezoid rule.

    Deletion and Insertion of Petsiuk et al., *RISE*, arXiv:1806.07421, section 4.1, are this area while pixels are
    removed from the image, or inserted into a blurred image, hottest first.
    """
    if len(scores) < 2:
        message = f"got {len(scores)} scores; the area under a curve needs at least two"
        raise ValueError(message)
    return (math.fsum(scores) - (scores[0] + scores[-1]) / 2.0) / (len(scores) - 1)


def area_at(shares: Sequence[float], scores: Sequence[float]) -> float:
    """Return the area under scores at increasing shares from 0 to 1, by the trapezoid rule."""
    return math.fsum((b - a) * (s + t) / 2.0 for (a, b), (s, t) in zip(pairwise(shares), pairwise(scores), strict=True))


def hottest_first(heat: Map) -> npt.NDArray[np.intp]:
    """Return the indices of a flattened map, hottest first; equal values keep their order."""
    return np.argsort(-np.asarray(heat, np.float64).ravel(), kind="stable")


def points_at(peak: tuple[float, float], boxes: Sequence[Box], tolerance_pixels: float = 0.0) -> bool:
    """Return whether the peak (x, y) lies in a box, or at most ``tolerance_pixels`` outside.

    The pointing game is the fraction of hits. Zhang et al., *Top-down neural attention by excitation backprop*,
    arXiv:1608.00507, section 4.1, use 15 pixels.
    """
    x, y = peak
    if tolerance_pixels <= 0.0:
        return any(box.holds(x, y) for box in boxes)
    away = (math.hypot(max(box.left - x, 0.0, x - box.right), max(box.top - y, 0.0, y - box.bottom)) for box in boxes)
    return any(distance <= tolerance_pixels for distance in away)


def energy_inside(heat: Map, inside: npt.NDArray[np.bool_]) -> float:
    """Return the fraction of the map's sum that lies inside a mask; 0 for a map that is all zero.

    The energy-based pointing game. Wang et al., *Score-CAM*, arXiv:1910.01279, section 4.3.
    """
    total = float(np.asarray(heat, np.float64).sum())
    return float(np.asarray(heat, np.float64)[inside].sum()) / total if total > 0.0 else 0.0


def temporal_instability(maps: Sequence[float], frames: Sequence[float]) -> float:
    """Return the change of the maps per change of the frames: ``sum(1 - r) / sum(1 - s)``.

    ``r`` is the correlation of the maps of two neighbouring frames of a video, for the same class; ``s`` is that of the
    frames. This metric is our own, after the local stability of Alvarez-Melis and Jaakkola, *On the robustness of
    interpretability methods*, arXiv:1806.08049: the change of an explanation divided by the change of its input. It
    divides sums, because two frames may be equal. NaN if no frame differs, or without pairs.
    """
    moved = math.fsum(1.0 - similarity for similarity in frames)
    return (
        math.fsum(1.0 - similarity for similarity in maps) / moved if moved > FLAT * max(1, len(frames)) else math.nan
    )


def temporal_correlation(maps: Sequence[float], frames: Sequence[float]) -> float:
    """Return the rank correlation between the changes of the maps and the changes of the frames.

    Arguments as in ``temporal_instability``. 0 if all changes are equal, NaN for fewer than three pairs.
    """
    return math.nan if len(maps) < 3 else rank_correlation(1.0 - np.array([maps]), 1.0 - np.array([frames]))


def rank_correlation(first: Map, second: Map) -> float:
    """Return the Spearman correlation of two maps, with mean ranks for ties; 0 if a map is flat.

    Used by Adebayo et al., *Sanity checks for saliency maps*, arXiv:1810.03292, section 3: near 0 between the maps of a
    trained network and of the same network with randomised weights.
    """
    return correlation(_ranks(first), _ranks(second))


def _ranks(heat: Map) -> npt.NDArray[np.float64]:
    _, index, counts = np.unique(np.asarray(heat, np.float64).ravel(), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: npt.NDArray[np.float64] = ends - (counts - 1) / 2.0
    return middle[index.ravel()]
