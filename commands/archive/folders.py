"""The output folder of an archive, on a disk or in an object store. Each file is either complete or absent."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO, Final, cast

from commands.archive.stores import folder_of, is_address
from commands.console import relative_path
from pipeline.atomic import atomic_write, remove_unfinished
from pipeline.errors import SinkError

_REMEDIES: Final = {
    errno.EEXIST: "a file has this name; name a folder",
    errno.ENOTDIR: "a file has this name, or that of a folder above it; name a folder",
    errno.ENOENT: "the folder was removed, or its disk was unmounted; give the same command again",
    errno.ENOSPC: "free space there, and give the same command again",
    errno.EDQUOT: "free space there, and give the same command again",
}
_REMEDY: Final = "free space there or correct its permissions, and give the same command again"
_WITH_BUCKETS: Final = frozenset({"s3", "gcs", "abfs"})
"""Pyarrow's file systems with buckets; the bucket must exist."""


class OutputFolder(ABC):
    """Reads, writes and removes files of one folder by name. Writing and removing raise ``SinkError``."""

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    @abstractmethod
    def shown(self) -> str:
        """The folder's path or address, for messages and queries."""

    @abstractmethod
    def names(self, suffix: str) -> list[str]:
        """Return the sorted names of the files with a suffix.

        Raises:
            SinkError: the folder cannot be listed.
        """

    @abstractmethod
    def opened(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            OSError: the file cannot be opened.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def folders(self, name: str) -> list[str]:
        """Return the sorted names of the folders in the subfolder ``name``; an empty list if it does not exist."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a subfolder and its content."""

    @abstractmethod
    def _written(self, name: str) -> AbstractContextManager[Path]:
        """Return a context that yields a temporary path, and stores that file if the block ends without an error."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, lock it for this run, and remove the unfinished files of killed runs and workers.

        The lock does not detect runs on other machines.

        Raises:
            SinkError: the folder cannot be created, or another run on this machine writes to it.
        """
        from overlays.sinks.locks import claimed

        self._create()
        with claimed([self._lock_path()]):
            self._remove_unfinished()
            try:
                yield
            finally:
                self._remove_unfinished()  # workers that were killed with the run may have left files

    @abstractmethod
    def _lock_path(self) -> Path: ...

    @abstractmethod
    def _create(self) -> None: ...

    @abstractmethod
    def _remove_unfinished(self) -> None: ...

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Yield a temporary path; store that file as ``name`` if the block ends without an error."""
        with self.write_errors(), self._written(name) as temporary:
            yield temporary

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8; raise ``SinkError`` on failure."""
        with self.written(name) as temporary:
            temporary.write_text(text, "utf-8")

    def read_text(self, name: str) -> str | None:
        """Return the text of a UTF-8 file; None if the file does not exist.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            with self.opened(name) as file:
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    @contextmanager
    def write_errors(self) -> Iterator[None]:
        """Convert each ``OSError`` of the block to a ``SinkError``."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0][:300]
            remedy = _REMEDIES.get(error.errno or 0, _REMEDY)
            raise SinkError(f"{self.location}: cannot be written ({reason}); {remedy}") from error


class DiskFolder(OutputFolder):
    """A folder on a disk."""

    @property
    def shown(self) -> str:  # noqa: D102
        return relative_path(Path(self.location))

    def names(self, suffix: str) -> list[str]:  # noqa: D102
        try:
            return sorted(name for name in os.listdir(self.location) if name.endswith(suffix))  # noqa: PTH208
        except OSError as error:  # with no names, all files would be explained again
            raise SinkError(
                f"{self.location}: cannot be listed ({error.strerror}); check the folder and its permissions"
            ) from error

    def opened(self, name: str) -> BinaryIO:  # noqa: D102
        return Path(self.location, name).open("rb")

    def remove(self, name: str) -> None:  # noqa: D102
        with self.write_errors():
            Path(self.location, name).unlink(missing_ok=True)

    def folders(self, name: str) -> list[str]:  # noqa: D102
        below = Path(self.location, name)
        return sorted(path.name for path in below.iterdir() if path.is_dir()) if below.is_dir() else []

    def remove_folder(self, name: str) -> None:  # noqa: D102
        with self.write_errors(), suppress(FileNotFoundError):
            shutil.rmtree(Path(self.location, name))

    def _written(self, name: str) -> AbstractContextManager[Path]:
        path = Path(self.location, name)
        if "/" in name:  # never create the output folder again: if it was removed, the run must end
            Path(self.location, PurePath(name).parts[0]).mkdir(exist_ok=True)
            path.parent.mkdir(exist_ok=True)
        return atomic_write(path)

    def _lock_path(self) -> Path:
        return Path(self.location)

    def _create(self) -> None:
        with self.write_errors():
            Path(self.location).mkdir(parents=True, exist_ok=True)

    def _remove_unfinished(self) -> None:
        remove_unfinished(Path(self.location))


class StoreFolder(OutputFolder):
    """A prefix of an object store. A file is written by one request or one multipart upload; both are atomic."""

    def __init__(self, location: str) -> None:
        super().__init__(location.rstrip("/"))
        self._filesystem, self._path = folder_of(location)

    @property
    def shown(self) -> str:  # noqa: D102
        return self.location

    def names(self, suffix: str) -> list[str]:  # noqa: D102
        from pyarrow.fs import FileSelector

        listed = self._filesystem.get_file_info(FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in listed if info.base_name.endswith(suffix))

    def opened(self, name: str) -> BinaryIO:  # noqa: D102
        return cast("BinaryIO", self._filesystem.open_input_file(f"{self._path}/{name}"))

    def remove(self, name: str) -> None:  # noqa: D102
        with self.write_errors():
            try:
                self._filesystem.delete_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return

    def folders(self, name: str) -> list[str]:  # noqa: D102
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(f"{self._path}/{name}", allow_not_found=True)
        listed = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in listed if info.type == FileType.Directory)

    def remove_folder(self, name: str) -> None:  # noqa: D102
        with self.write_errors(), suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self._path}/{name}")

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="recipro-archive-") as folder:
            temporary = Path(folder, PurePath(name).name)
            yield temporary
            # The stream is opened only for a complete file: closing a stream stores its data even after an error.
            with temporary.open("rb") as file, self._filesystem.open_output_stream(f"{self._path}/{name}") as stream:
                shutil.copyfileobj(file, stream, 8 << 20)

    def _lock_path(self) -> Path:
        return Path("/", self.location)

    def _create(self) -> None:
        from pyarrow.fs import FileType

        bucket = self._path.partition("/")[0]
        with self.write_errors():  # only the bucket must exist; prefixes are implicit
            has_bucket = self._filesystem.type_name in _WITH_BUCKETS
            if has_bucket and self._filesystem.get_file_info(bucket).type == FileType.NotFound:
                raise FileNotFoundError(errno.ENOENT, f"the bucket {bucket} does not exist")

    def _remove_unfinished(self) -> None:
        """Do nothing: an object store does not list unfinished uploads."""


def open_folder(location: str) -> OutputFolder:
    """Return the folder at an absolute path, or at an address of an object store."""
    return StoreFolder(location) if is_address(location) else DiskFolder(location)
