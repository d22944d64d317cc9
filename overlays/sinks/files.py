"""What every sink that writes a file checks before the run begins, so that nothing is half-written when it cannot."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, SinkError


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


def check_outputs(uris: Sequence[str], cameras: Sequence[str], inputs: Sequence[str]) -> None:
    """Refuse a sink that is given twice, however it is spelled, and one that would overwrite what is read.

    Args:
        uris: the sinks, as given.
        cameras: who will come: a recorder gives each its own file.
        inputs: what the run reads.

    Raises:
        ConfigError: with the sink's name.
    """
    written: list[Path] = []
    for uri in uris:
        path = Path(uri)
        each = [path, *(paths_for(path, cameras).values() if path.suffix else ())]
        if any(same_place(one, Path(given)) for one in each for given in inputs):
            raise ConfigError(f"sink {uri!r} would overwrite what this run reads; choose another file")
        if any(same_place(path, other) for other in written):
            raise ConfigError(f"sink {uri!r} is given twice; give each its own address or file")
        written.append(path)


def same_place(one: Path, other: Path) -> bool:
    """Say whether two paths name one file, however they are spelled."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):
        return False


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
