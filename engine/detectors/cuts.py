"""Finds complete cuts of a detector: sets of maps that every path from the image passes through.

A cut is complete if every path from the image to the read maps goes through one of its nodes. The rule for the default
cut of a level, in this order:

1. The last nodes that are computed without a coarser map, that is, the outputs of the backbone before a top-down path.
Nodes of the same stride are replaced by the last node through which all of them are computed.
2. If a node is the output of a 1x1 convolution that reduces channels (the first layer of the pyramid), the input of
this convolution is used. A cut is never inside the head of the level.
3. While the cone of the cut does not cover a box of the level's usual size (``Layout.extent``), or all nodes are
coarser than ``MAX_STRIDE``, the coarsest node is replaced by the last node through which it is computed.

For a YOLO the result is C3, C4 and C5; for a single chain of maps, such as SSD, one earlier map.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch
from torch import fx, nn

from engine.detectors.cone import needed_spans
from engine.detectors.graph import Network, ancestors
from engine.detectors.outputs import Layout, Read
from engine.detectors.regions import grid_stride
from engine.detectors.split import Cut
from pipeline.errors import LayerError, did_you_mean

MAX_STRIDE: Final = 32
"""The finest node of a complete cut has at most this stride."""

_POOLS: Final = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MAX_LISTED: Final = 8


def stride_of(network: Network, node: fx.Node) -> int | None:
    """Return the pixels per cell of a node's map; None if it is no map, or this is no power of two."""
    if not network.is_map(node):
        return None
    rows, columns = network.shapes[node.name][2:]
    return grid_stride(network.image_size, (rows, columns))


@dataclass(frozen=True, eq=False)
class _Paths:
    """The part of a graph between the image and the nodes ``reads``."""

    network: Network
    reads: tuple[fx.Node, ...]
    strides: dict[fx.Node, int | None] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The nodes that depend on the image, in order of execution."""
        needed = ancestors(self.reads)
        reached = {self.network.image}
        for node in self.network.module.graph.nodes:
            if node in needed and any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return [node for node in self.network.module.graph.nodes if node in reached]

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        return {node: number for number, node in enumerate(self.nodes)}

    @cached_property
    def dominators(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """For each node: the node itself, and all nodes on every path from the image to it."""
        found: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in self.nodes:
            sources = [found[source] for source in node.all_input_nodes if source in found]
            found[node] = frozenset.intersection(*sources) | {node} if sources else frozenset({node})
        return found

    def stride(self, node: fx.Node) -> int | None:
        if node not in self.strides:
            self.strides[node] = None if node in self.pooled else stride_of(self.network, node)
        return self.strides[node]

    @cached_property
    def pooled(self) -> set[fx.Node]:
        """Nodes computed from a global pooling only, such as the factors of squeeze and excitation."""
        parts = dict(self.network.module.named_modules())
        found: set[fx.Node] = set()
        for node in self.nodes[1:]:
            part = parts.get(str(node.target)) if node.op == "call_module" else None
            pools = isinstance(part, _POOLS) or node.target in {torch.mean, "mean"}
            if pools or all(source in found for source in node.all_input_nodes if source in self.order):
                found.add(node)
        return found

    def last_common(self, nodes: Iterable[fx.Node]) -> fx.Node:
        """Return the last node on all paths to ``nodes``; it may be one of ``nodes``."""
        common = frozenset.intersection(*(self.dominators[node] for node in nodes))
        return max(common, key=self.order.__getitem__)

    def before(self, node: fx.Node) -> fx.Node | None:
        """Return the last map on all paths to ``node``; None if this is the image."""
        earlier = self.dominators[node] - {node}
        maps = [n for n in earlier if n.op != "placeholder" and self.stride(n) is not None]
        return max(maps, key=self.order.__getitem__, default=None)


def find_cut(network: Network, layout: Layout, level: int) -> Cut:
    """Return the default complete cut for the boxes of a level; see the rule at the top of this module.

    Raises:
        LayerError: no complete cut consists of maps whose strides are powers of two.
    """
    paths = _Paths(network, _score_nodes(network, layout, level))
    nodes = _not_in_head(network, layout, level, _merged(paths, _frontier(paths)))
    best = nodes
    while nodes and not _is_wide_enough(network, layout, level, nodes):
        coarsest = max(nodes, key=lambda n: (paths.stride(n) or 0, paths.order[n]))
        earlier = paths.before(coarsest)
        if earlier is None:
            break
        nodes = _merged(paths, [earlier, *(n for n in nodes if n is not coarsest)])
        best = nodes or best
    if not best:
        raise LayerError(
            f"level {level} of the detector: no complete cut consists of maps whose strides are powers of two; "
            f"name the nodes of a cut yourself. Maps of the network: {_listed(network)}"
        )
    return _cut(paths, best, "complete")


def _not_in_head(network: Network, layout: Layout, level: int, nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the input of the level's head if ``nodes`` depend only on it, else ``nodes``."""
    try:
        own = own_level_cut(network, layout, level)
    except LayerError:
        return nodes
    entry = network.nodes[own.nodes[0]]
    paths = _head_paths(network, layout, level)
    inside = bool(nodes) and all(entry in paths.dominators[node] for node in nodes if node in paths.order)
    return [entry] if inside else nodes


def _score_nodes(network: Network, layout: Layout, level: int) -> tuple[fx.Node, ...]:
    return tuple(network.outputs[m] for m in layout.levels[level].score_maps)


def _cut(paths: _Paths, nodes: Sequence[fx.Node], kind: str) -> Cut:
    ordered = sorted(nodes, key=lambda n: (paths.stride(n) or 0, paths.order[n]))
    return Cut(tuple(n.name for n in ordered), tuple(paths.stride(n) or 0 for n in ordered), kind)


def _frontier(paths: _Paths) -> list[fx.Node]:
    """Return the last nodes that are computed without a coarser map."""
    coarsest: dict[fx.Node, int] = {}
    pure: set[fx.Node] = set()
    for node in paths.nodes:
        above = max((coarsest[source] for source in node.all_input_nodes if source in coarsest), default=1)
        own = paths.stride(node)
        coarsest[node] = max(above, own or 1)
        if own is None or own >= above:
            pure.add(node)
    # A node after a node with a coarser input also depends on it, whatever its own stride.
    for node in paths.nodes[1:]:
        if any(source in paths.order and source not in pure for source in node.all_input_nodes):
            pure.discard(node)
    found = []
    for node in paths.nodes:
        users = [user for user in node.users if user in paths.order]
        if node in pure and node.op != "placeholder" and (not users or any(user not in pure for user in users)):
            found.append(node)
    return found


def _merged(paths: _Paths, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Reduce a complete cut to one map per stride; return an empty list if that is impossible."""
    pending = list(dict.fromkeys(nodes))
    while True:
        fixed: list[fx.Node] = []
        for node in pending:
            usable = paths.stride(node) is not None and node not in paths.reads
            earlier = node if usable else paths.before(node)
            if earlier is None:
                return []
            fixed.append(_without_reduction(paths, earlier))
        groups: dict[int | None, list[fx.Node]] = {}
        for node in dict.fromkeys(fixed):
            groups.setdefault(paths.stride(node), []).append(node)
        merged = [paths.last_common(group) for group in groups.values()]
        if any(node.op == "placeholder" for node in merged):
            return []
        if set(merged) == set(pending):
            return _without_covered(paths, merged)
        pending = merged


def _without_covered(paths: _Paths, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Remove nodes whose paths to the reads all go through other nodes of the cut."""
    reached = ancestors(paths.reads, stops=nodes)
    return [node for node in nodes if node in reached]


def _without_reduction(paths: _Paths, node: fx.Node) -> fx.Node:
    """Return the input of a channel-reducing 1x1 convolution if ``node`` is its output, else ``node``."""
    conv = _pointwise_source(paths.network, node)
    if conv is None:
        return node
    source = conv.all_input_nodes[0]
    shapes = paths.network.shapes
    reduces = shapes[conv.name][1] < shapes[source.name][1]
    usable = source in paths.order and paths.stride(source) is not None and source.target is not torch.cat
    return source if reduces and usable and source.op != "placeholder" else node


def _pointwise_source(network: Network, node: fx.Node) -> fx.Node | None:
    """Return the 1x1 convolution whose output ``node`` activates; None if there is none."""
    parts = dict(network.module.named_modules())
    current: fx.Node | None = node
    while current is not None:
        part = parts.get(str(current.target)) if current.op == "call_module" else None
        if isinstance(part, nn.Conv2d):
            return current if part.kernel_size == (1, 1) and part.stride == (1, 1) and part.groups == 1 else None
        current = _activated(current, part)
    return None


def _activated(node: fx.Node, part: nn.Module | None) -> fx.Node | None:
    """Return the input of an activation (also ``x * sigmoid(x)``); None if ``node`` is none."""
    sources = node.all_input_nodes
    if len(sources) == 1:
        is_activation = type(part).__module__ == "torch.nn.modules.activation" or (
            node.op != "call_module" and getattr(node.target, "__name__", node.target) in _ACTIVATIONS
        )
        return sources[0] if is_activation else None
    if len(sources) == 2 and getattr(node.target, "__name__", node.target) == "mul":
        first, second = sources
        for x, gate in ((first, second), (second, first)):
            if gate.all_input_nodes == [x]:
                return x
    return None


_ACTIVATIONS: Final = {"relu", "relu6", "silu", "sigmoid", "hardswish", "leaky_relu", "clamp", "gelu"}


def _is_wide_enough(network: Network, layout: Layout, level: int, nodes: Sequence[fx.Node]) -> bool:
    strides = [stride_of(network, node) or 0 for node in nodes]
    if min(strides) > MAX_STRIDE:
        return False
    rows, columns = network.shapes[network.outputs[layout.levels[level].class_map].name][2:]
    reads = [Read(m, rows // 2, columns // 2) for m in layout.levels[level].score_maps]
    spans = needed_spans(network, reads, nodes)
    half = layout.extent(level, network.image_size) / 2
    for axis, cells in enumerate((rows, columns)):
        side = network.image_size[axis]
        middle = (cells // 2 + 0.5) * side / cells
        low, high = max(middle - half, 0), min(middle + half, side)
        found = [(spans[n.name], s) for n, s in zip(nodes, strides, strict=True) if n.name in spans]
        reach = [(span[2 * axis] * s, (span[2 * axis + 1] + 1) * s) for span, s in found]
        if min(r[0] for r in reach) > low or max(r[1] for r in reach) < high:
            return False
    return True


def own_level_cut(network: Network, layout: Layout, level: int) -> Cut:
    """Return the fast cut of a level: the input of its head.

    The cut covers every path to the level's anchors, but masks only features near them. These features already contain
    information from the rest of the image, which the map therefore does not show.

    Raises:
        LayerError: the input of the head is not a map whose stride is a power of two.
    """
    every = [_head_paths(network, layout, number) for number in range(len(layout.levels))]
    ends = [paths.last_common(paths.reads) for paths in every]
    while True:
        steps = [_chain_source(paths, node) for paths, node in zip(every, ends, strict=True)]
        earlier = [node for node in steps if node is not None]
        alike = len({(node.target if node.op != "call_module" else "", _width(network, node)) for node in ends}) == 1
        if len(earlier) < len(ends) or (not alike and not all(e in p.reads for e, p in zip(ends, every, strict=True))):
            break
        ends = earlier
    paths, node = every[level], ends[level]
    usable = node if paths.stride(node) is not None and node not in paths.reads else paths.before(node)
    if usable is None:
        raise LayerError(
            f"level {level} of the detector has no cut of its own, because no map whose stride is a power of two comes "
            "before its head; use the complete cut"
        )
    return _cut(paths, [usable], "own level")


def _head_paths(network: Network, layout: Layout, level: int) -> _Paths:
    maps = {*layout.levels[level].score_maps, layout.levels[level].box_map}
    return _Paths(network, tuple(network.outputs[m] for m in sorted(maps)))


def _width(network: Network, node: fx.Node) -> int:
    return network.shapes[node.name][1]


def _chain_source(paths: _Paths, node: fx.Node) -> fx.Node | None:
    """Return the input of a convolution or activation that does not change the stride, else None."""
    parts = dict(paths.network.module.named_modules())
    part = parts.get(str(node.target)) if node.op == "call_module" else None
    source = node.all_input_nodes[0] if isinstance(part, nn.Conv2d) else _activated(node, part)
    if source is None or source not in paths.order or source.op == "placeholder":
        return None
    return source if paths.stride(source) == paths.stride(node) is not None else None


def named_cut(network: Network, names: Collection[str]) -> Cut:
    """Return the cut with these nodes; ``build_split`` verifies that it is complete.

    Args:
        network: the detector.
        names: names of graph nodes, of tensors in an ONNX file, or of modules (their last node is used).

    Raises:
        LayerError: a node is unknown, or its output is not a map whose stride is a power of two.
    """
    found: list[tuple[int, str]] = []
    for name in names:
        node = _find_node(network, name)
        stride = stride_of(network, node)
        if stride is None:
            raise LayerError(
                f"cut {name!r}: its output is {network.shapes.get(node.name, 'no tensor')}, but a cut needs maps whose "
                f"stride is a power of two; maps of the network: {_listed(network)}"
            )
        found.append((stride, node.name))
    ordered = sorted(set(found))
    return Cut(tuple(name for _, name in ordered), tuple(stride for stride, _ in ordered), "named")


def _find_node(network: Network, name: str) -> fx.Node:
    if name in network.nodes:
        return network.nodes[name]
    for node in network.nodes.values():
        if node.meta.get("tensor") == name:
            return node
    inside = [n for n in network.nodes.values() if name in {path for path, _ in _module_stack(n)}]
    if not inside:
        raise LayerError(
            f"cut {name!r}: the network has no such node or module.{did_you_mean(name, network.nodes)} Maps of the "
            f"network: {_listed(network)}. Or use 'complete' or 'level' alone, which find a cut"
        )
    return inside[-1]


def _module_stack(node: fx.Node) -> list[tuple[str, object]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def _listed(network: Network) -> str:
    """Return the name of the last map of each stride as text, for messages."""
    last: dict[int, str] = {}
    for node in network.nodes.values():
        stride = stride_of(network, node)
        if stride is not None and node.op != "placeholder":
            last[stride] = node.name
    listed = [f"{name} (stride {stride})" for stride, name in sorted(last.items())]
    return ", ".join(listed[:_MAX_LISTED])
