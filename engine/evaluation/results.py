"""Writes the results of an evaluation, one line per image, so that an interrupted run can continue."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from pipeline.atomic import atomic_write, write_atomically
from pipeline.errors import ConfigError

RECORDS, SETTINGS, RESULT, TABLE = "images.jsonl", "settings.json", "result.json", "result.csv"
_NO_COLUMNS = {"heat", "boxes", "region", "of"}


class ResultsLog:
    """The records of one evaluation in its folder; a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a new folder, or the folder of an evaluation with the same settings.

        Raises:
            ConfigError: the folder contains another evaluation, or cannot be written.
        """
        self.folder = folder
        self._settings = json.loads(json.dumps(dict(settings)))
        self._lines: IO[str] | None = None
        self.records: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        with report_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / RECORDS
            whole = _whole_lines(path.read_bytes()) if path.exists() else b""
            self._check_settings(started=bool(whole))
            try:
                self.records = {record["image"]: record for record in map(json.loads, whole.splitlines())}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ConfigError(f"{path}: a line is not a record of an evaluation; choose another folder") from None
            self._lines = path.open("a", encoding="utf-8")
            self._lines.truncate(len(whole))
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            with report_write_errors(self.folder):
                self._lines.close()

    def check(self, name: str, of: str) -> None:
        """Check that an image and its annotations are unchanged since their evaluation.

        Raises:
            ConfigError: the image or its annotations have changed; the message names the image.
        """
        before = self.records.get(name, {}).get("of", of)
        if before != of:
            raise ConfigError(
                f"output {str(self.folder)!r}: {name} or its boxes or mask have changed since the evaluation; "
                "choose another folder, or remove this folder to start again"
            )

    def add(self, record: dict[str, Any]) -> None:
        """Write an image's record and flush it."""
        assert self._lines is not None  # noqa: S101 - set on entering
        with report_write_errors(self.folder):
            self._lines.write(json.dumps(record, allow_nan=False) + "\n")
            self._lines.flush()
        self.records[record["image"]] = record

    def _check_settings(self, *, started: bool) -> None:
        path = self.folder / SETTINGS
        before = _settings_in(path)
        if started and before is None:
            raise ConfigError(
                f"{path}: does not contain the settings of the records beside it; choose another folder, or remove "
                "this folder to start again"
            )
        if before is not None:
            differs = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
            if differs:
                key = differs[0]
                raise ConfigError(
                    f"output {str(self.folder)!r}: was started with {key} {before.get(key)!r}, not "
                    f"{self._settings.get(key)!r}; choose another folder, or remove this folder to start again"
                )
        else:
            write_atomically(path, json.dumps(self._settings, indent=1) + "\n")


@contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Convert an ``OSError`` in writing to a ``ConfigError`` that names the folder."""
    try:
        yield
    except OSError as reason:
        raise ConfigError(
            f"output {str(folder)!r}: cannot be read or written ({reason.strerror}); check its permissions and free "
            "space, or choose another folder"
        ) from None


def _settings_in(path: Path) -> dict[str, Any] | None:
    """Return the settings of an evaluation; None if the file is missing or incomplete."""
    try:
        settings = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _whole_lines(content: bytes) -> bytes:
    """Return the complete lines; a last line that was cut off is removed."""
    return content[: content.rfind(b"\n") + 1]


def write_result(
    folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write ``result.json`` (settings, means) and ``result.csv`` (one row per image, without heat maps)."""
    document = {"settings": dict(settings), "summary": dict(summary)}
    columns = list(dict.fromkeys(key for record in records for key in record if key not in _NO_COLUMNS))
    with report_write_errors(folder):
        write_atomically(folder / RESULT, json.dumps(document, indent=1, allow_nan=False) + "\n")
    with (
        report_write_errors(folder), atomic_write(folder / TABLE) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):  # fmt: skip
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
