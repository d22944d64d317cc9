"""Adapts the methods of the ``grad-cam`` package, for evaluation, not for live video.

Gradients are those of the logit with respect to the layer's map. The package returns its heat map on the layer's grid,
so the upsampling of the package has no effect. The network is not changed: a ``SplitModel`` is a copy, and the
package's hooks are registered on a module of this file.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn

from engine.methods.recipro import resolve_classes, top_classes
from engine.split.network import SplitModel
from pipeline.errors import EngineError

PACKAGE: Final = "pytorch_grad_cam"
GRAD_CAM_METHODS: Final = {
    "grad-cam": "GradCAM",  # Selvaraju et al., arXiv:1610.02391
    "grad-cam++": "GradCAMPlusPlus",  # Chattopadhay et al., arXiv:1710.11063
    "layer-cam": "LayerCAM",  # Jiang et al., IEEE TIP 30 (2021)
    "score-cam": "ScoreCAM",  # Wang et al., arXiv:1910.01279
    "eigen-cam": "EigenCAM",  # Muhammad and Yeasin, arXiv:2008.00299
}
"""The classes of the package, by method name."""

SCORE_CAM_BATCH_SIZE: Final = 32
"""Masked images per batch of Score-CAM."""


class GradCamMethod:
    """A method of the package, with the signature of ``engine.methods.recipro.recipro_cam``."""

    def __init__(self, name: str) -> None:
        """Import the package.

        Args:
            name: a key of ``GRAD_CAM_METHODS``.

        Raises:
            EngineError: the package is missing.
        """
        self.name = name
        if importlib.util.find_spec(PACKAGE) is None:
            raise EngineError(
                f"method {name!r}: the package grad-cam is missing; "
                "uv sync --inexact --extra evaluate (with pip: docs/evaluation.md)"
            )
        self._package = importlib.import_module(PACKAGE)

    def __call__(
        self, split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Explain a batch of images; arguments and results as in ``recipro_cam``."""
        with torch.inference_mode(mode=False), torch.no_grad():
            images = images.clone()  # an inference tensor cannot require a gradient, but its copy can
            features = split.head(images)
            if features.ndim != 4:
                raise EngineError(
                    f"method {self.name!r}: the output of layer {split.layer!r} is not a grid of cells; choose "
                    "--method recipro-cam"
                )
            logits = split.tail(features)
            chosen = top_classes(logits, 1) if classes is None else resolve_classes(classes, len(images), split.classes)
            class_indices = [int(index) for index in chosen[:, 0]]
            if self.name == "score-cam":
                heat = torch.cat(
                    [
                        self._heat(split, image[None], [index])
                        for image, index in zip(images, class_indices, strict=True)
                    ]
                )
            else:
                with torch.enable_grad():
                    heat = self._heat(split, features.clone().requires_grad_(), class_indices)
            return torch.softmax(logits.float(), dim=1), heat.to(images.device)

    def _heat(self, split: SplitModel, inputs: Tensor, class_indices: list[int]) -> Tensor:
        """Return the package's heat maps (N, h, w) for images (Score-CAM) or feature maps (all other methods)."""
        hooked = _HookedNetwork(split, whole=self.name == "score-cam")
        method: Any = getattr(self._package, GRAD_CAM_METHODS[self.name])(model=hooked, target_layers=[hooked.grid])
        method.get_target_width_height = lambda _images: (split.grid[1], split.grid[0])
        # Score-CAM gets a second, unhooked network; it would otherwise store the maps of each masked image.
        method.model, method.batch_size = (
            _HookedNetwork(split, whole=True) if hooked.whole else hooked,
            SCORE_CAM_BATCH_SIZE,
        )
        targets = [_ClassLogit(index) for index in class_indices]
        try:
            with _no_progress_bar():
                heat = method(input_tensor=inputs, targets=targets)
        finally:
            method.activations_and_grads.release()
        return torch.from_numpy(heat).nan_to_num(0.0).clamp(0.0, 1.0)


class _HookedNetwork(nn.Module):
    """The network, or only its tail, with an identity module at the cut for the package's hooks."""

    def __init__(self, split: SplitModel, *, whole: bool) -> None:
        super().__init__()
        self.head, self.grid, self.tail, self.whole = split.head, nn.Identity(), split.tail, whole

    def forward(self, inputs: Tensor) -> Any:  # noqa: ANN401 - what a module returns
        return self.tail(self.grid(self.head(inputs) if self.whole else inputs))


class _ClassLogit:
    """Selects the logit of the explained class."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, scores: Tensor) -> Tensor:
        return scores[..., self.index]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Disable Score-CAM's progress bar for every image, and the bar's thread."""
    module: Any = importlib.import_module(f"{PACKAGE}.score_cam")
    original = module.tqdm
    module.tqdm = SimpleNamespace(tqdm=iter)
    try:
        yield
    finally:
        module.tqdm = original
