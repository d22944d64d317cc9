"""Which layers of a network can be explained, and which one is by default.

A layer can be explained when its output is a grid of cells, (N, C, h, w) with more than one cell, that later layers
treat as a picture. Knows nothing about cutting or explaining.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import EngineError, LayerError

_LISTED: Final = 6
"""How many layers a message names."""

_CHOOSES_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
)
"""Leaves that only hand on what the layer before them found: VGG's 7x7 pooling is no layer of its own."""


@dataclass(slots=True)
class LayerOutput:
    """What one module gave while the network ran once."""

    shape: tuple[int, ...]
    """The output's shape, the batch first."""
    calls: int
    """How often the module ran."""
    order: int
    """Its place among all outputs; containers come after their children."""
    leaf: bool
    """Whether it only hands on what came before: see ``_CHOOSES_NOTHING``."""
    image_shape: tuple[int, ...]
    """The shape of the images that were sent in."""
    tokens_follow: bool = False
    """Whether a later module gives a sequence of tokens (N, T, C): the grid is a transformer's input."""

    channels_last: bool = False
    """Whether it is (N, h, w, C), as Swin has its maps, and not (N, C, h, w)."""

    @property
    def is_grid(self) -> bool:
        """Whether it is (N, C, h, w) or (N, h, w, C) with more than one cell for each image."""
        return len(self.shape) == 4 and self.shape[0] == self.image_shape[0] and self.grid[0] * self.grid[1] > 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a grid."""
        return (self.shape[1], self.shape[2]) if self.channels_last else (self.shape[2], self.shape[3])

    @property
    def channels(self) -> int:
        """The length of a grid's cell."""
        return self.shape[3] if self.channels_last else self.shape[1]


def trace_layer_outputs(net: nn.Module, images: Tensor) -> tuple[dict[str, LayerOutput], Tensor]:
    """Run ``net`` once; return every module's output shape by name, and the scores (N, K).

    Raises:
        EngineError: the network cannot take images of this size, or does not return (N, K) scores.
    """
    outputs: dict[str, LayerOutput] = {}
    last: set[tuple[int, ...]] = set()
    order = 0

    def note(name: str, module: nn.Module, result: object) -> None:
        nonlocal order
        if not isinstance(result, Tensor):
            return
        last.update(_channels_last(module, result))
        order += 1
        known = outputs.get(name)
        leaf = isinstance(module, _CHOOSES_NOTHING)
        calls = known.calls + 1 if known else 1
        outputs[name] = LayerOutput(tuple(result.shape), calls, order, leaf, tuple(images.shape))

    handles: list[RemovableHandle] = []
    try:
        for name, module in net.named_modules():
            if name:
                handles.append(
                    module.register_forward_hook(lambda module, _, result, name=name: note(name, module, result))
                )
        with torch.inference_mode():
            scores = net(images)
    except Exception as reason:  # it is the network's own code, which may raise anything
        height, width = images.shape[2:]
        raise EngineError(
            f"the network cannot take a {height}x{width} image ({_first_line(reason)}); try its own --input-size"
        ) from reason
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[0] != images.shape[0]:
        what = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise EngineError(f"the network returns {what}, not class scores (N, K); only image classifiers are explained")
    for output in outputs.values():
        output.channels_last = output.shape in last
    _mark_tokens(outputs)
    return outputs, scores


def _channels_last(module: nn.Module, result: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes (N, h, w, C) that a layer shows to be such by working on the last dimension of a map."""
    if result.ndim != 4 or result.shape[3] == result.shape[1]:
        return []
    if isinstance(module, nn.Linear):
        return [(*result.shape[:3], module.in_features), tuple(result.shape)]
    if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == tuple(result.shape[3:]):
        return [tuple(result.shape)]
    return []


def _first_line(reason: BaseException) -> str:
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__


def _mark_tokens(outputs: dict[str, LayerOutput]) -> None:
    last_tokens = max((o.order for o in outputs.values() if len(o.shape) == 3 and o.shape[1] > 1), default=0)
    for output in outputs.values():
        output.tokens_follow = output.order < last_tokens


def last_grid(outputs: dict[str, LayerOutput]) -> str | None:
    """Return the last executed layer whose output is a grid with more channels than rows and columns, if there is."""
    grids = [
        (output.order, name)
        for name, output in outputs.items()
        if output.is_grid and not output.leaf and output.calls == 1 and output.channels > max(output.grid)
    ]
    return max(grids)[1] if grids else None


def find_layer(outputs: dict[str, LayerOutput]) -> str:
    """Return the last executed layer whose output is a grid with more channels than rows and columns.

    Raises:
        LayerError: there is none, or the network is a transformer whose grid is only its input.
    """
    name = last_grid(outputs)
    if name is None:
        if any(output.is_grid for output in outputs.values()):
            raise LayerError(
                "every grid of this network has more rows or columns than channels, and none stands out as the last; "
                f"name one with --layer, such as {_last_grid(outputs)!r}, or choose a smaller --input-size"
            )
        raise LayerError("no layer of this network gives a grid of cells; name one with --layer, or use a CNN")
    if outputs[name].tokens_follow:
        raise LayerError(_no_transformer(name))
    return name


def _no_transformer(name: str) -> str:
    return (
        f"layer {name!r} only feeds a transformer's tokens; masking it would not be Recipro-CAM. Use a CNN, or a "
        "vision transformer with a class token and blocks like vit_b_16's (run.py models lists them)"
    )


def check_layer(layer: str, outputs: dict[str, LayerOutput], net: nn.Module) -> str:
    """Return ``layer`` if its output can be masked cell by cell.

    Raises:
        LayerError: no such layer (with the nearest right name), not run, no grid, or a transformer's.
    """
    if layer not in outputs:
        known = {name for name, _ in net.named_modules() if name}
        if layer in known:
            raise LayerError(f"layer {layer!r} gives no tensor when the network runs; choose another --layer")
        grids = [name for name, output in outputs.items() if output.is_grid]
        close = difflib.get_close_matches(layer, [*grids, *known], n=1, cutoff=0.75)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(f"{name} ({rows}x{columns})" for name, (rows, columns) in _outer_grids(outputs)[-_LISTED:])
        raise LayerError(
            f"the network has no layer {layer!r}.{hint} Its last ones with a grid: {listed or 'none'}; "
            "run.py models --layers NAME lists all. Without --layer the last grid is found by itself"
        )
    output = outputs[layer]
    if not output.is_grid:
        raise LayerError(
            f"layer {layer!r} gives {_shape(output.shape)}: no grid of cells to explain; choose a layer before the "
            f"pooling, such as {_last_grid(outputs)!r}"
        )
    if output.tokens_follow:
        raise LayerError(_no_transformer(layer))
    return layer


def explainable(outputs: dict[str, LayerOutput]) -> list[str]:
    """Return the layers whose output is a grid that can be masked, in the order in which they answer."""
    found = [
        (output.order, name)
        for name, output in outputs.items()
        if output.is_grid and not output.leaf and output.calls == 1 and not output.tokens_follow
    ]
    return [name for _, name in sorted(found)]


def _outer_grids(outputs: dict[str, LayerOutput]) -> list[tuple[str, tuple[int, int]]]:
    """Return names and grids of the layers that hold others' or stand high up: the blocks that people name."""
    names = explainable(outputs)
    return [(name, outputs[name].grid) for name in names if name.count(".") <= 1]


def _shape(shape: tuple[int, ...]) -> str:
    return "(N, " + ", ".join(map(str, shape[1:])) + ")"


def _last_grid(outputs: dict[str, LayerOutput]) -> str:
    grids = [(output.order, name) for name, output in outputs.items() if output.is_grid and not output.leaf]
    return max(grids)[1] if grids else "(none)"
