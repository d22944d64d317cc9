"""Folders of an archive that cannot be read or written: named with the reason and the remedy."""

import errno
import os

import pytest

from commands.archive.folders import open_folder
from commands.archive.inputs import ArchiveFile, Shard, find_files
from commands.archive.partitions import PartitionWriter
from pipeline.errors import ConfigError, SinkError


def test_find_files_names_a_folder_that_cannot_be_read_if_nothing_else_is_found(tmp_path, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(top)))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ConfigError, match=r"1 folders were left out, such as .*: Permission denied; .* permission"):
        find_files([str(tmp_path)])


def test_output_folder_that_cannot_be_listed_is_an_error_and_does_not_count_as_empty(tmp_path, monkeypatch):
    def refuse(_folder: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SinkError, match=r"cannot be listed \(Permission denied\); check the folder"):
        open_folder(str(tmp_path)).names(".parquet")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone", "No such file or directory.*the folder was removed"), ("file", "Not a directory.*a file has this name")],
)
def test_partition_names_why_its_folder_cannot_be_written(tmp_path, name, reason):
    (tmp_path / "file").touch()
    shard = Shard("part", (ArchiveFile("/a.jpg", 1, 1, is_video=False),))
    with pytest.raises(SinkError, match=reason), PartitionWriter(open_folder(str(tmp_path / name)), shard):
        pass
