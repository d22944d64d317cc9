"""A cache of compiled networks on disk, for fast restarts.

An entry is one file: a JSON line with its key and checksum, then the compiled result. An entry is used only if its key
(weights, structure, shapes, precision, versions, processor) equals the requested one and its checksum is right;
otherwise the network is compiled again and the entry replaced. Cached results are verified against eager float32 like
newly compiled ones.

A compiled result is code, so the folder must belong to the user and must not be writable by other users.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from platformdirs import user_cache_dir
from torch import fx, nn

from engine.vendors import unsafe_way
from pipeline.atomic import atomic_write
from pipeline.errors import ModelError

log = logging.getLogger(__name__)

_FORMAT: Final = "recipro-stream compiled 1"
_HEADER_BYTES: Final = 1 << 16
LIMIT_BYTES: Final = 4 << 30
"""Default maximum size of the cache in bytes; above it the least recently used entries are removed."""

CacheKey = Mapping[str, str]
"""Everything on which a compiled result depends, as readable names and values."""


class CompileCache:
    """A folder of compiled results; ``hits`` and ``writes`` count the entries read and written."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Create the cache; its folder is created by the first ``put``.

        Args:
            folder: the cache folder.
            limit_bytes: size in bytes above which entries are removed.
        """
        self.folder = folder
        self.hits = 0
        self.writes = 0
        self._limit_bytes = limit_bytes
        self._reads_disabled = False

    def disable_reads(self) -> None:
        """Disable ``get``, which then returns None; ``put`` still writes."""
        self._reads_disabled = True

    def get(self, key: CacheKey) -> bytes | None:
        """Return the compiled result for exactly this key, or None if there is no valid entry."""
        path = self._path(key)
        if self._reads_disabled or not path.is_file():
            return None
        if objection := unsafe_way(path):
            log.warning(
                "compiled results in %s are not used (%s); the network is compiled again", self.folder, objection
            )
            return None
        try:
            payload, objection = _read(path, key)
        except OSError as reason:
            payload, objection = b"", reason.strerror or str(reason)
        if objection:
            log.warning("%s: %s; the network is compiled again", path, objection)
            return None
        with suppress(OSError):
            path.touch()  # records the time of last use, for _evict
        self.hits += 1
        return payload

    def put(self, key: CacheKey, payload: bytes) -> None:
        """Write a compiled result atomically; log a warning if it cannot be written."""
        header = {"format": _FORMAT, "key": dict(key), "sha256": hashlib.sha256(payload).hexdigest()}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self._path(key), raises=ModelError) as temporary:
                temporary.touch(mode=0o600)  # an entry that other users can write is not used
                with temporary.open("wb") as file:
                    file.write(json.dumps(header).encode() + b"\n")
                    file.write(payload)
            self.writes += 1
            self._evict()
        except (OSError, ModelError) as reason:
            log.warning(
                "compiled results cannot be written to %s (%s); the next start compiles the network again",
                self.folder,
                reason,
            )

    def _path(self, key: CacheKey) -> Path:
        name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name[:32]}.compiled"

    def _evict(self) -> None:
        entries = sorted(self.folder.glob("*.compiled"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for number, path in enumerate(entries):
            total += path.stat().st_size
            if number and total > self._limit_bytes:
                path.unlink(missing_ok=True)


def _read(path: Path, key: CacheKey) -> tuple[bytes, str]:
    """Return the payload of an entry, and the reason if it is invalid, else ""."""
    with path.open("rb") as file:
        line = file.readline(_HEADER_BYTES)
        payload = file.read()
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return b"", "its first line is damaged"
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return b"", "it is not a compiled result of this version"
    if header.get("key") != dict(key):
        return b"", "its key does not belong to its file name"
    if header.get("sha256") != hashlib.sha256(payload).hexdigest():
        return b"", "it is damaged"
    return payload, ""


def default_folder() -> str:
    """Return this user's cache folder; "off" if the user has no home folder."""
    try:
        return user_cache_dir("recipro-stream", appauthor=False)
    except (RuntimeError, KeyError, OSError) as reason:  # no HOME, and no entry in the user database
        log.warning("compiled networks are not cached (%s); set a folder by --cache or HOME", reason)
        return "off"


def key_of(module: nn.Module, example: torch.Tensor, **more: str) -> dict[str, str]:
    """Return the cache key of a compiled module.

    Args:
        module: the module; its structure, settings and weights are part of the key.
        example: the example input; its shape and dtype are part of the key.
        more: further parts of the key, such as the backend's version, the processor, the precision.
    """
    return {
        "input": f"{tuple(example.shape)} {example.dtype}",
        "structure": _digest(_structure(module)),
        "weights": _digest(_weights(module)),
        "versions": _versions(module),
        **more,
    }


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _structure(module: nn.Module) -> Iterator[bytes]:
    """Yield every submodule's class and settings, and the code of traced modules."""
    for name, part in module.named_modules(remove_duplicate=False):
        settings = sorted((k, _setting_text(v)) for k, v in vars(part).items() if not k.startswith("_"))
        yield f"{name} {type(part).__module__}.{type(part).__qualname__} {settings}".encode()
        if isinstance(part, fx.GraphModule):
            yield part.code.encode()


def _setting_text(value: object) -> str:
    """Return a setting's value as text that is equal in every process (no memory addresses)."""
    if isinstance(value, torch.Tensor):
        return _digest(_bytes_of(value))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_setting_text, value))}]"
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _weights(module: nn.Module) -> Iterator[bytes]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name.encode()
        yield from _bytes_of(tensor)


def _bytes_of(tensor: torch.Tensor) -> Iterator[bytes]:
    yield f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _versions(module: nn.Module) -> str:
    """Return the versions of the packages that define the module's classes, and a digest of ``engine``'s sources."""
    roots = {type(part).__module__.partition(".")[0] for part in module.modules()} | {"torch"}
    versions = []
    for root in sorted(roots - {"engine"}):
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{root} {metadata.version(root)}")
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return ", ".join([*versions, f"engine {_digest(path.read_bytes() for path in files)[:16]}"])
