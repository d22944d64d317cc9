"""Where compiled networks live between runs, so that the second start takes a fraction of the first.

An entry is one file: a line of JSON that says what it is the result of, then the compiled result. It is taken only
when that line names exactly what is asked for now (weights, structure, shapes, precision, versions, processor) and its
checksum holds; anything else is built anew and written over it. What comes from here is compared with eager float32
like everything else that runs.

A compiled result is code. So the folder must belong to the user who runs, and be writable by nobody else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from platformdirs import user_cache_dir
from torch import fx, nn

from engine.vendors import unsafe_way

log = logging.getLogger(__name__)

_FORMAT: Final = "recipro-stream compiled 1"
_HEADER_BYTES: Final = 1 << 16
LIMIT_BYTES: Final = 4 << 30
"""Beyond it the entries that were not used for the longest time are removed."""

CacheKey = Mapping[str, str]
"""What a compiled result depends on: names and values a person can read."""


class CompileCache:
    """A folder of compiled results.

    ``found`` counts what was taken from it and ``kept`` what was written: for the log, and to know whom to blame.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Take the folder; it is made with the first entry."""
        self.folder = folder
        self.hits = 0
        self.writes = 0
        self._limit_bytes = limit_bytes
        self._reads_disabled = False

    def disable_reads(self) -> None:
        """Take nothing from it any more; what is built is still written."""
        self._reads_disabled = True

    def get(self, key: CacheKey) -> bytes | None:
        """Return the compiled result for exactly this key, or None where there is none that can be trusted."""
        path = self._path(key)
        if self._reads_disabled or not path.is_file():
            return None
        if objection := unsafe_way(path):
            log.warning("compiled results are not taken from %s: %s", self.folder, objection)
            return None
        try:
            payload, objection = _read(path, key)
        except OSError as reason:
            payload, objection = b"", reason.strerror or str(reason)
        if objection:
            log.warning("%s: %s; it is built anew", path, objection)
            return None
        with suppress(OSError):
            path.touch()  # used: it goes last
        self.hits += 1
        return payload

    def put(self, key: CacheKey, payload: bytes) -> None:
        """Write a compiled result, whole or not at all. A folder that cannot be written is said once, and no more."""
        header = {"format": _FORMAT, "key": dict(key), "sha256": hashlib.sha256(payload).hexdigest()}
        temporary = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(payload)
            temporary.replace(self._path(key))
            self.writes += 1
            self._evict()
        except OSError as reason:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            log.warning("compiled results cannot be kept in %s: %s", self.folder, reason.strerror or reason)

    def _path(self, key: CacheKey) -> Path:
        name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name[:32]}.compiled"

    def _evict(self) -> None:
        entries = sorted(self.folder.glob("*.compiled"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for place, path in enumerate(entries):
            total += path.stat().st_size
            if place and total > self._limit_bytes:
                path.unlink(missing_ok=True)


def _read(path: Path, key: CacheKey) -> tuple[bytes, str]:
    """Return an entry's payload, and what speaks against it."""
    with path.open("rb") as file:
        line = file.readline(_HEADER_BYTES)
        payload = file.read()
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return b"", "its first line is damaged"
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        return b"", "it is no compiled result of this version"
    if header.get("key") != dict(key):
        return b"", "it was made for something else"
    if header.get("sha256") != hashlib.sha256(payload).hexdigest():
        return b"", "it is damaged"
    return payload, ""


def default_folder() -> str:
    """Return where this user's compiled networks are kept; "off" for a user without a home folder."""
    try:
        return user_cache_dir("recipro-stream", appauthor=False)
    except (RuntimeError, KeyError, OSError) as reason:  # no HOME, and no entry in the list of users
        log.warning("compiled networks are not kept (%s); name a folder of your own by --cache or HOME", reason)
        return "off"


def key_of(module: nn.Module, example: torch.Tensor, **more: str) -> dict[str, str]:
    """Return what a compiled module depends on.

    Args:
        module: its structure, settings and weights all count.
        example: what it is compiled for: shape and dtype count, values do not.
        more: what else counts: the vendor's version, the processor, the precision.
    """
    return {
        "input": f"{tuple(example.shape)} {example.dtype}",
        "structure": _digest(_structure(module)),
        "weights": _digest(_weights(module)),
        "versions": _versions(module),
        **more,
    }


def _digest(parts: Iterator[bytes]) -> str:
    told = hashlib.sha256()
    for part in parts:
        told.update(len(part).to_bytes(8, "little"))
        told.update(part)
    return told.hexdigest()


def _structure(module: nn.Module) -> Iterator[bytes]:
    """Give every part's class and settings, and the code of those that were traced."""
    for name, part in module.named_modules(remove_duplicate=False):
        settings = sorted((k, _described(v)) for k, v in vars(part).items() if not k.startswith("_"))
        yield f"{name} {type(part).__module__}.{type(part).__qualname__} {settings}".encode()
        if isinstance(part, fx.GraphModule):
            yield part.code.encode()


def _described(value: object) -> str:
    """Tell a setting's value, without anything that differs from process to process, such as an address."""
    if isinstance(value, torch.Tensor):
        return _digest(_bytes_of(value))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_described, value))}]"
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
    """Name the packages whose code the module runs, with their versions; our own by the text of its code."""
    roots = {type(part).__module__.partition(".")[0] for part in module.modules()} | {"torch"}
    told = []
    for root in sorted(roots - {"engine"}):
        with suppress(metadata.PackageNotFoundError):
            told.append(f"{root} {metadata.version(root)}")
    ours = sorted(Path(__file__).parents[1].rglob("*.py"))
    return ", ".join([*told, f"engine {_digest(path.read_bytes() for path in ours)[:16]}"])
