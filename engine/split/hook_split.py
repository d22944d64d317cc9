"""Head and tail of a network that cannot be traced: its own forward, entered again.

The head stops the forward pass as soon as the layer has answered. The tail runs the whole forward on one blank image
and puts the given feature map in the layer's place. That costs a forward pass of one image more than a traced tail,
and is exact for any network whose scores depend on the image through that layer alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _ReachedError(Exception):
    """Carries the layer's output out of a forward pass that need not go on."""

    def __init__(self, features: Tensor) -> None:
        super().__init__("the layer has answered")
        self.features = features


class HookHead(nn.Module):
    """(N, 3, H, W) images to the layer's output."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        super().__init__()
        self.net = net
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Run the network up to the layer."""

        def leave(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            raise _ReachedError(output)

        handle = self.net.get_submodule(self.layer).register_forward_hook(leave)
        try:
            self.net(images)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        message = f"layer {self.layer!r} did not run"
        raise RuntimeError(message)


class HookTail(nn.Module):
    """(N, C, h, w) feature maps to (N, K) scores."""

    def __init__(self, net: nn.Module, layer: str, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.layer = layer
        self.image_shape = (1, *image_shape[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Run the network on a blank image with ``features`` in the layer's place."""
        handle = self.net.get_submodule(self.layer).register_forward_hook(
            # A clone, because what follows may work in place.
            lambda _module, _inputs, _output: features.clone()
        )
        try:
            blank = torch.zeros(self.image_shape, device=features.device, dtype=features.dtype)
            scores: Tensor = self.net(blank)
            return scores
        finally:
            handle.remove()
