"""Creates CURVE key files with restricted permissions, and reads them.

The files have the format of ``zmq.auth`` and czmq: ``NAME.key`` contains the public key, ``NAME.key_secret`` both. A
file with only a public key in Z85 (40 characters) is accepted, too.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

PUBLIC_SUFFIX: Final = ".key"
SECRET_SUFFIX: Final = ".key_secret"  # noqa: S105 - the end of a file name
ALLOWED: Final = "allowed"
"""Name of the folder with the public keys of authorized viewers, beside the server's keys."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENTRY = re.compile(rb'^\s*(public|secret)-key\s*=\s*"([^"\n]*)"', re.MULTILINE)
_MAX_FILE_BYTES: Final = 1 << 20


class KeyPair(NamedTuple):
    """A public and a secret key, both in Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Pair({self.public.decode()})"


class ViewerKeys(NamedTuple):
    """The viewer's own key pair, and the server's public key in Z85."""

    own: KeyPair
    server: bytes


def create_keyring(folder: Path) -> list[Path]:
    """Create the keys of a server and a viewer, and the list of authorized viewers with this viewer.

    The files are ``server.key_secret``, ``server.key``, ``viewer.key_secret`` and ``allowed/viewer.key``.

    Returns:
        The paths of the created files.

    Raises:
        ConfigError: one of the files exists, or the folder cannot be written.
    """
    paths = [folder / "server.key", folder / "server.key_secret", folder / "viewer.key_secret"]
    paths.append(folder / ALLOWED / "viewer.key")
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: exists, and keys are never overwritten; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ALLOWED).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be created ({error.strerror}); choose another folder") from None
    make_pair(folder, "server")
    make_pair(folder, "viewer", public_folder=folder / ALLOWED)
    return paths


def make_pair(folder: Path, name: str, *, public_folder: Path | None = None) -> tuple[Path, Path]:
    """Create ``NAME.key`` and ``NAME.key_secret`` (readable only by its owner); return both paths.

    Args:
        folder: an existing folder.
        name: letters, digits, dots, dashes and underscores.
        public_folder: folder of the public key, if different.

    Raises:
        ConfigError: the name is invalid, one of the files exists, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"key name {name!r}: use up to 64 letters, digits, dots, dashes and underscores")
    public_path, secret_path = (public_folder or folder) / (name + PUBLIC_SUFFIX), folder / (name + SECRET_SUFFIX)
    for path in (secret_path, public_path):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: exists, and keys are never overwritten; choose another name or folder")
    public, secret = zmq.curve_keypair()
    text = f'#   CURVE key of recipro-stream\n\ncurve\n    public-key = "{public.decode()}"\n'
    _write(secret_path, text + f'    secret-key = "{secret.decode()}"\n', 0o600)
    _write(public_path, text, 0o644)
    return public_path, secret_path


def _write(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def read_pair(path: Path) -> KeyPair:
    """Return the key pair in a secret key file; logs a warning if other users can read the file.

    Raises:
        ConfigError: the file cannot be read, or contains no valid key pair.
    """
    entries = dict(_ENTRY.findall(_content(path, "secret key")))
    public: bytes | None = entries.get(b"public")
    secret: bytes | None = entries.get(b"secret")
    if secret is None or not is_key(secret):
        hint = f"; name the secret file, {path.name}_secret" if path.suffix == PUBLIC_SUFFIX else ""
        raise ConfigError(f"{path}: holds no secret key{hint or '; `run.py keys new DIR` creates one'}")
    if public is None or public != zmq.curve_public(secret):
        raise ConfigError(f"{path}: its public key is missing or does not match its secret key; copy the file again")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s: other users of this machine can read it; restrict it: chmod 600 %s", path, path)
    return KeyPair(public, secret)


def read_public(path: Path) -> bytes:
    """Return the key in a public key file, in Z85.

    Raises:
        ConfigError: the file cannot be read, or contains no key.
    """
    content = _content(path, "public key")
    key: bytes = dict(_ENTRY.findall(content)).get(b"public", content.strip())
    if not is_key(key):
        raise ConfigError(f"{path}: holds no public key; copy the server's or viewer's NAME{PUBLIC_SUFFIX} file here")
    return key


def public_of(key: str | Path) -> bytes:
    """Return a public key in Z85; ``key`` is the key itself (40 characters) or the path of its file.

    Raises:
        ConfigError: ``key`` is neither a key nor a readable key file.
    """
    text = str(key).encode("utf-8", "replace")
    return text if is_key(text) and not Path(key).exists() else read_public(Path(key))


def viewer_keys(key: str | Path | None, server_key: str | Path | None) -> ViewerKeys | None:
    """Return a viewer's keys; None if both arguments are None.

    Args:
        key: secret key file of the viewer.
        server_key: public key of the server: a file, or 40 characters in Z85.

    Raises:
        ConfigError: only one of the keys is given, or a key cannot be read.
    """
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        missing = "the viewer's own secret key file (--key)" if key is None else "the server's key (--server-key)"
        raise ConfigError(f"keys: {missing} is missing; a viewer needs both")
    return ViewerKeys(read_pair(Path(key)), public_of(server_key))


def is_key(text: bytes) -> bool:
    """Return whether ``text`` is a key in Z85: 40 characters that encode 32 bytes."""
    if len(text) != 40:
        return False
    try:
        return len(z85.decode(text)) == 32
    except (KeyError, ValueError, struct.error):
        return False


def _content(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{what} {str(path)!r}: cannot be read ({error.strerror}); `run.py keys new DIR` creates keys"
        ) from None
