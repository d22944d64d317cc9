"""What has been measured so far, one line a picture: a run that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipeline.errors import ConfigError

RECORDS, SETTINGS, RESULT, TABLE = "images.jsonl", "settings.json", "result.json", "result.csv"
_NO_COLUMNS = {"heat", "boxes", "region", "of"}


class ResultsLog:
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
        with report_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            place = self.folder / RECORDS
            whole = _whole_lines(place.read_bytes()) if place.exists() else b""
            self._check_settings(begun=bool(whole))
            try:
                self.records = {one["image"]: one for one in map(json.loads, whole.splitlines())}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ConfigError(f"{place}: holds no records of an evaluation; choose another folder") from None
            self._lines = place.open("a", encoding="utf-8")
            self._lines.truncate(len(whole))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._lines is not None:
            with report_write_errors(self.folder):
                self._lines.close()

    def check(self, name: str, of: str) -> None:
        """Refuse to go on where what a picture was measured by has changed since.

        Raises:
            ConfigError: it names the picture.
        """
        before = self.records.get(name, {}).get("of", of)
        if before != of:
            raise ConfigError(
                f"output {str(self.folder)!r}: {name} was measured before with another content, of itself or of its "
                "boxes or mask; choose another folder, or remove this one to begin anew"
            )

    def add(self, record: dict[str, Any]) -> None:
        """Keep a picture's record; it is on its way to the disk when this returns."""
        assert self._lines is not None  # noqa: S101 - set on entering
        with report_write_errors(self.folder):
            self._lines.write(json.dumps(record, allow_nan=False) + "\n")
            self._lines.flush()
        self.records[record["image"]] = record

    def _check_settings(self, *, begun: bool) -> None:
        place = self.folder / SETTINGS
        before = _settings_in(place)
        if begun and before is None:
            raise ConfigError(
                f"{place}: does not say what the records beside it were made with; choose another folder, or remove "
                "this one to begin anew"
            )
        if before is not None:
            differs = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
            if differs:
                key = differs[0]
                raise ConfigError(
                    f"output {str(self.folder)!r}: begun with {key} {before.get(key)!r}, not "
                    f"{self._settings.get(key)!r}; choose another folder, or remove this one to begin anew"
                )
        else:
            place.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")


@contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Tell in one line why something cannot be written in a folder, such as on a full disk."""
    try:
        yield
    except OSError as reason:
        raise ConfigError(
            f"output {str(folder)!r}: cannot be written ({reason.strerror}); make room there, or choose another folder"
        ) from None


def _settings_in(place: Path) -> dict[str, Any] | None:
    """Return what an evaluation was begun with; None where no file says it, or only a torn one does."""
    try:
        told = json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _whole_lines(content: bytes) -> bytes:
    """Leave out a last line that was being written when the run was ended."""
    return content[: content.rfind(b"\n") + 1]


def write_result(
    folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``result.json`` (settings and means) and ``result.csv`` (one row a picture, without its heat)."""
    told = {"settings": dict(settings), "summary": dict(summary)}
    columns = list(dict.fromkeys(key for one in records for key in one if key not in _NO_COLUMNS))
    with report_write_errors(folder):
        (folder / RESULT).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with report_write_errors(folder), (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
