"""Recipro-CAM: which cells of a layer's grid speak for a class, without any gradient.

Source: Byun and Lee, *Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks*,
arXiv:2209.14074. For each cell a map that keeps the cell's own vector and is zero elsewhere goes through the tail; the
softmax score of the explained class, arranged on the grid and min-max normalised, is the heat map.

Masked maps are computed only where no cheaper exact way is known: see ``engine.methods.pooled``, ``flat``,
``local`` and ``dense``. Vision transformers have tokens for cells: see ``tokens``. Softmax and everything after it run
in float32 whatever the rest runs in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.methods.dense import DEFAULT_BUDGET_BYTES, DensePlan
from engine.methods.flat import find_flat
from engine.methods.kernels import Kernel, check_kernel
from engine.methods.local.builder import find_local, why_not_cheaper
from engine.methods.plan import Plan, ReferenceOutputs, reference_outputs, verify_plan
from engine.methods.pooled import find_pooled
from engine.methods.vit import choose_vit_plan
from engine.split.network import SplitModel
from engine.split.vit import ViTTail
from pipeline.errors import ConfigError, EngineError

log = logging.getLogger(__name__)

FLAT_ULPS = 8
"""A score matrix whose range is within this many float32 steps of its largest score says nothing: it is flat."""


def recipro_cam(
    split: SplitModel,
    images: Tensor,
    classes: int | Sequence[int] | Tensor | None = None,
    kernel: str = "point",
) -> tuple[Tensor, Tensor]:
    """Explain a batch of images.

    Args:
        split: the network, cut behind the layer to explain.
        images: (N, 3, H, W) float, normalised as the network expects.
        classes: which class to explain: None = each image's own top-1, an int = the same for all, or N of them.
        kernel: ``point`` = one-hot masks; ``gaussian`` = the cell's own vector spread over 3x3 cells.

    Returns:
        scores (N, K), the plain network's softmax scores; heat (N, h, w) in [0, 1] on the layer's grid, all zero for
        an image whose score matrix is flat. Both float32.

    Raises:
        ConfigError: an unknown kernel, a class the network does not have, or not one class per image.
        EngineError: a vision transformer, and images of another size than it was cut for.
    """
    kernel = check_kernel(kernel)
    if isinstance(split.tail, ViTTail) and tuple(images.shape[2:]) != split.image_size:
        height, width = images.shape[2:]
        takes = "{}x{}".format(*split.image_size)
        raise EngineError(f"a vision transformer takes images of one size, {takes} here, not {height}x{width}")
    with torch.inference_mode():
        features = split.head(images)
        scores, every = plan_for(split, features, kernel)(features)
        chosen = top_classes(scores, 1) if classes is None else chosen_classes(classes, len(images), split.classes)
        heat = heat_of(every, chosen.to(every.device), _grid_of(split, features))
        return torch.softmax(scores.float(), dim=1), heat[:, 0]


def chosen_classes(classes: int | Sequence[int] | Tensor, count: int, known: int) -> Tensor:
    """Return the classes as (N, 1) indices."""
    chosen = torch.as_tensor(classes, dtype=torch.int64).reshape(-1)
    if isinstance(classes, int):
        chosen = chosen.expand(count)
    if len(chosen) != count:
        raise ConfigError(f"classes: {len(chosen)} given for {count} images; give one for all, or one for each")
    wrong = [int(c) for c in chosen if not 0 <= c < known]
    if wrong:
        raise ConfigError(f"class {wrong[0]} is unknown; the network has classes 0 to {known - 1}")
    return chosen[:, None]


def _grid_of(split: SplitModel, features: Tensor) -> tuple[int, int]:
    """Return rows and columns: a transformer's never change, a map's come with it."""
    return split.grid if isinstance(split.tail, ViTTail) else (features.shape[2], features.shape[3])


def plan_for(split: SplitModel, features: Tensor, kernel: Kernel, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> Plan:
    """Return the cheapest plan proven exact for this tail, kernel and grid; it is chosen once and kept."""
    key = (kernel, tuple(features.shape[1:]), features.dtype, features.device, budget_bytes)
    if key not in split.plans:
        chosen = choose_plan(split.tail, features, kernel, budget_bytes)
        chosen.info = replace(chosen.info, layer=split.layer, grid=_grid_of(split, features))
        split.plans[key] = chosen
    plan: Plan = split.plans[key]
    return plan


def choose_plan(tail: nn.Module, features: Tensor, kernel: Kernel, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> Plan:
    """Return the cheapest plan that agrees with the definition on a probe; dense when no other does."""
    if isinstance(tail, ViTTail):
        return choose_vit_plan(tail, features, kernel, budget_bytes)
    why = "the tail is no pooled or flattened one"
    truth: ReferenceOutputs | None = None
    for find in (find_pooled, find_flat):
        try:
            plan = find(tail, features, kernel)
        except Exception as reason:  # noqa: BLE001 - it runs parts of the network's own code, which may raise anything
            log.debug("%s cannot read this tail: %s", find.__name__, reason)
            continue
        if plan is None:
            continue
        truth = truth or reference_outputs(tail, features, kernel)
        differs = verify_plan(plan, tail, features, kernel, truth)
        if not differs:
            return plan
        why = f"the {plan.info.name} plan does not hold here: {differs}"
    try:
        local = find_local(tail, features, kernel, budget_bytes)
        objection = (
            ""
            if local is None
            else (why_not_cheaper(local, tail, features, kernel) or verify_plan(local, tail, features, kernel, truth))
        )
    except Exception as reason:  # noqa: BLE001 - it runs parts of the network's own code, which may raise anything
        log.debug("find_local cannot read this tail: %s", reason)
        local, objection = None, ""
    if local is not None:
        if not objection:
            return local
        why = f"the local plan was turned down: {objection}"
    return DensePlan(tail, kernel, why, budget_bytes)


def top_classes(scores: Tensor, count: int) -> Tensor:
    """Return the ``count`` highest-scoring classes of each image, best first: (N, count)."""
    return torch.topk(scores, count, dim=1).indices


def heat_of(every: Tensor, chosen: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn every cell's class scores into normalised heat maps.

    Args:
        every: (N, h * w, K) class scores of the masked maps, before the softmax.
        chosen: (N, T) the classes to explain.
        grid: rows and columns.

    Returns:
        (N, T, h, w) float32 in [0, 1].
    """
    matrix = torch.softmax(every.float(), dim=2).gather(2, chosen[:, None, :].expand(-1, every.shape[1], -1))
    return normalise(matrix).transpose(1, 2).reshape(every.shape[0], -1, *grid)


def normalise(matrix: Tensor) -> Tensor:
    """Min-max normalise score matrices (N, h * w, T) over their cells; a flat one becomes all zero, never NaN."""
    low, high = matrix.aminmax(dim=1, keepdim=True)
    span = high - low
    told = span > FLAT_ULPS * torch.finfo(torch.float32).eps * high
    return torch.where(told, (matrix - low) / span.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


@dataclass(frozen=True)
class Target:
    """Which classes are explained: a frame's own best ``top``, and the same ``classes`` for every frame."""

    top: int = 1
    classes: tuple[int, ...] = ()
    classes_first: bool = False
    """Whether ``classes`` come before the best ones: the first explained class is the one that is drawn."""


class ExplainedNetwork(nn.Module):
    """A network that answers with its reasons: images to (scores, classes, heat), as one module.

    For plans that are one module the whole of it can be compiled by a backend like any other network.
    """

    plan: Plan
    head: Any

    classes: Tensor | None

    def __init__(self, head: Callable[[Tensor], Tensor], plan: Plan, target: Target, grid: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        self.plan = plan
        self.top = target.top
        self.classes_first = target.classes_first
        self.grid = grid
        self.register_buffer("classes", torch.tensor(target.classes, dtype=torch.int64) if target.classes else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return softmax scores (N, K), the explained classes (N, T), and their heat (N, T, h, w).

        A class stands twice in a row of T where it is one of the fixed classes and one of the best.
        """
        features = self.head(images)
        # A plan that is one module runs in float32: it is cheap, and half precision would blur what cells say.
        scores, every = self.plan(features.float() if self.plan.info.one_module else features)
        scores = scores.float()
        chosen, fixed = top_classes(scores, self.top), self.classes
        if fixed is not None:
            always = fixed[None].expand(scores.shape[0], -1)
            chosen = torch.cat([always, chosen] if self.classes_first else [chosen, always], dim=1)
        return torch.softmax(scores, dim=1), chosen, heat_of(every, chosen, self.grid)
