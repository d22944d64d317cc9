"""Folder of clips: file names, and the disk budget of one recorder.

The name of a clip has the camera and the time (UTC) of the first frame: ``CAMERA_20261121T065345.123Z.mp4``, with its
``.jsonl`` beside it. While the clip is written, and if the writer was killed, ``.part`` comes before the suffix.
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
"""Tolerance in the comparison of the start of a clip and of an event: times of the same frame differ by rounding."""
_NAME: Final = re.compile(r"(?P<camera>.+)_(?P<stamp>\d{8}T\d{6}\.\d{3}Z)(?:\.part)?\.(?:mp4|jsonl)")


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A closed clip on the disk: its video and its log."""

    paths: tuple[Path, ...]
    bytes: int


class ClipStore:
    """The folder of one recorder. Only clips of the recorder's own cameras are counted or deleted."""

    def __init__(self, folder: Path, budget_bytes: int | None = None) -> None:
        """Set the folder and the maximum total size in bytes of the clips of the recorder's cameras."""
        self.folder = folder
        self._budget_bytes = budget_bytes
        self._cameras: dict[str, str] = {}
        """By camera: its name in file names."""
        self._order: dict[str, int] = {}
        """By file stem: number of the clip in the order of this run, because the wall clock may have been changed."""
        self._began = 0
        self._clips: dict[str, StoredClip] = {}
        """Closed clips by file stem, the oldest first."""
        self.known_bytes = 0
        """Size of the closed clips in bytes at the last scan, minus the clips that were deleted since."""

    def open(self) -> None:
        """Create the folder if it is missing, and check that it is writable.

        Raises:
            SinkError: the path is a file, or the folder cannot be created or written.
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
        """Add a camera: its clips count against the budget, including clips of earlier runs."""
        if camera in self._cameras:
            return
        name = safe_file_name(camera)
        number, unique = 1, name
        while unique in self._cameras.values():
            number += 1
            unique = f"{name}-{number}"
        self._cameras[camera] = unique

    def new_path(self, camera: str, began_unix: float) -> Path:
        """Return an unused file name for a clip that starts at ``began_unix`` (Unix seconds)."""
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
        """Return the finished clip that shows the start of a time span, or else the first clip in it. For any thread.

        Args:
            camera: the camera's name as the page has it.
            start_unix: start of the time span in Unix seconds.
            end_unix: end of the time span in Unix seconds.
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
        """Delete the oldest clips until all clips, including open clips, fit the budget."""
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
    """Return the path of a clip while it is written; the suffix stays the same, so that players recognise it."""
    return path.with_name(f"{path.stem}{PART}{path.suffix}")


def _unix_of(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()


def _closed_at(path: Path) -> float:
    """Return the Unix time of the last write to a clip; 0 if it was deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
