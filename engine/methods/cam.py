"""Class activation mapping (CAM), for comparison with Recipro-CAM.

Source: Zhou et al., *Learning deep features for discriminative localization*, arXiv:1512.04150: the heat map is the sum
of the last feature maps, weighted with the class's row w of the linear layer. CAM is defined only for a network that
ends in a mean over the grid and one linear layer. For such a network, the logit of a map that keeps only cell p is ``w
f_p / (h w) + b``, which gives the same heat map after min-max normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.methods.pooled import PooledPlan
from engine.methods.recipro import normalise, plan_for, resolve_classes, top_classes
from engine.split.network import SplitModel
from pipeline.errors import LayerError

LINEAR_TOLERANCE = 1e-4
"""Maximum deviation from linearity on random vectors, as a fraction of the largest output."""


def cam(
    split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Explain a batch of images by CAM; arguments and results as in ``engine.methods.recipro.recipro_cam``.

    Raises:
        LayerError: the layer is not followed by a mean over the grid and one linear layer.
    """
    with torch.inference_mode():
        features = split.head(images)
        plan = plan_for(split, features, "point")
        if not (isinstance(plan, PooledPlan) and plan.before is None and _is_affine(plan, features)):
            raise LayerError(
                f"layer {split.layer!r}: CAM needs a mean over the grid and one linear layer directly after it; "
                "choose --method recipro-cam (for a CNN also grad-cam), or the last layer"
            )
        scores, cell_logits = plan(features)
        chosen = top_classes(scores, 1) if classes is None else resolve_classes(classes, len(images), split.classes)
        matrix = cell_logits.float().gather(
            2, chosen.to(cell_logits.device)[:, None, :].expand(-1, cell_logits.shape[1], -1)
        )
        heat = normalise(matrix - matrix.amin(1, keepdim=True))
        return torch.softmax(scores.float(), dim=1), heat[:, :, 0].reshape(-1, *features.shape[2:])


def _is_affine(plan: PooledPlan, features: Tensor) -> bool:
    """Return whether f(a + b) = f(a) + f(b) - f(0) for the layers after the mean, on random vectors."""
    shape = (2, features.shape[1]) if plan.flat else (2, features.shape[1], 1, 1)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(features)
    a, b = vectors[:1], vectors[1:]
    f_sum, f_a, f_b, f_zero = (plan.after(v) for v in (a + b, a, b, torch.zeros_like(a)))
    return float((f_sum - f_a - f_b + f_zero).abs().max()) <= LINEAR_TOLERANCE * float(f_sum.abs().max())
