"""Atomic file writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ModelError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it replaces ``path`` when the block ends without an error.

    Entering checks that the folder can be written to, before any work is done.

    Raises:
        ModelError: the file cannot be written.
    """
    if path.is_dir():
        raise ModelError(f"{path}: cannot be written (it is a folder); name a file in it")
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield folder / path.name
        (folder / path.name).replace(path)
    except OSError as error:
        message = error.strerror or str(error)
        raise ModelError(f"{path}: cannot be written ({message}); choose a folder you may write to") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
