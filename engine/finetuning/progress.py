"""Saves the state of a training after each epoch, so that an interrupted training can continue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from engine.finetuning.splits import Sample
from pipeline.atomic import atomic_write
from pipeline.errors import ModelError

log = logging.getLogger(__name__)

_VERSION: Final = 1


class TrainingProgress:
    """The saved state of a training: its current stage, and the results of earlier stages.

    The file contains only tensors and plain values, and is read without unpickling objects. It is written to a
    temporary file and renamed. If writing fails (a full disk), this is logged once, and the training continues.
    """

    def __init__(self, path: Path, fingerprint: str, *, restart: bool = False) -> None:
        """Read the file if it exists.

        Args:
            path: path of the file.
            fingerprint: digest of the training's settings and data; a file with another digest is ignored.
            restart: True: ignore the file; it is replaced after the first epoch.
        """
        self.path, self._fingerprint = path, fingerprint
        self._stages: list[dict[str, Any]] = [] if restart else _read(path, fingerprint)
        self._number = -1
        self._warned = False

    @property
    def epochs(self) -> int:
        """Number of saved epochs of all stages."""
        return sum(len(stage["history"]) for stage in self._stages)

    def next_stage(self) -> dict[str, Any] | None:
        """Start the next stage; return its saved state, None if it has no finished epoch."""
        self._number += 1
        return self._stages[self._number] if self._number < len(self._stages) else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state of the current stage.

        Args:
            state: tensors, numbers, texts, and lists and dicts of them; ``history`` is the list of the stage's epochs.
        """
        self._stages[self._number :] = [dict(state)]
        content = {"version": _VERSION, "fingerprint": self._fingerprint, "stages": self._stages}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path, raises=ModelError) as temporary:
                torch.save(content, temporary)
        except (ModelError, OSError, RuntimeError) as error:  # RuntimeError: torch on a full disk
            if not self._warned:
                log.warning("%s: the progress of the training cannot be saved (%s); the work since the last save is "
                            "lost if the training is interrupted", self.path, error)  # fmt: skip
            self._warned = True

    def remove(self) -> None:
        """Delete the file; call this after the result of the training was written."""
        self.path.unlink(missing_ok=True)


def _read(path: Path, fingerprint: str) -> list[dict[str, Any]]:
    """Return the saved stages; none, with a warning, if the file is damaged or of another training."""
    if not path.exists():
        return []
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, saved, stages = content["version"], content["fingerprint"], content["stages"]
    except Exception as error:  # noqa: BLE001 - the unpickler raises anything on a damaged file
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
        log.warning("%s: cannot be read (%s); the training starts again", path, reason)
        return []
    if version != _VERSION:
        log.warning("%s: was written by another version of recipro-stream; this training starts again", path)
        return []
    if saved != fingerprint:
        log.warning("%s: belongs to a training with other settings, weights or images; this training starts again",
                    path)  # fmt: skip
        return []
    return list(stages)


def fingerprint(settings: Mapping[str, Any], parts: Mapping[str, Sequence[Sample]], state: Mapping[str, Tensor]) -> str:
    """Return a digest of everything, except the machine, that determines a training's result.

    Args:
        settings: configuration and annotations, as JSON values.
        parts: the images of each split.
        state: the initial weights.
    """
    samples = {part: [asdict(sample) for sample in split] for part, split in parts.items()}
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    digest = hashlib.sha256(json.dumps([settings, samples, environment], sort_keys=True, default=str).encode())
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
