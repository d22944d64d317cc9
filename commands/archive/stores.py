"""Reads files in object stores, such as ``s3://BUCKET/KEY``, with pyarrow's file systems and fsspec.

The SDK of each store finds the credentials in the environment, a profile or the machine's role. An address with
credentials or options is refused, so that logs, tables and Ray's messages can contain addresses.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_ADDRESS: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<path>.*)", re.DOTALL)
_BY_ARROW: Final = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
"""Schemes that pyarrow opens; fsspec opens all others."""
_READ_BYTES: Final = 4 << 20
"""Bytes per read request; large, because a request has a latency of tens of milliseconds."""
_MAGIC: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a store: address, size in bytes, and time of the last change in Unix nanoseconds."""

    address: str
    size: int
    modified_ns: int


def is_address(location: str) -> bool:
    """Return whether a location is an address of a store, such as ``s3://BUCKET/KEY``, and not a path."""
    return _ADDRESS.fullmatch(location) is not None


def local_path(location: str) -> str:
    """Return the path of a ``file://`` address; return any other location unchanged."""
    if not location.startswith("file://"):
        return location
    return unquote(urlsplit(location).path, errors="surrogateescape")


def check_address(address: str) -> None:
    """Check that an address has a bucket and neither credentials nor options.

    Raises:
        ConfigError: the address is not allowed; the message does not contain credentials or options.
    """
    match = _ADDRESS.fullmatch(address)
    assert match is not None  # noqa: S101 - callers ask ``is_address``
    scheme, bucket = match["scheme"], match["path"].partition("/")[0]
    if "@" in bucket or re.search(r"[?&]\w+=", match["path"]):
        raise ConfigError(
            f"{scheme}://...: has credentials or options in its address, which logs and tables would show; set them in "
            f"the environment or in a profile (AWS_PROFILE, AWS_ENDPOINT_URL, AWS_REGION), and give {scheme}://NAME/PATH"
        )
    if not bucket:
        raise ConfigError(f"{address}: names no bucket; write {scheme}://BUCKET/PATH")


def found_at(address: str) -> Iterator[tuple[Listed, bool]]:
    """Yield each file of a store at a file address, below a folder address, or matching a glob.

    The second value of each pair is True if the address names the file itself.

    Raises:
        ConfigError: the store cannot be reached, or no file exists at the address.
    """
    from pyarrow.fs import FileType

    check_address(address)
    with _store_errors(address):
        filesystem, path = _opened(address)
        info = filesystem.get_file_info(path.rstrip("/"))
        if info.type == FileType.File:
            yield _listed(address, info), True
            return
        if info.type == FileType.NotFound and not _MAGIC.search(path):
            raise ConfigError(f"{address}: there is no such file or folder in the store; check the address")
        pattern = _glob_pattern(path) if info.type == FileType.NotFound else None
        top = path if pattern is None else path[: _MAGIC.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        infos = [entry for entry in _below(filesystem, top.rstrip("/")) if entry.type == FileType.File]
    prefix = address[: len(address) - len(path)]
    found = {
        entry.path.lstrip("/"): entry for entry in infos
    }  # paths of fsspec's memory file system start with a slash
    matches = {path: entry for path, entry in found.items() if pattern is None or pattern.fullmatch(path)}
    if not matches and pattern is not None:
        raise ConfigError(f"{address}: no file of the store matches it; check the address")
    yield from ((_listed(prefix + path, entry), False) for path, entry in matches.items())


def read_address(address: str) -> bytes:
    """Return the content of a file in a store.

    Raises:
        SourceError: the file cannot be read.
    """
    with _reading(address):
        filesystem, path = _opened(address)
        with filesystem.open_input_stream(path) as file:
            return cast("bytes", file.read())


def open_address(address: str) -> BinaryIO:
    """Open a file in a store for reading; the file is seekable and is not copied.

    Raises:
        SourceError: the file cannot be opened.
    """
    with _reading(address):
        filesystem, path = _opened(address)
        return io.BufferedReader(cast("io.RawIOBase", filesystem.open_input_file(path)), _READ_BYTES)


def folder_of(address: str) -> tuple[FileSystem, str]:
    """Return the file system and the path of a folder in a store.

    Raises:
        ConfigError: the address has credentials or options, or its scheme is unknown to pyarrow and fsspec.
    """
    check_address(address)
    with _store_errors(address):
        return _opened(address.rstrip("/"))


def _opened(address: str) -> tuple[FileSystem, str]:
    match = _ADDRESS.fullmatch(address)
    assert match is not None  # noqa: S101 - callers ask ``is_address``
    return _filesystem(match["scheme"], match["path"].partition("/")[0]), match["path"]


@functools.cache
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if scheme in _BY_ARROW:
        return FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    import fsspec  # type: ignore[import-untyped]

    return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme)))


def _below(filesystem: FileSystem, folder: str) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    return cast("list[FileInfo]", filesystem.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True)))


def _listed(address: str, info: FileInfo) -> Listed:
    return Listed(address, int(info.size or 0), int(info.mtime_ns or 0))


def _glob_pattern(path: str) -> re.Pattern[str]:
    """Return the regular expression of a glob; ``*`` and ``?`` do not match slashes, ``**/`` matches any folders."""
    parts = re.split(r"(\*\*/|\*|\?|\[!?[^\]]+\])", path)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    sets = {part: part.replace("[!", "[^") for part in parts if part.startswith("[") and part.endswith("]")}
    return re.compile("".join(known.get(part) or sets.get(part) or re.escape(part) for part in parts))


@contextmanager
def _store_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        message = f"{address}: the store cannot be used ({_reason(error)}); check the address and the credentials"
        raise ConfigError(f"{message}, or copy the files to a local folder") from None


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{address}: cannot be read ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
