"""From labelled pictures to a network that knows them: adapted, taught, examined, and packed as one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from engine.devices import choose_device
from engine.finetuning.course import Balance, Course, Epoch, Numbers, confusion, guesses, study
from engine.finetuning.learners import LastLayer, TunedNetwork, freeze_to
from engine.finetuning.pictures import USUAL, Pictures, make_changes
from engine.finetuning.roster import HELD_OUT, LEARNING, STOPPING, Sample
from engine.finetuning.surgery import adapted, shortened
from engine.model_file import ModelFile
from engine.networks import RANDOM
from engine.preprocess import Fit, Preprocessing
from engine.split import split_network
from pipeline.errors import ConfigError
from pipeline.frames import Image

Lowered = Literal["fp32", "bf16"]
"""What a network may learn in."""

TUNED = Course(epochs=24, batch=24, learning_rate=1e-4, patience=8)
FROZEN = Course(epochs=120, batch=64, learning_rate=3e-3, patience=25)
FIRST = Course(epochs=60, batch=64, learning_rate=3e-3, patience=15, stage="last layer alone")
"""Before a pretrained network is tuned its new last layer learns alone: one that begins at random would spoil what it
came with. Kumar et al., *Fine-tuning can distort pretrained features*, arXiv:2202.10054."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be taught, and how; None leaves a choice to what is usual."""

    model: str
    weights: str | None = None
    input_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    fit: Fit = "stretch"
    layer: str | None = None
    """Where the network will be explained."""
    until: str | None = None
    """The layer the network ends with; None = its own end."""
    freeze: bool = False
    """Only the last layer learns."""
    freeze_to: str | None = None
    """This layer and all before it stay as they are."""
    augment: Sequence[str] = USUAL
    balance: Balance = "sampler"
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    patience: int | None = None
    views: int = 6
    """With ``freeze``: how many looks at each picture are computed."""
    device: str = "auto"
    precision: Lowered = "fp32"
    """Of the network while it learns."""
    threads: int | None = None
    seed: int = 0

    def course(self) -> Course:
        """Return the course, with what was wished for."""
        usual = FROZEN if self.freeze else TUNED
        return replace(
            usual,
            epochs=self.epochs or usual.epochs,
            batch=self.batch or usual.batch,
            learning_rate=self.learning_rate or usual.learning_rate,
            patience=self.patience or usual.patience,
            balance=self.balance,
        )


@dataclass(frozen=True, slots=True)
class Examined:
    """How the network does on pictures of one part."""

    pictures: int
    accuracy: float
    mean_recall: float
    recalls: tuple[float, ...]
    """By class."""
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true class (row) and given class (column)."""
    answers: tuple[tuple[str, int, int, float], ...]
    """Path, true class, given class and its score, for every picture."""


@dataclass(frozen=True, slots=True)
class Diploma:
    """What came of it."""

    file: ModelFile
    epochs: tuple[Epoch, ...]
    course: Course
    examined: Mapping[str, Examined]
    """By part: stopping and held_out."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told, and who may end it."""

    features: Callable[[int, int], None]
    """With a frozen network: pictures done, pictures in all."""
    epoch: Callable[[Epoch], None]
    stop: Callable[[], bool]


def teach(
    parts: Mapping[str, Sequence[Sample]], read: Callable[[str], Image], wish: Wish, watching: Watching
) -> Diploma:
    """Teach a network what the pictures show.

    The same pictures, wish, thread count and machine give the same weights on a CPU.

    Args:
        parts: learning, stopping and held_out, each with all classes.
        read: gives a picture by its path.
        wish: what and how.
        watching: told on the way.

    Raises:
        ModelError, LayerError, EngineError: no such network or layer, weights that do not fit, a wrong input size.
        ConfigError: an unknown augmentation, or two wishes that contradict each other.
    """
    if wish.freeze and wish.freeze_to:
        raise ConfigError(f"--freeze leaves nothing for --freeze-to {wish.freeze_to!r}; give one of them")
    if wish.threads:
        torch.set_num_threads(wish.threads)
    device = choose_device(wish.device)
    labels = tuple(sorted({one.label for one in parts[LEARNING]}))
    samples = [one for several in parts.values() for one in several]
    classes = np.array([labels.index(one.label) for one in samples])
    numbers = _numbered(parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wish.seed)
        if wish.until:
            net, entry, last = shortened(wish.model, wish.weights, len(labels), wish.until, wish.input_size)
        else:
            net, entry, last = adapted(wish.model, wish.weights, len(labels))
        size = wish.input_size or entry.input_size
        layer = split_network(net, wish.layer or (None if wish.until else entry.layer), size).layer
        if wish.freeze_to:
            freeze_to(net, wish.freeze_to, size)
        pictures = Pictures([one.path for one in samples], read, Preprocessing(size, entry.mean, entry.std, wish.fit))
        change = make_changes(wish.augment, pictures.size)
        task = _Task(net, last, pictures, classes, numbers, device, wish, watching)
        course = wish.course()
        if wish.freeze or wish.weights != RANDOM:
            learner: LastLayer | TunedNetwork = _last_layer(task, change if wish.freeze else None)
            told = _studied(learner, task, FIRST if not wish.freeze else course)
        if not wish.freeze:
            learner = TunedNetwork(
                net, last, pictures, change,
                device=device, precision=wish.precision, untrained=wish.weights == RANDOM,
            )  # fmt: skip
            told = _studied(learner, task, course, able=wish.weights != RANDOM)
    found = {part: _examined(learner, samples, classes, numbers[part], labels) for part in (STOPPING, HELD_OUT)}
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    provenance = _provenance(wish, course, told, parts, found)
    file = ModelFile(state, entry.name, labels, size, entry.mean, entry.std, layer, provenance, wish.fit, wish.until)
    return Diploma(file, tuple(told), course, found)


def _numbered(parts: Mapping[str, Sequence[Sample]]) -> dict[str, Numbers]:
    """Return the numbers of each part's pictures, all parts in a row."""
    ends = np.cumsum([len(several) for several in parts.values()])
    return {part: np.arange(end - len(parts[part]), end) for part, end in zip(parts, ends, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What every stretch of a training shares."""

    net: nn.Module
    last: str
    pictures: Pictures
    classes: Numbers
    numbers: Mapping[str, Numbers]
    device: torch.device
    wish: Wish
    watching: Watching


def _last_layer(task: _Task, change: Callable[[Tensor], Tensor] | None) -> LastLayer:
    """Return the last layer alone, with features of changed views where changes are given."""
    wish = task.wish
    return LastLayer(
        task.net, task.last, task.pictures, change or (lambda pixels: pixels), device=task.device,
        views=wish.views if change and wish.augment else 1, seed=wish.seed, learning=task.numbers[LEARNING],
        tell=task.watching.features, precision=wish.precision,
    )  # fmt: skip


def _studied(learner: LastLayer | TunedNetwork, task: _Task, course: Course, *, able: bool = False) -> list[Epoch]:
    return study(
        learner, task.classes, task.numbers[LEARNING], task.numbers[STOPPING], course,
        seed=task.wish.seed, tell=task.watching.epoch, stop=task.watching.stop, able=able,
    )  # fmt: skip


def _examined(
    learner: TunedNetwork | LastLayer, samples: Sequence[Sample], classes: Numbers, numbers: Numbers,
    labels: Sequence[str],
) -> Examined:  # fmt: skip
    scores = torch.softmax(guesses(learner, numbers), 1)
    given = scores.argmax(1).tolist()
    truth = classes[numbers].tolist()
    table = confusion(truth, given, len(labels))
    recalls = tuple(row[k] / max(1, sum(row)) for k, row in enumerate(table))
    answers = tuple(
        (samples[number].path, true, guess, round(float(row[guess]), 4))
        for number, true, guess, row in zip(numbers.tolist(), truth, given, scores, strict=True)
    )
    right = sum(row[k] for k, row in enumerate(table))
    return Examined(
        len(numbers), right / len(numbers), float(np.mean(recalls)), recalls, tuple(map(tuple, table)), answers
    )


def _provenance(
    wish: Wish, course: Course, told: Sequence[Epoch], parts: Mapping[str, Sequence[Sample]],
    found: Mapping[str, Examined],
) -> dict[str, Any]:  # fmt: skip
    best = next((epoch for epoch in reversed(told) if epoch.best), None)
    return {
        "wish": asdict(wish) | {"weights": Path(wish.weights).name if wish.weights else None},
        "course": asdict(course),
        "epochs": len(told),
        "best_epoch": best.epoch if best else 0,
        "pictures": {part: len(several) for part, several in parts.items()},
        "sources": {part: len({one.source for one in several}) for part, several in parts.items()},
        "held_out": {
            "accuracy": round(found[HELD_OUT].accuracy, 4), "mean_recall": round(found[HELD_OUT].mean_recall, 4)
        },
        "torch": torch.__version__,
    }  # fmt: skip
