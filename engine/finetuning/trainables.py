"""Classifiers for ``trainer.train``: a whole network, or its last layer on precomputed features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.finetuning.dataset import ImageDataset
from engine.finetuning.trainer import Indices, TrainingConfig
from engine.models.weights import put_into
from engine.runtime.devices import DTYPES
from pipeline.errors import ModelError

USUAL_SPREAD, MAX_RATE_FACTOR = 0.2, 30.0
"""Usual standard deviation between images of the features before last layers (ResNet-18: 0.33, ResNet-50: 0.18), and
the maximum factor of the learning rate for smaller ones: features of inner layers may have a tenth of it."""

_FEATURE_BATCH = 16

_NORMS = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - the common base class of all of them
Transform = Callable[[Tensor], Tensor]


class FullFinetuner:
    """A network of which all layers are trained, except for frozen ones.

    Running statistics of batch norms stay frozen unless the network is untrained: a few hundred images are too
    few to estimate them, and inference uses them.
    """

    def __init__(
        self, net: nn.Module, head_name: str, images: ImageDataset, augmentation: Transform, stage: TrainingConfig, *,
        device: torch.device, precision: str = "fp32", untrained: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        """Prepare the network for training.

        Args:
            net: the network; its weights change.
            head_name: name of the network's last layer.
            images: the data set.
            augmentation: augments a batch of training images.
            stage: the stage, of which ``crop`` and ``head_rate`` are used.
            device: device of the training.
            precision: a key of ``DTYPES``.
            untrained: True: the weights are random.
            seed: seed of the random positions of crops.
        """
        self._net = net.to(device).to(memory_format=torch.channels_last)
        self._head_name, self._images, self._augmentation, self._stage = head_name, images, augmentation, stage
        self._device, self._dtype, self._untrained = device, DTYPES[precision], untrained
        self.rng = np.random.default_rng((seed, 21))

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the last layer and the other layers that are not frozen, with their learning rates."""
        head = self._net.get_submodule(self._head_name)
        head_ids = {id(parameter) for parameter in head.parameters()}
        others = [
            parameter
            for parameter in self._net.parameters()
            if parameter.requires_grad and id(parameter) not in head_ids
        ]
        groups: list[dict[str, object]] = [
            {"params": list(head.parameters()), "lr": self._stage.head_rate * learning_rate}
        ]
        return [*groups, {"params": others, "lr": learning_rate}] if others else groups

    def logits(self, indices: Indices, *, augment: bool) -> Tensor:
        """Return the class logits for these images, or for crops of them."""
        self._net.train(augment)
        if augment and not self._untrained:
            for module in self._net.modules():
                if isinstance(module, _NORMS):
                    module.eval()
        pixels = self._pixels(indices, augment=augment)
        images = self._images.normalised((self._augmentation(pixels) if augment else pixels).to(self._device))
        with autocast(self._device, self._dtype):
            logits: Tensor = self._net(images)
        return logits.float()

    def _pixels(self, indices: Indices, *, augment: bool) -> Tensor:
        if self._stage.crop is None:
            return self._images.fitted(indices.tolist())
        return self._images.crops(indices.tolist(), self._stage.crop, self.rng if augment else None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {key: value.detach().clone() for key, value in self._net.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore weights, and set the network to inference mode."""
        put_into(self._net, state)
        self._net.eval()


@contextmanager
def scaled_features(net: nn.Module, head_name: str, stage: TrainingConfig, size: tuple[int, int]) -> Iterator[None]:
    """Scale the last layer's input, and its weights inversely, for crops and small objects.

    Global average pooling divides the sum over cells by the number of cells. Here the sum is divided by the number of
    cells of ``object_area`` instead. Then an object has the same score in a crop as in the whole image, so training can
    continue from one to the other; and the weights of the last layer are not larger for small objects, so they need no
    other learning rate.

    Args:
        net: a network that ends with global average pooling and a linear layer.
        head_name: name of the linear layer.
        stage: the stage; nothing is scaled if neither ``crop`` nor ``object_area`` is set.
        size: height and width of whole images, in pixels of the network's input.

    Raises:
        ModelError: the last layer is not linear, or the crop is larger than the image.
    """
    if stage.crop is None and stage.object_area is None:
        yield
        return
    head = net.get_submodule(head_name)
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"the last layer {head_name} is a {type(head).__name__}, but crop and object_area need a Linear one; use "
            "another network"
        )
    if stage.crop is not None and stage.crop > min(size):
        raise ModelError(
            f"crop {stage.crop}: is larger than the input of {size[0]}x{size[1]} pixels; use a smaller crop"
        )
    image_area = size[0] * size[1]
    object_area = stage.object_area or image_area
    factor = (stage.crop**2 if stage.crop else image_area) / object_area
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))
    _scale_weight(head, object_area / image_area)
    try:
        yield
    finally:
        handle.remove()
        _scale_weight(head, image_area / object_area)


def _scale_weight(head: nn.Linear, factor: float) -> None:
    with torch.no_grad():
        head.weight.mul_(factor)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which networks run in ``dtype``, unless it is float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class LinearProbe:
    """The last layer of a network; the layers before it run once for each image and view.

    The first view is the image itself; all other views are augmented. Training draws one view of each image.
    """

    def __init__(
        self, net: nn.Module, head_name: str, images: ImageDataset, augmentation: Transform, *,
        device: torch.device, views: int, seed: int, train_indices: Indices, on_progress: Callable[[int, int], None],
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        """Compute the features.

        Args:
            net: the network; only the weights of its last layer change.
            head_name: name of the network's last layer.
            images: the data set.
            augmentation: augments a batch of training images.
            device: device of the training.
            views: number of views of each training image.
            seed: seed of the random views.
            train_indices: the training images; all other images have one view.
            on_progress: called with the numbers of computed and of all views.
            precision: a key of ``DTYPES``.

        Raises:
            ModelError: a function other than a mean follows the last layer.
        """
        self._net, self._device = net.to(device).to(memory_format=torch.channels_last).eval(), device
        self._head, self._dtype = net.get_submodule(head_name), DTYPES[precision]
        self._output_activation = find_output_activation(self._net, head_name, images.size)
        self.rng = np.random.default_rng((seed, 13))
        total = len(images) + (views - 1) * len(train_indices)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            plain = self._features(images, np.arange(len(images)), lambda pixels: pixels, (0, total), on_progress)
            self._views = [plain]
            for view in range(1, views):
                done = len(images) + (view - 1) * len(train_indices)
                augmented = plain.clone()
                augmented[train_indices] = self._features(
                    images, train_indices, augmentation, (done, total), on_progress
                )
                self._views.append(augmented)
        self._views = [view.clone() for view in self._views]

    def param_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Return the last layer's parameters, with a higher learning rate for features with small spread."""
        return [{"params": list(self._head.parameters()), "lr": learning_rate * rate_factor(self._views[0])}]

    def logits(self, indices: Indices, *, augment: bool) -> Tensor:
        """Return the class logits for these images; with ``augment``, for a random view of each."""
        if augment:
            views = self.rng.integers(0, len(self._views), len(indices))
            features = torch.stack([self._views[view][index] for index, view in zip(indices, views, strict=True)])
        else:
            features = self._views[0][torch.from_numpy(indices)]
        return self._output_activation(self._head(features.to(self._device)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the last layer's weights."""
        return {key: value.detach().clone() for key, value in self._head.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the last layer's weights."""
        self._head.load_state_dict(state)

    def _features(
        self, images: ImageDataset, indices: Indices, transform: Transform, progress: tuple[int, int],
        on_progress: Callable[[int, int], None],
    ) -> Tensor:  # fmt: skip
        done, total = progress
        features = []
        for first in range(0, len(indices), _FEATURE_BATCH):
            pixels = transform(images.fitted(indices[first : first + _FEATURE_BATCH].tolist()))
            with autocast(self._device, self._dtype):
                head_input, _ = capture_input(self._net, self._head, images.normalised(pixels.to(self._device)))
            features.append(head_input.float().cpu())
            on_progress(done + first + len(pixels), total)
        return torch.cat(features)


def rate_factor(features: Tensor) -> float:
    """Return the factor of the learning rate for features (N, C) with small spread.

    The factor is 1 to ``MAX_RATE_FACTOR``. Adam's steps do not grow with the gradient, so on features that are ten
    times smaller, a layer would need ten times as many steps.
    """
    spread = float(features.std(0).square().mean().sqrt()) if len(features) > 1 else 0.0
    return 1.0 if spread == 0.0 else min(MAX_RATE_FACTOR, max(1.0, USUAL_SPREAD / spread))


def capture_input(net: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the network; return the input of a layer, and the network's output."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        output: Tensor = net(images)
    finally:
        handle.remove()
    return inputs[0], output


def find_output_activation(net: nn.Module, head_name: str, image_size: tuple[int, int]) -> Transform:
    """Find the function from the last layer's output to the logits, by tests on noise.

    Args:
        net: the network in inference mode.
        head_name: name of its last layer.
        image_size: height and width in pixels.

    Raises:
        ModelError: the function is neither the identity nor a mean over cells or over positive values.
    """
    head = net.get_submodule(head_name)
    noise = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = noise.to(next(head.parameters()).device).contiguous(memory_format=torch.channels_last)
        features, logits = capture_input(net, head, images)
        output = head(features)
        for activation in _OUTPUT_ACTIVATIONS:
            candidate = activation(output) if output.ndim in {2, 4} else output
            if candidate.shape == logits.shape and torch.allclose(candidate, logits, rtol=1e-3, atol=1e-4):
                return activation
    raise ModelError("a function other than a mean follows the last layer of this network; omit --linear-probe")


def _identity(output: Tensor) -> Tensor:
    return output


def _mean(output: Tensor) -> Tensor:
    return output.flatten(2).mean(2) if output.ndim == 4 else output


def _mean_of_positive(output: Tensor) -> Tensor:
    return F.relu(output).flatten(2).mean(2) if output.ndim == 4 else output


_OUTPUT_ACTIVATIONS: Sequence[Transform] = (_identity, _mean, _mean_of_positive)
