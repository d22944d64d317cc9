"""Registry of the tested models; does not import torch, so that listing names is fast.

Any other CNN of torchvision or timm, and any vision transformer with a class token, can be used by its name. For the
models in this registry, heat map, input size and labels are tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """Builder, preprocessing and default layer of a network."""

    name: str
    """Value of ``--model``: the name in torchvision or timm."""
    input_size: tuple[int, int] = (224, 224)
    """Height and width in pixels with which the pretrained weights were validated."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    layer: str | None = None
    """The explained layer; None: the last layer with a grid, or the last block of a transformer."""
    builder: str = "torchvision"
    """``torchvision``, ``timm``, or ``line_net`` (the network of the simulated inspection line)."""
    source: str | None = None
    """``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER`` of the weights; None: the builder's weights for ``name``."""
    file: str | None = None
    """Bundled weights, relative to the project's root; None: the builder's pretrained weights."""
    options: tuple[tuple[str, bool | int], ...] = ()
    """Keyword arguments of the builder when torchvision's weights are read from a file."""


_AUXILIARY: Final = (("transform_input", True), ("aux_logits", False), ("init_weights", False))

_ENTRIES: Final = (
    ModelEntry("line_net", (240, 320), builder="line_net", file="configs/models/line.safetensors"),
    ModelEntry("resnet18"),
    ModelEntry("resnet34"),
    ModelEntry("resnet50"),
    ModelEntry("resnet101"),
    ModelEntry("resnext50_32x4d"),
    ModelEntry("resnext101_32x8d"),
    ModelEntry("wide_resnet50_2"),
    ModelEntry("densenet121"),
    ModelEntry("vgg11"),
    ModelEntry("vgg11_bn"),
    ModelEntry("vgg16"),
    ModelEntry("vgg16_bn"),
    ModelEntry("alexnet"),
    ModelEntry("squeezenet1_0"),
    ModelEntry("squeezenet1_1"),
    ModelEntry("googlenet", options=_AUXILIARY),
    ModelEntry("inception_v3", (299, 299), options=_AUXILIARY),
    ModelEntry("mobilenet_v2"),
    ModelEntry("mobilenet_v3_small"),
    ModelEntry("mobilenet_v3_large"),
    ModelEntry("efficientnet_b0"),
    ModelEntry("efficientnet_v2_s", (384, 384)),
    ModelEntry("regnet_x_400mf"),
    ModelEntry("regnet_y_400mf"),
    ModelEntry("shufflenet_v2_x1_0"),
    ModelEntry("mnasnet1_0"),
    ModelEntry("convnext_tiny"),
    ModelEntry("vit_b_16"),
    ModelEntry("vit_b_32"),
    ModelEntry("vit_l_16"),
    ModelEntry("vit_l_32"),
    ModelEntry("vit_h_14", (518, 518), options=(("image_size", 518),)),
)

MODELS: Final[dict[str, ModelEntry]] = {entry.name: entry for entry in _ENTRIES}
"""The tested models by name."""

ALIASES: Final = {"line": "line_net", "mobilenet_v3": "mobilenet_v3_large"}
"""Short names of models."""


def lookup(name: str) -> ModelEntry | None:
    """Return the entry with this name, or None; case and hyphens or underscores do not matter."""
    plain = name.strip().lower().replace("-", "_")
    return MODELS.get(ALIASES.get(plain, plain))
