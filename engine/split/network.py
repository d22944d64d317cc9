"""Splits a network into head (images to features) and tail (features to logits), and verifies it.

The split is made in the network's traced graph (``torch.fx``), so that functional calls between modules and in-place
operations are preserved. If a network cannot be traced, forward hooks replace the layer's output
(``engine.split.hook_split``): slower, but equally exact. For vision transformers see ``engine.split.vit``.
"""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.split.fx_split import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    LayerTracer,
    build_head,
    build_tail,
    nodes_after,
    nodes_before,
    permute_input,
    permute_output,
)  # fmt: skip
from engine.split.hook_split import HookHead, HookTail
from engine.split.layers import LayerOutput, check_layer, find_layer, trace_layer_outputs
from engine.split.vit import ViTTail, find_vit_split, split_vit
from pipeline.errors import EngineError, LayerError, ReciproStreamError

TOLERANCE = 1e-4
"""Maximum difference between ``tail(head(x))`` and ``net(x)``, as a fraction of the largest output."""


@dataclass(frozen=True, eq=False)
class SplitModel:
    """A network in two parts, with ``tail(head(images)) == net(images)`` within ``TOLERANCE``.

    Head and tail are in inference mode. They share the weights of a copy of the network.
    """

    head: nn.Module
    """Computes the feature map (N, C, h, w), or a transformer's tokens (N, T, C), from images (N, 3, H, W)."""
    tail: nn.Module
    """Computes class logits (N, K) from the head's output. A ``ViTTail`` for transformers."""
    layer: str
    """Qualified name of the layer in ``net.named_modules()``."""
    grid: tuple[int, int]
    """Rows and columns of the feature map, or of the patches, for images of ``image_size``."""
    image_size: tuple[int, int]
    """Height and width in pixels for which the split is verified."""
    channels: int
    """C, the length of one cell's vector."""
    classes: int
    """K, the number of classes."""
    traced: bool
    """True if head and tail are ``torch.fx`` graphs, False if they use forward hooks (slower)."""
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Plans chosen and verified for this split, by kernel, shape, dtype, device and budget."""

    @property
    def method(self) -> str:
        """The name of the explanation method: ``recipro-cam``, or ``vit-recipro-cam`` for a vision transformer."""
        return "vit-recipro-cam" if isinstance(self.tail, ViTTail) else "recipro-cam"


def split_network(net: nn.Module, layer: str | None = None, image_size: tuple[int, int] = (224, 224)) -> SplitModel:
    """Split ``net`` after ``layer``; ``net`` itself is not changed.

    Args:
        net: an image classifier, from images (N, 3, H, W) to scores (N, K). A copy in inference mode is used.
        layer: a qualified name of ``net.named_modules()``. None: the last layer whose output is a grid, or the first
            LayerNorm of a vision transformer's last block. The layer's output may be (N, C, h, w), or (N, h, w, C) as
            in Swin; head and tail always use (N, C, h, w).
        image_size: height and width in pixels of the images.

    Returns:
        The split network.

    Raises:
        LayerError: there is no such layer, its output is not a grid, a path to the scores bypasses it (a layer inside
            a residual branch), or the network is a transformer without a class token or with an unknown form.
        EngineError: the network does not return scores (N, K) with K > 1, or does not accept this image size.
    """
    copied = copy.deepcopy(net).eval().requires_grad_(requires_grad=False)
    probe = _probe_images(copied, image_size)
    outputs, scores = trace_layer_outputs(copied, probe)
    if scores.shape[1] == 1:
        raise EngineError(
            "the network returns one score, whose softmax is always 1, so every heat map would be empty; return two "
            "scores instead: torch.cat((torch.zeros_like(score), score), 1) is equivalent to a sigmoid"
        )
    try:
        with redirect_stderr(io.StringIO()):  # torch.fx prints what fails in a traced graph
            return _split_and_verify(copied, layer, probe, outputs, scores)
    except ReciproStreamError:
        raise
    except Exception as reason:  # the network's own code may raise anything
        subject = f"layer {layer!r}" if layer else "this network"
        message = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
        raise LayerError(
            f"{subject}: the network cannot be split there ({message}); choose another --layer (run.py models --layers "
            "NAME lists them), or another --model"
        ) from reason


def _split_and_verify(
    copied: nn.Module, layer: str | None, probe: Tensor, outputs: dict[str, LayerOutput],
    scores: Tensor,
) -> SplitModel:  # fmt: skip
    tokens = find_vit_split(copied, outputs, layer)
    head: nn.Module
    tail: nn.Module
    if tokens is not None:
        name, grid, channels, traced = tokens.layer, tokens.grid, tokens.channels, True
        head, tail = split_vit(copied, tokens)
    else:
        name = find_layer(outputs) if layer is None else check_layer(layer, outputs, copied)
        grid, channels = outputs[name].grid, outputs[name].channels
        head, tail, traced = _split(copied, name, outputs)
        if outputs[name].channels_last:
            head, tail = permute_output(head, CHANNELS_FIRST), permute_input(tail, CHANNELS_LAST)
    _verify(head, tail, probe, scores, name)
    image_size = (int(probe.shape[2]), int(probe.shape[3]))
    return SplitModel(head, tail, name, grid, image_size, channels, classes=int(scores.shape[1]), traced=traced)


def _probe_images(net: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """Return two random images on the network's device; the global random state is not changed."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.device.type == "meta":
        return torch.empty((2, 3, *image_size), device="meta", dtype=weight.dtype)
    images = torch.randn((2, 3, *image_size), generator=torch.Generator().manual_seed(0))
    return images.to(device=weight.device, dtype=weight.dtype)


def _split(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> tuple[nn.Module, nn.Module, bool]:
    """Return head, tail, and whether they are traced graphs."""
    graph = _graph(net, layer, outputs)
    if graph is None:
        if outputs[layer].calls > 1:
            raise LayerError(_several_calls_message(layer, outputs[layer].calls))
        return HookHead(net, layer), HookTail(net, layer, outputs[layer].image_shape), False
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(nodes) != 1:
        raise LayerError(_several_calls_message(layer, len(nodes)))
    bypassing = _bypassing_nodes(graph, nodes[0])
    if bypassing:
        enclosing = _enclosing_layer(net, layer, outputs)
        hint = f"; choose the whole block: --layer {enclosing}" if enclosing else "; choose a whole block"
        raise LayerError(
            f"layer {layer!r}: the scores also depend on a path that bypasses this layer (through "
            f"{bypassing[0].name!r}), which masks would not change{hint}"
        )
    return build_head(net, graph, nodes[0]), build_tail(net, graph, [nodes[0]]), True


def _graph(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> fx.Graph | None:
    """Trace a network in as much detail as possible; return None if it cannot be traced.

    Only the part after the layer is needed in detail. If full tracing fails, the modules that run before the layer
    become leaves, and then all modules that do not contain the layer.
    """
    order = outputs[layer].order
    before = {name for name, output in outputs.items() if output.order < order and not layer.startswith(f"{name}.")}
    beside = {name for name, _ in net.named_modules() if name and not f"{layer}.".startswith(f"{name}.")}
    for whole in (set[str](), before, beside):
        with suppress(Exception):  # tracing runs the network's copied code, which may raise anything
            graph: fx.Graph = LayerTracer(layer, whole=whole).trace(net)
            return graph
    return None


def _several_calls_message(layer: str, calls: int) -> str:
    return f"layer {layer!r} runs {calls} times in one forward pass; choose a layer that runs only once"


def _bypassing_nodes(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """Return the nodes on paths from the image to the output that do not pass ``cut``."""
    images = {node for node in graph.nodes if node.op == "placeholder"}
    seen = nodes_after(graph, [cut])
    if not seen & images:
        return []
    earlier = nodes_before(cut)
    return [node for node in graph.nodes if node in seen and node in earlier] or sorted(seen & images, key=str)


def _enclosing_layer(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> str | None:
    """Return the innermost enclosing module that all paths pass; None if there is none."""
    name = layer
    while "." in name:
        name = name.rpartition(".")[0]
        if name not in outputs or not outputs[name].is_grid:
            continue
        graph = _graph(net, name, outputs)
        if graph is None:
            return None
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
        if len(nodes) == 1 and not _bypassing_nodes(graph, nodes[0]):
            return name
    return None


def _verify(head: nn.Module, tail: nn.Module, probe: Tensor, scores: Tensor, layer: str) -> None:
    """Check that ``tail(head(x))`` equals the network's scores and that the tail does not change its input.

    Raises:
        LayerError: the tail changes its input.
        EngineError: the scores differ by more than ``TOLERANCE``.
    """
    if probe.device.type == "meta":
        return
    with torch.inference_mode():
        features = head(probe)
        unchanged = features.clone()
        actual = tail(features)
    if not torch.equal(unchanged.nan_to_num(), features.nan_to_num()):
        raise LayerError(f"layer {layer!r}: the next layer changes its input in place; choose that layer by --layer")
    if actual.shape != scores.shape:
        raise EngineError(
            f"layer {layer!r}: tail(head(x)) has shape {tuple(actual.shape)}, not {tuple(scores.shape)}; choose "
            "another --layer"
        )
    error = float((actual - scores).abs().max())
    if not error <= TOLERANCE * max(float(scores.abs().max()), 1e-30):
        raise EngineError(
            f"layer {layer!r}: tail(head(x)) differs from the network by {error:.3g}: the network is not "
            "deterministic, or cannot be split at this layer; choose another --layer"
        )
