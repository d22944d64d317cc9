"""Writes safetensors files of trained networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from pipeline.atomic import write_atomically
from pipeline.errors import ModelError


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights and metadata atomically; missing folders are created.

    Raises:
        ModelError: the folder cannot be created.
    """
    payload = save({name: tensor.contiguous().cpu() for name, tensor in state.items()}, dict(metadata))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from error
    write_atomically(path, payload, raises=ModelError)
