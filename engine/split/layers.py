"""Finds the layers of a network that can be explained, and the default layer.

A layer can be explained if its output is a grid of cells: a feature map (N, C, h, w) with h * w > 1.
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
"""Maximum number of layers in an error message."""

_PASS_THROUGH = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
)
"""Modules that do not count as layers, such as VGG's 7x7 pooling."""


@dataclass(slots=True)
class LayerOutput:
    """The output of one module in one forward pass."""

    shape: tuple[int, ...]
    """Shape of the output, including the batch."""
    calls: int
    """Number of calls of the module."""
    order: int
    """Position among all outputs; containers come after their children."""
    pass_through: bool
    """True if the module is one of ``_PASS_THROUGH``."""
    image_shape: tuple[int, ...]
    """Shape (N, 3, H, W) of the input images."""
    tokens_follow: bool = False
    """True if a later module outputs a sequence of tokens (N, T, C): this grid is the input of a transformer."""

    channels_last: bool = False
    """True if the layout is (N, h, w, C), as in Swin, False if it is (N, C, h, w)."""

    @property
    def is_grid(self) -> bool:
        """True if the output is (N, C, h, w) or (N, h, w, C) with more than one cell per image."""
        return len(self.shape) == 4 and self.shape[0] == self.image_shape[0] and self.grid[0] * self.grid[1] > 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (self.shape[1], self.shape[2]) if self.channels_last else (self.shape[2], self.shape[3])

    @property
    def channels(self) -> int:
        """Number of channels of the grid."""
        return self.shape[3] if self.channels_last else self.shape[1]


def trace_layer_outputs(net: nn.Module, images: Tensor) -> tuple[dict[str, LayerOutput], Tensor]:
    """Run ``net`` once and record the output of every module.

    Args:
        net: the network.
        images: (N, 3, H, W), normalised.

    Returns:
        The output of each module that returns a tensor, by qualified name, and the scores (N, K).

    Raises:
        EngineError: the network does not accept images of this size, or does not return scores (N, K).
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
        traced = outputs.get(name)
        pass_through = isinstance(module, _PASS_THROUGH)
        calls = traced.calls + 1 if traced else 1
        outputs[name] = LayerOutput(tuple(result.shape), calls, order, pass_through, tuple(images.shape))

    handles: list[RemovableHandle] = []
    try:
        for name, module in net.named_modules():
            if name:
                handles.append(
                    module.register_forward_hook(lambda module, _, result, name=name: note(name, module, result))
                )
        with torch.inference_mode():
            scores = net(images)
    except Exception as reason:  # the network's own code may raise anything
        height, width = images.shape[2:]
        raise EngineError(
            f"the network does not accept a {height}x{width} image ({_first_line(reason)}); set the size of its "
            "training images by --input-size"
        ) from reason
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[0] != images.shape[0]:
        returned = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise EngineError(f"the network returns {returned}, not class scores (N, K); use an image classifier")
    for output in outputs.values():
        output.channels_last = output.shape in last
    _mark_tokens(outputs)
    return outputs, scores


def _channels_last(module: nn.Module, result: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes (N, h, w, C) of a module that processes the last dimension of a map, else []."""
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
    """Return the last layer whose output is a grid with more channels than rows and columns, or None."""
    grids = [
        (output.order, name)
        for name, output in outputs.items()
        if output.is_grid and not output.pass_through and output.calls == 1 and output.channels > max(output.grid)
    ]
    return max(grids)[1] if grids else None


def find_layer(outputs: dict[str, LayerOutput]) -> str:
    """Return the last layer whose output is a grid with more channels than rows and columns.

    Raises:
        LayerError: there is no such layer, or the network is a transformer, whose only grid is its patch embedding.
    """
    name = last_grid(outputs)
    if name is None:
        if any(output.is_grid for output in outputs.values()):
            raise LayerError(
                "every grid of this network has more rows or columns than channels, so the default layer is not "
                f"clear; choose one with --layer, such as {_last_grid(outputs)!r}, or a smaller --input-size"
            )
        raise LayerError(
            "no layer of this network outputs a grid of cells (N, C, h, w); choose a layer with --layer, or use a CNN"
        )
    if outputs[name].tokens_follow:
        raise LayerError(_no_transformer(name))
    return name


def _no_transformer(name: str) -> str:
    return (
        f"layer {name!r} is the input of a transformer, to which Recipro-CAM does not apply; use a CNN, or a "
        "vision transformer with a class token and blocks like vit_b_16's (run.py models lists them)"
    )


def check_layer(layer: str, outputs: dict[str, LayerOutput], net: nn.Module) -> str:
    """Return ``layer`` if its output can be masked cell by cell.

    Raises:
        LayerError: there is no such layer (the message suggests the nearest name), it does not run, its output is no
            grid, or it is the input of a transformer.
    """
    if layer not in outputs:
        traced = {name for name, _ in net.named_modules() if name}
        if layer in traced:
            raise LayerError(f"layer {layer!r} does not output a tensor when the network runs; choose another --layer")
        grids = [name for name, output in outputs.items() if output.is_grid]
        close = difflib.get_close_matches(layer, [*grids, *traced], n=1, cutoff=0.75)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(f"{name} ({rows}x{columns})" for name, (rows, columns) in _outer_grids(outputs)[-_LISTED:])
        raise LayerError(
            f"the network has no layer {layer!r}.{hint} Its last layers with a grid: {listed or 'none'}; "
            "run.py models --layers NAME lists all. Without --layer the last grid is used"
        )
    output = outputs[layer]
    if not output.is_grid:
        raise LayerError(
            f"layer {layer!r} outputs {_shape(output.shape)}, which is not a grid of cells; choose a layer before the "
            f"pooling, such as {_last_grid(outputs)!r}"
        )
    if output.tokens_follow:
        raise LayerError(_no_transformer(layer))
    return layer


def explainable(outputs: dict[str, LayerOutput]) -> list[str]:
    """Return the layers whose output is a grid that can be masked, in order of execution."""
    grids = [
        (output.order, name)
        for name, output in outputs.items()
        if output.is_grid and not output.pass_through and output.calls == 1 and not output.tokens_follow
    ]
    return [name for _, name in sorted(grids)]


def _outer_grids(outputs: dict[str, LayerOutput]) -> list[tuple[str, tuple[int, int]]]:
    """Return names and grids of explainable layers at the first two levels of the module tree."""
    names = explainable(outputs)
    return [(name, outputs[name].grid) for name in names if name.count(".") <= 1]


def _shape(shape: tuple[int, ...]) -> str:
    return "(N, " + ", ".join(map(str, shape[1:])) + ")"


def _last_grid(outputs: dict[str, LayerOutput]) -> str:
    grids = [(output.order, name) for name, output in outputs.items() if output.is_grid and not output.pass_through]
    return max(grids)[1] if grids else "(none)"
