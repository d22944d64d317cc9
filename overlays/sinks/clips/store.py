"""Where clips lie: their names, and the room that one recorder's clips may take together.

A clip is ``CAMERA_20261121T065345.123Z.mp4`` with its ``.jsonl`` beside it, named by the camera and by the time (UTC)
of its first frame; while it is written, and for good where the writer was killed, ``.part`` stands before the suffix.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlays.sinks.paths import path_errors, safe_file_name
from pipeline.errors import SinkError

PART: Final = ".part"
_NAME: Final = re.compile(r"(?P<camera>.+)_(?P<stamp>\d{8}T\d{6}\.\d{3}Z)(?:\.part)?\.(?:mp4|jsonl)")


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip on the disk: its video, and the log beside it."""

    paths: tuple[Path, ...]
    bytes: int


class ClipStore:
    """The folder of one recorder. Whatever lies in it and is no clip of its own cameras is never touched."""

    def __init__(self, folder: Path, budget_bytes: int | None = None) -> None:
        """Take the folder, and the bytes that the clips of this recorder's cameras may take together."""
        self.folder = folder
        self._budget_bytes = budget_bytes
        self._cameras: dict[str, str] = {}
        """Camera to how it is written in names."""
        self._placed: dict[str, int] = {}
        """Clips of this run by their stems, in the order in which they began: the clock may have been set since."""
        self._began = 0
        self._clips: dict[str, StoredClip] = {}
        """Closed clips by their names' stems, the oldest first."""
        self.known_bytes = 0
        """What the closed clips take, as far as the last look and what was removed since."""

    def open(self) -> None:
        """Make the folder where it is missing, and make sure that it can be written.

        Raises:
            SinkError: it is a file, or cannot be made or written.
        """
        with path_errors(f"{self.folder}/"):
            if self.folder.exists() and not self.folder.is_dir():
                raise SinkError(f"{self.folder}/: is a file; name a folder, or leave the slash out for one film")
            try:
                self.folder.mkdir(exist_ok=True)
                probe = self.folder / ".recorder.part"
                probe.touch()
                probe.unlink()
            except FileNotFoundError:
                parent = self.folder.parent
                raise SinkError(
                    f"{self.folder}/: the folder {parent} does not exist; create it: mkdir -p {parent}"
                ) from None

    def add_camera(self, camera: str) -> None:
        """Take a camera's clips for this recorder's own, those of earlier runs too."""
        if camera in self._cameras:
            return
        name = safe_file_name(camera)
        number, unique = 1, name
        while unique in self._cameras.values():
            number += 1
            unique = f"{name}-{number}"
        self._cameras[camera] = unique

    def new_path(self, camera: str, began_unix: float) -> Path:
        """Return the name of a clip that begins now: nobody has it yet."""
        millis = round(began_unix * 1000)
        while True:
            whole, part = divmod(millis, 1000)
            stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(whole))}.{part:03d}Z"
            path = self.folder / f"{self._cameras[camera]}_{stamp}.mp4"
            if not any(one.exists() for one in (path, part_of(path), path.with_suffix(".jsonl"))):
                self._began += 1
                self._placed[path.stem] = self._began
                return path
            millis += 1

    def rescan(self, open_clips: Mapping[Path, int]) -> None:
        """See what lies there now; somebody may have taken clips away.

        Args:
            open_clips: those that are being written, by their final names, with their bytes so far.
        """
        writing = {path.stem for path in open_clips}
        found: dict[str, list[Path]] = {}
        stamps: dict[str, str] = {}
        own = set(self._cameras.values())
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None or match["camera"] not in own:
                continue
            stem = f"{match['camera']}_{match['stamp']}"
            if stem not in writing:
                found.setdefault(stem, []).append(path)
                stamps[stem] = match["stamp"]
        self._placed = {stem: began for stem, began in self._placed.items() if stem in found or stem in writing}
        oldest_first = sorted(found, key=lambda stem: (self._placed.get(stem, 0), stamps[stem], stem))
        self._clips = {stem: StoredClip(tuple(found[stem]), sum(map(_size, found[stem]))) for stem in oldest_first}
        self.known_bytes = sum(kept.bytes for kept in self._clips.values())

    def enforce_budget(self, open_bytes: int) -> None:
        """Remove the oldest clips until all, the open ones included, fit the budget."""
        if self._budget_bytes is None:
            return
        while self._clips and self.known_bytes + open_bytes > self._budget_bytes:
            stem = next(iter(self._clips))
            kept = self._clips.pop(stem)
            for path in kept.paths:
                path.unlink(missing_ok=True)
            self.known_bytes -= kept.bytes

    def longest_clip_bytes(self) -> int | None:
        """Return how large one clip may become, so that removing old ones can make room; None: no matter."""
        return None if self._budget_bytes is None else self._budget_bytes // (4 * max(1, len(self._cameras)))


def part_of(path: Path) -> Path:
    """Return what a clip is called while it is written: a player knows it by its suffix all the same."""
    return path.with_name(f"{path.stem}{PART}{path.suffix}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
