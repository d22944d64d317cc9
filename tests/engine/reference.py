"""Recipro-CAM by its definition: a slow loop through the network, one cell at a time."""

import torch
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, ResNet

from engine.models.loader import build_untrained
from engine.models.registry import MODELS

GAUSSIAN = ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16))


def small_net(seed=0):
    """Return a random classifier of 5 classes with two convolutions; its last map comes from layer 3."""
    torch.manual_seed(seed)
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def narrow_net(name, count, width=64):
    """Return VGG or AlexNet with ``width`` instead of 4096 values in the hidden linear layers.

    Their 100 million weights are nearly all of what such a network costs; no rule of a plan depends on their number.
    """
    with torch.device("meta"):
        net = build_untrained(MODELS[name], count)
        linear = [index for index, part in enumerate(net.classifier) if isinstance(part, nn.Linear)]
        for index in linear:
            part = net.classifier[index]
            inputs = part.in_features if index == linear[0] else width
            net.classifier[index] = nn.Linear(inputs, part.out_features if index == linear[-1] else width)
    net.to_empty(device="cpu")
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
    return net


def shallow_net(name, count):
    """Return ResNet-18 or MobileNetV3 with fewer blocks of each of their kinds.

    An export takes its time for each operation of the graph; no rule depends on the number of equal blocks.
    """
    if name == "resnet18":
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=count)
    blocks = (
        (16, 3, 16, 16, True, "RE", 2), (16, 3, 72, 24, False, "RE", 2),
        (24, 5, 96, 40, True, "HS", 2), (40, 5, 240, 40, True, "HS", 1),
    )  # fmt: skip
    return MobileNetV3([InvertedResidualConfig(*block, 1, 1.0) for block in blocks], 256, num_classes=count)


def lively(net, size):
    """Set the batch statistics of a random network to those of random images, so that its class scores differ."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        net(torch.randn(4, 3, *size))
        net.eval()
        scores = net(torch.randn(2, 3, *size))
        last = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        gain = min(3.0 / float((scores - scores.mean(1, keepdim=True)).std()), 1e4)
        last.weight *= gain
    return net


def masked(features, row, column, kernel):
    """Keep one cell's vectors of (N, C, h, w) maps, spread by the kernel and cut off at the border."""
    out = torch.zeros_like(features)
    _, _, rows, columns = features.shape
    vectors = features[:, :, row, column]
    if kernel == "point":
        out[:, :, row, column] = vectors
        return out
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if 0 <= row + dy < rows and 0 <= column + dx < columns:
                out[:, :, row + dy, column + dx] = vectors * GAUSSIAN[dy + 1][dx + 1]
    return out


def defined(net, layer, images, chosen, kernel):
    """Return scores (N, K) and heat (N, h, w) for images (N, 3, H, W); ``chosen`` None = each one's top-1 class.

    The masked maps replace those of the layer, so the layers before it run once for each image, not once for each cell.
    """
    module = net.get_submodule(layer)
    saved = []
    handle = module.register_forward_hook(lambda _m, _i, output: saved.append(output.detach().clone()))
    with torch.no_grad():
        scores = net(images).softmax(1)
    handle.remove()
    chosen = scores.argmax(1) if chosen is None else torch.as_tensor(chosen)
    count, _, rows, columns = saved[0].shape
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    maps = torch.cat([masked(saved[0], row, column, kernel) for row, column in cells])
    handle = module.register_forward_hook(lambda _m, _i, _o: maps.clone())
    with torch.no_grad():
        all_scores = net(images).softmax(1).reshape(rows, columns, count, -1)
    handle.remove()
    matrix = all_scores[:, :, torch.arange(count), chosen].permute(2, 0, 1)
    low, high = matrix.amin((1, 2), keepdim=True), matrix.amax((1, 2), keepdim=True)
    return scores, torch.where(high > low, (matrix - low) / (high - low), 0.0)
