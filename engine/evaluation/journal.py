"""What has been measured so far, one line a picture: a run that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipeline.errors import ConfigError

RECORDS, SETTINGS, RESULT, TABLE = "images.jsonl", "settings.json", "result.json", "result.csv"


class Journal:
    """The records of one evaluation in one folder; a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the folder, new or begun before with the same settings.

        Raises:
            ConfigError: it holds another evaluation, or cannot be written.
        """
        self.folder = folder
        self._settings = json.loads(json.dumps(dict(settings)))
        self._lines: IO[str] | None = None
        self.records: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_settings()
            place = self.folder / RECORDS
            whole = _whole_lines(place.read_bytes()) if place.exists() else b""
            self.records = {one["image"]: one for one in map(json.loads, whole.splitlines())}
            place.write_bytes(whole)
            self._lines = place.open("a", encoding="utf-8")
        except OSError as reason:
            raise ConfigError(f"output {str(self.folder)!r}: cannot be written ({reason.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.folder / RECORDS}: holds no records of an evaluation; choose a folder") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, record: dict[str, Any]) -> None:
        """Keep a picture's record; it is on its way to the disk when this returns."""
        assert self._lines is not None  # noqa: S101 - set on entering
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        self._lines.flush()
        self.records[record["image"]] = record

    def _check_settings(self) -> None:
        place = self.folder / SETTINGS
        if place.exists():
            before = json.loads(place.read_text(encoding="utf-8"))
            differs = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
            if differs:
                key = differs[0]
                raise ConfigError(
                    f"output {str(self.folder)!r}: begun with {key} {before.get(key)!r}, not "
                    f"{self._settings.get(key)!r}; choose another folder, or remove this one to begin anew"
                )
        place.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")


def _whole_lines(content: bytes) -> bytes:
    """Leave out a last line that was being written when the run was ended."""
    return content[: content.rfind(b"\n") + 1]


def write_result(
    folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``result.json`` (settings and means) and ``result.csv`` (one row a picture, without its heat)."""
    told = {"settings": dict(settings), "summary": dict(summary)}
    (folder / RESULT).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for one in records for key in one if key not in {"heat", "boxes", "region"}))
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
