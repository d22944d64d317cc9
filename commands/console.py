"""What the command line says, where it writes, and with which exit code it ends."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from pipeline.errors import ConfigError, ConnectionLostError
from pipeline.log_format import escaped
from pipeline.result import RunResult

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("recipro-stream")

EXIT_INPUT, EXIT_CAMERA, EXIT_SINK = 2, 3, 4


def print_line(text: str) -> None:
    """Tell something on standard output, at once. Where its disk is full or nobody reads it, nothing ends for that."""
    try:
        print(escaped(text, keep="\n\t"), flush=True)
    except OSError as reason:
        if not isinstance(reason, BrokenPipeError):
            log.warning("standard output takes no more (%s); what is told there is left out", reason.strerror or reason)
        with suppress(OSError, ValueError):  # what waits in it would fail again at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def fail(text: str, code: int = 2) -> NoReturn:
    """Tell what went wrong and end with an exit code that says what kind it is."""
    print_error(text)
    raise typer.Exit(code)


def print_error(text: str) -> None:
    """Tell what went wrong on standard error; the exit code tells it, too, where that takes no more."""
    with suppress(OSError):
        print(format_error(text), file=sys.stderr, flush=True)


def format_error(text: str) -> str:
    """Return an error's lines as the command line shows them."""
    return "\n".join(f"error: {escaped(line)}" for line in text.split("\n") if line)


def exit_with_outcome(outcome: RunResult) -> None:
    """Tell what went wrong; the exit code says what kind, for whoever supervises us (docs/operations.md)."""
    if not outcome.errors:
        return
    lost = [
        worker
        for worker in outcome.source_workers
        if isinstance(worker.error, ConnectionLostError) or not worker.received
    ]
    broken = [
        sink_worker
        for sink_worker in outcome.sink_workers
        if sink_worker.error or (sink_worker.counts_all and sink_worker.refused)
    ]
    fail("\n".join(outcome.errors), EXIT_SINK if broken else EXIT_CAMERA if lost else EXIT_INPUT)


def read_text(path: Path) -> str:
    """Read a configuration's text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r}: there is no such file; see configs/ for examples") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"config {str(path)!r}: not a text file; a YAML config goes here, a video after --source"
        ) from None
    except OSError as reason:
        raise ConfigError(f"config {str(path)!r}: cannot be read ({reason.strerror})") from None


def read_text_file(path: Path) -> str:
    """Read a text file that an option names: UTF-8, or UTF-16 with the byte-order mark that Windows writes."""
    said = "not UTF-8 text; save it as that"
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = io.StringIO(raw.decode("utf-16" if is_utf16 else "utf-8-sig"), newline=None).getvalue()
    except (OSError, UnicodeDecodeError) as reason:
        said = getattr(reason, "strerror", None) or said
    else:
        if "\0" not in text:  # every other byte of UTF-16 is one
            return text
    raise ConfigError(f"{str(path)!r}: cannot be read ({said})")


def write_text(path: Path, text: str) -> None:
    """Write a text file that an option names, or tell in one line why it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as reason:
        raise ConfigError(
            f"{str(path)!r}: cannot be written ({reason.strerror}); make room there, or name another place"
        ) from None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show on standard error how far something is; gone when it is done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress


def relative_path(path: Path) -> str:
    """Return a path as seen from where the command was started."""
    return os.path.relpath(path)


def display_name() -> str | None:
    """Return the screen for a window; None where there is none."""
    if sys.platform in {"darwin", "win32"}:
        return "the system's screen"
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or None
