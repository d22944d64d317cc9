"""The table of methods: what explains a class, all behind one signature."""

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
"""Every method by name; only the first runs live."""


class Method(Protocol):
    """A network cut in two, images (N, 3, H, W) and classes to softmax scores (N, K) and heat (N, h, w) in [0, 1]."""

    def __call__(
        self, split: SplitModel, images: Tensor, classes: int | Sequence[int] | Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Explain a batch of images; ``classes`` None = each image's own top-1."""


def find_method(name: str, kernel: str = "point") -> Method:
    """Return a method by its name; ``kernel`` is Recipro-CAM's.

    Raises:
        ConfigError: an unknown method or kernel.
        EngineError: the package that brings it is missing.
    """
    checked = check_kernel(kernel)
    if name == "recipro-cam":
        return lambda split, images, classes=None: recipro_cam(split, images, classes, checked)
    if name == "cam":
        return cam
    if name in GRAD_CAM_METHODS:
        return GradCamMethod(name)
    raise ConfigError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
