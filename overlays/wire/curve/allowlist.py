"""List of authorized viewers: public keys in a folder or a file, read again when it changes.

A folder contains one ``NAME.key`` per viewer. A file contains one key per line, optionally followed by its owner's
name; ``#`` starts a comment. A missing list or key file authorizes no viewer. If a list exists but cannot be read (no
free file descriptor, a network drive that does not answer), the last keys stay valid, and reading is tried again.
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

Fingerprint = tuple[object, ...]


class AllowList:
    """The authorized keys at ``path``, updated by ``changed``.

    Raises:
        ConfigError: the file or folder does not exist when the object is created, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logged: set[str] = set()
        self._keys: dict[Path, bytes] = {}
        """For a folder: the last key read from each file."""
        self.names: Mapping[bytes, str] = {}
        """Owners' names by public key in Z85."""
        try:
            self._fingerprint: Fingerprint | None = _fingerprint(path)
        except OSError as error:
            raise ConfigError(
                f"allow {str(path)!r}: cannot be read ({error.strerror}); check its permissions"
            ) from None
        if not self._fingerprint:
            raise ConfigError(
                f"allow {str(path)!r}: no such file or folder; `run.py keys new DIR` creates DIR/allowed, a folder "
                "of the public keys of authorized viewers"
            )
        self.names = self._read()

    def changed(self) -> bool:
        """Read the list again if its files have changed; return whether the set of keys differs."""
        try:
            fingerprint = _fingerprint(self.path)
        except OSError as error:
            self._keep_keys(self.path, error)
            return False
        if fingerprint == self._fingerprint:
            return False
        self._fingerprint = fingerprint
        before, self.names = self.names, self._read()
        if before.keys() == self.names.keys():
            return False
        count = len(self.names)
        log.info("%s: %d viewer%s authorized now", self.path, count, " is" if count == 1 else "s are")
        return True

    def _read(self) -> Mapping[bytes, str]:
        try:
            if self.path.is_dir():
                return self._read_folder()
            with self.path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            self._warn_once(f"{self.path}: does not exist any more; no viewer is authorized")
            return {}
        except OSError as error:
            self._keep_keys(self.path, error)
            return self.names
        if b"public-key" in content:
            with suppress(ConfigError):  # otherwise, parse the lines and report the invalid ones
                return {read_public(self.path): self.path.stem}
        return self._read_lines(content)

    def _read_folder(self) -> dict[bytes, str]:
        """Return the owners' names by key in the folder; raises ``OSError`` if the folder cannot be listed."""
        names: dict[bytes, str] = {}
        keys: dict[Path, bytes] = {}
        for path in _key_files(self.path):
            try:
                path.open("rb").close()
                keys[path] = read_public(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._keep_keys(path, error)
                if path not in self._keys:
                    continue
                keys[path] = self._keys[path]
            except ConfigError as error:
                self._warn_once(f"{error} (left out)")
                continue
            names[keys[path]] = path.stem
        self._keys = keys
        return names

    def _keep_keys(self, path: Path, error: OSError) -> None:
        """Keep the last keys after an error, and cause the next call of ``changed`` to read the list again."""
        self._fingerprint = None
        self._warn_once(f"{path}: cannot be read ({error.strerror}); the keys read before stay valid")

    def _read_lines(self, content: bytes) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for number, line in enumerate(content.splitlines(), 1):
            key, _, owner = line.strip().partition(b" ")
            if is_key(key):
                names[key] = owner.strip().decode("utf-8", "replace") or f"line {number}"
            elif key and not key.startswith(b"#"):
                self._warn_once(f"{self.path}: line {number} does not begin with a key of 40 letters (left out)")
        return names

    def _warn_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            log.warning("%s", text)


def _fingerprint(path: Path) -> Fingerprint:
    """Return a value that changes when the list changes; () if the list does not exist.

    Raises:
        OSError: the list exists, but its status cannot be read.
    """
    try:
        path.stat()
        files = [path, *_key_files(path)] if path.is_dir() else [path]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple((str(file), *_file_status(file)) for file in files)


def _key_files(folder: Path) -> list[Path]:
    """Return the key files of a folder; unlike ``glob``, raises ``OSError`` if the folder cannot be listed."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(PUBLIC_SUFFIX))[:_MAX_KEYS]


def _file_status(path: Path) -> Fingerprint:
    """Return a value that changes when a file changes; () for a broken link, such as an editor's lock file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
