"""What every sink that writes a file checks before the run begins, so that nothing is half-written when it cannot."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import SinkError


def check_writable(path: Path) -> None:
    """Make sure that ``path`` can be written, leaving it as it is: an existing file keeps its content until then.

    Raises:
        SinkError: its folder is missing, it is a folder, or it may not be written.
    """
    if path.is_dir():
        raise SinkError(f"{path}: is a folder; name a file in it, such as {path / ('out' + (path.suffix or '.mp4'))}")
    if not path.parent.is_dir():
        raise SinkError(f"{path}: the folder {path.parent} does not exist; create it: mkdir -p {path.parent}")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(
            f"{path}: cannot be written ({reason}); choose another place or mend its permissions"
        ) from error


def free_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Return ``path`` where nobody has it yet, ``out.<camera>.mp4`` otherwise."""
    return path if not taken else _named_path(path, camera, taken)


def paths_for(path: Path, cameras: Sequence[str]) -> dict[str, Path]:
    """Give each camera a file of its own: the named one for a single camera, ``out.<camera>.mp4`` for several."""
    if len(cameras) <= 1:
        return dict.fromkeys(cameras, path)
    paths: dict[str, Path] = {}
    for camera in cameras:
        paths[camera] = _named_path(path, camera, paths.values())
    return paths


def _named_path(path: Path, camera: str, taken: Collection[Path]) -> Path:
    """Put the camera's name into the file's; letters that file systems dislike become underscores."""
    name = re.sub(r"[^\w.-]+", "_", camera).strip("._")[:100] or "camera"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(p for p in (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in names) if p not in taken)
