"""Cut a network into head (image to feature map) and tail (feature map to class scores), and prove the cut.

A vision transformer is cut where its last block takes its tokens: see ``engine.split.vit``.

The cut is made in the network's traced graph (``torch.fx``), so functional calls between modules and in-place
operations keep their meaning. A network that cannot be traced is cut by running its own forward again with the
feature map put in place (``engine.split.hook_split``): slower, and just as exact. Knows nothing about explaining.
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
    before_permute,
    behind_permute,
    head_of,
    nodes_before,
    nodes_behind,
    tail_of,
)  # fmt: skip
from engine.split.hook_split import HookHead, HookTail
from engine.split.layers import LayerOutput, check_layer, find_layer, trace_layer_outputs
from engine.split.vit import ViTTail, find_vit_split, split_vit
from pipeline.errors import EngineError, LayerError, ReciproStreamError

PROOF_TOLERANCE = 1e-4
"""How far ``tail(head(x))`` may be from ``net(x)``, as a share of the largest output."""


@dataclass(frozen=True, eq=False)
class SplitModel:
    """A network cut in two: ``tail(head(images)) == net(images)``, proven when it was made.

    Both halves are copies in inference mode; they share the copy's weights, never the given network's.
    """

    head: nn.Module
    """(N, 3, H, W) float images to the (N, C, h, w) feature map, or a transformer's tokens (N, T, C)."""
    tail: nn.Module
    """What the head gives to (N, K) class scores before the softmax. A transformer's is a ``ViTTail``."""
    layer: str
    """The cut layer's qualified name in ``net.named_modules()``."""
    grid: tuple[int, int]
    """Rows and columns of the feature map, or of the patches, for images of ``image_size``."""
    image_size: tuple[int, int]
    """Height and width in pixels that the cut was proven at."""
    channels: int
    """C, the length of one cell's vector."""
    classes: int
    """K, the number of class scores."""
    traced: bool
    """Whether head and tail are graphs of their own; False = the slower way through the network's own forward."""
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Explaining plans already chosen and proven for this cut, by kernel and grid."""

    @property
    def method(self) -> str:
        """The name of what explains such a cut: ``recipro-cam``, or ``vit-recipro-cam`` for tokens."""
        return "vit-recipro-cam" if isinstance(self.tail, ViTTail) else "recipro-cam"


def split_network(net: nn.Module, layer: str | None = None, image_size: tuple[int, int] = (224, 224)) -> SplitModel:
    """Cut ``net`` behind ``layer``; ``net`` itself is left as it was.

    Args:
        net: an image classifier, (N, 3, H, W) to (N, K). It is copied and the copy put in inference mode.
        layer: a qualified name of ``net.named_modules()``; None finds the last layer whose output is a grid, or the
            first LayerNorm of a vision transformer's last block. A grid may be (N, C, h, w), or (N, h, w, C) as Swin
            has it: head and tail speak (N, C, h, w) in any case.
        image_size: height and width in pixels of the images that will come.

    Raises:
        LayerError: there is no such layer, its output is no grid, the network also reaches its scores around it (a
            layer inside a residual branch), or it is a transformer without a class token or without such blocks.
        EngineError: the network returns something other than (N, K) scores, or cannot take this image size.
    """
    own = copy.deepcopy(net).eval().requires_grad_(requires_grad=False)
    probe = _probe_images(own, image_size)
    outputs, scores = trace_layer_outputs(own, probe)
    if scores.shape[1] == 1:
        raise EngineError(
            "the network gives one score, and the softmax of one is always 1, so every map would be empty; where a "
            "sigmoid is meant, give two: torch.cat((torch.zeros_like(score), score), 1) is the same verdict"
        )
    try:
        with redirect_stderr(io.StringIO()):  # torch.fx prints what fails in a traced graph
            return _cut_and_proven(own, layer, probe, outputs, scores)
    except ReciproStreamError:
        raise
    except Exception as reason:  # it is the network's own code, which may raise anything
        named = f"layer {layer!r}" if layer else "this network"
        told = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
        raise LayerError(
            f"{named}: cannot be cut there ({told}); choose another --layer (run.py models --layers NAME lists them), "
            "or another --model"
        ) from reason


def _cut_and_proven(
    own: nn.Module, layer: str | None, probe: Tensor, outputs: dict[str, LayerOutput],
    scores: Tensor,
) -> SplitModel:  # fmt: skip
    tokens = find_vit_split(own, outputs, layer)
    head: nn.Module
    tail: nn.Module
    if tokens is not None:
        name, grid, channels, traced = tokens.layer, tokens.grid, tokens.channels, True
        head, tail = split_vit(own, tokens)
    else:
        name = find_layer(outputs) if layer is None else check_layer(layer, outputs, own)
        grid, channels = outputs[name].grid, outputs[name].channels
        head, tail, traced = _cut(own, name, outputs)
        if outputs[name].channels_last:
            head, tail = behind_permute(head, CHANNELS_FIRST), before_permute(tail, CHANNELS_LAST)
    _prove(head, tail, probe, scores, name)
    image_size = (int(probe.shape[2]), int(probe.shape[3]))
    return SplitModel(head, tail, name, grid, image_size, channels, classes=int(scores.shape[1]), traced=traced)


def _probe_images(net: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """Draw two random images on the network's device, without touching anybody's random state."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.device.type == "meta":
        return torch.empty((2, 3, *image_size), device="meta", dtype=weight.dtype)
    images = torch.randn((2, 3, *image_size), generator=torch.Generator().manual_seed(0))
    return images.to(device=weight.device, dtype=weight.dtype)


def _cut(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> tuple[nn.Module, nn.Module, bool]:
    """Return head, tail, and whether they are graphs of their own."""
    graph = _graph(net, layer, outputs)
    if graph is None:
        if outputs[layer].calls > 1:
            raise LayerError(_called_often(layer, outputs[layer].calls))
        return HookHead(net, layer), HookTail(net, layer, outputs[layer].image_shape), False
    nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(nodes) != 1:
        raise LayerError(_called_often(layer, len(nodes)))
    around = _ways_around(graph, nodes[0])
    if around:
        enclosing = _enclosing_cut(net, layer, outputs)
        hint = f"; mask the whole block instead: --layer {enclosing}" if enclosing else "; choose a whole block"
        raise LayerError(
            f"layer {layer!r}: the network also reaches its scores around this layer (by {around[0].name!r}), so "
            f"masking it would leave that path open{hint}"
        )
    return head_of(net, graph, nodes[0]), tail_of(net, graph, [nodes[0]]), True


def _graph(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> fx.Graph | None:
    """Trace a network, as finely as it can be; None where it cannot be traced at all.

    Only what follows the layer need be known in detail. Where tracing everything fails, what runs before the layer is
    left whole, and then every module that does not contain the layer.
    """
    place = outputs[layer].order
    before = {name for name, output in outputs.items() if output.order < place and not layer.startswith(f"{name}.")}
    beside = {name for name, _ in net.named_modules() if name and not f"{layer}.".startswith(f"{name}.")}
    for whole in (set[str](), before, beside):
        with suppress(Exception):  # tracing runs the network's own code, which may raise anything
            graph: fx.Graph = LayerTracer(layer, whole=whole).trace(net)
            return graph
    return None


def _called_often(layer: str, calls: int) -> str:
    return f"layer {layer!r} runs {calls} times in one forward pass; choose a layer that runs once"


def _ways_around(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """Nodes computed from the image whose values reach the output without passing ``cut``."""
    images = {node for node in graph.nodes if node.op == "placeholder"}
    seen = nodes_behind(graph, [cut])
    if not seen & images:
        return []
    earlier = nodes_before(cut)
    return [node for node in graph.nodes if node in seen and node in earlier] or sorted(seen & images, key=str)


def _enclosing_cut(net: nn.Module, layer: str, outputs: dict[str, LayerOutput]) -> str | None:
    """Return the innermost enclosing module that every path passes, or None."""
    name = layer
    while "." in name:
        name = name.rpartition(".")[0]
        if name not in outputs or not outputs[name].is_grid:
            continue
        graph = _graph(net, name, outputs)
        if graph is None:
            return None
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
        if len(nodes) == 1 and not _ways_around(graph, nodes[0]):
            return name
    return None


def _prove(head: nn.Module, tail: nn.Module, probe: Tensor, scores: Tensor, layer: str) -> None:
    """Compare ``tail(head(x))`` with the network itself, and see that the tail leaves its input alone."""
    if probe.device.type == "meta":
        return
    with torch.inference_mode():
        features = head(probe)
        kept = features.clone()
        again = tail(features)
    if not torch.equal(kept.nan_to_num(), features.nan_to_num()):
        raise LayerError(f"layer {layer!r}: the layers behind it change their input in place; cut at the next one")
    if again.shape != scores.shape:
        raise EngineError(f"layer {layer!r}: tail(head(x)) has shape {tuple(again.shape)}, not {tuple(scores.shape)}")
    error = float((again - scores).abs().max())
    if not error <= PROOF_TOLERANCE * max(float(scores.abs().max()), 1e-30):
        raise EngineError(
            f"layer {layer!r}: tail(head(x)) differs from the network by {error:.3g}; the network behaves "
            "differently from call to call or cannot be cut here; choose another --layer"
        )
