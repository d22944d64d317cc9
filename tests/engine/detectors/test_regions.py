"""The regions of an input and the feature cells that belong to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.detectors.regions import Regions
from pipeline.errors import ConfigError


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 99), width=st.integers(1, 99), cell_px=st.integers(1, 80),
    stride=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
)  # fmt: skip
def test_regions_mask_marks_the_cells_whose_area_intersects(height, width, cell_px, stride):
    regions = Regions((height, width), cell_px)
    size = (-(-height // stride), -(-width // stride))
    mask = regions.mask(stride, size)
    assert mask.shape == (len(regions), *size)
    for index in {0, len(regions) // 2, len(regions) - 1}:
        row, column = divmod(index, regions.grid[1])
        for y in range(size[0]):
            for x in range(size[1]):
                overlaps_y = y * stride < (row + 1) * cell_px and (y + 1) * stride > row * cell_px
                overlaps_x = x * stride < (column + 1) * cell_px and (x + 1) * stride > column * cell_px
                assert bool(mask[index, y, x]) == (overlaps_y and overlaps_x)


def test_regions_of_8_px_share_a_coarse_cell():
    mask = Regions((64, 64), 8).mask(32, (2, 2))
    assert mask[:, 0, 0].sum() == 16
    assert torch.all(mask.sum(dim=(1, 2)) == 1)


def test_regions_refuse_an_empty_cell():
    with pytest.raises(ConfigError, match="cell_px 0"):
        Regions((64, 64), 0)
