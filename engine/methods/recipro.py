"""Recipro-CAM: gradient-free heat maps from spatially masked feature maps.

Source: Byun and Lee, *Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks*,
arXiv:2209.14074. Let f = head(x) be the feature map (C, h, w) of an image x, and m_p the mask of cell p: 1 at p (or the
Gaussian weights around p), 0 elsewhere. The saliency of cell p for class k is the network's score with only this cell,

    s_p = softmax(tail(m_p * f_p))_k

where each position of the masked map contains the vector f_p of cell p times the mask. The heat map is s on the grid,
min-max normalised: ``(s_p - min s) / (max s - min s)``.

The masked maps are computed only if no cheaper exact plan applies: see ``engine.methods.pooled``, ``flat``, ``local``
and ``dense``. For vision transformers (arXiv:2310.02588) the cells are patch tokens: see ``engine.methods.vit``.
Softmax and normalisation always run in float32.
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
"""Scores are flat (zero heat map) if their range is at most this number of float32 steps of the largest score."""


def recipro_cam(
    split: SplitModel,
    images: Tensor,
    classes: int | Sequence[int] | Tensor | None = None,
    kernel: str = "point",
) -> tuple[Tensor, Tensor]:
    """Explain a batch of images by Recipro-CAM; by ViT-ReciproCAM for vision transformers.

    Args:
        split: the network, split after the layer to explain.
        images: (N, 3, H, W) float, normalised as the network expects.
        classes: the class to explain. None: the top-1 class of each image; an int: one class for all images; a
            sequence: N classes.
        kernel: ``point``: one-hot masks; ``gaussian``: the cell's vector is spread over 3x3 cells.

    Returns:
        The network's softmax scores (N, K), and heat maps (N, h, w) in [0, 1] on the layer's grid, all zero for an
        image whose cell scores are flat. Both float32.

    Raises:
        ConfigError: the kernel or class is unknown, or the number of classes differs from the number of images.
        EngineError: the network is a vision transformer and the image size differs from ``split.image_size``.
    """
    kernel = check_kernel(kernel)
    if isinstance(split.tail, ViTTail) and tuple(images.shape[2:]) != split.image_size:
        height, width = images.shape[2:]
        takes = "{}x{}".format(*split.image_size)
        raise EngineError(
            f"this vision transformer accepts only images of {takes}, not {height}x{width}; resize the images"
        )
    with torch.inference_mode():
        features = split.head(images)
        scores, cell_logits = plan_for(split, features, kernel)(features)
        chosen = top_classes(scores, 1) if classes is None else resolve_classes(classes, len(images), split.classes)
        heat = heatmaps_from_logits(cell_logits, chosen.to(cell_logits.device), _grid_of(split, features))
        return torch.softmax(scores.float(), dim=1), heat[:, 0]


def resolve_classes(classes: int | Sequence[int] | Tensor, count: int, known: int) -> Tensor:
    """Return the explained classes as int64 indices (N, 1).

    Raises:
        ConfigError: a class is unknown, or the number of classes differs from ``count``.
    """
    chosen = torch.as_tensor(classes, dtype=torch.int64).reshape(-1)
    if isinstance(classes, int):
        chosen = chosen.expand(count)
    if len(chosen) != count:
        raise ConfigError(
            f"classes: has {len(chosen)} entries for {count} images; use one class for all images, or one per image"
        )
    wrong = [int(c) for c in chosen if not 0 <= c < known]
    if wrong:
        raise ConfigError(f"class {wrong[0]} is unknown; the network has classes 0 to {known - 1}")
    return chosen[:, None]


def _grid_of(split: SplitModel, features: Tensor) -> tuple[int, int]:
    """Return rows and columns of the grid: fixed for a transformer, those of the feature map for a CNN."""
    return split.grid if isinstance(split.tail, ViTTail) else (features.shape[2], features.shape[3])


def plan_for(split: SplitModel, features: Tensor, kernel: Kernel, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> Plan:
    """Return the cheapest verified plan for this tail, kernel and grid; the choice is cached.

    Args:
        split: the split network; chosen plans are cached in its ``plans``.
        features: the head's output.
        kernel: the shape of the masks.
        budget_bytes: maximum working memory of a local or dense plan, in bytes.
    """
    key = (kernel, tuple(features.shape[1:]), features.dtype, features.device, budget_bytes)
    if key not in split.plans:
        chosen = choose_plan(split.tail, features, kernel, budget_bytes)
        chosen.info = replace(chosen.info, layer=split.layer, grid=_grid_of(split, features))
        split.plans[key] = chosen
    plan: Plan = split.plans[key]
    return plan


def choose_plan(tail: nn.Module, features: Tensor, kernel: Kernel, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> Plan:
    """Return the cheapest plan that agrees with the definition on random features."""
    if isinstance(tail, ViTTail):
        return choose_vit_plan(tail, features, kernel, budget_bytes)
    why = "the tail has neither global pooling nor a flattened map"
    reference: ReferenceOutputs | None = None
    for find in (find_pooled, find_flat):
        try:
            plan = find(tail, features, kernel)
        except Exception as reason:  # noqa: BLE001 - runs parts of the network's own code, which may raise anything
            log.debug("%s fails for this tail: %s", find.__name__, reason)
            continue
        if plan is None:
            continue
        reference = reference or reference_outputs(tail, features, kernel)
        differs = verify_plan(plan, tail, features, kernel, reference)
        if not differs:
            return plan
        why = f"the {plan.info.name} plan is not exact for this network: {differs}"
    try:
        local = find_local(tail, features, kernel, budget_bytes)
        objection = "" if local is None else why_not_cheaper(local, tail, features, kernel)
        if local is not None and not objection:
            objection = verify_plan(local, tail, features, kernel, reference)
    except Exception as reason:  # noqa: BLE001 - runs parts of the network's own code, which may raise anything
        log.debug("find_local fails for this tail: %s", reason)
        local, objection = None, ""
    if local is not None:
        if not objection:
            return local
        why = f"the local plan is not used: {objection}"
    return DensePlan(tail, kernel, why, budget_bytes)


def top_classes(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores of each image, best first: (N, count)."""
    return torch.topk(scores, count, dim=1).indices


def heatmaps_from_logits(cell_logits: Tensor, chosen: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute heat maps from the logits of the masked maps: softmax, then min-max normalisation over the cells.

    Args:
        cell_logits: logits of the masked maps, (N, h * w, K).
        chosen: indices of the classes to explain, (N, T).
        grid: rows and columns.

    Returns:
        (N, T, h, w) float32 in [0, 1].
    """
    indices = chosen[:, None, :].expand(-1, cell_logits.shape[1], -1)
    matrix = torch.softmax(cell_logits.float(), dim=2).gather(2, indices)
    return normalise(matrix).transpose(1, 2).reshape(cell_logits.shape[0], -1, *grid)


def normalise(matrix: Tensor) -> Tensor:
    """Min-max normalise scores (N, h * w, T) over the cells; flat scores (see ``FLAT_ULPS``) become 0."""
    low, high = matrix.aminmax(dim=1, keepdim=True)
    span = high - low
    varies = span > FLAT_ULPS * torch.finfo(torch.float32).eps * high
    return torch.where(varies, (matrix - low) / span.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


@dataclass(frozen=True)
class Target:
    """The explained classes: the ``top`` highest-scoring ones of each frame, and fixed ``classes``."""

    top: int = 1
    classes: tuple[int, ...] = ()
    classes_first: bool = False
    """True: ``classes`` come before the top classes. The heat map of the first class is drawn."""


class ExplainedNetwork(nn.Module):
    """A network with its explanation: computes scores, classes and heat maps from images.

    If the plan is one module, a backend compiles the whole network with its explanation.
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
        """Return softmax scores (N, K), the explained classes (N, T), and their heat maps (N, T, h, w).

        A class occurs twice among the T classes if it is both a fixed class and a top class.
        """
        scores, cell_logits = self.logits(images)
        chosen, fixed = top_classes(scores, self.top), self.classes
        if fixed is not None:
            repeated = fixed[None].expand(scores.shape[0], -1)
            chosen = torch.cat([repeated, chosen] if self.classes_first else [chosen, repeated], dim=1)
        return torch.softmax(scores, dim=1), chosen, heatmaps_from_logits(cell_logits, chosen, self.grid)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the network (N, K) in float32, and of the masked maps (N, h * w, K)."""
        features = self.head(images)
        # Plans of one module run in float32, which is cheap; half precision would blur differences between cells.
        scores, cell_logits = self.plan(features.float() if self.plan.info.one_module else features)
        return scores.float(), cell_logits
