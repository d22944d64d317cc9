"""The list of those who may look in: public keys in a folder or a file, read again when it changes.

A folder holds one ``NAME.key`` each. A file holds a key a line, then its owner's name if you like; ``#`` begins a
remark. What cannot be read admits nobody: a list that is gone is an empty one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from overlays.curve.keys import PUBLIC_SUFFIX, is_key, read_public
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

_MOST_KEYS: Final = 10_000
_LARGEST_FILE_BYTES: Final = 1 << 20

Mark = tuple[object, ...]


class AllowList:
    """The keys at ``path``, as of the last ``changed``.

    Raises:
        ConfigError: there is no such file or folder to begin with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: set[str] = set()
        self._mark = _mark(path)
        if self._mark is None:
            raise ConfigError(
                f"allow {str(path)!r}: there is no such file or folder; `run.py keys new DIR` makes DIR/allowed, a "
                "folder of the public keys of those who may look in"
            )
        self.names: Mapping[bytes, str] = self._read()
        """Whose key it is, by public key in Z85."""

    def changed(self) -> bool:
        """Read the list again if it differs from when it was read; say whether its keys do."""
        mark = _mark(self.path)
        if mark == self._mark:
            return False
        self._mark = mark
        before, self.names = self.names, self._read()
        if before.keys() == self.names.keys():
            return False
        log.info("%s: %d viewers may look in now", self.path, len(self.names))
        return True

    def _read(self) -> dict[bytes, str]:
        try:
            if self.path.is_dir():
                return self._read_folder()
            with self.path.open("rb") as file:
                content = file.read(_LARGEST_FILE_BYTES)
        except OSError as error:
            self._say(f"{self.path}: cannot be read ({error.strerror}); nobody may look in")
            return {}
        if b"public-key" in content:
            with suppress(ConfigError):  # its lines are told of, one by one
                return {read_public(self.path): self.path.stem}
        return self._read_lines(content)

    def _read_folder(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for path in sorted(self.path.glob("*" + PUBLIC_SUFFIX))[:_MOST_KEYS]:
            try:
                names[read_public(path)] = path.stem
            except ConfigError as error:
                self._say(f"{error} (left out)")
        return names

    def _read_lines(self, content: bytes) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for number, line in enumerate(content.splitlines(), 1):
            key, _, owner = line.strip().partition(b" ")
            if is_key(key):
                names[key] = owner.strip().decode("utf-8", "replace") or f"line {number}"
            elif key and not key.startswith(b"#"):
                self._say(f"{self.path}: line {number} begins with no key of 40 letters (left out)")
        return names

    def _say(self, text: str) -> None:
        """Warn, once for each trouble."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


def _mark(path: Path) -> Mark | None:
    """Return what changes when the list does; None where there is none."""
    try:
        found = [path, *sorted(path.glob("*" + PUBLIC_SUFFIX))[:_MOST_KEYS]] if path.is_dir() else [path]
        path.stat()
    except OSError:
        return None
    return tuple((str(one), *_trace(one)) for one in found)


def _trace(path: Path) -> Mark:
    """Return what changes when a file does; a link to nowhere, such as an editor's lock, hides no other file."""
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_mtime_ns, told.st_size, told.st_ino
