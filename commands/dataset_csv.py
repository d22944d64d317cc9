"""Reads CSV tables of labelled images with the columns ``path``, ``label`` and optionally ``group``."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Final

from commands.console import read_text_file
from pipeline.errors import ConfigError

COLUMNS: Final = ("path", "label")
GROUP: Final = "group"

_MAX_FIELD: Final = 4096


def read_table(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the paths, labels and groups of a CSV or TSV file.

    The separator is the most frequent of comma, semicolon and tab in the first line. Excel's first line ``sep=;``
    sets the separator explicitly. Paths are relative to the file's folder and may contain backslashes. Without a
    ``group`` column, the list of groups is empty; an empty cell is an empty group.

    Raises:
        ConfigError: the file is not a valid table; the message contains the line number.
    """
    text = read_text_file(path)
    first, _, rest = text.partition("\n")
    declared = re.fullmatch(r'"?sep=([,;\t])"?', first.rstrip(" "))
    if declared:  # Excel's line; the next line is the header
        text = rest
    # Where the decimal separator is a comma, spreadsheets separate fields by semicolons.
    separator = declared[1] if declared else max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    paths: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    columns: list[str] | None = None
    line = lines_before = 2 if declared else 1
    try:
        for cells in rows:
            if columns is None:
                columns = _columns(path, cells)
            elif any(cell.strip() for cell in cells):
                row = _row(path, line, columns, cells)
                paths.append(str(path_beside(path, line, row["path"])))
                labels.append(row["label"])
                if GROUP in columns:
                    groups.append(row[GROUP])
            line = rows.line_num + lines_before
    except csv.Error as reason:
        raise ConfigError(
            f'{path}:{line}: not a row of a CSV ({reason}); enclose a whole field in quotes ("), '
            "and double each quote inside the field"
        ) from None
    if not paths:
        raise ConfigError(f"{path}: lists no images; write one a line, below a first line path,label")
    return paths, labels, groups


def _columns(path: Path, cells: list[str]) -> list[str]:
    columns = [name.strip().casefold() for name in cells]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ConfigError(
            f"{path}: its first line has no {' and no '.join(map(repr, missing))}; it must name the columns "
            f"path, label and, where several images show one part, {GROUP}"
        )
    repeated = next((name for name, count in Counter(columns).items() if count > 1 and name in {*COLUMNS, GROUP}), None)
    if repeated is not None:
        raise ConfigError(f"{path}: its first line has {repeated!r} twice; remove one of the columns")
    return columns


def _row(path: Path, line: int, columns: list[str], cells: list[str]) -> dict[str, str]:
    """Return the cells of a row by column; raise ``ConfigError`` for extra, empty or multi-line cells."""
    extra = [cell for cell in cells[len(columns) :] if cell.strip()]
    if extra:
        raise ConfigError(
            f"{path}:{line}: has {len(cells)} fields for {len(columns)} columns; put quotes around a field that holds "
            "the separator"
        )
    row = dict.fromkeys(columns, "") | {key: cell.strip() for key, cell in zip(columns, cells, strict=False)}
    for key in (*COLUMNS, GROUP):
        if len(row.get(key, "")) > _MAX_FIELD or "\n" in row.get(key, ""):
            raise ConfigError(
                f"{path}:{line}: {key} begins with {row[key][:40]!r} and has several lines or more "
                f'than {_MAX_FIELD} characters; check for a missing or extra quote (")'
            )
    if not row["path"] or not row["label"]:
        raise ConfigError(f"{path}:{line}: path or label is empty; fill in both, or remove the line")
    return row


def path_beside(table: Path, line: int, path: str) -> Path:
    """Return the path of an image listed in a file; backslashes are accepted as separators.

    Args:
        table: the file that lists the image.
        line: line number, for messages.
        path: the listed path, relative to the file's folder.

    Raises:
        ConfigError: the path is on a Windows drive.
    """
    joined = table.parent / path
    if "\\" in path and not os.path.exists(joined):  # noqa: PTH110 - False for a name that is too long
        if PureWindowsPath(path).drive:
            raise ConfigError(
                f"{table}:{line}: {path!r} is a path on a Windows drive; write it relative to this file, "
                f"such as {PureWindowsPath(path).name!r}"
            )
        joined = table.parent.joinpath(*re.split(r"[\\/]+", path))
    return joined
