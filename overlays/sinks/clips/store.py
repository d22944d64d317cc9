"""Folder of clips: file names, and the disk budget of one recorder.

A clip is ``CAMERA_20261121T065345.123Z.mp4`` with its ``.jsonl`` beside it, named by the camera and the time (UTC) of
its first frame. ``.part`` stands before the suffix while the clip is written, and remains if the writer was killed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from overlays.sinks.paths import no_folder, path_errors, safe_file_name
from overlays.wire.text import replace_undecodable
from pipeline.errors import SinkError

PART: Final = ".part"
_SLACK_SECONDS: Final = 0.5
"""The first frame of a clip and of an event may be the same, with times that differ by rounding."""
_NAME: Final = re.compile(r"(?P<camera>.+)_(?P<stamp>\d{8}T\d{6}\.\d{3}Z)(?:\.part)?\.(?:mp4|jsonl)")


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A closed clip on the disk: its video and the log beside it."""

    paths: tuple[Path, ...]
    bytes: int


class ClipStore:
    """The folder of one recorder. Only clips of the recorder's own cameras are counted or deleted."""

    def __init__(self, folder: Path, budget_bytes: int | None = None) -> None:
        """Set the folder and the maximum total size in bytes of the clips of the recorder's cameras."""
        self.folder = folder
        self._budget_bytes = budget_bytes
        self._cameras: dict[str, str] = {}
        """Camera name to its spelling in file names."""
        self._order: dict[str, int] = {}
        """Clips of this run by stem, numbered in the order they began: the wall clock may have been changed since."""
        self._began = 0
        self._clips: dict[str, StoredClip] = {}
        """Closed clips by file stem, the oldest first."""
        self.known_bytes = 0
        """Size of the closed clips as of the last scan, less what was deleted since."""

    def open(self) -> None:
        """Create the folder if it is missing, and check that it is writable.

        Raises:
            SinkError: it is a file, or it cannot be created or written.
        """
        with path_errors(f"{self.folder}/"):
            if self.folder.exists() and not self.folder.is_dir():
                raise SinkError(
                    f"{self.folder}/: is a file; name a folder, or remove the slash to write a single video"
                )
            try:
                self.folder.mkdir(exist_ok=True)
                probe = self.folder / ".recorder.part"
                probe.touch()
                probe.unlink()
            except (FileNotFoundError, NotADirectoryError):
                raise no_folder(f"{self.folder}/", self.folder.parent) from None

    def add_camera(self, camera: str) -> None:
        """Add a camera: its clips, those of earlier runs included, count against the budget."""
        if camera in self._cameras:
            return
        name = safe_file_name(camera)
        number, unique = 1, name
        while unique in self._cameras.values():
            number += 1
            unique = f"{name}-{number}"
        self._cameras[camera] = unique

    def new_path(self, camera: str, began_unix: float) -> Path:
        """Return an unused file name for a clip that begins at ``began_unix`` (Unix seconds)."""
        millis = round(began_unix * 1000)
        while True:
            whole, part = divmod(millis, 1000)
            stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(whole))}.{part:03d}Z"
            path = self.folder / f"{self._cameras[camera]}_{stamp}.mp4"
            if not any(used.exists() for used in (path, part_of(path), path.with_suffix(".jsonl"))):
                self._began += 1
                self._order[path.stem] = self._began
                return path
            millis += 1

    def find(self, camera: str, start_unix: float, end_unix: float) -> Path | None:
        """Return the finished clip that shows the beginning of a time span, or else its first clip. For any thread.

        Args:
            camera: the camera's name as the page has it.
            start_unix: the beginning in Unix seconds.
            end_unix: the end.
        """
        names = {name for known, name in list(self._cameras.items()) if replace_undecodable(known) == camera}
        began: list[tuple[float, Path]] = []
        for path in self.folder.glob("*.mp4"):
            match = _NAME.fullmatch(path.name)
            if match is not None and match["camera"] in names and not path.stem.endswith(PART):
                began.append((_unix_of(match["stamp"]), path))
        before = max((each for each in began if each[0] <= start_unix + _SLACK_SECONDS), default=None)
        if before is not None and _closed_at(before[1]) >= start_unix:
            return before[1]
        inside = (each for each in began if start_unix < each[0] <= end_unix)
        return min(inside, default=(0.0, None))[1]

    def rescan(self, open_clips: Mapping[Path, int]) -> None:
        """Scan the folder again: other programs may have deleted clips.

        Args:
            open_clips: the clips that are being written: final path to current size in bytes.
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
        self._order = {stem: began for stem, began in self._order.items() if stem in found or stem in writing}
        oldest_first = sorted(found, key=lambda stem: (self._order.get(stem, 0), stamps[stem], stem))
        self._clips = {stem: StoredClip(tuple(found[stem]), sum(map(_size, found[stem]))) for stem in oldest_first}
        self.known_bytes = sum(clip.bytes for clip in self._clips.values())

    def enforce_budget(self, open_bytes: int) -> None:
        """Delete the oldest clips until all clips, the open ones included, fit the budget."""
        if self._budget_bytes is None:
            return
        while self._clips and self.known_bytes + open_bytes > self._budget_bytes:
            stem = next(iter(self._clips))
            clip = self._clips.pop(stem)
            for path in clip.paths:
                path.unlink(missing_ok=True)
            self.known_bytes -= clip.bytes

    def longest_clip_bytes(self) -> int | None:
        """Return the maximum size of a clip that keeps the budget enforceable; None without a budget."""
        return None if self._budget_bytes is None else self._budget_bytes // (4 * max(1, len(self._cameras)))


def part_of(path: Path) -> Path:
    """Return the path of a clip while it is written; the suffix stays, so that players recognise it."""
    return path.with_name(f"{path.stem}{PART}{path.suffix}")


def _unix_of(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()


def _closed_at(path: Path) -> float:
    """Return the Unix time at which a clip was written last; 0 if it was deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
