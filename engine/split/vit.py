"""Cut a vision transformer where tokens can be masked: behind the first LayerNorm of a block.

A block is ``x + attention(norm(x))``, then ``+ mlp(...)`` of that. The cut has two edges: the tokens ``x`` that enter
the block, and ``norm(x)``. A mask hits ``norm(x)`` alone; ``x`` itself goes on as the frame gave it.
Knows nothing about explaining.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn

from engine.split.fx_split import head_of, nodes_behind, tail_of, trace_images
from engine.split.layers import LayerOutput, last_grid
from pipeline.errors import LayerError, did_you_mean

_BLOCKS: Final = (("ln_1", "self_attention"), ("norm1", "attn"))
"""What a block calls its first LayerNorm and its attention: torchvision, timm."""


@dataclass(frozen=True, slots=True)
class ViTSplitPoint:
    """Where a vision transformer is cut, and what its tokens are."""

    layer: str
    """The qualified name of a block's first LayerNorm."""
    attention: str
    """The qualified name of the same block's attention."""
    last: tuple[str, str]
    """The same two names of the last block."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    kept: int
    """How many tokens stand before the patches': the class token, and maybe registers."""
    channels: int
    """The length of a token."""


class ViTTail(nn.Module):
    """What follows a block's entry: tokens (N, T, C) to class scores (N, K), with a place to mask them."""

    def __init__(self, norm: nn.Module, rest: nn.Module, finish: nn.Module, attention: nn.Module) -> None:
        """Take the parts.

        Args:
            norm: the block's first LayerNorm.
            rest: (tokens, normalised tokens) to scores; what masking speaks to.
            finish: (tokens, the attention's answer) to scores: all of ``rest`` but the attention.
            attention: the block's attention.
        """
        super().__init__()
        self.norm = norm
        self.rest = rest
        self.finish = finish
        self.attention = attention
        self.grid = (0, 0)
        self.kept = 1
        self.reads: int | None = None
        """How many of the first tokens the verdict reads behind the attention; None = all may count."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return class scores, before the softmax."""
        scores: Tensor = self.rest(tokens, self.norm(tokens))
        return scores


def find_vit_split(net: nn.Module, outputs: dict[str, LayerOutput], layer: str | None) -> ViTSplitPoint | None:
    """Return where to cut a vision transformer; None for any other network.

    Args:
        net: the network.
        outputs: what its modules gave when it ran.
        layer: the block's first LayerNorm; None = the last block's.

    Raises:
        LayerError: it is a vision transformer, and ``layer`` is none of those, or it has no class token.
    """
    grid_name = last_grid(outputs)
    blocks = _blocks(net, outputs)
    if not blocks or (grid_name is not None and not outputs[grid_name].tokens_follow):
        return None
    last = list(blocks)[-1]
    name = last if layer is None else layer
    if name not in blocks:
        raise LayerError(
            f"layer {name!r}: in a vision transformer tokens are masked behind a block's first LayerNorm; leave "
            f"--layer out, or give one such as {last!r}.{did_you_mean(name, blocks)}"
        )
    _, count, channels = outputs[name].shape
    first = outputs[next(iter(blocks))].order
    grids = [(out.order, out.shape[2:]) for out in outputs.values() if len(out.shape) == 4 and out.order < first]
    rows, columns = max(grids)[1] if grids else (0, 0)
    kept = count - rows * columns
    if not grids or kept < 1:
        raise LayerError(
            f"this vision transformer has {count} tokens for {rows}x{columns} patches and so no class token, which "
            "ViT-ReciproCAM reads its verdict from; use one that has, such as vit_b_16, or a CNN"
        )
    return ViTSplitPoint(name, blocks[name], (last, blocks[last]), (rows, columns), kept, channels)


def _blocks(net: nn.Module, outputs: dict[str, LayerOutput]) -> dict[str, str]:
    """Return the attention's name by the first LayerNorm's, for every block, in the order they run."""
    found = {}
    for name, module in net.named_modules():
        for norm, attention in _BLOCKS:
            full = f"{name}.{norm}" if name else norm
            output = outputs.get(full)
            if hasattr(module, attention) and output is not None and len(output.shape) == 3 and output.calls == 1:
                found[full] = (output.order, f"{name}.{attention}" if name else attention)
    return {full: attention for full, (_, attention) in sorted(found.items(), key=lambda pair: pair[1])}


def split_vit(net: nn.Module, found: ViTSplitPoint) -> tuple[nn.Module, ViTTail]:
    """Return head, images to the tokens that enter the block, and tail.

    Raises:
        LayerError: the network cannot be traced, its scores also depend on the image by another way, or they are read
            from the patches' tokens (a mean over them) and not from a class token.
    """
    head, tail = _halves(net, found.layer, found.attention, found)
    if next(tail.parameters()).device.type == "meta":
        return head, tail
    verdict = tail if found.layer == found.last[0] else _halves(net, *found.last, found)[1]
    if rows_read(verdict, found) is None:
        raise LayerError(
            "this vision transformer reads its verdict from the patches' tokens (a mean over them, or attention), and "
            "not from a class token as ViT-ReciproCAM needs it; use one that does, such as vit_b_16, or a CNN"
        )
    tail.reads = rows_read(tail, found)
    return head, tail


def _halves(net: nn.Module, norm: str, attention: str, found: ViTSplitPoint) -> tuple[fx.GraphModule, ViTTail]:
    try:
        graph = trace_images(net, norm, attention)
    except Exception as reason:  # tracing runs the network's own code, which may raise anything
        said = str(reason).strip().splitlines() or [type(reason).__name__]
        raise LayerError(f"layer {norm!r}: this transformer cannot be traced ({said[0][:160]})") from reason
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    if norm not in calls or attention not in calls or not calls[norm].all_input_nodes:
        raise LayerError(f"layer {norm!r}: its block does not call its parts in the usual way; use another --model")
    entry, normed, answer = calls[norm].all_input_nodes[0], calls[norm], _tensor_of(calls[attention])
    behind = nodes_behind(graph, [entry, normed]) | nodes_behind(graph, [entry, answer])
    if any(node.op == "placeholder" for node in behind):
        raise LayerError(f"layer {norm!r}: the network also reaches its scores around this block; use another --layer")
    tail = ViTTail(
        net.get_submodule(norm), tail_of(net, graph, [entry, normed]), tail_of(net, graph, [entry, answer]),
        net.get_submodule(attention),
    )  # fmt: skip
    tail.grid, tail.kept = found.grid, found.kept
    return head_of(net, graph, entry), tail


def _tensor_of(attention: fx.Node) -> fx.Node:
    """Return the node that holds the attention's answer: torch's gives it first of two."""
    for user in attention.users:
        if user.target is operator.getitem and user.args[1] == 0:
            return user
    return attention


def rows_read(tail: ViTTail, found: ViTSplitPoint) -> int | None:
    """Return how many of the first tokens the verdict reads behind the attention; None where it is more than kept.

    What is not read may be NaN without harm.
    """
    count = found.kept + found.grid[0] * found.grid[1]
    weight = next(p for p in tail.parameters() if p.is_floating_point())
    tokens = torch.randn((1, count, found.channels), generator=torch.Generator().manual_seed(4)).to(weight)
    for rows in sorted({1, found.kept}):
        spoilt = tokens.clone()
        spoilt[:, rows:] = torch.nan
        with torch.inference_mode():
            if not bool(tail.finish(spoilt, spoilt).isnan().any()):
                return rows
    return None
