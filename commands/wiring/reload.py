"""Reloads the configuration file of a running stream when it changes, or at SIGHUP."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from commands.console import read_text
from commands.wiring.cameras import CameraDiff
from pipeline.config import Config
from pipeline.errors import ReciproStreamError
from pipeline.workers.thread import ThreadWorker, WorkerOwner

log = logging.getLogger("recipro-stream")
T = TypeVar("T")

CHECK_SECONDS: Final = 1.0
"""Interval in seconds between two checks of the file."""
_APPLIED: Final = frozenset({"sources", "overflow", "decoder", "external_cameras"})
_APPLIED_GUARDS: Final = frozenset({"regions", "rules", "draw"})
"""Keys of ``guards`` that take effect at once; ``_APPLIED`` lists the top-level keys. All others need a restart."""


class ConfigText:
    """The YAML text of a run's configuration, from a file or from the command line options."""

    def __init__(
        self, name: str, parse: Callable[[str], Config], *, path: Path | None, text: str = "", has_sources: bool = True
    ) -> None:
        """Store the text and the function that parses it.

        Args:
            name: name of the configuration in messages.
            parse: returns the validated configuration of a text; raises ``ReciproStreamError``.
            path: the configuration file; None if there is no file.
            text: the initial text, used if there is no file.
            has_sources: False if the sources come from the command line.
        """
        self.name, self.parse, self.path, self.has_sources = name, parse, path, has_sources
        self.text = text
        """The text of the running configuration."""
        self._read = text
        self._unwritten: str | None = None
        """The text of a read-only file, if ``text`` contains changes that could not be written to it."""

    def current(self) -> str:
        """Return the current text of the file, including changes that could not be written."""
        if self.path is None:
            return self.text
        text = read_text(self.path)
        return self.text if text == self._unwritten else text

    def read(self) -> Config:
        """Read and parse the current text; call ``accept`` when the configuration has been applied."""
        text = self.text if self.path is None else read_text(self.path)
        config = self.parse(text)
        self._read = text
        return config

    def accept(self) -> None:
        """Store the text of the last ``read`` as the text of the running configuration."""
        self.text = self._read
        self._unwritten = None

    def adopt(self, text: str, *, is_written: bool, before: str) -> None:
        """Store a text as the text of the running configuration.

        Args:
            text: the new text.
            is_written: whether the file contains the new text.
            before: the text before the change.
        """
        if is_written:
            self._unwritten = None
        elif self.path is not None:
            self._unwritten = before if self._unwritten is None else self._unwritten
        self.text = text


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A run's configuration file, and the events that request a reload."""

    path: Path
    read: Callable[[], Config]
    """Reads and validates the file; raises ``ReciproStreamError``."""
    stamp: tuple[int, ...] | None = None
    """Result of ``stamp_of`` before the first read of the file, to detect a change during the start."""
    requested: threading.Event = field(default_factory=threading.Event)
    """Set by ``request`` to reload the file."""
    woken: threading.Event = field(default_factory=threading.Event)
    """Set to wake the watcher's thread for a reload, a submitted call, or the end of the thread."""
    accept: Callable[[], None] = lambda: None
    """Called after the configuration of the last ``read`` has been applied."""
    is_watched: bool = True
    """If False, the file is not reloaded; only calls of ``ConfigWatcher.submit`` change the run."""

    def request(self) -> None:
        """Request a reload of the file, even if it has not changed."""
        self.requested.set()
        self.woken.set()


class ConfigWatcher(WorkerOwner):
    """Applies changes of a configuration file in its own thread, so that opening a source delays no frame.

    If a file is invalid or cannot be applied, the reason is logged and the run continues unchanged.
    """

    def __init__(self, file: ConfigFile, config: Config, apply: Callable[[Config], CameraDiff]) -> None:
        """Create the watcher of a file; entering starts its thread.

        Args:
            file: the configuration file.
            config: the running configuration.
            apply: applies a configuration to the run; raises ``ReciproStreamError`` if it does not fit the run.
        """
        self._file, self._config, self._apply = file, config, apply
        self._stamp = file.stamp
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stop = threading.Event()
        self._worker = ThreadWorker(f"configuration {file.path}", self._watch, self._end)

    def _end(self) -> None:
        self._stop.set()
        self._file.woken.set()

    def _watch(self) -> None:
        while True:
            self._file.woken.wait(CHECK_SECONDS)
            if self._stop.is_set():
                break
            self._file.woken.clear()
            if self._calls:
                self._call()
                continue
            is_requested = self._file.requested.is_set()
            self._file.requested.clear()
            if not self._file.is_watched:
                continue
            stamp = stamp_of(self._file.path)
            if is_requested or stamp != self._stamp:
                self._stamp = stamp
                self._reload()
        while self._calls:
            self._calls.popleft()[1].cancel()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Call a function in the watcher's thread and return its future; callable from any thread.

        The function may change the run and write the file; such a write causes no reload.
        """
        future: Future[T] = Future()
        self._calls.append((call, future))
        self._file.woken.set()
        return future

    def _call(self) -> None:
        call, future = self._calls.popleft()
        if self._calls or self._file.requested.is_set():
            self._file.woken.set()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        else:
            self._stamp = stamp_of(self._file.path)
            future.set_result(result)

    def _reload(self) -> None:
        path = self._file.path
        try:
            config = self._file.read()
            diff = self._apply(config)
            self._file.accept()
        except (ReciproStreamError, OSError) as error:
            log.error("%s: the changed file is not applied, and the run continues as before: %s", path, error)  # noqa: TRY400 - an expected error
            return
        except Exception:
            log.exception(
                "%s: the changed file is not applied, and the run continues as before", path
            )  # a plug-in may raise any exception
            return
        cameras = {"added": diff.added, "changed": diff.changed, "removed": diff.removed, "not opened": diff.failed}
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in cameras.items() if names)
        log.info("%s: read again; %s", path, text or "no camera differs")
        warn_of_later_changes(str(path), self._config, config)


def warn_of_later_changes(name: str, running: Config, config: Config) -> None:
    """Log a warning with the changed keys that take effect only at the next start.

    Args:
        name: name of the configuration in the message.
        running: the configuration with which the run was started.
        config: the new configuration.
    """
    if later := _at_next_start(running, config):
        log.warning("%s: changes of %s take effect at the next start", name, ", ".join(later))


def _at_next_start(running: Config, config: Config) -> list[str]:
    """Return the keys that differ from the running configuration and take effect only at the next start."""
    later = [
        key for key in type(config).model_fields
        if key not in {*_APPLIED, "guards"} and getattr(config, key) != getattr(running, key)
    ]  # fmt: skip
    guards, before = config.guards, running.guards
    return later + [
        f"guards.{key}" for key in type(guards).model_fields
        if key not in _APPLIED_GUARDS and getattr(guards, key) != getattr(before, key)
    ]  # fmt: skip


@contextmanager
def reload_on_hangup(file: ConfigFile) -> Iterator[None]:
    """Reload the file at each SIGHUP inside the block; without it, SIGHUP ends the run. Main thread only."""
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is None:
        yield
        return
    before = signal.signal(hangup, lambda _number, _frame: file.request())
    try:
        yield
    finally:
        signal.signal(hangup, before)


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return the inode, size (bytes) and modification time (ns) of a file; None if it cannot be examined."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
