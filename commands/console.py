"""Prints lines and errors, sets exit codes, and reads and writes text files for all commands."""

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
"""Exit code of a command that the user interrupted before its work was complete; shells use the same code."""


def print_line(text: str) -> None:
    """Print a line on standard output and flush it; on a full disk or a closed pipe, print no further lines."""
    try:
        print(escaped(text, keep="\n\t"), flush=True)
    except OSError as reason:
        if not isinstance(reason, BrokenPipeError):
            log.warning(
                "standard output cannot be written (%s); further lines are not printed", reason.strerror or reason
            )
        with suppress(OSError, ValueError):  # otherwise, writing the buffered text at exit fails again
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def fail(text: str, code: int = 2) -> NoReturn:
    """Print an error and end the command with an exit code.

    Raises:
        typer.Exit: always.
    """
    print_error(text)
    raise typer.Exit(code)


def print_error(text: str) -> None:
    """Print an error on standard error; ignore a failed write, because the exit code also reports the error."""
    with suppress(OSError):
        print(format_error(text), file=sys.stderr, flush=True)


def format_error(text: str) -> str:
    """Return an error's text with the prefix ``error:`` on each line and escaped control characters."""
    return "\n".join(f"error: {escaped(line)}" for line in text.split("\n") if line)


def exit_with_outcome(outcome: RunResult) -> None:
    """Print the errors of a run and exit with the code of their kind (docs/operations.md); return if there are none.

    Raises:
        typer.Exit: the run has errors.
    """
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
    """Return the text of a file that an option names, in UTF-8 or in UTF-16 with a byte-order mark (from Windows).

    Raises:
        ConfigError: the file cannot be read, or has another encoding.
    """
    why = "not UTF-8 text; save it as UTF-8"
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = io.StringIO(raw.decode("utf-16" if is_utf16 else "utf-8-sig"), newline=None).getvalue()
    except (OSError, UnicodeDecodeError) as reason:
        why = getattr(reason, "strerror", None) or why
    else:
        if "\0" not in text:  # UTF-16 text without a byte-order mark contains null bytes
            return text
    raise ConfigError(f"{str(path)!r}: cannot be read ({why}); check the path and its permissions")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        ConfigError: the file cannot be written; an existing file is unchanged.
    """
    write_atomically(path, text, raises=ConfigError)


def check_writable(output: Path, *others: Path) -> None:
    """Check that the file of ``--output``, and other files of the command, can be written.

    Raises:
        ConfigError: a path is a folder, or the folder of ``output`` is not writable.
    """
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if any(path.is_dir() for path in (output, *others)) or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder that you may write to")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a progress bar on standard error inside the block."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress


def relative_path(path: Path) -> str:
    """Return a path relative to the working directory."""
    return os.path.relpath(path)


def display_name() -> str | None:
    """Return the name of the display for windows; None if the system has no display."""
    if sys.platform in {"darwin", "win32"}:
        return "the system's screen"
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or None
