"""The operations of a detector's tail, as a graph with known receptive fields for the cone plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Grid = tuple[int, int]
Positions = npt.NDArray[np.int64]
Factors = npt.NDArray[np.float32]
Function = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Operation:
    """One operation of a graph; its values are vectors of ``width`` channels on ``grid``."""

    name: str
    grid: Grid
    width: int
    sources: tuple[Operation, ...] = ()
    activations: list[Function] = field(default_factory=list)
    """Activations that are applied in place to the result, in this order."""
    node: str = ""
    """Graph node with these values, if it is not ``name``."""


@dataclass(eq=False)
class Entry(Operation):
    """An input: a feature map of the cut, or the result of elementwise layers on it."""

    index: int = 0
    """Index among the inputs."""
    feature: int = 0
    """Index in the cut."""
    blank: Tensor | None = None
    """Vector of a masked cell, (width,); None: zeros."""


@dataclass(eq=False)
class Copy(Operation):
    """Each position is a copy of one position of the source: nearest upsampling, cropping, padding with zeros."""

    taps: tuple[Positions, Positions] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    """Source row of each row, source column of each column; -1: zero."""


@dataclass(eq=False)
class Affine(Operation):
    """Sum of ``source @ weight`` (weight None: identity) plus a bias: 1x1 convolutions and sums."""

    weights: tuple[Tensor | None, ...] = ()
    """Weight of each source, (C of the source, width); None: identity."""
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Slide:
    """A sliding window along one axis: output i reads ``i * stride - pad + t * dilation`` for t < kernel."""

    kernel: int
    stride: int
    dilation: int
    pad: int

    @property
    def extent(self) -> int:
        """Number of positions from the first to the last tap."""
        return (self.kernel - 1) * self.dilation + 1


@dataclass(eq=False)
class Windowed(Operation):
    """An operation that reads a neighbourhood: convolution, maximum, or a weighted sum per channel."""

    taps: tuple[Positions, Positions] = (np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64))
    """Source rows of each row (h', kh) and columns of each column (w', kw); -1: outside."""
    slides: tuple[Slide, Slide] | None = None
    """The taps as sliding windows, if they are regular."""
    tap_weights: tuple[Factors, Factors] | None = None
    """Factors of the row taps (h', kh) and the column taps (w', kw) of a weighted sum."""

    @property
    def laid_out(self) -> bool:
        """True if the windows are laid out as one image, instead of read tap by tap."""
        return False


@dataclass(eq=False)
class Convolution(Windowed):
    """A convolution with a kernel larger than 1x1, a stride or groups."""

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    """Weight of the convolution, (width, C of the source / groups, kh, kw)."""
    bias: Tensor | None = None
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """True if each channel is convolved separately."""
        return self.groups == self.width == self.sources[0].width

    @property
    def laid_out(self) -> bool:
        """True if the windows are laid out; gathering would take most of the time of depthwise kernels."""
        return self.depthwise and self.slides is not None


@dataclass(eq=False)
class Maximum(Windowed):
    """Maximum pooling."""

    @property
    def laid_out(self) -> bool:
        """True if the windows are laid out as one image."""
        return self.slides is not None


@dataclass(eq=False)
class Resampling(Windowed):
    """A weighted sum of the taps: bilinear upsampling, average pooling."""


@dataclass(eq=False)
class Concatenation(Operation):
    """The channels of the sources, one after another."""


@dataclass(eq=False)
class Cellwise(Operation):
    """Any other function that is computed cell by cell."""

    part: nn.Module = field(default_factory=nn.Identity)
    """Computes (R, width, 1, 1) from the cells of the sources, (R, C, 1, 1)."""


@dataclass(frozen=True, eq=False)
class ConeGraph:
    """The tail of a detector as a graph of operations."""

    entries: tuple[Entry, ...]
    outputs: tuple[Operation, ...]
    """The raw maps, in the order of the tail's output."""

    def operations(self) -> list[Operation]:
        """Return all operations that the outputs depend on, sources first."""
        ordered: dict[Operation, None] = {}
        pending: list[tuple[Operation, bool]] = [(output, False) for output in reversed(self.outputs)]
        while pending:
            operation, visited = pending.pop()
            if operation in ordered:
                continue
            if visited:
                ordered[operation] = None
            else:
                pending.append((operation, True))
                pending.extend((source, False) for source in reversed(operation.sources))
        return list(ordered)

    def readers(self) -> dict[Operation, list[Operation]]:
        """Return the operations that read each operation, once for each source that they read."""
        found: dict[Operation, list[Operation]] = {operation: [] for operation in self.operations()}
        for operation in found:
            for source in operation.sources:
                found[source].append(operation)
        return found
