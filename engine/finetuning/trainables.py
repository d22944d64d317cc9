"""Who can learn: a whole network, from a layer on, or its last layer alone on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.trainer import Numbers
from engine.models.weights import put_into
from engine.runtime.devices import DTYPES
from engine.split.layers import trace_layer_outputs
from pipeline.errors import LayerError, ModelError, did_you_mean

HEAD_FASTER = 4.0
"""How much faster the new last layer learns than those that were trained before."""

USUAL_SPREAD, MAX_FASTER = 0.2, 30.0
"""How much features differ from picture to picture, at the least, before last layers (ResNet-18: 0.33, ResNet-50:
0.18); before inner ones it may be a tenth of that."""

_LISTED = 8
"""How many layers a message names."""

_NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - the one base of all of them
Change = Callable[[Tensor], Tensor]


class FullFinetuner:
    """A network that learns as a whole, or from a layer on.

    Running statistics of batch normalisation stay as they came, unless it begins untrained: a few hundred pictures
    are too few to measure them anew, and what is kept is what will run.
    """

    def __init__(
        self, net: nn.Module, last: str, pictures: ImageDataset, change: Change, *,
        device: torch.device, precision: str = "fp32", untrained: bool = False,
    ) -> None:  # fmt: skip
        self._net = net.to(device).to(memory_format=torch.channels_last)
        self._last, self._images, self._augmentation = last, pictures, change
        self._device, self._dtype, self._untrained = device, DTYPES[precision], untrained

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return what learns; the last layer apart."""
        head = self._net.get_submodule(self._last)
        own = {id(parameter) for parameter in head.parameters()}
        rest = [one for one in self._net.parameters() if one.requires_grad and id(one) not in own]
        groups: list[dict[str, object]] = [{"params": list(head.parameters()), "lr": HEAD_FASTER * learning_rate}]
        return [*groups, {"params": rest, "lr": learning_rate}] if rest else groups

    def logits(self, numbers: Numbers, *, augment: bool) -> Tensor:
        """Return class scores of these pictures."""
        self._net.train(augment)
        if augment and not self._untrained:
            for module in self._net.modules():
                if isinstance(module, _NORMS):
                    module.eval()
        pixels = self._images.fitted(numbers.tolist())
        images = self._images.normalised((self._augmentation(pixels) if augment else pixels).to(self._device))
        with autocast(self._device, self._dtype):
            scores: Tensor = self._net(images)
        return scores.float()

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {key: value.detach().clone() for key, value in self._net.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take weights back, and leave the network ready to run."""
        put_into(self._net, state)
        self._net.eval()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a block in which networks run in a lower precision, where one is asked for."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedParent:
    """What a network that was ended earlier is the beginning of."""

    whole: nn.Module
    """The network of the table: its names are those that people know."""
    truncate_at: str
    """The layer of it that is the last here."""
    prefix: str = "features."
    """What stands before the names here."""


def freeze_to(net: nn.Module, layer: str, image_size: tuple[int, int], beginning: TruncatedParent | None = None) -> int:
    """Keep a layer and all that runs before it as it is; return how many parameters still learn.

    Args:
        net: the network that will learn.
        layer: the layer's name; of a network that was ended earlier, that in the whole one.
        image_size: of the pictures to come.
        beginning: where it was ended earlier.

    Raises:
        LayerError: there is no such layer, or nothing would be left to learn.
    """
    whole = net if beginning is None else beginning.whole
    outputs, _ = trace_layer_outputs(whole, torch.zeros(1, 3, *image_size))
    orders = {name: one.order for name, one in outputs.items()}
    there = {name: one for name, one in orders.items() if beginning is None or one <= orders[beginning.truncate_at]}
    if layer not in there:
        _refuse_layer(layer, orders, there, beginning)
    kept = [name for name, one in there.items() if one <= there[layer]]
    prefix = "" if beginning is None else beginning.prefix
    own = dict(net.named_parameters())
    for name in kept:
        for parameter, _ in whole.get_submodule(name).named_parameters(prefix=prefix + name):
            own[parameter].requires_grad = False
    left = sum(one.numel() for one in net.parameters() if one.requires_grad)
    if not left:
        raise LayerError(f"--freeze-until {layer!r}: nothing is left to learn; name an earlier layer")
    return left


def _refuse_layer(
    layer: str, orders: Mapping[str, int], there: Mapping[str, int], beginning: TruncatedParent | None
) -> NoReturn:
    top = min(name.count(".") for name in there)
    listed = ", ".join([name for name in sorted(there, key=there.__getitem__) if name.count(".") == top][-_LISTED:])
    if beginning is not None and layer in orders:
        raise LayerError(
            f"--freeze-until {layer!r}: the network ends before it, with "
            f"{beginning.truncate_at!r}; name one of {listed}"
        )
    raise LayerError(
        f"--freeze-until {layer!r}: the network has no such layer.{did_you_mean(layer, there)} It has {listed}"
    )


class LinearProbe:
    """A network whose last layer alone learns: everything before it runs once for each picture and view.

    The first view is the picture as it is; the others are changed. A visit takes one of them.
    """

    def __init__(
        self, net: nn.Module, last: str, pictures: ImageDataset, change: Change, *,
        device: torch.device, views: int, seed: int, train_indices: Numbers, on_progress: Callable[[int, int], None],
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        """Compute the features.

        Raises:
            ModelError: what comes after the last layer is more than a mean.
        """
        self._net, self._device = net.to(device).to(memory_format=torch.channels_last).eval(), device
        self._layer, self._dtype = net.get_submodule(last), DTYPES[precision]
        self._after = find_output_activation(self._net, last, pictures.size)
        self._rng = np.random.default_rng((seed, 13))
        todo = len(pictures) + (views - 1) * len(train_indices)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            plain = self._features(pictures, np.arange(len(pictures)), lambda pixels: pixels, (0, todo), on_progress)
            self._views = [plain]
            for view in range(1, views):
                done = len(pictures) + (view - 1) * len(train_indices)
                augment = plain.clone()
                augment[train_indices] = self._features(pictures, train_indices, change, (done, todo), on_progress)
                self._views.append(augment)
        self._views = [view.clone() for view in self._views]

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the last layer's parameters; what differs little from picture to picture needs larger weights."""
        return [{"params": list(self._layer.parameters()), "lr": learning_rate * faster(self._views[0])}]

    def logits(self, numbers: Numbers, *, augment: bool) -> Tensor:
        """Return class scores of these pictures, each in one of its views."""
        if augment:
            views = self._rng.integers(0, len(self._views), len(numbers))
            features = torch.stack([self._views[view][number] for number, view in zip(numbers, views, strict=True)])
        else:
            features = self._views[0][torch.from_numpy(numbers)]
        return self._after(self._layer(features.to(self._device)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the last layer."""
        return {key: value.detach().clone() for key, value in self._layer.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self._layer.load_state_dict(state)

    def _features(
        self, pictures: ImageDataset, numbers: Numbers, change: Change, place: tuple[int, int],
        on_progress: Callable[[int, int], None],
    ) -> Tensor:  # fmt: skip
        found = []
        for first in range(0, len(numbers), 16):
            pixels = change(pictures.fitted(numbers[first : first + 16].tolist()))
            with autocast(self._device, self._dtype):
                entered, _ = capture_input(self._net, self._layer, pictures.normalised(pixels.to(self._device)))
            found.append(entered.float().cpu())
            on_progress(place[0] + first + len(pixels), place[1])
        return torch.cat(found)


def faster(features: Tensor) -> float:
    """Return how many times faster a layer learns on features that differ less between pictures than usual ones.

    Adam's steps do not grow with the gradient: on features ten times smaller a layer would need ten times as many.
    """
    spread = float(features.std(0).square().mean().sqrt()) if len(features) > 1 else 0.0
    return 1.0 if spread == 0.0 else min(MAX_FASTER, max(1.0, USUAL_SPREAD / spread))


def capture_input(net: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters a layer when the network runs, and the network's scores."""
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        scores: Tensor = net(images)
    finally:
        handle.remove()
    return caught[0], scores


def find_output_activation(net: nn.Module, last: str, image_size: tuple[int, int]) -> Change:
    """Return what turns the last layer's output into scores, proven on noise; ``net`` is in inference mode.

    Raises:
        ModelError: it is more than a mean.
    """
    layer = net.get_submodule(last)
    noise = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = noise.to(next(layer.parameters()).device).contiguous(memory_format=torch.channels_last)
        features, scores = capture_input(net, layer, images)
        output = layer(features)
        for after in _ENDINGS:
            told = after(output) if output.ndim in {2, 4} else output
            if told.shape == scores.shape and torch.allclose(told, scores, rtol=1e-3, atol=1e-4):
                return after
    raise ModelError("this network does more than take a mean after its last layer; leave --linear-probe out")


def _plain(output: Tensor) -> Tensor:
    return output


def _mean(output: Tensor) -> Tensor:
    return output.flatten(2).mean(2) if output.ndim == 4 else output


def _mean_of_positive(output: Tensor) -> Tensor:
    return F.relu(output).flatten(2).mean(2) if output.ndim == 4 else output


_ENDINGS: Sequence[Change] = (_plain, _mean, _mean_of_positive)
