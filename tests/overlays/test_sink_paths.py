"""Paths of sinks: each system error gives one sentence, and files of other users are not touched."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from overlays.sinks.disk import HandleReserve
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.locks import claimed, to_claim
from overlays.sinks.paths import check_outputs, fresh_paths
from overlays.sinks.registry import SINKS, build_sink
from overlays.sinks.settings import JsonlSettings
from pipeline.errors import ConfigError, SinkError
from tests.support.logs import log_lines

KINDS = ["{}.jsonl", "{}.parquet", "{}.mcap", "{}.mp4", "{}.mkv", "{}/"]


@contextmanager
def as_nobody():
    """Run as a user without access to the folders of the tests."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root to become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def opened(uri):
    with claimed(to_claim([uri], ["a"])), build_sink(uri, cameras=["a"]):
        pass


@pytest.mark.parametrize("kind", [*KINDS, "ipc://{}"])
@pytest.mark.parametrize("name", ["x" * 300, "loop/x", "file/x", "no/x", "locked/x", "nul\0x"])
def test_impossible_path_is_refused_in_one_sentence_with_the_remedy(tmp_path, kind, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o700)
    uri = kind.format(tmp_path / name)
    if name == "locked/x":
        tmp_path.chmod(0o700)
        with as_nobody(), pytest.raises(SinkError) as refused:
            opened(uri)
    else:
        with pytest.raises(SinkError) as refused:
            opened(uri)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [os.fsdecode(b"bad\xff"), "\u00fc #%20 [x]", "x" * 236])
def test_name_accepted_by_the_system_is_written_whatever_its_bytes(tmp_path, kind, name, overlaid):
    uri = kind.format(tmp_path / name)
    with claimed(to_claim([uri], ["line"])), build_sink(uri, cameras=["line"]) as sink:
        sink.put(overlaid())
    (written,) = tmp_path.iterdir()
    assert written.name.startswith(name)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".mcap", ".mp4", ".mkv"])
def test_file_has_the_option_mode(tmp_path, kind):
    path = f"{tmp_path}/out{kind}"
    assert SINKS.settings(f"{path}?mode=replace").mode == "replace"
    assert SINKS.settings(f"{path}?mode=keep") == SINKS.settings(path, mode="keep")
    assert SINKS.settings(f"{tmp_path}/what?{kind}").uri == f"{tmp_path}/what?{kind}"
    for wrong, message in (("mode=append", "keep"), ("mode=", "keep"), ("rat=5", "rat: unknown key")):
        with pytest.raises(SinkError, match=message):
            build_sink(f"{path}?{wrong}", cameras=["a"])
    with pytest.raises(SinkError, match="mode: is not an option of a folder of clips"):
        build_sink(f"{tmp_path}/clips/?mode=replace", cameras=["a"])


def test_name_beside_an_earlier_file_is_never_too_long(tmp_path):
    names = fresh_paths(tmp_path / f"{'x' * 251}.mp4", 1_800_000_000.0)
    first, second, third = (next(names).name for _ in range(3))
    assert max(len(first), len(second), len(third)) <= 255
    assert len({first, second, third}) == 3
    assert third.endswith(".20270115T080000Z-2.mp4")


def lock_name(path):
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32] + ".lock"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders for locks: one of the session, one that always is there."""
    session, temporary = tmp_path / "session", tmp_path / "tmp"
    session.mkdir(mode=0o700)
    temporary.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return session / "recipro-stream", temporary / f"recipro-stream-{os.getuid()}"


def test_planted_link_as_lock_empties_no_file(places, tmp_path, caplog):
    diary, out = tmp_path / "diary", tmp_path / "out.jsonl"
    diary.write_text("precious")
    for path in places:
        path.mkdir(mode=0o700)
        (path / lock_name(out)).symlink_to(diary)
    with claimed([out]):
        assert diary.read_text() == "precious"
    assert "cannot be locked" in caplog.text


def test_lock_file_is_never_truncated(places, tmp_path):
    out = tmp_path / "out.jsonl"
    places[1].mkdir(mode=0o700)
    (places[1] / lock_name(out)).write_text("precious")
    with claimed([out]):
        pass
    assert (places[1] / lock_name(out)).read_text() == "precious"


@pytest.mark.parametrize("how", ["another user's", "open to others", "a link", "a file"])
def test_lock_folder_of_another_user_is_not_used_and_blocks_no_run(places, tmp_path, caplog, how):
    out, elsewhere = tmp_path / "out.jsonl", tmp_path / "elsewhere"
    elsewhere.mkdir()
    held = []
    for path in places:
        if how == "a link":
            path.symlink_to(elsewhere)
            continue
        if how == "a file":
            path.touch()
            continue
        path.mkdir()
        if how == "open to others":
            path.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            pytest.skip("needs to be root to give a folder away")
        held.append((path / lock_name(out)).open("w"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    with caplog.at_level(logging.WARNING), claimed([out]):
        pass
    for each in held:
        each.close()
    assert "no folder for locks" in caplog.text
    assert not list(elsewhere.iterdir())


def test_runs_inside_and_outside_a_session_share_locks(places, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with claimed([out]):
        assert all(path.stat().st_mode & 0o777 == 0o700 for path in places)
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        with pytest.raises(SinkError, match="by another run"), claimed([out]):
            pass


@contextmanager
def no_handles():
    """Open files until this process has no file handle left."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, before[1]))
    handles = []
    try:
        with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
            while True:
                handles.append(socket.socket())
        yield
    finally:
        for each in handles:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_reserved_handle_opens_a_file_when_none_is_free():
    reserve = HandleReserve()
    reserve.fill()
    try:
        with no_handles():
            with pytest.raises(OSError, match="Too many"):
                os.open(os.devnull, os.O_RDONLY)
            os.close(reserve.opened(lambda: os.open(os.devnull, os.O_RDONLY)))
    finally:
        reserve.close()


@pytest.mark.parametrize("kind", KINDS)
def test_recording_starts_and_continues_when_clients_hold_all_handles(tmp_path, kind, overlaid):
    uri = kind.format(tmp_path / "out")
    with build_sink(uri, cameras=["line"]) as sink:
        with no_handles():
            for index in range(5):
                sink.put(overlaid(index=index, pts_seconds=index / 30))
            assert not getattr(sink, "trouble", "")
        sink.put(overlaid(index=5, pts_seconds=5 / 30))
        assert getattr(sink, "lost", 0) == 0
    if kind.endswith((".jsonl", "/")):
        (path,) = tmp_path.rglob("*.jsonl")
        assert [line["index"] for line in log_lines(path)] == list(range(6))


def test_missing_file_handles_are_reported_and_the_next_line_is_tried(tmp_path, overlaid):
    path = tmp_path / "out.jsonl"
    sink = JsonlSink(path, clock=lambda: 0.0).__enter__()
    sink._reserve.close()
    with no_handles():
        sink.put(overlaid(index=0))
        assert "no file handle is free" in sink.problem
        assert "disk" not in sink.problem
    sink.put(overlaid(index=1))
    assert (sink.problem, sink.lost) == ("", 1)
    with pytest.raises(SinkError, match="no file handle"):
        sink.__exit__(None, None, None)
    assert [line["index"] for line in log_lines(path)] == [1]
    assert Path(path).exists()


@pytest.mark.parametrize("mode", ["keep", "replace"])
def test_log_that_another_run_writes_is_not_changed_under_a_second_name(places, tmp_path, overlaid, mode):
    log, link = tmp_path / "log.jsonl", tmp_path / "link.jsonl"
    with claimed(to_claim([str(log)], ["a"])), JsonlSink(log) as first, JsonlSink(f"{link}") as late:
        first.put(overlaid(camera="a"))
        link.hardlink_to(log)
        before = log.read_bytes()
        with pytest.raises(SinkError, match="by another run"), claimed(to_claim([f"{link}?mode={mode}"], ["a"])):
            pass
        with (
            JsonlSink(JsonlSettings(uri=str(link), mode=mode)) as second,
            pytest.raises(SinkError, match="another run"),
        ):
            second.put(overlaid(camera="a"))
        with pytest.raises(SinkError, match="another run"):
            late.put(overlaid(camera="a"))
        assert log.read_bytes() == before
    with claimed(to_claim([str(link)], ["a"])), JsonlSink(link) as second:
        second.put(overlaid(camera="a"))
    assert log.read_bytes().count(b"\n") == 4


def test_lock_holds_for_a_folder_under_a_second_name(places, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "films")
    with claimed(to_claim([f"{tmp_path}/films/", f"{tmp_path}/films/out.mp4"], ["a"])):
        for uri in (f"{tmp_path}/other/", f"{tmp_path}/other/out.mp4"):
            with pytest.raises(SinkError, match="by another run"), claimed(to_claim([uri], ["a"])):
                pass


def test_lock_is_named_by_the_identity_of_the_folder_too(places, tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    with claimed([tmp_path / "films" / "out.mp4"]):
        # A bind mount has another name that no link resolves to, and the same identity.
        monkeypatch.setattr(Path, "resolve", lambda path, strict=False: path)
        (tmp_path / "mounted").symlink_to(tmp_path / "films")
        with pytest.raises(SinkError, match="by another run"), claimed([tmp_path / "mounted" / "out.mp4"]):
            pass


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [([], [], True), ([], ["a"], True), (["a"], [], True), (["a"], ["a"], True), (["a"], ["b"], False)],
)
def test_folder_of_clips_is_locked_whole_where_the_cameras_are_not_known(places, tmp_path, first, second, meet):
    uri = f"{tmp_path}/clips/"
    with claimed(to_claim([uri], first)):
        expectation = pytest.raises(SinkError, match="by another run") if meet else nullcontext()
        with expectation, claimed(to_claim([uri], second)):
            pass


def test_file_in_a_folder_that_is_read_as_a_bag_is_refused(tmp_path):
    bag = tmp_path / "drive"
    bag.mkdir()
    for inside in (bag / "out.mcap", bag / "clips", bag / ".." / "drive" / "deep" / "out.jsonl"):
        with pytest.raises(ConfigError, match="a folder that this run reads"):
            check_outputs([str(inside)], ["line"], [str(bag)], [str(bag)])
    check_outputs([str(tmp_path / "out.mcap"), str(tmp_path / "drive2" / "out.mp4")], ["line"], [str(bag)], [str(bag)])


def test_stills_in_a_folder_of_images_that_is_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder that this run reads"):
        check_outputs([f"stills:{tmp_path}/review/"], ["line"], [str(tmp_path)])
    check_outputs([f"{tmp_path}/out.mp4"], ["line"], [str(tmp_path)])
