"""Builds head and tail of a network that cannot be traced, with forward hooks.

The head stops the forward pass after the layer. The tail runs the whole forward pass on one zero image and replaces
the layer's output with the given feature map. It takes one forward pass of one image more than a traced tail, and is
exact for any network whose scores depend on the image only through this layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _ReachedError(Exception):
    """Stops a forward pass after the layer; contains the layer's output."""

    def __init__(self, features: Tensor) -> None:
        super().__init__("the layer has run")
        self.features = features


class HookHead(nn.Module):
    """Computes the layer's output (N, C, h, w) from images (N, 3, H, W)."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        super().__init__()
        self.net = net
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Run the network up to the layer and return its output."""

        def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            raise _ReachedError(output)

        handle = self.net.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.net(images)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        message = f"layer {self.layer!r} was not called in the forward pass; choose another --layer"
        raise RuntimeError(message)


class HookTail(nn.Module):
    """Computes class logits (N, K) from feature maps (N, C, h, w)."""

    def __init__(self, net: nn.Module, layer: str, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.layer = layer
        self.image_shape = (1, *image_shape[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Run the network on a zero image with the layer's output replaced by ``features``."""
        handle = self.net.get_submodule(self.layer).register_forward_hook(
            # A clone, because later layers may work in place.
            lambda _module, _inputs, _output: features.clone()
        )
        try:
            image = torch.zeros(self.image_shape, device=features.device, dtype=features.dtype)
            scores: Tensor = self.net(image)
            return scores
        finally:
            handle.remove()
