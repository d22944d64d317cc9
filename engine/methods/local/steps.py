"""The layers of a local plan: each computes the vectors at the sites of one map from those of the maps before it.

Vectors are kept site after site, (sites, C, 1, 1), so that cellwise layers run on them unchanged. Layers that look
around work with what the mask has *changed*: the answer to the all-zero map, the blank, is known for every position,
and a linear layer adds to it only what the changed positions send. So a convolution costs one product per changed
input position and tap, not one per output position and tap, and true zero padding comes by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.local.footprint import Chunk, DeviceTransfer, Footprint
from engine.methods.local.receptive_field import KernelTaps, SpatialOp

TAP_FRACTION = 0.6
"""Below this share of useful products a convolution goes tap by tap, each tap with the sites it is needed from."""


class FeatureMapInfo(NamedTuple):
    """One map of the network inside a plan."""

    name: str
    footprint: Footprint
    width: int
    """Numbers per site."""
    blank: Tensor
    """Its answer to the all-zero map, cell after cell: (h * w, C, 1, 1), or (1, C) behind the mean. Empty where no
    layer asks for it."""


class Step(nn.Module):
    """One layer. ``fresh``: whether its answer is nobody else's memory, so that the next one may work in place."""

    fresh = True
    taps: KernelTaps | None = None

    def __init__(self, sources: list[FeatureMapInfo], target: FeatureMapInfo) -> None:
        super().__init__()
        self.sources = tuple(source.name for source in sources)
        self.target = target.name
        self.before = sources[0].footprint
        self.after = target.footprint
        self.spare: Tensor = target.footprint.counts * 0
        """Numbers needed beside input and output while it runs, for each masked cell: (H, W)."""
        self.multiply_adds = 0
        """Over all masked cells."""

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the vectors at the chunk's sites of the target."""
        raise NotImplementedError

    def take_along(self, move: DeviceTransfer) -> None:
        """Go on with the same tables on another device."""
        self.before, self.after = move.footprint(self.before), move.footprint(self.after)
        if self.taps is not None:
            self.taps = move.taps(self.taps)

    def changed(self, chunk: Chunk, rows: Tensor, blank: Tensor | None) -> Tensor:
        """Return what the mask changed: (sites, C)."""
        flat = rows.flatten(1)
        if blank is None:
            return flat
        kept = blank.index_select(0, chunk.sites(self.before).position)
        return torch.sub(flat, kept, out=kept)

    def on_blank(self, chunk: Chunk, change: Tensor, blank: Tensor) -> Tensor:
        """Put changes (sites, C) on the blank answer: (sites, C, 1, 1)."""
        kept = blank.index_select(0, chunk.sites(self.after).position)
        return kept.add_(change)[:, :, None, None]


def _unless_zero(blank: Tensor) -> Tensor | None:
    return blank.flatten(1) if bool(blank.any()) else None


class PointStep(Step):
    """A 1x1 convolution: one product per site; with a stride, of those sites that are looked at."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, source: FeatureMapInfo, target: FeatureMapInfo, taps: KernelTaps, weight: Tensor, bias: Tensor | None
    ) -> None:
        """Take the weight as (C', C)."""
        super().__init__([source], target)
        self.taps = None if source.footprint is target.footprint else taps
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.multiply_adds = int(self.after.counts.sum()) * weight.numel()
        if self.taps is not None:
            self.spare = self.after.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the products."""
        flat = rows[0].flatten(1)
        if self.taps is not None:
            flat = flat.index_select(0, chunk.lookup(self.before, self.after, self.taps)[:, 0])
        return F.linear(flat, self.weight, self.bias)[:, :, None, None]


class ConvolutionStep(Step):
    """Any other convolution: what each changed position sends through each tap, summed where it arrives."""

    taps: KernelTaps
    weight: Tensor
    blank_before: Tensor | None
    blank_after: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp, weight: Tensor) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        self.groups = spatial.groups
        self.register_buffer("blank_before", _unless_zero(source.blank))
        self.register_buffer("blank_after", target.blank.flatten(1))
        out, inside = weight.shape[:2]
        self.width, self.inside = out, inside
        # Per group: (groups, taps, C / groups, C' / groups).
        apart = weight.reshape(self.groups, out // self.groups, inside, -1).permute(0, 3, 2, 1)
        pairs, sites, taps = self.before.pairs(self.taps), self.before.counts, self.taps.count
        self.tapwise = int(pairs.sum()) < TAP_FRACTION * int(sites.sum()) * taps
        self.depthwise = inside == 1 and out == self.groups
        products = pairs if self.tapwise else sites * taps
        self.multiply_adds = int(products.sum()) * inside * out
        self.spare = products * out + sites * source.width * (1 if self.groups == 1 or self.depthwise else 2)
        if self.groups > 1 and not self.depthwise:
            self.spare = self.spare + products * out
        self.register_buffer("weight", self._arranged(apart).contiguous())

    def _arranged(self, apart: Tensor) -> Tensor:
        if self.depthwise:
            return apart[:, :, 0, 0].t()  # (taps, C)
        if self.tapwise:
            return apart.transpose(0, 1)  # (taps, groups, C / groups, C' / groups)
        return apart.transpose(1, 2).flatten(2)  # (groups, C / groups, taps * C' / groups)

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the blank answer and what arrives on it."""
        change = self.changed(chunk, rows[0], self.blank_before)
        order = "tap" if self.tapwise else "site-tap"
        bags = chunk.bags(self.before, self.after, self.taps, order=order)
        table = self._tap_by_tap(change, bags.sources) if self.tapwise else self._all_taps(change)
        arrived = F.embedding_bag(bags.entries, table, bags.first, mode="sum", include_last_offset=True)
        return self.on_blank(chunk, arrived, self.blank_after)

    def _all_taps(self, change: Tensor) -> Tensor:
        """Return what each site sends through each tap: (sites * taps, C')."""
        if self.depthwise:
            return (change[:, None] * self.weight).flatten(0, 1)
        if self.groups == 1:
            return (change @ self.weight[0]).view(-1, self.width)
        sites, taps = len(change), self.taps.count
        grouped = change.reshape(sites, self.groups, self.inside).transpose(0, 1)
        sent = torch.bmm(grouped, self.weight).view(self.groups, sites, taps, self.width // self.groups)
        return sent.permute(1, 2, 0, 3).reshape(-1, self.width)

    def _tap_by_tap(self, change: Tensor, sources: tuple[Tensor, ...]) -> Tensor:
        """Return what each tap sends, tap after tap, from the sites it is needed from."""
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
                sent = torch.bmm(grouped, self.weight[tap]).transpose(0, 1)
                part.view(sent.shape).copy_(sent)
            start += len(source)
        return table


class AvgPoolStep(Step):
    """A mean over a neighbourhood or over the whole map: linear, so changes are summed and put on the blank."""

    taps: KernelTaps
    scale: Tensor
    blank_before: Tensor | None
    blank_after: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp, scale: Tensor) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        self.register_buffer("scale", scale)
        self.register_buffer("blank_before", _unless_zero(source.blank))
        self.register_buffer("blank_after", target.blank.flatten(1))
        self.flat = target.blank.dim() == 2
        self.spare = self.before.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the blank mean and what the changes add to it."""
        change = self.changed(chunk, rows[0], self.blank_before)
        bags = chunk.bags(self.before, self.after, self.taps, order="site")
        total = F.embedding_bag(bags.entries, change, bags.first, mode="sum", include_last_offset=True)
        total *= self.scale.index_select(0, chunk.sites(self.after).position)[:, None]
        answer = self.on_blank(chunk, total, self.blank_after)
        return answer.flatten(1) if self.flat else answer


class MaxPoolStep(Step):
    """A maximum over a neighbourhood: changed positions as they are now, the others as in the blank."""

    taps: KernelTaps
    others: Tensor

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps
        blank = source.blank.flatten(1)
        self.register_buffer("others", torch.cat((blank, torch.full_like(blank[:1], -torch.inf))))
        self.spare = self.before.counts * source.width + self.after.counts * source.width

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the maxima."""
        table = torch.cat((rows[0].flatten(1), self.others))
        places = chunk.lookup(self.before, self.after, self.taps)
        answer = table.index_select(0, places[:, 0])
        for tap in range(1, self.taps.count):
            torch.maximum(answer, table.index_select(0, places[:, tap]), out=answer)
        return answer[:, :, None, None]


class PadStep(Step):
    """Padding with a constant: the sites move, the vectors stay."""

    def __init__(self, source: FeatureMapInfo, target: FeatureMapInfo, spatial: SpatialOp) -> None:
        super().__init__([source], target)
        self.taps = spatial.taps

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the vectors in the target's order."""
        return rows[0].index_select(0, chunk.lookup(self.before, self.after, self.taps)[:, 0])


class CellwiseStep(Step):
    """Anything that treats each cell alone, on the sites of all its inputs together."""

    def __init__(
        self, sources: list[FeatureMapInfo], target: FeatureMapInfo, part: nn.Module, *, fresh: bool, products: int
    ) -> None:
        """Take the part of the network to run, and how many multiply-adds it does per site."""
        super().__init__(sources, target)
        self.part = part
        self.fresh = fresh
        self.multiply_adds = int(self.after.counts.sum()) * products
        self.prints = tuple(source.footprint for source in sources)
        for number, source in enumerate(sources):
            narrow = source.footprint is not self.after
            self.register_buffer(f"blank{number}", source.blank if narrow else None)
            if narrow:
                self.spare = self.spare + (self.after.counts + source.footprint.counts) * source.width

    def take_along(self, move: DeviceTransfer) -> None:
        """Go on with the same tables on another device."""
        super().take_along(move)
        self.prints = tuple(map(move.footprint, self.prints))

    def widened(self, chunk: Chunk, rows: tuple[Tensor, ...]) -> list[Tensor]:
        """Bring every input to the sites of the answer: where the mask did not reach it, it is as in the blank."""
        wide = []
        for number, (value, footprint) in enumerate(zip(rows, self.prints, strict=True)):
            blank: Tensor | None = getattr(self, f"blank{number}")
            if blank is None:
                wide.append(value)
            else:
                table = torch.cat((value, blank))
                wide.append(table.index_select(0, chunk.lookup(footprint, self.after)[:, 0]))
        return wide

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the part's answer."""
        answer: Tensor = self.part(*self.widened(chunk, rows))
        return answer


class SumStep(CellwiseStep):
    """The sum of two branches, written over whichever input nobody needs any more."""

    def __init__(self, sources: list[FeatureMapInfo], target: FeatureMapInfo, *, free: tuple[bool, bool]) -> None:
        """Take two maps, and whether each may be written over."""
        super().__init__(sources, target, nn.Identity(), fresh=True, products=0)
        self.free = tuple(free[i] or getattr(self, f"blank{i}") is not None for i in (0, 1))

    def forward(self, chunk: Chunk, *rows: Tensor) -> Tensor:
        """Return the sum."""
        one, other = self.widened(chunk, rows)
        if self.free[0]:
            return one.add_(other)
        return other.add_(one) if self.free[1] else one + other
