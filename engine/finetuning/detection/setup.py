"""The detector of a training, built before any image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from engine.detectors.checkpoint import is_detector_file, load_detector_checkpoint
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.loader import load_detector
from engine.detectors.networks.registry import OWN_DETECTORS
from engine.detectors.networks.yolox import Yolox
from engine.finetuning.detection.augmentation import BoxAugmentation
from engine.finetuning.setup import FinetuneConfig
from engine.finetuning.trainer import TrainingConfig
from engine.io.perceptual_hash import KnownImages
from engine.models.checkpoint import is_checkpoint_file, load_checkpoint
from engine.models.loader import RANDOM
from engine.models.weights import put_into, read_state
from pipeline.errors import ConfigError, ModelError, did_you_mean

DETECTOR_DEFAULTS: Final = TrainingConfig(
    epochs=60, batch_size=8, learning_rate=5e-4, patience=20, head_rate=4.0, max_gradient_norm=10.0
)
DETECTOR_FROM_SCRATCH_DEFAULTS: Final = TrainingConfig(
    epochs=150, batch_size=8, learning_rate=2e-3, patience=40, head_rate=1.0, max_gradient_norm=10.0
)
_BACKBONE: Final = "backbone.backbone."
_PRIOR: Final = 0.01
"""Initial score of untrained class and objectness layers (Lin et al., *Focal Loss*, arXiv:1708.02002)."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectorModel:
    """A detector to train, with the metadata of its file."""

    config: FinetuneConfig
    net: Yolox
    name: str
    """Name of the network in ``OWN_DETECTORS``."""
    labels: tuple[str, ...]
    layout: YoloxLayout
    input: InputFormat
    augmentation: BoxAugmentation
    trained_norms: frozenset[str]
    """Names of batch norms that keep their statistics, because they came with weights."""
    pretrained: bool = False
    """True if the weights, or those of the backbone, come from a file."""
    known_labels: tuple[str, ...] = ()
    """Classes that the initial weights have."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the images of earlier trainings."""
    trained_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of these images."""
    parent_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the file that the training continues from."""

    @property
    def warm_start(self) -> bool:
        """True if the training continues from a file with all classes: its state is kept if nothing improves it."""
        return bool(self.parent_checkpoint) and set(self.labels) <= set(self.known_labels)

    def stages(self) -> tuple[TrainingConfig, ...]:
        """Return the stages: those of ``config.course``, or one with the defaults for the settings that are None."""
        config = self.config
        if config.course:
            return config.course
        defaults = DETECTOR_DEFAULTS if self.pretrained else DETECTOR_FROM_SCRATCH_DEFAULTS
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
    """Build the detector for these classes; the same configuration gives the same weights.

    Args:
        config: ``model`` is a key of ``OWN_DETECTORS`` or a file of an earlier training; ``weights`` a state dict or an
            ONNX file of the network, a state dict of its backbone, or ``random``.
        labels: the classes.

    Raises:
        ModelError: there is no such network, or the weights do not fit.
        ConfigError: an option does not fit a detector.
    """
    _check_options(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _from_file(config, labels) if is_detector_file(config.model) else _from_name(config, labels)
    if config.freeze_until:
        frozen = freeze_until(model.net, config.freeze_until)
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
    if config.balance == "weights":
        raise ConfigError("--balance 'weights': is for classifiers; give sampler or none to train a detector")


def _from_name(config: FinetuneConfig, labels: Sequence[str]) -> DetectorModel:
    if config.model not in OWN_DETECTORS:
        raise ModelError(
            f"--model {config.model!r}: is not a detector that can be trained on boxes."
            f"{did_you_mean(config.model, OWN_DETECTORS)} Give one of {', '.join(OWN_DETECTORS)}, or a detector that "
            "`train` wrote"
        )
    if config.weights is None:
        raise ModelError(
            f"--model {config.model}: give its initial weights, such as --weights {config.model}.onnx or the authors' "
            "checkpoint; --weights random trains from scratch, which needs many more images"
        )
    entry = OWN_DETECTORS[config.model]
    net = _with_prior(entry.build(len(labels)))
    model = _assembled(config, net, config.model, labels, entry.input)
    if config.weights == RANDOM:
        return model
    state, known = _initial_state(config.model, Path(config.weights))
    return _loaded(model, state, known, Path(config.weights))


def _from_file(config: FinetuneConfig, labels: Sequence[str]) -> DetectorModel:
    if config.weights is not None:
        raise ConfigError(f"--weights {config.weights!r}: {config.model} has its own weights; omit --weights")
    path = Path(config.model)
    file = load_detector_checkpoint(path)
    net = _with_prior(OWN_DETECTORS[file.model].build(len(labels)))
    model = _loaded(_assembled(config, net, file.model, labels, file.input), file.state, file.labels, path)
    inherited = {key: file.provenance[key] for key in ("date", "command") if key in file.provenance}
    kept = [label for label in file.labels if label in labels]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(
        model,
        trained_digests=file.trained_digests,
        trained_hashes=file.perceptual_hashes,
        parent_checkpoint={"file": path.name, "sha256": digest, "labels_kept": kept, **inherited},
    )


def _assembled(
    config: FinetuneConfig, net: Yolox, name: str, labels: Sequence[str], input_format: InputFormat
) -> DetectorModel:
    size, step = config.input_size or input_format.size, max(OWN_DETECTORS[name].strides)
    if any(side % step for side in size):
        raise ConfigError(
            f"--input-size {size[0]}x{size[1]}: both sides of the input of {name} are multiples of {step}, such as "
            "{}x{}".format(*input_format.size)
        )
    if max(size) == step:
        raise ConfigError(
            f"--input-size {size[0]}x{size[1]}: the coarsest map of {name} has one cell, of which a batch norm learns "
            f"nothing from one image; give at least {2 * step} for one side"
        )
    return DetectorModel(
        config,
        net,
        name,
        tuple(labels),
        OWN_DETECTORS[name].layout(len(labels)),
        replace(input_format, size=size),
        BoxAugmentation(config.augment),
        frozenset(),
    )


def _with_prior(net: Yolox) -> Yolox:
    """Set the biases of the class and objectness layers, in place, so that untrained scores are low."""
    bias = float(torch.logit(torch.tensor(_PRIOR)))
    for layer in (*net.head.cls_preds, *net.head.obj_preds):
        nn.init.constant_(layer.bias, bias)
    return net


def _initial_state(name: str, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return weights by name, and the classes that they have, if that is known."""
    if path.suffix == ".onnx" or is_detector_file(path):
        detector = load_detector(name, weights=path)
        return dict(detector.module.state_dict()), detector.labels  # type: ignore[union-attr]
    if is_checkpoint_file(path):
        return load_checkpoint(path).state, ()
    return read_state(path), ()


def _loaded(model: DetectorModel, state: Mapping[str, Tensor], known: Sequence[str], path: Path) -> DetectorModel:
    """Load weights of the whole network or of its backbone; classes of the same name keep their rows."""
    expected = model.net.state_dict()
    found = {key: value for key, value in state.items() if key in expected}
    found = found or {key: v for key in expected if (v := state.get(key.removeprefix(_BACKBONE))) is not None}
    classes = {key: value for key, value in found.items() if key.startswith("head.cls_preds.")}
    fitting = {key: value for key, value in found.items() if key not in classes and value.shape == expected[key].shape}
    wrong = [key for key in found if key not in classes and key not in fitting]
    if wrong or not any(key.endswith(".weight") for key in fitting):
        reason = f"{wrong[0]} has another shape" if wrong else "none of its tensors is in the network"
        raise ModelError(f"weights {str(path)!r}: do not fit {model.name}: {reason}; name the network of the weights")
    for key, value in classes.items():
        fitting[key] = expected[key].clone()
        for row, label in enumerate(model.labels):
            if label in known:
                fitting[key][row] = value[tuple(known).index(label)]
    put_into(model.net, {**expected, **{key: value.to(expected[key].dtype) for key, value in fitting.items()}})
    norms = {key.removesuffix(".running_mean") for key in fitting if key.endswith(".running_mean")}
    kept = tuple(label for label in known if label in model.labels)
    return replace(model, trained_norms=frozenset(norms), pretrained=True, known_labels=kept)


def freeze_until(net: Yolox, layer: str) -> tuple[str, ...]:
    """Freeze a part of a detector and all parts before it, in place; return the prefixes of their names.

    Args:
        net: the detector.
        layer: a stage of its backbone, ``backbone`` for all of them, or ``pyramid``: all but the head.

    Raises:
        ConfigError: there is no such part.
    """
    stages = [name for name, _ in net.backbone.backbone.named_children()]
    parts = {stage: tuple(f"{_BACKBONE}{name}." for name in stages[: k + 1]) for k, stage in enumerate(stages)}
    parts |= {"backbone": (_BACKBONE,), "pyramid": ("backbone.",)}
    if layer not in parts:
        raise ConfigError(
            f"--freeze-until {layer!r}: the detector has no such part.{did_you_mean(layer, parts)} Give one of "
            f"{', '.join(parts)}"
        )
    for name, parameter in net.named_parameters():
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
