"""Runs a training that can be interrupted or killed, and resumed by the same command."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from commands.console import print_line, relative_path
from commands.signals import shutdown_on_signal
from commands.train_messages import command_line, print_epoch, print_features
from commands.train_report import files_beside
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.finetuning.finetune import Callbacks
    from engine.finetuning.progress import TrainingProgress
    from engine.finetuning.splits import Sample
    from engine.finetuning.trainer import EpochStats

log = logging.getLogger("recipro-stream")


class TrainingResult(Protocol):
    """Common interface of the results of a classifier's and a detector's training."""

    @property
    def epochs(self) -> tuple[EpochStats, ...]:
        """Statistics of all epochs, including epochs before an interruption."""
        ...


R = TypeVar("R", bound=TrainingResult)


class TrainingRun:
    """A training that saves its state in a file beside its output until the result is written."""

    def __init__(
        self, output: Path, settings: Mapping[str, Any], parts: Mapping[str, Sequence[Sample]],
        weights: Mapping[str, Any], *, resume: bool,
    ) -> None:  # fmt: skip
        """Read the saved state of an interrupted run of the same training.

        Args:
            output: the file that the training writes.
            settings: all settings that change the result, as JSON values.
            parts: the images of each split.
            weights: the initial weights, by name.
            resume: whether to continue the interrupted run.
        """
        from engine.finetuning.progress import TrainingProgress, fingerprint

        path = files_beside(output)["progress.pt"]
        self._progress = TrainingProgress(path, fingerprint(settings, parts, weights), restart=not resume)
        self._interrupted = False

    def train(self, finetune: Callable[[Callbacks, TrainingProgress], R]) -> R:
        """Train until the end or a signal, and return the result.

        Args:
            finetune: runs the training with the given callbacks and saved state.

        Raises:
            ConfigError: a signal came before the end of the first epoch.
        """
        from engine.finetuning.finetune import Callbacks

        path = relative_path(self._progress.path)
        if epochs := self._progress.epochs:
            print_line(f"continues after {epochs} epochs, from {path}; --no-resume starts again")
        started = threading.Event()
        started.set()
        with shutdown_on_signal(started) as stop:
            result = finetune(Callbacks(print_features, print_epoch, stop.is_set), self._progress)
            self._interrupted = stop.is_set()
        if not result.epochs:
            raise ConfigError("interrupted before the end of the first epoch: nothing is written")
        if self._interrupted:
            log.warning("training interrupted: the best of %d epochs is written; the same command continues from %s",
                        len(result.epochs), path)  # fmt: skip
        return result

    def finish(self) -> None:
        """Delete the saved state, unless the training was interrupted; call this after the result is written."""
        if not self._interrupted:
            self._progress.remove()


def run_metadata() -> dict[str, str]:
    """Return the command line and the date, for the provenance of the written file."""
    return {"command": command_line(), "date": datetime.now().astimezone().date().isoformat()}
