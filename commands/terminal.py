"""What the command line says, where it writes, and with which exit code it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from pipeline.errors import ConfigError, ConnectionLostError
from pipeline.loop import Outcome

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_INPUT, EXIT_CAMERA, EXIT_SINK = 2, 3, 4


def say(text: str) -> None:
    """Tell something on standard output, at once."""
    print(text, flush=True)


def fail(text: str, code: int = 2) -> NoReturn:
    """Tell what went wrong and end with an exit code that says what kind it is."""
    print(told(text), file=sys.stderr, flush=True)
    raise typer.Exit(code)


def told(text: str) -> str:
    """Return an error's lines as the command line shows them."""
    return "\n".join(f"error: {line}" for line in text.splitlines())


def finish(outcome: Outcome) -> None:
    """Tell what went wrong; the exit code says what kind, for whoever supervises us (docs/operations.md)."""
    if not outcome.errors:
        return
    lost = [pump for pump in outcome.pumps if isinstance(pump.error, ConnectionLostError) or not pump.taken]
    broken = [outlet for outlet in outcome.outlets if outlet.error]
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


def text_of(path: Path) -> str:
    """Read a text file that an option names."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(
            f"{str(path)!r}: cannot be read ({getattr(reason, 'strerror', None) or 'not UTF-8 text; save it as that'})"
        ) from None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show on standard error how far something is; gone when it is done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress


def near(path: Path) -> str:
    """Return a path as seen from where the command was started."""
    return os.path.relpath(path)


def display() -> str | None:
    """Return the screen for a window; None where there is none."""
    if sys.platform in {"darwin", "win32"}:
        return "the system's screen"
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or None
