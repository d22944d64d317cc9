"""Key files and allow-lists of CURVE."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
import zmq.auth

from overlays.sinks.registry import build_sink
from overlays.sinks.settings import ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve.allowlist import AllowList
from overlays.wire.curve.keys import create_keyring, is_key, make_pair, public_of, read_pair, read_public, viewer_keys
from overlays.wire.viewer import Viewer
from pipeline.errors import ConfigError, SinkError


@pytest.mark.parametrize(
    "uri", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.0.2.1:5555", "tcp://eth0:5555", "tcp://[::]:5555"]
)
def test_public_address_requires_keys_or_insecure(uri):
    with pytest.raises(SinkError, match=r"keys new keys.*--curve-keys.*--insecure"):
        ZeroMqSink(uri)
    assert ZeroMqSink(ZeroMqSettings(uri=uri, insecure=True)).uri == uri


@pytest.mark.parametrize("uri", ["tcp://127.0.0.1:0", "tcp://localhost:5555", "tcp://[::1]:0", "ipc:///tmp/x"])
def test_local_address_requires_no_keys(uri):
    assert ZeroMqSink(uri).uri == uri


def test_keys_without_an_allowlist_are_refused_at_start(keyring):
    secret = str(keyring / "server.key_secret")
    with pytest.raises(SinkError, match=r"curve.authorized_keys.*required"):
        build_sink("tcp://127.0.0.1:0", curve={"secret_key_file": secret})
    with pytest.raises(ConfigError, match="no such file or folder"):
        build_sink("tcp://127.0.0.1:0", curve={"secret_key_file": secret, "authorized_keys": "gone"})


def test_secret_files_are_private_and_never_overwritten(keyring):
    for path in keyring.glob("*.key_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in keyring.rglob("*.key*")}
    with pytest.raises(ConfigError, match="never overwritten"):
        create_keyring(keyring)
    with pytest.raises(ConfigError, match="never overwritten"):
        make_pair(keyring, "viewer")
    with pytest.raises(ConfigError, match="letters, digits"):
        make_pair(keyring, "../viewer")
    assert {path: path.read_bytes() for path in keyring.rglob("*.key*")} == before


def test_key_files_are_compatible_with_zmq_auth(keyring, tmp_path):
    pair = read_pair(keyring / "server.key_secret")
    assert zmq.auth.load_certificate(keyring / "server.key_secret") == tuple(pair)
    assert pair.secret.decode() not in repr(pair)
    public, secret = zmq.auth.create_certificates(tmp_path, "theirs")
    assert read_pair(Path(secret)).public == read_public(Path(public)) == zmq.auth.load_certificate(public)[0]


def test_wrong_key_files_are_refused_with_the_remedy(keyring, tmp_path, caplog):
    with pytest.raises(ConfigError, match=r"name the secret file, server\.key_secret"):
        read_pair(keyring / "server.key")
    with pytest.raises(ConfigError, match="keys new DIR"):
        read_pair(tmp_path / "none")
    (tmp_path / "bad.key").write_text("hello")
    with pytest.raises(ConfigError, match="holds no public key"):
        read_public(tmp_path / "bad.key")
    other = read_pair(keyring / "viewer.key_secret").public
    mixed = (keyring / "server.key_secret").read_bytes().replace(read_public(keyring / "server.key"), other)
    (tmp_path / "mixed.key_secret").write_bytes(mixed)
    with pytest.raises(ConfigError, match="does not match"):
        read_pair(tmp_path / "mixed.key_secret")
    os.chmod(keyring / "viewer.key_secret", 0o644)  # noqa: PTH101
    read_pair(keyring / "viewer.key_secret")
    assert "chmod 600" in caplog.text


def test_viewer_needs_both_keys_and_accepts_the_servers_as_text(keyring):
    letters = read_public(keyring / "server.key")
    assert (
        viewer_keys(keyring / "viewer.key_secret", letters.decode()).server
        == letters
        == public_of(keyring / "server.key")
    )
    assert viewer_keys(None, None) is None
    with pytest.raises(ConfigError, match="--server-key"):
        Viewer("tcp://127.0.0.1:5555", key=keyring / "viewer.key_secret")
    with pytest.raises(ConfigError, match=r"\(--key\)"):
        Viewer("tcp://127.0.0.1:5555", server_key=letters.decode())


def test_allowlist_is_a_folder_key_file_or_lines_and_skips_what_is_no_key(keyring, tmp_path, caplog):
    viewer, server = read_public(keyring / "allowed" / "viewer.key"), read_public(keyring / "server.key")
    (keyring / "allowed" / "bad.key").write_text("nothing")
    assert AllowList(keyring / "allowed").names == {viewer: "viewer"}
    assert "bad.key" in caplog.text
    assert AllowList(keyring / "server.key").names == {server: "server"}
    lines = tmp_path / "list"
    lines.write_bytes(b"# friends\n\n" + viewer + b" Ann's desk\nnonsense\n")
    listed = AllowList(lines)
    assert listed.names == {viewer: "Ann's desk"}
    assert "line 4" in caplog.text
    assert not listed.changed()
    lines.write_bytes(server + b"\n")
    assert listed.changed()
    assert listed.names == {server: "line 1"}
    lines.unlink()
    assert listed.changed()
    assert listed.names == {}, "a list that is gone admits nobody"


def test_removed_key_is_refused_whatever_else_the_list_contains(keyring, tmp_path, caplog):
    listed = AllowList(keyring / "allowed")
    (keyring / "allowed" / ".#viewer.key").symlink_to("an-editors@lock.1:2")
    listed.changed()
    (keyring / "allowed" / "viewer.key").unlink()
    assert listed.changed()
    assert listed.names == {}
    server = read_public(keyring / "server.key")
    lines = tmp_path / "list"
    lines.write_bytes(server + b" Ann\n")
    listed = AllowList(lines)
    lines.write_bytes(b'public-key = "half a\n' + server + b" Ann's desk\n")
    assert not listed.changed(), "the same key"
    assert listed.names == {server: "Ann's desk"}
    assert "line 1 does not begin with a key" in caplog.text


def test_key_is_forty_characters_of_z85():
    assert is_key(zmq.curve_keypair()[0])
    assert not any(is_key(text) for text in (b"", b"x" * 39, b"~" * 40, b"x" * 41, b'"' * 40, b"#" * 40))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_allowlist_keeps_its_keys_while_no_file_handle_is_free(keyring, tmp_path, caplog, kind):
    resource = pytest.importorskip("resource")
    lines = tmp_path / "list"
    viewer = read_public(keyring / "allowed" / "viewer.key")
    lines.write_bytes(viewer + b" Ann\n")
    listed = AllowList(keyring / "allowed" if kind == "folder" else lines)
    (keyring / "allowed" / "server.key").write_bytes((keyring / "server.key").read_bytes())
    lines.write_bytes(viewer + b"\n" + read_public(keyring / "server.key") + b"\n")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        spare = stack.enter_context(socket.socket())
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno(), before[1]))
        for _ in range(3):
            assert not listed.changed()
            assert listed.names.keys() == {viewer}
    assert "stay valid" in caplog.text
    assert listed.changed(), "as soon as it can be read"
    assert len(listed.names) == 2
