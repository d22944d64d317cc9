"""Output, error messages, exit codes and text files of the command line."""

from __future__ import annotations

import codecs
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from pipeline.atomic import write_atomically
from pipeline.errors import ConfigError, ConnectionLostError
from pipeline.log_format import escaped
from pipeline.result import RunResult

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("recipro-stream")

EXIT_INPUT, EXIT_CAMERA, EXIT_SINK = 2, 3, 4
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Of a command whose work is not complete, because the user has ended it; shells report the same of other programs."""


def print_line(text: str) -> None:
    """Print a line on standard output and flush it; a full disk or a closed pipe does not end the run."""
    try:
        print(escaped(text, keep="\n\t"), flush=True)
    except OSError as reason:
        if not isinstance(reason, BrokenPipeError):
            log.warning(
                "standard output cannot be written (%s); further lines are not printed", reason.strerror or reason
            )
        with suppress(OSError, ValueError):  # the buffered text would fail again at exit
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def fail(text: str, code: int = 2) -> NoReturn:
    """Print an error and end the command with an exit code."""
    print_error(text)
    raise typer.Exit(code)


def print_error(text: str) -> None:
    """Print an error on standard error; where that cannot be written, the exit code still reports it."""
    with suppress(OSError):
        print(format_error(text), file=sys.stderr, flush=True)


def format_error(text: str) -> str:
    """Return an error's lines, each with the prefix ``error:`` and control characters escaped."""
    return "\n".join(f"error: {escaped(line)}" for line in text.split("\n") if line)


def exit_with_outcome(outcome: RunResult) -> None:
    """Print the errors of a run, if any, and end with the exit code of their kind (docs/operations.md)."""
    if not outcome.errors:
        return
    lost_sources = [
        worker
        for worker in outcome.source_workers
        if isinstance(worker.error, ConnectionLostError) or not worker.received
    ]
    failed_sinks = [
        sink_worker
        for sink_worker in outcome.sink_workers
        if sink_worker.error or (sink_worker.counts_all and sink_worker.refused)
    ]
    fail("\n".join(outcome.errors), EXIT_SINK if failed_sinks else EXIT_CAMERA if lost_sources else EXIT_INPUT)


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: the file is missing, is not UTF-8 text, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r}: no such file; see configs/ for examples") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"config {str(path)!r}: not a text file; give a YAML configuration here, and a video with --source"
        ) from None
    except OSError as reason:
        raise ConfigError(f"config {str(path)!r}: cannot be read ({reason.strerror}); check its permissions") from None


def read_text_file(path: Path) -> str:
    """Return the text of a file that an option names: UTF-8, or UTF-16 with a byte-order mark (as Windows writes).

    Raises:
        ConfigError: the file cannot be read, or is not such text.
    """
    why = "not UTF-8 text; save it as UTF-8"
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = io.StringIO(raw.decode("utf-16" if is_utf16 else "utf-8-sig"), newline=None).getvalue()
    except (OSError, UnicodeDecodeError) as reason:
        why = getattr(reason, "strerror", None) or why
    else:
        if "\0" not in text:  # UTF-16 without a byte-order mark holds null bytes
            return text
    raise ConfigError(f"{str(path)!r}: cannot be read ({why}); check the path and its permissions")


def write_text(path: Path, text: str) -> None:
    """Write a text file that an option names, complete or as before.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomically(path, text, raises=ConfigError)


def check_writable(output: Path, *others: Path) -> None:
    """Raise ``ConfigError`` if a file of ``--output``, or another file that the command writes, cannot be written."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if any(path.is_dir() for path in (output, *others)) or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder that you may write to")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar on standard error that disappears when the block ends."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress


def relative_path(path: Path) -> str:
    """Return a path relative to the working directory."""
    return os.path.relpath(path)


def display_name() -> str | None:
    """Return the display that windows open on; None if the system has no display."""
    if sys.platform in {"darwin", "win32"}:
        return "the system's screen"
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or None
