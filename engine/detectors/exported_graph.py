"""A detector with heat maps of its best boxes as one graph with fixed shapes, for export.

This relies on the fast cut: the head of a level reads only a small neighbourhood of an anchor, so each masked copy is a
patch of the head's input. All sizes are fixed, so the heads of all levels compute every box, and the result of the
box's own level is selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, fx, nn

from engine.detectors.cone import is_elementwise
from engine.detectors.cones.graph import Entry
from engine.detectors.cones.plan import ConePlan
from engine.detectors.detector import Detector
from engine.detectors.graph import ancestors
from engine.detectors.regions import Mode
from engine.detectors.split import DetectorSplit, with_features
from pipeline.errors import EngineError

MAX_CANDIDATES: Final = 200
"""Number of highest scored candidates that enter the non-maximum suppression."""
ROUNDS: Final = 24
"""Rounds of the suppression; the result equals that of ``select`` unless longer chains of boxes suppress each other."""


class PatchHead(nn.Module):
    """The head of one level: computes the score vectors of anchors from patches around them."""

    def __init__(self, split: DetectorSplit, plan: ConePlan, stride: int) -> None:
        """Build the graph that computes the head from patches.

        Raises:
            EngineError: a layer is neither a convolution with stride 1 nor an elementwise function.
        """
        super().__init__()
        entries = [operation for operation in plan.wiring.operations if isinstance(operation, Entry)]
        entries.sort(key=lambda entry: entry.index)
        self.stride = stride
        self.nodes = plan.nodes
        self.head, self.radius = _patch_graph(split, plan)
        for number, entry in enumerate(entries):
            blank = torch.zeros(entry.width) if entry.blank is None else entry.blank
            self.register_buffer(f"blank_{number}", blank.clone().view(1, 1, -1, 1, 1))
        side = 2 * self.radius + 1
        shown = torch.eye(side * side, dtype=torch.bool).view(side * side, 1, side, side)
        self.register_buffer("shown", torch.cat((torch.zeros(1, 1, side, side, dtype=torch.bool), shown)))

    def forward(self, features: Sequence[Tensor], rows: Tensor, columns: Tensor, *, drop: bool) -> tuple[Tensor, ...]:
        """Return for each score map (K, 1 + regions, C): an unmasked copy, then one copy per region.

        Args:
            features: maps at ``nodes``, (1, C, h, w).
            rows: (K,) int64, rows of the anchors.
            columns: (K,) int64, columns of the anchors.
            drop: True: the region is masked; False: all other regions are masked.
        """
        reach = torch.arange(2 * self.radius + 1, device=rows.device)
        rows, columns = (rows[:, None] + reach)[:, :, None], (columns[:, None] + reach)[:, None]
        padding = (self.radius,) * 4
        inside = nn.functional.pad(torch.ones_like(features[0][0, :1]), padding)[0][rows, columns]
        shown, count = cast("Tensor", self.shown)[None], len(rows)
        patches = []
        for number, feature in enumerate(features):
            patch = nn.functional.pad(feature[0], padding)[:, rows, columns].transpose(0, 1)[:, None]
            blank = cast("Tensor", getattr(self, f"blank_{number}"))
            masked = torch.where(shown, blank, patch) if drop else torch.where(shown, patch, blank)
            patches.append(masked.flatten(0, 1))
        every = inside[:, None, None].expand(-1, shown.shape[1], -1, -1, -1).flatten(0, 1)
        outputs = self.head(*patches, every)
        return tuple(output.reshape(count, shown.shape[1], -1) for output in outputs)

    def inside(self, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a mask of the regions that lie in the image: (K, regions) bool."""
        reach = torch.arange(-self.radius, self.radius + 1, device=rows.device)
        found = [
            ((place[:, None] + reach) >= 0) & ((place[:, None] + reach) < size)
            for place, size in zip((rows, columns), grid, strict=True)
        ]
        return (found[0][:, :, None] & found[1][:, None]).flatten(1)


def _patch_graph(split: DetectorSplit, plan: ConePlan) -> tuple[fx.GraphModule, int]:
    """Return the head without padding, which takes patches and a mask, and the radius of the patches."""
    parts = dict(split.tail.named_modules())
    last = next(node for node in split.tail.graph.nodes if node.op == "output")
    outputs = tuple(last.args[0])
    by_name = {node.name: node for node in split.tail.graph.nodes}
    starts = [by_name[name] for name in plan.given_names]
    used = ancestors(outputs, starts)
    needed = dict.fromkeys(outputs, 0)
    for node in reversed(list(split.tail.graph.nodes)):
        if node in needed and node not in starts:
            for source in node.all_input_nodes:
                needed[source] = max(needed.get(source, 0), needed[node] + _reach(parts, node))
    radius = max(needed[start] for start in starts)
    graph = fx.Graph()
    copies = {start: graph.placeholder(f"patch_{number}") for number, start in enumerate(starts)}
    inside = graph.placeholder("inside")
    sizes = {**needed, **dict.fromkeys(starts, radius)}
    modules: dict[str, nn.Module] = {}
    for node in split.tail.graph.nodes:
        if node not in used or node in copies or node.op in {"output", "placeholder"}:
            continue
        reach = _reach(parts, node)
        size = needed[node] + reach
        cropped = {
            source: copies[source] if source.op == "get_attr" else _cropped(graph, copies[source], sizes[source] - size)
            for source in node.all_input_nodes
        }
        if reach:
            (source,) = node.all_input_nodes
            cropped[source] = graph.call_function(torch.mul, (cropped[source], _cropped(graph, inside, radius - size)))
        copies[node] = graph.node_copy(node, cropped.__getitem__)
        if isinstance(part := parts.get(str(node.target)), nn.Conv2d):
            modules[str(node.target)] = _without_padding(part)
    graph.output(tuple(_cropped(graph, copies[output], sizes[output]) for output in outputs))
    attributes = {str(node.target): _attribute(split.tail, node) for node in used if node.op == "get_attr"}
    others = {str(n.target): parts[str(n.target)] for n in used if n.op == "call_module"}
    return fx.GraphModule({**others, **attributes, **modules}, graph, "PatchHead"), radius


def _reach(parts: dict[str, nn.Module], node: fx.Node) -> int:
    """Return how many neighbouring cells in each direction a node reads.

    Raises:
        EngineError: the node is neither a convolution that keeps the grid nor an elementwise function.
    """
    part = parts.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(part, nn.Conv2d):
        reach = {(k - 1) * d // 2 for k, d in zip(part.kernel_size, part.dilation, strict=True)}
        keeps = part.stride == (1, 1) and part.padding == (min(reach), min(reach)) and part.padding_mode == "zeros"
        if keeps and len(reach) == 1 and all(k % 2 for k in part.kernel_size):
            return min(reach)
    elif node.op == "get_attr" or is_elementwise(part, node):
        return 0
    raise EngineError(
        f"layer {node.name} of the detector's head cannot be exported with maps: it is neither a convolution that "
        "keeps the grid nor an elementwise function; use `stream`, which needs no file"
    )


def _cropped(graph: fx.Graph, value: fx.Node, margin: int) -> fx.Node:
    if not margin:
        return value
    inner = slice(margin, -margin)
    return graph.call_function(_crop, (value, inner))


def _crop(value: Tensor, inner: slice) -> Tensor:
    return value[:, :, inner, inner]


def _without_padding(conv: nn.Conv2d) -> nn.Conv2d:
    found = nn.Conv2d(
        conv.in_channels, conv.out_channels, cast("tuple[int, int]", conv.kernel_size), 1, 0,
        cast("tuple[int, int]", conv.dilation), conv.groups, bias=conv.bias is not None,
    )  # fmt: skip
    found.load_state_dict(conv.state_dict())
    return found.requires_grad_(requires_grad=False).eval()


def _attribute(module: nn.Module, node: fx.Node) -> Tensor:
    value: object = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    if not isinstance(value, Tensor) or (value.dim() == 4 and value.shape[2:] != (1, 1)):
        raise EngineError(
            f"constant {node.name} of the detector's head cannot be exported: only a tensor with equal values in all "
            "cells can be; use `stream`, which needs no file"
        )
    return value


class ExplainedDetector(nn.Module):
    """Computes boxes, scores, classes, their number and heat maps from one image and a minimum score."""

    def __init__(
        self, detector: Detector, image_size: tuple[int, int], max_boxes: int, mode: Mode
    ) -> None:  # fmt: skip
        """Build the graph.

        Raises:
            LayerError: maps of a head cannot be computed from cones.
            EngineError: a head has a layer that cannot be exported.
        """
        super().__init__()
        self.layout, self.image_size, self.mode, self.iou = detector.layout, image_size, mode, detector.iou
        self.max_boxes = max_boxes
        network = detector.network(image_size)
        self.heads = nn.ModuleList()
        self.cuts: list[str] = []
        self.cells: list[int] = []
        """Side of a region in pixels, by level."""
        for level in range(len(detector.layout.levels)):
            split = detector.split(level, "own level", image_size)
            with torch.inference_mode():
                plan = ConePlan(split, split.features(torch.zeros(1, 3, *image_size)))
            self.heads.append(PatchHead(split, plan, split.cut.strides[0]))
            self.cuts.extend(split.cut.nodes)
            self.cells.append(split.cut.strides[0])
        self.nodes = tuple(dict.fromkeys(node for head in self.heads for node in cast("PatchHead", head).nodes))
        self.plain = with_features(network, self.nodes)
        self.radius = max(cast("PatchHead", head).radius for head in self.heads)

    def forward(self, images: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (M, 4), scores, classes (M,), their count, heat (M, S, S), regions (M, 4) and outside (M,).

        Args:
            images: one prepared image, (1, 3, H, W) float32.
            min_score: the minimum score of a box, a scalar.
        """
        maps, found = self.plain(images)
        features = dict(zip(self.nodes, found, strict=True))
        candidates = self.layout.decode(maps, self.image_size)
        anchors, classes, log_scores, boxes, count = self._selected(
            candidates.boxes[0], candidates.log_scores[0], min_score
        )
        heat, regions, outside = self._heat(features, candidates.grids, anchors, classes, log_scores)
        present = torch.arange(self.max_boxes, device=images.device) < count
        scores = torch.where(present, log_scores.exp(), 0.0)
        return (
            torch.where(present[:, None], boxes, 0.0), scores, torch.where(present, classes, -1), count,
            torch.where(present[:, None, None], heat, 0.0), torch.where(present[:, None], regions, 0.0),
            torch.where(present, outside, 0.0),
        )  # fmt: skip

    def _selected(self, boxes: Tensor, log_scores: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:
        """Return anchors, classes, log-scores and boxes after non-maximum suppression for each class."""
        flat = log_scores.flatten()
        flat = torch.where(torch.isnan(flat), -math.inf, flat)  # a NaN score is never a detection
        values, index = flat.topk(min(MAX_CANDIDATES, flat.shape[0]))
        anchors, classes = index // log_scores.shape[1], index % log_scores.shape[1]
        chosen = boxes[anchors]
        valid = (values > min_score.clamp(min=1e-12).log()) & (chosen.abs() < math.inf).all(1)
        order = torch.arange(len(values), device=boxes.device)
        before = (order[:, None] < order) & (classes[:, None] == classes) & (_overlaps(chosen) > self.iou)
        suppressing, kept = before.float(), valid
        for _ in range(ROUNDS):
            kept = valid & (kept.float() @ suppressing < 0.5)
        best = (kept * (len(values) - order)).topk(self.max_boxes).indices
        count = kept.sum().clamp(max=self.max_boxes)
        return anchors[best], classes[best], values[best], chosen[best], count

    def _heat(
        self, features: dict[str, Tensor], grids: Sequence[tuple[int, int]], anchors: Tensor, classes: Tensor,
        log_scores: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return each box's heat, the rectangle that the heat covers, and the value outside of it."""
        side = 2 * self.radius + 1
        heat = log_scores.new_zeros(self.max_boxes, side, side)
        regions, outside = log_scores.new_zeros(self.max_boxes, 4), log_scores.new_zeros(self.max_boxes)
        start = 0
        for number, (rows, columns) in enumerate(grids):
            per_cell = self.layout.levels[number].anchors_per_cell
            count = rows * columns * per_cell
            own = (anchors >= start) & (anchors < start + count)
            local = (anchors - start).clamp(0, count - 1)
            row, column = local // per_cell // columns, local // per_cell % columns
            head = cast("PatchHead", self.heads[number])
            vectors = head([features[node] for node in head.nodes], row, column, drop=self.mode == "drop")
            reached = self._log_scores(vectors, number, local % per_cell, classes)
            if self.mode == "drop":
                reached = log_scores.exp()[:, None] - reached.exp()
            around = reached[:, :1]
            window = torch.where(head.inside(row, column, (rows, columns)), reached[:, 1:], around)
            margin = self.radius - head.radius
            size = 2 * head.radius + 1
            window = window.view(-1, size, size) - around[:, :, None]
            window = nn.functional.pad(window, (margin,) * 4) + around[:, :, None]
            corner = torch.stack((column, row, column, row), 1) + torch.tensor(
                (-self.radius, -self.radius, self.radius + 1, self.radius + 1), device=row.device
            )
            heat = torch.where(own[:, None, None], window, heat)
            regions = torch.where(own[:, None], (corner * head.stride).float(), regions)
            outside = torch.where(own, around[:, 0], outside)
            start += count
        return heat, regions, outside

    def _log_scores(self, vectors: Sequence[Tensor], level: int, index: Tensor, classes: Tensor) -> Tensor:
        """Return the log-scores of each box's class: (K, 1 + regions)."""
        per_cell, layout = self.layout.levels[level].anchors_per_cell, self.layout
        count, masks, _ = vectors[0].shape
        logits = vectors[0].reshape(count, masks, per_cell, -1)
        logits = logits.gather(2, index.view(-1, 1, 1, 1).expand(-1, masks, 1, logits.shape[3]))[:, :, 0]
        objectness = None
        if len(vectors) > 1:
            objectness = vectors[1].gather(2, index.view(-1, 1, 1).expand(-1, masks, 1))[:, :, 0]
        scores = layout.activate(logits[..., : layout.class_channels], objectness)
        return scores.gather(2, classes.view(-1, 1, 1).expand(-1, masks, 1))[:, :, 0]


def _overlaps(boxes: Tensor) -> Tensor:
    """Return the IoU of all pairs of boxes (M, 4)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    width, height = (high - low).clamp(min=0.0).unbind(2)
    shared = width * height
    return shared / (area[:, None] + area - shared).clamp(min=1e-9)
