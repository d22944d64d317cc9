"""The methods people compare with, by the ``grad-cam`` package: for evaluation, never in the live path.

Gradients are taken of the score before the softmax with respect to the layer's map; what the package makes of them is
asked for on the layer's grid, so that its own enlargement takes no part. The network given is never touched: a
``SplitModel`` is a copy, and the package's hooks sit on a module of this file.
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

from engine.methods.recipro import chosen_classes, top_classes
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
"""Our names of the methods, and the package's."""

SCORE_CAM_BATCH_SIZE: Final = 32
"""How many masked images Score-CAM sends through the network together."""


class GradCamMethod:
    """One of the package's methods, behind the signature of ``engine.methods.recipro.recipro_cam``."""

    def __init__(self, name: str) -> None:
        """Take a name of ``GRAD_CAM_METHODS``.

        Raises:
            EngineError: the package is missing.
        """
        self.name = name
        if importlib.util.find_spec(PACKAGE) is None:
            raise EngineError(
                f"method {name!r}: the package grad-cam is missing; "
                "uv sync --extra evaluate (with pip: docs/evaluation.md)"
            )
        self._package = importlib.import_module(PACKAGE)

    def __call__(
        self, split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Explain a batch of images; arguments and results as in ``recipro_cam``."""
        with torch.inference_mode(mode=False), torch.no_grad():
            images = images.clone()  # an inference tensor takes part in no gradient; its copy may
            features = split.head(images)
            if features.ndim != 4:
                raise EngineError(
                    f"method {self.name!r}: layer {split.layer!r} gives no grid of cells; choose --method recipro-cam"
                )
            logits = split.tail(features)
            chosen = top_classes(logits, 1) if classes is None else chosen_classes(classes, len(images), split.classes)
            wanted = [int(one) for one in chosen[:, 0]]
            if self.name == "score-cam":
                heat = torch.cat(
                    [self._heat(split, image[None], [one]) for image, one in zip(images, wanted, strict=True)]
                )
            else:
                with torch.enable_grad():
                    heat = self._heat(split, features.clone().requires_grad_(), wanted)
            return torch.softmax(logits.float(), dim=1), heat.to(images.device)

    def _heat(self, split: SplitModel, given: Tensor, wanted: list[int]) -> Tensor:
        """Ask the package, with images (Score-CAM, which scores masked images) or feature maps (all others)."""
        watched = _Watched(split, whole=self.name == "score-cam")
        method: Any = getattr(self._package, GRAD_CAM_METHODS[self.name])(model=watched, target_layers=[watched.grid])
        method.get_target_width_height = lambda _images: (split.grid[1], split.grid[0])
        # Hooked, Score-CAM would keep the maps of every masked image.
        method.model, method.batch_size = (
            _Watched(split, whole=True) if watched.whole else watched,
            SCORE_CAM_BATCH_SIZE,
        )
        targets = [_Logit(one) for one in wanted]
        try:
            with _no_progress_bar():
                heat = method(input_tensor=given, targets=targets)
        finally:
            method.activations_and_grads.release()
        return torch.from_numpy(heat).nan_to_num(0.0).clamp(0.0, 1.0)


class _Watched(nn.Module):
    """The network, or its tail alone, with a place for hooks at the cut."""

    def __init__(self, split: SplitModel, *, whole: bool) -> None:
        super().__init__()
        self.head, self.grid, self.tail, self.whole = split.head, nn.Identity(), split.tail, whole

    def forward(self, given: Tensor) -> Any:  # noqa: ANN401 - what a module returns
        return self.tail(self.grid(self.head(given) if self.whole else given))


class _Logit:
    """The score that is explained."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, scores: Tensor) -> Tensor:
        return scores[..., self.index]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep Score-CAM from drawing a bar for every picture, and from the thread that goes with it."""
    module: Any = importlib.import_module(f"{PACKAGE}.score_cam")
    before = module.tqdm
    module.tqdm = SimpleNamespace(tqdm=iter)
    try:
        yield
    finally:
        module.tqdm = before
