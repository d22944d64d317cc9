"""The steps of a local plan: each computes the vectors at the active sites of one map.

Vectors are stored by site, (sites, C, 1, 1), so that cellwise layers can run on them unchanged. Linear layers with a
neighbourhood compute differences: with the zero response z of a map and its value x,

    layer(x) = layer(z) + A (x - z)

where A is the layer without bias, and x - z is nonzero only at active sites. So a convolution computes one product per
active input site and tap, and zero padding needs no special case.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.local.footprint import Chunk, DeviceTransfer, Footprint
from engine.methods.local.receptive_field import KernelTaps, SpatialOp

TAP_FRACTION = 0.6
"""Minimum fraction of used products (site, tap); below it a convolution runs tap by tap."""


class FeatureMapInfo(NamedTuple):
    """One map of the network in a plan."""

    name: str
    footprint: Footprint
    width: int
    """Values per site."""
    zero_response: Tensor
    """The map's value for the all-zero input, by position: (h * w, C, 1, 1), or (1, C) after a mean. Empty if no step
    needs it."""


class Step(nn.Module):
    """One layer of a local plan."""

    fresh = True
    """True if the output does not share memory, so that the next step may overwrite it."""
    taps: KernelTaps | None = None

    def __init__(self, sources: list[FeatureMapInfo], target: FeatureMapInfo) -> None:
        super().__init__()
        self.sources = tuple(source.name for source in sources)
        self.target = target.name
        self.before = sources[0].footprint
        self.after = target.footprint
        self.scratch: Tensor = target.footprint.counts * 0
        """Number of temporary values per masked cell, in addition to input and output: (H, W)."""
        self.multiply_adds = 0
        """Multiply-adds for all masked cells."""

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the vectors at the chunk's active sites of the target map."""
        raise NotImplementedError

    def move_tables(self, move: DeviceTransfer) -> None:
        """Move the footprints and taps to another device."""
        self.before, self.after = move.footprint(self.before), move.footprint(self.after)
        if self.taps is not None:
            self.taps = move.taps(self.taps)

    def difference(self, chunk: Chunk, rows: Tensor, zero_response: Tensor | None) -> Tensor:
        """Return the difference between input and zero response (None: zeros): (sites, C)."""
        flat = rows.flatten(1)
        if zero_response is None:
            return flat
        baseline = zero_response.index_select(0, chunk.sites(self.before).position)
        return torch.sub(flat, baseline, out=baseline)

    def add_zero_response(self, chunk: Chunk, difference: Tensor, zero_response: Tensor) -> Tensor:
        """Return the output's zero response plus a difference (sites, C): (sites, C, 1, 1)."""
        baseline = zero_response.index_select(0, chunk.sites(self.after).position)
        return baseline.add_(difference)[:, :, None, None]


def _none_if_zero(zero_response: Tensor) -> Tensor | None:
    return zero_response.flatten(1) if bool(zero_response.any()) else None


class PointStep(Step):
    """A 1x1 convolution: one product per output site."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, source: FeatureMapInfo, target: FeatureMapInfo, taps: KernelTaps, weight: Tensor, bias: Tensor | None
    ) -> None:
        """Create the step from weight (C', C) and bias (C',)."""
        super().__init__([source], target)
        self.taps = None if source.footprint is target.footprint else taps
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.multiply_adds = int(self.after.counts.sum()) * weight.numel()
        if self.taps is not None:
            self.scratch = self.after.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return ``weight x + bias`` at the active sites."""
        flat = rows[0].flatten(1)
        if self.taps is not None:
            flat = flat.index_select(0, chunk.lookup(self.before, self.after, self.taps)[:, 0])
        return F.linear(flat, self.weight, self.bias)[:, :, None, None]


class ConvolutionStep(Step):
    """Any other convolution: products of active input sites and taps, summed per output site."""

    taps: KernelTaps
    weight: Tensor
    zero_before: Tensor | None
    zero_after: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp, weight: Tensor) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        self.groups = spatial.groups
        self.register_buffer("zero_before", _none_if_zero(source.zero_response))
        self.register_buffer("zero_after", target.zero_response.flatten(1))
        out, inside = weight.shape[:2]
        self.width, self.inside = out, inside
        # (groups, taps, C / groups, C' / groups)
        grouped = weight.reshape(self.groups, out // self.groups, inside, -1).permute(0, 3, 2, 1)
        pairs, sites, taps = self.before.pairs(self.taps), self.before.counts, self.taps.count
        self.tap_by_tap = int(pairs.sum()) < TAP_FRACTION * int(sites.sum()) * taps
        self.depthwise = inside == 1 and out == self.groups
        products = pairs if self.tap_by_tap else sites * taps
        self.multiply_adds = int(products.sum()) * inside * out
        self.scratch = products * out + sites * source.width * (1 if self.groups == 1 or self.depthwise else 2)
        if self.groups > 1 and not self.depthwise:
            self.scratch = self.scratch + products * out
        self.register_buffer("weight", self._arrange(grouped).contiguous())

    def _arrange(self, grouped: Tensor) -> Tensor:
        if self.depthwise:
            return grouped[:, :, 0, 0].t()  # (taps, C)
        if self.tap_by_tap:
            return grouped.transpose(0, 1)  # (taps, groups, C / groups, C' / groups)
        return grouped.transpose(1, 2).flatten(2)  # (groups, C / groups, taps * C' / groups)

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the zero response plus the convolution of the difference."""
        change = self.difference(chunk, rows[0], self.zero_before)
        order = "tap" if self.tap_by_tap else "site-tap"
        bags = chunk.bags(self.before, self.after, self.taps, order=order)
        table = self._tap_by_tap(change, bags.sources) if self.tap_by_tap else self._all_taps(change)
        total = F.embedding_bag(bags.entries, table, bags.first, mode="sum", include_last_offset=True)
        return self.add_zero_response(chunk, total, self.zero_after)

    def _all_taps(self, change: Tensor) -> Tensor:
        """Return the products of each site with each tap: (sites * taps, C')."""
        if self.depthwise:
            return (change[:, None] * self.weight).flatten(0, 1)
        if self.groups == 1:
            return (change @ self.weight[0]).view(-1, self.width)
        sites, taps = len(change), self.taps.count
        grouped = change.reshape(sites, self.groups, self.inside).transpose(0, 1)
        products = torch.bmm(grouped, self.weight).view(self.groups, sites, taps, self.width // self.groups)
        return products.permute(1, 2, 0, 3).reshape(-1, self.width)

    def _tap_by_tap(self, change: Tensor, sources: tuple[Tensor, ...]) -> Tensor:
        """Return the products of each tap with the sites that it reads, ordered by tap: (products, C')."""
        table = change.new_empty((sum(len(source) for source in sources), self.width))
        start = 0
        for tap, source in enumerate(sources):
            part = table[start : start + len(source)]
            chosen = change.index_select(0, source)
            if self.depthwise:
                torch.mul(chosen, self.weight[tap], out=part)
            elif self.groups == 1:
                torch.mm(chosen, self.weight[tap, 0], out=part)
            else:
                grouped = chosen.view(len(source), self.groups, self.inside).transpose(0, 1)
                products = torch.bmm(grouped, self.weight[tap]).transpose(0, 1)
                part.view(products.shape).copy_(products)
            start += len(source)
        return table


class AvgPoolStep(Step):
    """Average pooling over a neighbourhood or the whole map; linear, so it works on differences."""

    taps: KernelTaps
    scale: Tensor
    zero_before: Tensor | None
    zero_after: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp, scale: Tensor) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        self.register_buffer("scale", scale)
        self.register_buffer("zero_before", _none_if_zero(source.zero_response))
        self.register_buffer("zero_after", target.zero_response.flatten(1))
        self.flat = target.zero_response.dim() == 2
        self.scratch = self.before.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the zero response plus the mean of the difference."""
        change = self.difference(chunk, rows[0], self.zero_before)
        bags = chunk.bags(self.before, self.after, self.taps, order="site")
        total = F.embedding_bag(bags.entries, change, bags.first, mode="sum", include_last_offset=True)
        total *= self.scale.index_select(0, chunk.sites(self.after).position)[:, None]
        output = self.add_zero_response(chunk, total, self.zero_after)
        return output.flatten(1) if self.flat else output


class MaxPoolStep(Step):
    """Maximum pooling over the active sites and, at all other positions, the zero response."""

    taps: KernelTaps
    inactive: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        zero_response = source.zero_response.flatten(1)
        self.register_buffer("inactive", torch.cat((zero_response, torch.full_like(zero_response[:1], -torch.inf))))
        self.scratch = self.before.counts * source.width + self.after.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the maxima."""
        table = torch.cat((rows[0].flatten(1), self.inactive))
        indices = chunk.lookup(self.before, self.after, self.taps)
        maxima = table.index_select(0, indices[:, 0])
        for tap in range(1, self.taps.count):
            torch.maximum(maxima, table.index_select(0, indices[:, tap]), out=maxima)
        return maxima[:, :, None, None]


class PadStep(Step):
    """Padding: moves the sites without changing their vectors."""

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the vectors in the target's order."""
        return rows[0].index_select(0, chunk.lookup(self.before, self.after, self.taps)[:, 0])


class CellwiseStep(Step):
    """A cellwise part of the network, computed at all sites where one of its inputs is active."""

    def __init__(
        self, sources: list[FeatureMapInfo], target: FeatureMapInfo, part: nn.Module, *, fresh: bool, products: int
    ) -> None:
        """Create the step; ``products`` is the number of multiply-adds of ``part`` per site."""
        super().__init__(sources, target)
        self.part = part
        self.fresh = fresh
        self.multiply_adds = int(self.after.counts.sum()) * products
        self.footprints = tuple(source.footprint for source in sources)
        for number, source in enumerate(sources):
            narrow = source.footprint is not self.after
            self.register_buffer(f"zero_response{number}", source.zero_response if narrow else None)
            if narrow:
                self.scratch = self.scratch + (self.after.counts + source.footprint.counts) * source.width

    def move_tables(self, move: DeviceTransfer) -> None:
        """Move the footprints and taps to another device."""
        super().move_tables(move)
        self.footprints = tuple(map(move.footprint, self.footprints))

    def widened(self, chunk: Chunk, rows: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the vectors of each input at all active sites of the output.

        Where the input itself is not active, its zero response is used.
        """
        wide = []
        for number, (value, footprint) in enumerate(zip(rows, self.footprints, strict=True)):
            zero_response: Tensor | None = getattr(self, f"zero_response{number}")
            if zero_response is None:
                wide.append(value)
            else:
                table = torch.cat((value, zero_response))
                wide.append(table.index_select(0, chunk.lookup(footprint, self.after)[:, 0]))
        return wide

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the part's output."""
        output: Tensor = self.part(*self.widened(chunk, rows))
        return output


class SumStep(CellwiseStep):
    """The sum of two branches, computed in place if no later step reads one of them."""

    def __init__(self, sources: list[FeatureMapInfo], target: FeatureMapInfo, *, free: tuple[bool, bool]) -> None:
        """Create the step; ``free`` states whether each map may be overwritten."""
        super().__init__(sources, target, nn.Identity(), fresh=True, products=0)
        self.free = tuple(free[i] or getattr(self, f"zero_response{i}") is not None for i in (0, 1))

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the sum."""
        first, second = self.widened(chunk, rows)
        if self.free[0]:
            return first.add_(second)
        return second.add_(first) if self.free[1] else first + second
