"""Defines the settings of a training, and builds its network before any image is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.finetuning.dataset import DEFAULT_AUGMENTATIONS, build_augmentation
from engine.finetuning.freezing import TruncatedParent, freeze_until
from engine.finetuning.head import replace_head, resume_from_checkpoint, truncate_and_replace_head
from engine.finetuning.trainables import find_output_activation
from engine.finetuning.trainer import Balance, TrainingConfig
from engine.io.perceptual_hash import KnownImages
from engine.models.checkpoint import Checkpoint, load_checkpoint
from engine.models.loader import MODEL_FILE, RANDOM, build_untrained, find_entry
from engine.models.preprocess import Fit, Preprocessing
from engine.models.registry import ModelEntry
from engine.runtime.devices import choose_device
from engine.split.network import split_network
from pipeline.errors import ConfigError, LayerError, ModelError

Precision = Literal["fp32", "bf16"]
"""Precision in which the network is computed during training."""

FULL_DEFAULTS = TrainingConfig(epochs=24, batch_size=24, learning_rate=1e-4, patience=8)
FROM_SCRATCH_DEFAULTS = TrainingConfig(
    epochs=100, batch_size=24, learning_rate=1e-3, patience=20, head_rate=1.0, max_gradient_norm=5.0
)
LINEAR_PROBE_DEFAULTS = TrainingConfig(epochs=120, batch_size=64, learning_rate=3e-3, patience=25, improve_on_loss=True)


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """Settings of a training; None selects the default."""

    model: str
    """Name of a network, or path of a checkpoint from which to continue."""
    weights: str | None = None
    """File of a state dict, or ``random`` to train from scratch; None: pretrained weights."""
    input_size: tuple[int, int] | None = None
    """Height and width of the input in pixels."""
    fit: Fit | None = None
    """How images are resized to the input; None: as in the checkpoint, or ``stretch``."""
    layer: str | None = None
    """The layer to explain."""
    truncate_at: str | None = None
    """The layer after which the network is truncated; None: not truncated."""
    linear_probe: bool = False
    """True: only the last layer is trained."""
    freeze_until: str | None = None
    """This layer and all layers before it are frozen."""
    augment: Sequence[str] = DEFAULT_AUGMENTATIONS
    balance: Balance = "sampler"
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    views: int = 6
    """Number of augmented views of each image in a linear probe."""
    device: str = "auto"
    precision: Precision = "fp32"
    """Precision in which the network is computed during training."""
    threads: int | None = None
    seed: int = 0

    course: tuple[TrainingConfig, ...] = ()
    """Consecutive stages of the training, instead of one stage with the settings above."""

    def stages(self) -> tuple[TrainingConfig, ...]:
        """Return the stages: those in ``course``, or one stage, with defaults for settings that are None."""
        if self.course:
            return self.course
        defaults = FROM_SCRATCH_DEFAULTS if self.weights == RANDOM else FULL_DEFAULTS
        defaults = LINEAR_PROBE_DEFAULTS if self.linear_probe else defaults
        return (
            replace(
                defaults,
                epochs=self.epochs or defaults.epochs,
                batch_size=self.batch or defaults.batch_size,
                learning_rate=self.learning_rate or defaults.learning_rate,
                patience=self.patience or defaults.patience,
                balance=self.balance,
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FinetuneModel:
    """A network to train, with the metadata of its checkpoint."""

    config: FinetuneConfig
    net: nn.Module
    head_name: str
    """Name of the last layer."""
    name: str
    """Name of the network in the registry."""
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    layer: str
    """The layer to explain."""
    truncate_at: str | None
    augmentation: Callable[[Tensor], Tensor]
    """Augments a batch of images (N, 3, H, W) uint8."""
    known_labels: tuple[str, ...] = ()
    """Classes of the checkpoint from which the network continues."""
    warm_up_head: bool = True
    """True: only the last layer is trained before the whole network."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the images of earlier training runs."""
    trained_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of the images of earlier training runs."""
    parent_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the checkpoint from which the network continues."""

    @property
    def warm_start(self) -> bool:
        """True if the checkpoint has all classes; training must then improve its state."""
        return len(self.known_labels) == len(self.labels)


def build_model(config: FinetuneConfig, labels: Sequence[str]) -> FinetuneModel:
    """Build the network for these classes; equal configurations produce equal weights.

    Raises:
        ModelError, LayerError, EngineError: there is no such network or layer, or the weights or the input size do not
            fit.
        ConfigError: an augmentation is unknown, or two settings contradict each other.
    """
    if config.linear_probe and config.freeze_until:
        raise ConfigError(
            f"--linear-probe freezes more than --freeze-until {config.freeze_until!r}; use only one of them"
        )
    choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        build = _from_checkpoint if config.model.endswith(MODEL_FILE) else _from_registry
        model = build(config, tuple(labels))
    size = model.preprocessing.input_size
    if config.freeze_until:
        parent = (
            TruncatedParent(build_untrained(find_entry(model.name)), model.truncate_at) if model.truncate_at else None
        )
        freeze_until(model.net, config.freeze_until, size, parent)
    if model.warm_start or config.weights == RANDOM:
        model = replace(model, warm_up_head=False)
    if config.linear_probe or model.warm_up_head:
        try:
            find_output_activation(model.net, model.head_name, size)
        except ModelError:
            if config.linear_probe:
                raise
            model = replace(model, warm_up_head=False)
    return model


def _from_registry(config: FinetuneConfig, labels: tuple[str, ...]) -> FinetuneModel:
    if config.truncate_at:
        net, entry, head_name = truncate_and_replace_head(
            config.model, config.weights, len(labels), config.truncate_at, config.input_size
        )
    else:
        net, entry, head_name = replace_head(config.model, config.weights, len(labels))
    return _with_metadata(config, net, head_name, entry, labels)


def _from_checkpoint(config: FinetuneConfig, labels: tuple[str, ...]) -> FinetuneModel:
    """Build the network of a checkpoint; its settings apply unless the configuration sets them."""
    if config.weights is not None:
        raise ConfigError(f"--weights {config.weights!r}: {config.model} has its own weights; omit --weights")
    path = Path(config.model)
    file = load_checkpoint(path)
    config = replace(config, input_size=config.input_size or file.input_size, fit=config.fit or file.fit)
    net, head_name, known_labels = resume_from_checkpoint(
        file, path, labels, config.truncate_at, config.input_size or file.input_size
    )
    layer = config.layer or (file.layer if config.truncate_at in {None, file.truncate_at} else None)
    entry = replace(find_entry(file.model), mean=file.mean, std=file.std)
    merged = replace(config, layer=layer, truncate_at=config.truncate_at or file.truncate_at)
    return replace(
        _with_metadata(merged, net, head_name, entry, labels),
        config=config,
        known_labels=known_labels,
        trained_digests=file.trained_digests,
        trained_hashes=file.perceptual_hashes,
        parent_checkpoint=_parent_provenance(file, path, known_labels),
    )


def _parent_provenance(file: Checkpoint, path: Path, known_labels: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    inherited = {key: file.provenance[key] for key in ("date", "command") if key in file.provenance}
    return {"file": path.name, "sha256": digest, "labels_kept": list(known_labels), **inherited}


def _with_metadata(
    config: FinetuneConfig, net: nn.Module, head_name: str, entry: ModelEntry, labels: tuple[str, ...]
) -> FinetuneModel:
    size = config.input_size or entry.input_size
    layer = _explained_layer(config, net, entry, size)
    preprocessing = Preprocessing(size, entry.mean, entry.std, config.fit or "stretch")
    augmentation = build_augmentation(config.augment, size)
    return FinetuneModel(
        config, net, head_name, entry.name, labels, preprocessing, layer, config.truncate_at, augmentation
    )


def _explained_layer(config: FinetuneConfig, net: nn.Module, entry: ModelEntry, size: tuple[int, int]) -> str:
    """Return the name of the layer to explain; for a truncated network, its last layer."""
    if not config.truncate_at:
        return split_network(net, config.layer or entry.layer, size).layer
    try:
        return split_network(net, None if config.layer == config.truncate_at else config.layer, size).layer
    except LayerError as reason:
        if config.layer is None:
            raise
        raise LayerError(
            f"--layer {config.layer!r}: a network truncated at {config.truncate_at!r} is explained at that layer; "
            "omit --layer"
        ) from reason


def provenance_of(model: FinetuneModel) -> dict[str, Any]:
    """Return the settings and the parent checkpoint as JSON values."""
    config = model.config
    settings = asdict(replace(config, course=())) | {
        "model": Path(config.model).name if model.parent_checkpoint else config.model,
        "weights": Path(config.weights).name if config.weights else None,
        "fit": model.preprocessing.fit,
    }
    del settings["course"]
    return {"wish": settings} | ({"began_with": dict(model.parent_checkpoint)} if model.parent_checkpoint else {})
