"""Splits a vision transformer after the first LayerNorm of a block, where ViT-ReciproCAM masks tokens.

A block computes ``y = x + attention(norm(x))``, then ``y + mlp(norm2(y))``. The tail has two inputs: the block's input
``x``, and ``norm(x)``. A mask changes only ``norm(x)``; the residual connection uses the unmasked ``x``.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn

from engine.split.fx_split import build_head, build_tail, nodes_after, trace_images
from engine.split.layers import LayerOutput, last_grid
from pipeline.errors import LayerError, did_you_mean

_BLOCKS: Final = (("ln_1", "self_attention"), ("norm1", "attn"))
"""Names of a block's first LayerNorm and attention: in torchvision, in timm."""


@dataclass(frozen=True, slots=True)
class ViTSplitPoint:
    """The layer where a vision transformer is split, and the layout of its tokens."""

    layer: str
    """The qualified name of a block's first LayerNorm."""
    attention: str
    """The qualified name of the same block's attention."""
    last: tuple[str, str]
    """The names of the last block's first LayerNorm and attention."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    prefix_tokens: int
    """Number of tokens before the patch tokens: the class token and registers."""
    channels: int
    """Width C of a token."""


class ViTTail(nn.Module):
    """The network from a block's input on: computes class logits (N, K) from tokens (N, T, C)."""

    def __init__(self, norm: nn.Module, rest: nn.Module, finish: nn.Module, attention: nn.Module) -> None:
        """Create the tail; ``split_vit`` sets the attributes ``grid``, ``prefix_tokens`` and ``tokens_read``.

        Args:
            norm: the block's first LayerNorm.
            rest: computes logits from (tokens, normalised tokens); masks change the second input.
            finish: computes logits from (tokens, the attention's output): ``rest`` without the attention.
            attention: the block's attention.
        """
        super().__init__()
        self.norm = norm
        self.rest = rest
        self.finish = finish
        self.attention = attention
        self.grid = (0, 0)
        self.prefix_tokens = 1
        self.tokens_read: int | None = None
        """Number of leading tokens that the layers after the attention read for the logits; None: possibly all."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return class logits (N, K)."""
        scores: Tensor = self.rest(tokens, self.norm(tokens))
        return scores


def find_vit_split(net: nn.Module, outputs: dict[str, LayerOutput], layer: str | None) -> ViTSplitPoint | None:
    """Return where to split a vision transformer; None for other networks.

    Args:
        net: the network.
        outputs: the outputs of its modules, from ``trace_layer_outputs``.
        layer: a block's first LayerNorm; None: that of the last block.

    Raises:
        LayerError: the network is a vision transformer, and ``layer`` is not the first LayerNorm of a block, or the
            network has no class token.
    """
    grid_name = last_grid(outputs)
    blocks = _blocks(net, outputs)
    if not blocks or (grid_name is not None and not outputs[grid_name].tokens_follow):
        return None
    last = list(blocks)[-1]
    name = last if layer is None else layer
    if name not in blocks:
        raise LayerError(
            f"layer {name!r}: a vision transformer is split after a block's first LayerNorm; omit --layer, or use "
            f"one such as {last!r}.{did_you_mean(name, blocks)}"
        )
    _, count, channels = outputs[name].shape
    first = outputs[next(iter(blocks))].order
    rows, columns = _patch_grid([out for out in outputs.values() if out.order < first], count)
    prefix_tokens = count - rows * columns
    if rows == 0 or prefix_tokens < 1:
        raise LayerError(
            f"layer {name!r}: this vision transformer has {count} tokens at this layer for {rows}x{columns} patches; "
            "ViT-ReciproCAM needs a class token and one token for each patch; use a model such as vit_b_16, or a CNN"
        )
    for block in {name, last}:
        if (attended := outputs.get(blocks[block])) is not None and attended.shape != outputs[block].shape:
            raise LayerError(
                f"layer {block!r}: the attention of this block returns {_tokens(attended)} for {count} tokens (class "
                "attention, as in CaiT and XCiT); ViT-ReciproCAM needs blocks whose attention returns every token; "
                "use a model such as vit_b_16, or a CNN"
            )
    return ViTSplitPoint(name, blocks[name], (last, blocks[last]), (rows, columns), prefix_tokens, channels)


def _patch_grid(outputs: list[LayerOutput], count: int) -> tuple[int, int]:
    """Return rows and columns of the patches; (0, 0) if no map comes before the blocks.

    The channels of the last map may be first or last. Of the two layouts, the grid whose size is nearest to the number
    of tokens ``count`` is chosen.
    """
    maps = [out for out in outputs if len(out.shape) == 4]
    if not maps:
        return 0, 0
    _, *sizes = max(maps, key=lambda out: out.order).shape
    grids = [(sizes[1], sizes[2]), (sizes[0], sizes[1])]
    return min(grids, key=lambda grid: abs(count - grid[0] * grid[1]))


def _tokens(output: LayerOutput) -> str:
    return f"{output.shape[1]} token{'s' * (output.shape[1] != 1)}" if len(output.shape) == 3 else "no tokens"


def _blocks(net: nn.Module, outputs: dict[str, LayerOutput]) -> dict[str, str]:
    """Return, in execution order, the attention's name by the name of the block's first LayerNorm."""
    blocks = {}
    for name, module in net.named_modules():
        for norm, attention in _BLOCKS:
            full = f"{name}.{norm}" if name else norm
            output = outputs.get(full)
            if hasattr(module, attention) and output is not None and len(output.shape) == 3 and output.calls == 1:
                blocks[full] = (output.order, f"{name}.{attention}" if name else attention)
    return {full: attention for full, (_, attention) in sorted(blocks.items(), key=lambda pair: pair[1])}


def split_vit(net: nn.Module, split_point: ViTSplitPoint) -> tuple[nn.Module, ViTTail]:
    """Return the head, from images (N, 3, H, W) to the block's input tokens (N, T, C), and the tail.

    Raises:
        LayerError: the network cannot be traced, another path leads from the image to the scores, or the scores are
            read from the patch tokens (such as their mean) instead of a class token.
    """
    head, tail = _halves(net, split_point.layer, split_point.attention, split_point)
    if next(tail.parameters()).device.type == "meta":
        return head, tail
    last_tail = tail if split_point.layer == split_point.last[0] else _halves(net, *split_point.last, split_point)[1]
    if count_tokens_read(last_tail, split_point) is None:
        raise LayerError(
            "this vision transformer computes its scores from the patch tokens (their mean, or attention pooling), "
            "but ViT-ReciproCAM needs a class token; use a model such as vit_b_16, or a CNN"
        )
    tail.tokens_read = count_tokens_read(tail, split_point)
    return head, tail


def _halves(net: nn.Module, norm: str, attention: str, split_point: ViTSplitPoint) -> tuple[fx.GraphModule, ViTTail]:
    try:
        graph = trace_images(net, norm, attention)
    except Exception as reason:  # tracing runs the network's own code, which may raise anything
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        why = "its code branches on its inputs" if "control flow" in lines[0] else lines[0][:160]
        raise LayerError(
            f"layer {norm!r}: this transformer cannot be traced ({why}); use a model such as vit_b_16, or a CNN"
        ) from reason
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    if norm not in calls or attention not in calls or not calls[norm].all_input_nodes:
        raise LayerError(
            f"layer {norm!r}: the block does not call its LayerNorm and attention as modules; use another --model"
        )
    entry, normed, attended = calls[norm].all_input_nodes[0], calls[norm], _tensor_of(calls[attention])
    after = nodes_after(graph, [entry, normed]) | nodes_after(graph, [entry, attended])
    if any(node.op == "placeholder" for node in after):
        raise LayerError(
            f"layer {norm!r}: the scores also depend on a path that bypasses this block; use another --layer"
        )
    tail = ViTTail(
        net.get_submodule(norm), build_tail(net, graph, [entry, normed]), build_tail(net, graph, [entry, attended]),
        net.get_submodule(attention),
    )  # fmt: skip
    tail.grid, tail.prefix_tokens = split_point.grid, split_point.prefix_tokens
    return build_head(net, graph, entry), tail


def _tensor_of(attention: fx.Node) -> fx.Node:
    """Return the node of the attention's output tensor; ``nn.MultiheadAttention`` returns a pair."""
    for user in attention.users:
        if user.target is operator.getitem and user.args[1] == 0:
            return user
    return attention


def count_tokens_read(tail: ViTTail, split_point: ViTSplitPoint) -> int | None:
    """Return how many leading tokens the layers after the attention read; None if they read patch tokens.

    Tests this with NaN in all other tokens: tokens that are not read do not change the logits.
    """
    count = split_point.prefix_tokens + split_point.grid[0] * split_point.grid[1]
    weight = next(p for p in tail.parameters() if p.is_floating_point())
    tokens = torch.randn((1, count, split_point.channels), generator=torch.Generator().manual_seed(4)).to(weight)
    for rows in sorted({1, split_point.prefix_tokens}):
        filled = tokens.clone()
        filled[:, rows:] = torch.nan
        with torch.inference_mode():
            if not bool(tail.finish(filled, filled).isnan().any()):
                return rows
    return None
