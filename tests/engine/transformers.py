"""Small vision transformers with random weights whose scores differ."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import VisionTransformer

from engine.models.loader import randomize_zero_layers


def speaking(net, size, spread=2.0):
    """Give a random transformer biases, tokens that differ, and class scores that differ."""
    net = randomize_zero_layers(net).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim < 2 or "token" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
            elif any(part in name for part in ("in_proj", "qkv", "out_proj", "attn.proj")):
                nn.init.normal_(weight, std=3.0 * weight.shape[1] ** -0.5)
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(spread / float(net(torch.randn(2, 3, *size)).std()))
    return net


def small(image_size=32, patch=8, blocks=2, **more):
    net = VisionTransformer(image_size, patch, blocks, 2, 24, 48, num_classes=6, **more)
    return speaking(net, (image_size, image_size))
