"""Reads the configuration file of a running stream again when it changes, or at SIGHUP."""

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
"""Interval between two looks at the file."""
_APPLIED: Final = frozenset({"sources", "overflow", "decoder", "external_cameras"})
_APPLIED_GUARDS: Final = frozenset({"regions", "rules", "draw"})
"""Keys, and those of ``guards``, that take effect at once; all others at the next start."""


class ConfigText:
    """The text that a run's configuration was read from: a file, or the options of the command line as YAML."""

    def __init__(
        self, name: str, parse: Callable[[str], Config], *, path: Path | None, text: str = "", has_sources: bool = True
    ) -> None:
        """Set how a text becomes a configuration.

        Args:
            name: for messages.
            parse: returns the validated configuration of a text; raises ``ReciproStreamError``.
            path: the file; None: there is none.
            text: without a file, the text.
            has_sources: False if the sources stand on the command line instead.
        """
        self.name, self.parse, self.path, self.has_sources = name, parse, path, has_sources
        self.text = text
        """The text of the running configuration."""
        self._read = text
        self._unwritten: str | None = None
        """The text of a file that cannot be written, if ``text`` has changes that it does not have."""

    def current(self) -> str:
        """Return the text of the file as it is now, with changes that could not be written."""
        if self.path is None:
            return self.text
        text = read_text(self.path)
        return self.text if text == self._unwritten else text

    def read(self) -> Config:
        """Return the configuration of the file as it is now; ``accept`` says that it runs."""
        text = self.text if self.path is None else read_text(self.path)
        config = self.parse(text)
        self._read = text
        return config

    def accept(self) -> None:
        """Take the text that was read last as that of the running configuration."""
        self.text = self._read
        self._unwritten = None

    def adopt(self, text: str, *, is_written: bool, before: str) -> None:
        """Take a text as that of the running configuration.

        Args:
            text: the text.
            is_written: False if the file stays as it is.
            before: the text that it replaces.
        """
        if is_written:
            self._unwritten = None
        elif self.path is not None:
            self._unwritten = before if self._unwritten is None else self._unwritten
        self.text = text


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file of a run's configuration."""

    path: Path
    read: Callable[[], Config]
    """Returns the validated configuration of the file as it is now; raises ``ReciproStreamError``."""
    stamp: tuple[int, ...] | None = None
    """``stamp_of`` the file before the run's configuration was read: a change while the run starts is noticed."""
    requested: threading.Event = field(default_factory=threading.Event)
    """Set by ``request``."""
    woken: threading.Event = field(default_factory=threading.Event)
    """Set to wake the thread: for a request, a call, or the end."""
    accept: Callable[[], None] = lambda: None
    """Called when the configuration that was read last has been applied."""
    is_watched: bool = True
    """False: only ``ConfigWatcher.submit`` changes the run."""

    def request(self) -> None:
        """Have the file read now, changed or not."""
        self.requested.set()
        self.woken.set()


class ConfigWatcher(WorkerOwner):
    """Applies the changes of a configuration file, in a thread of its own: opening a source holds up no frame.

    A file that is invalid, or that cannot be applied, changes nothing, and the log has the reason.
    """

    def __init__(self, file: ConfigFile, config: Config, apply: Callable[[Config], CameraDiff]) -> None:
        """Watch a file; entering starts the thread.

        Args:
            file: the file.
            config: the running configuration.
            apply: changes the run's cameras; raises ``ReciproStreamError`` if the configuration does not fit the run.
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
        """Call a function that changes the run between two looks at the file; for any thread.

        A file that the function writes is not read again.
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
            log.error("%s: not applied, the run goes on as before: %s", path, error)  # noqa: TRY400 - an expected error
            return
        except Exception:
            log.exception("%s: not applied, the run goes on as before", path)  # a plug-in raises anything
            return
        cameras = {"added": diff.added, "changed": diff.changed, "removed": diff.removed, "not opened": diff.failed}
        text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in cameras.items() if names)
        log.info("%s: read again; %s", path, text or "no camera differs")
        warn_of_later_changes(str(path), self._config, config)


def warn_of_later_changes(name: str, running: Config, config: Config) -> None:
    """Log which changes of a configuration that is applied now take effect at the next start only."""
    if later := _at_next_start(running, config):
        log.warning("%s: changes of %s take effect at the next start", name, ", ".join(later))


def _at_next_start(running: Config, config: Config) -> list[str]:
    """Return the keys that differ from those of a running configuration, and take effect at the next start only."""
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
    """Have the file read at each SIGHUP inside the block, in place of ending the run. For the main thread."""
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
    """Return numbers that differ once the file is written or replaced; None if it cannot be examined."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
