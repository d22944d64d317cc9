"""The slow reference implementation of box explanations.

For each region of the input, the features of the cut are masked by that region, and the tail is run. Every faster plan
is verified against ``dense_responses``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.detectors.outputs import Layout, Read, Target
from engine.detectors.regions import MODES, Mode, Regions
from engine.detectors.split import DetectorSplit
from pipeline.errors import ConfigError, did_you_mean

DEFAULT_CHUNK = 16


def dense_responses(
    split: DetectorSplit,
    features: Sequence[Tensor],
    reads: Sequence[Read],
    cell_px: int,
    mode: Mode,
    *,
    chunk: int = DEFAULT_CHUNK,
) -> list[Tensor]:
    """Return the output vectors at ``reads`` for each masked copy of one image's features.

    Args:
        split: the detector.
        features: one image's features at the cut, each (1, C, h, w).
        reads: positions in the network's maps.
        cell_px: side of a region in pixels.
        mode: ``keep`` or ``drop``.
        chunk: number of masked copies that the tail computes together.

    Returns:
        For each read, (cells, C of its map); cells are the regions, row by row.

    Raises:
        ConfigError: the mode is unknown, or the split has no such map.
    """
    check_mode(mode)
    outputs = [_output_of(split, read) for read in reads]
    regions = Regions(split.image_size, cell_px)
    masks = []
    for stride, feature in zip(split.cut.strides, features, strict=True):
        mask = regions.mask(stride, (feature.shape[2], feature.shape[3])).to(feature.device)
        masks.append((mask if mode == "keep" else ~mask)[:, None])
    found: list[list[Tensor]] = [[] for _ in reads]
    with torch.inference_mode():
        for start in range(0, len(regions), chunk):
            masked = [f * m[start : start + chunk].to(f.dtype) for f, m in zip(features, masks, strict=True)]
            maps = split.tail(*masked)
            for vectors, read, output in zip(found, reads, outputs, strict=True):
                vectors.append(maps[output][:, :, read.row, read.column].clone())
    return [torch.cat(vectors) for vectors in found]


def _output_of(split: DetectorSplit, read: Read) -> int:
    if read.map not in split.maps:
        raise ConfigError(
            f"map {read.map}: the split computes only the maps {split.maps}; use the split of the anchor's level"
        )
    return split.maps.index(read.map)


def check_mode(mode: str) -> None:
    """Raise ``ConfigError`` for an unknown mode."""
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; use keep or drop.{did_you_mean(mode, MODES)}")


def heat_from_responses(
    layout: Layout,
    responses: Sequence[Tensor],
    plain: Sequence[Tensor],
    target: Target,
    *,
    mode: Mode,
    raw: bool = False,
) -> Tensor:
    """Return the heat of each region from responses, not normalised.

    Args:
        layout: the detector's layout.
        responses: for each read of the anchor, (cells, C): the result of ``dense_responses``.
        plain: for each read of the anchor, (1, C): the vectors of the plain pass.
        target: the explained anchor and class.
        mode: ``keep`` or ``drop``, as in ``responses``.
        raw: with ``keep``, return the score instead of its logarithm.

    Returns:
        (cells,) float32. ``keep``: the log-score with this region only. ``drop``: the plain score minus the score
        without this region: positive values are evidence for the box, negative values evidence against it.
    """
    check_mode(mode)
    log_scores, plain_log_score = (layout.log_score(v, target.class_index, target.anchor) for v in (responses, plain))
    return heat_from_log_scores(log_scores, plain_log_score, mode, raw=raw)


def heat_from_log_scores(log_scores: Tensor, plain: Tensor, mode: Mode, *, raw: bool = False) -> Tensor:
    """Return the heat of each region from the log-scores of the masked images and of the plain pass."""
    if mode == "keep":
        return log_scores.exp() if raw else log_scores
    return plain.exp() - log_scores.exp()
