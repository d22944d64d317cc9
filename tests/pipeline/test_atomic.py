"""Atomic writes: a file is complete or unchanged, is synced, and the next write removes what a killed one left."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import atomic
from pipeline.atomic import atomic_write, remove_unfinished, write_atomically
from pipeline.errors import ModelError
from tests.conftest import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path):
    path.write_text("content")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_shows_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert (path.read_text(), temporary.name) == ("old", "a.json")
    assert (path.read_text(), names(tmp_path)) == ("new", ["a.json"])


def test_atomic_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a") as temporary:
        raise KeyError(temporary.write_text("new"))
    assert ((tmp_path / "a").read_text(), names(tmp_path)) == ("old", ["a"])


def test_atomic_write_syncs_the_file_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "a", [], os.fsync

    def record(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, "new")
    assert synced == [(str(tmp_path / ".a.tmp" / "a"), False), (str(tmp_path), True)]


def test_atomic_write_raises_the_class_of_its_caller(tmp_path, monkeypatch):
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ModelError, match=r"a: cannot be written \(No space left on device\); free space"):
        write_atomically(tmp_path / "a", b"", raises=ModelError)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a", b"")
    with pytest.raises(ModelError, match="the path is a folder"):
        write_atomically(tmp_path, b"", raises=ModelError)
    assert names(tmp_path) == []


def test_message_of_a_failed_write_names_the_remedy_of_its_cause(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be written \(the path is a folder\); name a file"):
        write_atomically(tmp_path, b"", raises=ModelError)
    with pytest.raises(ModelError, match=r"cannot be written \(No such file or directory\); create the folder"):
        write_atomically(tmp_path / "none" / "a", b"", raises=ModelError)
    (tmp_path / "a").touch()
    with (
        pytest.raises(ModelError, match=r"cannot be written \(File exists\); delete it"),
        atomic_write(tmp_path / "a", replace=False, raises=ModelError),
    ):
        pass


@pytest.mark.parametrize(
    "clean", [lambda path: write_atomically(path, "new"), lambda path: remove_unfinished(path.parent)]
)
def test_what_a_killed_process_left_is_removed(tmp_path, clean):
    path = tmp_path / "a.bin"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert names(tmp_path) == [".a.bin.tmp"]
    clean(path)
    assert names(tmp_path) in ([], ["a.bin"])


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        monkeypatch.setattr(atomic, "_open_locked", lambda _folder: -1)
    path = tmp_path / "a"
    with atomic_write(path) as first:
        first.write_text("first")
        remove_unfinished(tmp_path)
        with atomic_write(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert (path.read_text(), names(tmp_path)) == ("first", ["a"])


def test_without_locks_only_old_leftovers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_open_locked", lambda _folder: -1)
    for name in (".new.tmp", ".old.tmp"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".old.tmp", (0, 0))
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".new.tmp"]


def test_atomic_write_keeps_links_devices_and_files_that_must_not_be_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "real", replace=False):
        pass
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "late", replace=False) as temporary:
        shutil.copy(write(temporary), tmp_path / "late")
    assert (tmp_path / "late").read_text() == "content"
    write_atomically(Path(os.devnull), "nothing")


def test_atomic_write_accepts_the_longest_name(tmp_path):
    write_atomically(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]
