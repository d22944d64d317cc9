"""Archives in stores: S3, spoken to by a real server on the loopback, and fsspec's memory."""

import json
import os
import re
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands.archive import stores
from commands.archive.folders import open_folder
from commands.archive.inputs import find_files
from commands.archive.stores import found_at, read_address
from pipeline.errors import ConfigError, SinkError, SourceError
from tests.commands.test_explain_archive import OPTIONS, write_photos, write_video

SECRET = "canary-of-the-secret-key"  # noqa: S105 - of a server on the loopback


@pytest.fixture
def s3(monkeypatch):
    """Start an S3 server; return the file system of its bucket `films`."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "films", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1", "NO_PROXY": "*",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    stores._filesystem.cache_clear()  # of the server of an earlier test
    from pyarrow.fs import S3FileSystem

    filesystem = S3FileSystem(allow_bucket_creation=True, endpoint_override=f"http://{host}:{port}", region="us-east-1")
    filesystem.create_dir("films")
    yield filesystem
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    server.stop()


def upload(filesystem, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with filesystem.open_output_stream(f"{prefix}/{path.relative_to(folder)}") as stream:
                stream.write(path.read_bytes())


def rows_of(address: str) -> list[dict]:
    folder = open_folder(address)
    found = []
    for name in folder.names(".parquet"):
        with folder.opened(name) as file:
            found += pq.read_table(file).to_pylist()
    return found


@pytest.mark.slow
def test_archive_is_read_from_s3_and_written_there(command, tmp_path, s3, caplog):
    write_photos(tmp_path / "in" / "belt", 3)
    write_video(tmp_path / "in" / "film.mp4", 4)
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    (tmp_path / "in" / "notes.md").write_text("no photo")
    upload(s3, tmp_path / "in", "films/in")
    words = ("s3://films/in", "--output", "s3://films/out", *OPTIONS[2:])
    code, output, errors = command("explain-archive", *words)
    assert code == 0, errors
    rows = rows_of("s3://films/out")
    assert Counter(row["source"] for row in rows) == {
        **{f"s3://films/in/belt/00{number}.jpg": 1 for number in range(3)},
        "s3://films/in/film.mp4": 4, "s3://films/in/bad.jpg": 1,
    }  # fmt: skip
    assert {row["camera"] for row in rows} == {"belt", "film", "in"}
    assert [row["source"] for row in rows if row["error"]] == ["s3://films/in/bad.jpg"]
    summary = json.loads(open_folder("s3://films/out").read_text("summary.json"))
    assert (summary["files"], summary["images"], summary["failed"]) == (5, 7, 1)
    assert SECRET not in caplog.text + output + errors + str(rows) + str(summary)
    before = open_folder("s3://films/out").names("")
    assert command("explain-archive", *words)[0] == 0
    assert open_folder("s3://films/out").names("") == before
    local = command("explain-archive", "in", *OPTIONS)
    assert local[0] == 0
    heat = {Path(row["source"]).name: row["findings"] for row in rows if row["camera"] == "belt"}
    for path in (tmp_path / "out").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row["camera"] == "belt":
                assert row["findings"] == heat[Path(row["source"]).name]


def test_upload_that_fails_leaves_no_partition_and_a_missing_bucket_is_named(s3):
    folder = open_folder("s3://films/out")
    with pytest.raises(KeyError), folder.written("a.parquet") as temporary:
        raise KeyError(temporary.write_bytes(b"half"))
    assert folder.names("") == []
    with pytest.raises(SinkError, match="s3://none/out: cannot be written"), open_folder("s3://none/out").locked():
        pass
    with pytest.raises(ConfigError, match="s3://films/none: there is no such file or folder"):
        find_files(["s3://films/none"])
    with pytest.raises(SourceError, match="s3://films/none: cannot be read"):
        read_address("s3://films/none")


@pytest.fixture
def memory(tmp_path):
    """Return an address of fsspec's memory with three photos."""
    import fsspec

    filesystem = fsspec.filesystem("memory")
    write_photos(tmp_path / "photos", 3)
    for path in (tmp_path / "photos").iterdir():
        filesystem.pipe(f"/archive/a/b/{path.name}", path.read_bytes())
    filesystem.pipe("/archive/a/c.png", b"")
    yield "memory://archive"
    filesystem.rm("/archive", recursive=True)


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("", {"000.jpg", "001.jpg", "002.jpg", "c.png"}),
        ("/a/*.png", {"c.png"}),
        ("/**/0*[01].jpg", {"000.jpg", "001.jpg"}),
        ("/a/b/000.jpg", {"000.jpg"}),
    ],
)
def test_folders_globs_and_files_of_a_store_are_found(memory, suffix, names):
    assert {Path(each.address).name for each, _ in found_at(memory + suffix)} == names


def test_lists_name_paths_and_addresses(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files.lst").write_text(f"photos/000.jpg\n{memory}/a/c.png\n")
    for location in ("@files.lst", str((tmp_path / "photos" / "001.jpg").as_uri())):
        assert find_files([location]).files
    assert [each.path for each in find_files(["@files.lst"]).files] == [
        str(tmp_path / "photos" / "000.jpg"), f"{memory}/a/c.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (f"s3://me:{SECRET}@films/in", "has credentials or options in its address"),
        (f"s3://films/in?secret_key={SECRET}", "has credentials or options in its address"),
        ("s3:///in", "names no bucket"),
        ("nostore://films", "the store cannot be used"),
        ("memory://none/*.jpg", "no file of the store matches it"),
    ],
)
def test_address_that_cannot_be_used_is_refused_without_its_credentials(address, rule):
    with pytest.raises(ConfigError) as refused:
        find_files([address])
    assert re.search(rule, str(refused.value))
    assert SECRET not in str(refused.value)
    assert os.linesep not in str(refused.value)
