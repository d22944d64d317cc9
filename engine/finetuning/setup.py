"""The network that is to learn, built before any picture is read: what was said wrongly shows at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.finetuning.dataset import DEFAULT_AUGMENTATIONS, build_augmentation
from engine.finetuning.head import replace_head, resume_from_checkpoint, truncate_and_replace_head
from engine.finetuning.trainables import TruncatedParent, find_output_activation, freeze_to
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
"""Arithmetic of the training."""

FULL_DEFAULTS = TrainingConfig(epochs=24, batch_size=24, learning_rate=1e-4, patience=8)
LINEAR_PROBE_DEFAULTS = TrainingConfig(epochs=120, batch_size=64, learning_rate=3e-3, patience=25, improve_on_loss=True)


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """Settings of a fine-tuning; None selects the default."""

    model: str
    """Name of a network, or path of a checkpoint to continue from."""
    weights: str | None = None
    input_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    fit: Fit | None = None
    """How images are resized to the input; None = as the checkpoint has it, or ``stretch``."""
    layer: str | None = None
    """The layer to explain."""
    truncate_at: str | None = None
    """The layer after which the network is truncated; None = not truncated."""
    linear_probe: bool = False
    """Whether only the last layer is trained."""
    freeze_until: str | None = None
    """This layer and all layers before it are frozen."""
    augment: Sequence[str] = DEFAULT_AUGMENTATIONS
    balance: Balance = "sampler"
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    views: int = 6
    """Of a linear probe: number of augmented views of each image."""
    device: str = "auto"
    precision: Precision = "fp32"
    """Arithmetic of the network during training."""
    threads: int | None = None
    seed: int = 0

    def training(self) -> TrainingConfig:
        """Return the training configuration: the defaults with the settings that are not None."""
        defaults = LINEAR_PROBE_DEFAULTS if self.linear_probe else FULL_DEFAULTS
        return replace(
            defaults,
            epochs=self.epochs or defaults.epochs,
            batch_size=self.batch or defaults.batch_size,
            learning_rate=self.learning_rate or defaults.learning_rate,
            patience=self.patience or defaults.patience,
            balance=self.balance,
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
    """Classes of the checkpoint that the network continues from."""
    warm_up_head: bool = True
    """Whether the last layer is trained alone before the whole network."""
    trained_digests: frozenset[str] = frozenset()
    """Digests of the images of earlier trainings."""
    trained_hashes: tuple[KnownImages, ...] = ()
    """Perceptual hashes of these images."""
    parent_checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """Provenance of the checkpoint that the network continues from."""

    @property
    def warm_start(self) -> bool:
        """Whether it knows all its classes already: what is no better than that is not kept."""
        return len(self.known_labels) == len(self.labels)


def build_model(config: FinetuneConfig, labels: Sequence[str]) -> FinetuneModel:
    """Build the network for these classes; the same wish gives the same weights.

    Raises:
        ModelError, LayerError, EngineError: no such network or layer, weights that do not fit, a wrong input size.
        ConfigError: an unknown augmentation, or two wishes that contradict each other.
    """
    if config.linear_probe and config.freeze_until:
        raise ConfigError(f"--linear-probe leaves nothing for --freeze-until {config.freeze_until!r}; give one of them")
    choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = (
            _from_file(config, tuple(labels))
            if config.model.endswith(MODEL_FILE)
            else _from_table(config, tuple(labels))
        )
    size = model.preprocessing.input_size
    if config.freeze_until:
        beginning = (
            TruncatedParent(build_untrained(find_entry(model.name)), model.truncate_at) if model.truncate_at else None
        )
        freeze_to(model.net, config.freeze_until, size, beginning)
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


def _from_table(config: FinetuneConfig, labels: tuple[str, ...]) -> FinetuneModel:
    if config.truncate_at:
        net, entry, last = truncate_and_replace_head(
            config.model, config.weights, len(labels), config.truncate_at, config.input_size
        )
    else:
        net, entry, last = replace_head(config.model, config.weights, len(labels))
    return _placed(config, net, last, entry, labels)


def _from_file(config: FinetuneConfig, labels: tuple[str, ...]) -> FinetuneModel:
    """Go on with what a file of this system holds: its network, layer, input size, fit and end."""
    if config.weights is not None:
        raise ConfigError(f"--weights {config.weights!r}: {config.model} has its own weights; omit --weights")
    place = Path(config.model)
    file = load_checkpoint(place)
    config = replace(config, input_size=config.input_size or file.input_size, fit=config.fit or file.fit)
    net, last, known = resume_from_checkpoint(
        file, place, labels, config.truncate_at, config.input_size or file.input_size
    )
    layer = config.layer or (file.layer if config.truncate_at in {None, file.truncate_at} else None)
    entry = replace(find_entry(file.model), mean=file.mean, std=file.std)
    model = _placed(
        replace(config, layer=layer, truncate_at=config.truncate_at or file.truncate_at), net, last, entry, labels
    )
    return replace(
        model,
        config=config,
        known_labels=known,
        trained_digests=file.trained_digests,
        trained_hashes=file.perceptual_hashes,
        parent_checkpoint=_told(file, place, known),
    )


def _told(file: Checkpoint, place: Path, known: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    before = {key: file.provenance[key] for key in ("date", "command") if key in file.provenance}
    return {"file": place.name, "sha256": digest, "labels_kept": list(known), **before}


def _placed(
    config: FinetuneConfig, net: nn.Module, last: str, entry: ModelEntry, labels: tuple[str, ...]
) -> FinetuneModel:
    size = config.input_size or entry.input_size
    layer = _explained(config, net, entry, size)
    seen_through = Preprocessing(size, entry.mean, entry.std, config.fit or "stretch")
    change = build_augmentation(config.augment, size)
    return FinetuneModel(config, net, last, entry.name, labels, seen_through, layer, config.truncate_at, change)


def _explained(config: FinetuneConfig, net: nn.Module, entry: ModelEntry, size: tuple[int, int]) -> str:
    """Return the layer where it will be explained: of a network that ends earlier, its end."""
    if not config.truncate_at:
        return split_network(net, config.layer or entry.layer, size).layer
    try:
        return split_network(net, None if config.layer == config.truncate_at else config.layer, size).layer
    except LayerError as reason:
        if config.layer is None:
            raise
        raise LayerError(
            f"--layer {config.layer!r}: a network that ends with {config.truncate_at!r} "
            "is explained there; leave --layer out"
        ) from reason


def provenance_of(model: FinetuneModel) -> dict[str, Any]:
    """Return what was wished for and where it began, as values that JSON can hold."""
    config = model.config
    told = asdict(config) | {
        "model": Path(config.model).name if model.parent_checkpoint else config.model,
        "weights": Path(config.weights).name if config.weights else None,
        "fit": model.preprocessing.fit,
    }
    return {"wish": told} | ({"began_with": dict(model.parent_checkpoint)} if model.parent_checkpoint else {})
