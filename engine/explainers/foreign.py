"""The explainer of classifiers from other programs: ONNX files not written by ``export``, OpenVINO IR."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from engine.explainers.base import BaseExplainer, EngineInfo
from engine.foreign.classifier import ForeignClassifier
from engine.methods.kernels import check_kernel
from engine.methods.recipro import ExplainedNetwork
from engine.models.labels import parse_target, read_labels
from engine.models.preprocess import Preprocessing
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD
from engine.runtime.verification import ModelOutputs
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

_IMAGENET_CLASSES = 1000


class ForeignExplainer(BaseExplainer):
    """Explains frames with an ``.onnx`` or ``.xml`` file from another program, run by OpenVINO."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        """Read, split, compile and verify the file.

        Args:
            path: the file.
            config: the engine's settings.

        Raises:
            ModelError, LayerError, EngineError: the file is no classifier that can be split.
            ConfigError: a setting does not apply to this file, or a class is unknown.
            BackendError: the outputs of OpenVINO for the file or its parts are wrong.
        """
        started_at = time.perf_counter()
        _refuse_settings(path, config)
        if config.threads:
            torch.set_num_threads(config.threads)
        kernel = check_kernel(config.kernel)
        network = ForeignClassifier(
            path, layer=config.layer, size=config.input_size, precision=config.precision, kernel=kernel,
            budget_bytes=config.memory_budget_mib << 20,
        )  # fmt: skip
        self._network, graph = network, network.graph
        labels = _labels(path, config, graph.classes)
        target = parse_target(config.target, labels)
        self._explained = ExplainedNetwork(network.head, network.plan, target, graph.grid)
        size = graph.image_size
        preprocessing = Preprocessing(size, config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD, config.fit)
        _warn_of_format(path, config)
        super().__init__(labels, f"recipro-cam/{kernel}", preprocessing, EngineInfo(
            path.name, graph.layer, graph.grid, size, network.plan.info, "openvino", config.precision, "cpu",
            time.perf_counter() - started_at,
        ))  # fmt: skip

    def _images(self, pixels: Tensor) -> Tensor:
        return self._preprocessing.normalised(pixels)

    def _outputs(self, images: Tensor) -> ModelOutputs:
        with torch.inference_mode():
            outputs: ModelOutputs = self._explained(images)
        return outputs

    def _scores(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.softmax(self._network.tail(self._network.head(images)), dim=1)


def _refuse_settings(path: Path, config: EngineConfig) -> None:
    if config.weights is not None:
        raise ConfigError(f"--weights {config.weights!r}: {path} has its own weights; omit --weights")
    if config.backend not in {"auto", "openvino"}:
        raise ConfigError(
            f"backend {config.backend!r} does not run {path.name}: only OpenVINO runs classifiers from other "
            "programs; omit --backend"
        )
    if config.device.startswith("cuda"):
        raise ConfigError(
            f"device {config.device!r}: {path} runs on the CPU; for a GPU use the PyTorch network by its name, with "
            "--weights"
        )


def _labels(path: Path, config: EngineConfig, count: int) -> tuple[str, ...]:
    """Return the class names: from the labels file, ImageNet's for 1000 classes, or numbers."""
    if config.labels is not None:
        names = read_labels(Path(config.labels))
        if len(names) != count:
            raise ConfigError(
                f"labels {config.labels!r}: has {len(names)} names, but the network has {count} classes; list {count} "
                "names"
            )
        return names
    if count == _IMAGENET_CLASSES:
        from torchvision.models import ResNet18_Weights

        log.warning("%s has 1000 classes: ImageNet's names are used; for other names use --labels FILE", path)
        return tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    log.warning("%s has %d classes without names; name them by --labels FILE", path, count)
    return tuple(f"class {k}" for k in range(count))


def _warn_of_format(path: Path, config: EngineConfig) -> None:
    """Warn about the assumed normalisation, which ONNX and OpenVINO files do not contain."""
    if config.mean is None or config.std is None:
        log.warning(
            "%s does not state how its images are normalised: ImageNet's mean and std are used. Set those of its "
            "training by --mean and --std; --mean 0 --std 1 if the network itself normalises values in [0, 1]", path,
        )  # fmt: skip
