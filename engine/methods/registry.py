"""Registry of the explanation methods; all have one signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from torch import Tensor

from engine.methods.cam import cam
from engine.methods.grad_cam import GRAD_CAM_METHODS, GradCamMethod
from engine.methods.kernels import check_kernel
from engine.methods.recipro import recipro_cam
from engine.split.network import SplitModel
from pipeline.errors import ConfigError, did_you_mean

METHODS: Final = ("recipro-cam", "cam", *GRAD_CAM_METHODS)
"""All method names; only the first method explains live video, the others are for evaluation."""


class Method(Protocol):
    """An explanation method.

    Computes from a split network, images (N, 3, H, W) and classes: softmax scores (N, K) and heat maps (N, h, w) in
    [0, 1], both float32.
    """

    def __call__(
        self, split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Explain a batch of images; ``classes`` None: the top-1 class of each image."""


def find_method(name: str, kernel: str = "point") -> Method:
    """Return the method with this name.

    Args:
        name: one of ``METHODS``.
        kernel: the mask kernel of Recipro-CAM; other methods ignore it.

    Raises:
        ConfigError: the method or kernel is unknown.
        EngineError: the package of the method is missing.
    """
    checked = check_kernel(kernel)
    if name == "recipro-cam":
        return lambda split, images, classes=None: recipro_cam(split, images, classes, checked)
    if name == "cam":
        return cam
    if name in GRAD_CAM_METHODS:
        return GradCamMethod(name)
    raise ConfigError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
