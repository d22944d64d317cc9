"""Keys on the command line."""

import threading

import numpy as np
import pytest
import yaml

from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from pipeline.frames import Explanation, Finding, Frame, Overlay


@pytest.fixture
def locked(command, tmp_path):
    """A stream that asks for keys, and puts a frame every now and then."""
    assert command("keys", "new", "keys")[0] == 0
    folder = tmp_path / "keys"
    (tmp_path / "server.key").write_bytes((folder / "server.key").read_bytes())
    curve = CurveSettings(secret_key_file=str(folder / "server.key_secret"), authorized_keys=str(folder / "allowed"))
    stop = threading.Event()
    with ZeroMqSink(ZeroMqSettings(uri="tcp://127.0.0.1:0", curve=curve)) as sink:

        def put():
            index = 0
            while not stop.wait(0.02):
                frame = Frame(np.full((48, 64, 3), 90, np.uint8), "door", index, 0.0)
                finding = Finding("dent", 0.9, np.ones((2, 2), np.float32))
                sink.put(Overlay(frame.image.copy(), Explanation(frame, (finding,), "recipro-cam/point", "layer4")))
                index += 1

        putting = threading.Thread(target=put)
        putting.start()
        yield sink.endpoint
        stop.set()
        putting.join()


def test_keys_new_creates_keys_once_and_prints_the_commands(command, tmp_path):
    code, output, _ = command("keys", "new", "keys")
    assert code == 0
    assert "--curve-keys keys" in output
    assert "--key viewer.key_secret --server-key server.key" in output
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        f"keys/{n}" for n in ("server.key", "server.key_secret", "viewer.key_secret", "allowed/viewer.key")
    }
    code, _, errors = command("keys", "new", "keys")
    assert code == 2
    assert "never overwritten" in errors
    assert command("keys", "add", "keys", "ann")[0] == 0
    assert (tmp_path / "keys" / "allowed" / "ann.key").is_file()
    assert command("keys", "add", "keys", "ann")[0] == 2
    assert command("keys", "add", "elsewhere", "ann")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--sink", "tcp://0.0.0.0:5555"], "set --insecure"),
        (["--sink", "tcp://0.0.0.0:5555", "--curve-keys", "nowhere"], "keys new DIR"),
        (["--sink", "tcp://127.0.0.1:5555", "--allow", "nowhere"], "--curve-keys DIR"),
        (["--sink", "out.jsonl", "--curve-keys", "keys"], "add --sink tcp://"),
    ],
)
def test_stream_refuses_to_serve_without_keys_by_mistake(command, monkeypatch, arguments, rule):
    monkeypatch.setattr("commands.wiring.run.make_explainer", lambda _: pytest.fail("it started"))
    code, _, errors = command("stream", "--source", "line:", *arguments)
    assert code == 2
    assert rule in errors


def test_curve_options_set_the_keys_of_the_configuration(command):
    shown = command(
        "stream", "--source", "line:", "--sink", "tcp://0.0.0.0:5555", "--sink", "out.mp4", "--curve-keys", "keys",
        "--allow", "list", "--print-config",
    )[1]  # fmt: skip
    network, video = yaml.safe_load(shown)["sinks"]
    assert network["curve"] == {"secret_key_file": "keys/server.key_secret", "authorized_keys": "list"}
    assert "curve" not in video
    shown = command("stream", "--source", "line:", "--sink", "tcp://0.0.0.0:5", "--insecure", "--print-config")[1]
    assert yaml.safe_load(shown)["sinks"][0]["insecure"] is True


def test_misspelled_curve_key_is_named(command, tmp_path):
    (tmp_path / "a.yaml").write_text("sources: ['line:']\nsinks: [{uri: 'tcp://*:1', curve: {secret_key: x}}]")
    code, _, errors = command("stream", "a.yaml")
    assert code == 2
    assert "sinks[0].curve" in errors
    assert "Did you mean 'secret_key_file'" in errors


def test_view_shows_frames_with_the_right_keys(command, locked):
    arguments = ("--key", "keys/viewer.key_secret", "--server-key", "server.key")
    code, output, errors = command("view", locked, *arguments, "--sink", "seen.jsonl", "--frames", 3)
    assert code == 0, errors
    assert "3 explained, 3 delivered" in output


def test_view_without_keys_exits_with_2_and_the_reason(command, locked):
    code, _, errors = command("view", locked, "--sink", "seen.jsonl", "--seconds", 3)
    assert code == 2
    assert "admits only viewers with keys" in errors


def test_view_with_an_unknown_key_exits_with_2_and_the_reason(command, locked, tmp_path):
    (tmp_path / "keys" / "allowed" / "viewer.key").unlink()
    arguments = ("--key", "keys/viewer.key_secret", "--server-key", "server.key")
    code, _, errors = command("view", locked, *arguments, "--sink", "seen.jsonl", "--seconds", 3)
    assert code == 2
    assert "the server does not know this viewer's key" in errors
