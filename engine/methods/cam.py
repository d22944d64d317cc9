"""Plain CAM, for comparison: which cells raise a class's score, before the softmax.

Source: Zhou et al., *Learning deep features for discriminative localization*, arXiv:1512.04150: the last feature maps
summed with the class's weights. It is defined where a mean over the grid is followed by one linear layer. There the
score of a map that keeps cell p alone is ``w f_p / (h w) + b``: the same map, min-max normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.methods.pooled import PooledPlan
from engine.methods.recipro import chosen_classes, normalise, plan_for, top_classes
from engine.split.network import SplitModel
from pipeline.errors import LayerError

LINEAR_TOLERANCE = 1e-4
"""How far a layer may be from linear on random vectors, as a share of its largest answer."""


def cam(
    split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Explain a batch of images by plain CAM; arguments and results as in ``engine.methods.recipro.recipro_cam``.

    Raises:
        LayerError: what follows the layer is not a mean over the grid and one linear layer.
    """
    with torch.inference_mode():
        features = split.head(images)
        plan = plan_for(split, features, "point")
        if not (isinstance(plan, PooledPlan) and plan.before is None and _is_affine(plan, features)):
            raise LayerError(
                f"layer {split.layer!r}: plain CAM needs a mean over the grid and one linear layer right behind it; "
                "choose --method recipro-cam (for a CNN also grad-cam), or the last layer"
            )
        scores, every = plan(features)
        chosen = top_classes(scores, 1) if classes is None else chosen_classes(classes, len(images), split.classes)
        matrix = every.float().gather(2, chosen.to(every.device)[:, None, :].expand(-1, every.shape[1], -1))
        heat = normalise(matrix - matrix.amin(1, keepdim=True))
        return torch.softmax(scores.float(), dim=1), heat[:, :, 0].reshape(-1, *features.shape[2:])


def _is_affine(plan: PooledPlan, features: Tensor) -> bool:
    """Ask the layers behind the mean whether the answer to a sum is the sum of answers, less the answer to nothing."""
    shape = (2, features.shape[1]) if plan.flat else (2, features.shape[1], 1, 1)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(features)
    one, other = vectors[:1], vectors[1:]
    both, first, second, nothing = (plan.after(v) for v in (one + other, one, other, torch.zeros_like(one)))
    return float((both - first - second + nothing).abs().max()) <= LINEAR_TOLERANCE * float(both.abs().max())
