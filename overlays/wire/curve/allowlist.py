"""The list of those who may look in: public keys in a folder or a file, read again when it changes.

A folder holds one ``NAME.key`` each. A file holds a key a line, then its owner's name if you like; ``#`` begins a
remark. A list or a key file that is gone admits nobody; one that is there and cannot be read (no file handle is free,
a network drive hangs) keeps what was read before, and is read again until it can be.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from overlays.wire.curve.keys import PUBLIC_SUFFIX, is_key, read_public
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_KEYS: Final = 10_000
_MAX_FILE_BYTES: Final = 1 << 20

Mark = tuple[object, ...]


class AllowList:
    """The keys at ``path``, as of the last ``changed``.

    Raises:
        ConfigError: there is no such file or folder to begin with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: set[str] = set()
        self._keys: dict[Path, bytes] = {}
        """Of a folder, by file; as of the last time each could be read."""
        self.names: Mapping[bytes, str] = {}
        """Whose key it is, by public key in Z85."""
        try:
            self._mark: Mark | None = _mark(path)
        except OSError as error:
            raise ConfigError(
                f"allow {str(path)!r}: cannot be read ({error.strerror}); check who may read it"
            ) from None
        if not self._mark:
            raise ConfigError(
                f"allow {str(path)!r}: there is no such file or folder; `run.py keys new DIR` makes DIR/allowed, a "
                "folder of the public keys of those who may look in"
            )
        self.names = self._read()

    def changed(self) -> bool:
        """Read the list again if it differs from when it was read; say whether its keys do."""
        try:
            mark = _mark(self.path)
        except OSError as error:
            self._keep(self.path, error)
            return False
        if mark == self._mark:
            return False
        self._mark = mark
        before, self.names = self.names, self._read()
        if before.keys() == self.names.keys():
            return False
        count = len(self.names)
        log.info("%s: %d viewer%s may look in now", self.path, count, "" if count == 1 else "s")
        return True

    def _read(self) -> Mapping[bytes, str]:
        try:
            if self.path.is_dir():
                return self._read_folder()
            with self.path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            self._say(f"{self.path}: is not there any more; nobody may look in")
            return {}
        except OSError as error:
            self._keep(self.path, error)
            return self.names
        if b"public-key" in content:
            with suppress(ConfigError):  # its lines are told of, one by one
                return {read_public(self.path): self.path.stem}
        return self._read_lines(content)

    def _read_folder(self) -> dict[bytes, str]:
        """Raises ``OSError`` where the folder cannot be listed."""
        names: dict[bytes, str] = {}
        keys: dict[Path, bytes] = {}
        for path in _key_files(self.path):
            try:
                path.open("rb").close()
                keys[path] = read_public(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._keep(path, error)
                if path not in self._keys:
                    continue
                keys[path] = self._keys[path]
            except ConfigError as error:
                self._say(f"{error} (left out)")
                continue
            names[keys[path]] = path.stem
        self._keys = keys
        return names

    def _keep(self, path: Path, error: OSError) -> None:
        """Stay with what was read before, and read again soon."""
        self._mark = None
        self._say(f"{path}: cannot be read ({error.strerror}); what was read before is still valid")

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


def _mark(path: Path) -> Mark:
    """Return what changes when the list does; () where there is none.

    Raises:
        OSError: it is there, and cannot be looked at.
    """
    try:
        path.stat()
        found = [path, *_key_files(path)] if path.is_dir() else [path]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple((str(one), *_trace(one)) for one in found)


def _key_files(folder: Path) -> list[Path]:
    """Return the key files of a folder; unlike ``glob``, raises ``OSError`` where it cannot be listed."""
    return sorted(one for one in folder.iterdir() if one.name.endswith(PUBLIC_SUFFIX))[:_MAX_KEYS]


def _trace(path: Path) -> Mark:
    """Return what changes when a file does; a link to nowhere, such as an editor's lock, hides no other file."""
    try:
        told = path.stat()
    except OSError:
        return ()
    return told.st_mtime_ns, told.st_size, told.st_ino
