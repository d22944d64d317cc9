"""Builds the detector for a training, before any image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint
from engine.detectors.input_format import InputFormat
from engine.detectors.networks.registry import OWN_DETECTORS
from engine.detectors.networks.yolox import Yolox
from engine.detectors.torchvision_detectors import TORCHVISION_NAMES, is_fixed_size
from engine.finetuning.detection.augmentation import BoxAugmentation
from engine.finetuning.detection.initial_weights import InitialWeights, initial_weights, load_initial_weights
from engine.finetuning.detection.networks import DetectionNetwork, TorchvisionNetwork, YoloxNetwork
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.trainer import TrainingConfig
from engine.io.perceptual_hash import KnownImages
from engine.models.loader import RANDOM
from pipeline.errors import ConfigError, ModelError, did_you_mean

TORCHVISION_STEP: Final = 32
"""Height and width of the input of torchvision's networks must be multiples of this."""
DETECTOR_DEFAULTS: Final = TrainingConfig(
    epochs=60, batch_size=8, learning_rate=5e-4, patience=20, head_rate=4.0, max_gradient_norm=10.0
)
DETECTOR_FROM_SCRATCH_DEFAULTS: Final = TrainingConfig(
    epochs=150, batch_size=8, learning_rate=2e-3, patience=40, head_rate=1.0, max_gradient_norm=10.0
)
LARGE_LEARNING_RATE: Final = 1e-4
"""Learning rate for pretrained ResNet-50 and VGG-16 backbones, which overfit a few images easily."""
_LARGE: Final = ("resnet50_fpn", "resnet50_fpn_v2", "vgg16")
TRAINABLE: Final = (*OWN_DETECTORS, *TORCHVISION_NAMES)
"""The detectors that can be trained, by name."""
_PRIOR: Final = 0.01
"""Initial score of untrained class and objectness layers (Lin et al., *Focal Loss*, arXiv:1708.02002)."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectorModel:
    """A detector to train, with the metadata of its file."""

    config: FinetuneConfig
    network: DetectionNetwork
    name: str
    """The network's name in ``TRAINABLE``."""
    labels: tuple[str, ...]
    input: InputFormat
    augmentation: BoxAugmentation
    trained_norms: frozenset[str]
    """Names of batch norms whose loaded statistics are kept."""
    pretrained: bool = False
    """True if the weights of the network or its backbone were loaded."""
    known_labels: tuple[str, ...] = ()
    """Classes of the initial weights."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the images of earlier training runs."""
    trained_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of the images of earlier training runs."""
    parent_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the file from which the training continues."""

    @property
    def net(self) -> nn.Module:
        """The network's module."""
        return self.network.module

    @property
    def warm_start(self) -> bool:
        """True if training continues from a file with all classes, whose state must be improved."""
        return bool(self.parent_checkpoint) and set(self.labels) <= set(self.known_labels)

    def stages(self) -> tuple[TrainingConfig, ...]:
        """Return the stages: those in ``config.course``, or one stage, with defaults for settings that are None."""
        config = self.config
        if config.course:
            return config.course
        defaults = DETECTOR_DEFAULTS if self.pretrained else DETECTOR_FROM_SCRATCH_DEFAULTS
        if self.pretrained and self.name.endswith(_LARGE):
            defaults = replace(defaults, learning_rate=LARGE_LEARNING_RATE)
        return (
            replace(
                defaults,
                epochs=config.epochs or defaults.epochs,
                batch_size=config.batch or defaults.batch_size,
                learning_rate=config.learning_rate or defaults.learning_rate,
                patience=config.patience or defaults.patience,
                balance="none" if config.balance == "none" else "sampler",
            ),
        )


def build_detector(config: FinetuneConfig, labels: Sequence[str]) -> DetectorModel:
    """Build the detector for these classes; equal configurations produce equal weights.

    Args:
        config: ``model`` is a name in ``TRAINABLE`` or a file of an earlier training; ``weights`` is a state dict or an
            ONNX file of the network, a state dict of its backbone, ``random``, or None: torchvision's pretrained
            weights.
        labels: the classes.

    Raises:
        ModelError: there is no such network, or the weights do not fit.
        ConfigError: an option does not apply to detectors.
    """
    _check_options(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _from_file(config, labels) if is_detector_file(config.model) else _from_name(config, labels)
    if config.freeze_until:
        frozen = freeze_until(model.network, config.freeze_until)
        norms = {
            n for n, part in model.net.named_modules() if isinstance(part, nn.BatchNorm2d) and n.startswith(frozen)
        }
        model = replace(model, trained_norms=model.trained_norms | norms)
    return model


def _check_options(config: FinetuneConfig) -> None:
    for option, value in (
        ("--linear-probe", config.linear_probe), ("--truncate-at", config.truncate_at), ("--layer", config.layer),
        ("--fit", config.fit),
    ):  # fmt: skip
        if value:
            raise ConfigError(f"{option}: is for classifiers; omit it to train a detector")
    if config.precision != "fp32" and config.model in TORCHVISION_NAMES:
        raise ConfigError(
            f"--precision {config.precision!r}: torchvision's detectors can only be trained in fp32; omit --precision"
        )
    if config.balance == "weights":
        raise ConfigError("--balance 'weights': is for classifiers; use sampler or none to train a detector")


def _from_name(config: FinetuneConfig, labels: Sequence[str]) -> DetectorModel:
    if config.model not in TRAINABLE:
        raise ModelError(
            f"--model {config.model!r}: is not a trainable detector."
            f"{did_you_mean(config.model, TRAINABLE)} Use one of {', '.join(TRAINABLE)}, or a detector written by "
            "`train`"
        )
    if config.weights is None and config.model in OWN_DETECTORS:
        raise ModelError(
            f"--model {config.model}: needs initial weights, such as --weights {config.model}.onnx or the authors' "
            "checkpoint; --weights random trains from scratch, which needs many more images"
        )
    model = _untrained(config, config.model, labels)
    if config.weights == RANDOM:
        return model
    return _loaded(model, initial_weights(config.model, config.weights), config.weights or config.model)


def _from_file(config: FinetuneConfig, labels: Sequence[str]) -> DetectorModel:
    if config.weights is not None:
        raise ConfigError(f"--weights {config.weights!r}: {config.model} has its own weights; omit --weights")
    path = Path(config.model)
    file = load_detector_checkpoint(path)
    if file.model not in TRAINABLE:
        raise ModelError(f"{path}: its network {file.model!r} is unknown; update recipro-stream")
    untrained = _untrained(config, file.model, labels, file.input)
    model = _loaded(untrained, InitialWeights(file.state, file.labels), str(path))
    inherited = {key: file.provenance[key] for key in ("date", "command") if key in file.provenance}
    kept = [label for label in file.labels if label in labels]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(
        model,
        trained_digests=file.trained_digests,
        trained_hashes=file.perceptual_hashes,
        parent_checkpoint={"file": path.name, "sha256": digest, "labels_kept": kept, **inherited},
    )


def _untrained(
    config: FinetuneConfig, name: str, labels: Sequence[str], input_format: InputFormat | None = None
) -> DetectorModel:
    """Create an untrained network, with the input format of an earlier file if there is one."""
    own = name in OWN_DETECTORS
    step = max(OWN_DETECTORS[name].strides) if own else TORCHVISION_STEP
    known = OWN_DETECTORS[name].input if own and input_format is None else input_format
    size = config.input_size or (known.size if known else None)
    if size is not None and not is_fixed_size(name):
        _check_size(name, size, step)
    network: DetectionNetwork
    if own:
        assert known is not None  # noqa: S101 - each of them has an input
        entry = OWN_DETECTORS[name]
        net = _with_prior(entry.build(len(labels)))
        network = YoloxNetwork(net, entry.layout(len(labels)), size or known.size)
    else:
        network = TorchvisionNetwork(name, tuple(labels), size)
        known = known or network.input
    found = replace(known, size=size or known.size)
    return DetectorModel(config, network, name, tuple(labels), found, BoxAugmentation(config.augment), frozenset())


def _check_size(name: str, size: tuple[int, int], step: int) -> None:
    if any(side % step for side in size):
        raise ConfigError(
            f"--input-size {size[0]}x{size[1]}: both sides of the input of {name} must be multiples of {step}, such as "
            f"{10 * step}x{10 * step}"
        )
    if max(size) == step:
        raise ConfigError(
            f"--input-size {size[0]}x{size[1]}: the coarsest map of {name} has only one cell, which is too little for "
            f"a batch norm; one side must be at least {2 * step}"
        )


def _with_prior(net: Yolox) -> Yolox:
    """Set the biases of the class and objectness layers, in place, so that untrained scores are low."""
    bias = float(torch.logit(torch.tensor(_PRIOR)))
    for layer in (*net.head.cls_preds, *net.head.obj_preds):
        nn.init.constant_(layer.bias, bias)
    return net


def _loaded(model: DetectorModel, weights: InitialWeights, source: str) -> DetectorModel:
    """Load weights of the network or its backbone; classes with equal names keep their rows."""
    norms, kept = load_initial_weights(model.network, model.name, model.labels, weights, source)
    return replace(model, trained_norms=norms, pretrained=True, known_labels=kept)


def freeze_until(network: DetectionNetwork, layer: str) -> tuple[str, ...]:
    """Freeze a detector's parts up to ``layer``, in place; return the prefixes of their names.

    Args:
        network: the detector.
        layer: a stage of the backbone, ``backbone`` for all stages, or ``pyramid`` for all but the head.

    Raises:
        ConfigError: there is no such part.
    """
    body = network.body
    stages = [name for name, _ in network.module.get_submodule(body.removesuffix(".")).named_children()]
    parts = {stage: tuple(f"{body}{name}." for name in stages[: k + 1]) for k, stage in enumerate(stages)}
    parts |= {"backbone": (body,), "pyramid": ("backbone.",)}
    if layer not in parts:
        raise ConfigError(
            f"--freeze-until {layer!r}: the detector has no such part.{did_you_mean(layer, parts)} Use one of "
            f"{', '.join(parts)}"
        )
    for name, parameter in network.module.named_parameters():
        if name.startswith(parts[layer]):
            parameter.requires_grad = False
    return parts[layer]


def provenance_of(model: DetectorModel) -> dict[str, Any]:
    """Return the settings and the parent file as JSON values."""
    config = model.config
    settings = asdict(replace(config, course=())) | {
        "model": Path(config.model).name,
        "weights": Path(config.weights).name if config.weights else None,
    }
    del settings["course"]
    return {"wish": settings} | ({"began_with": dict(model.parent_checkpoint)} if model.parent_checkpoint else {})
