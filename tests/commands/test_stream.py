"""The command `stream`: runs, refusals with their messages, and the files that remain."""

import re
import socket
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from stream.simulated.schedule import LABELS
from tests.support.logs import log_lines
from tests.support.videos import frames_of

ROOT = Path(__file__).resolve().parents[2]
LINE = "line:?fps=30&size=320x240&seed=3&paced=0&frames={}"


@pytest.fixture
def video(tmp_path):
    """Write a short H.264 file of 12 frames, each of its own grey."""
    folder = tmp_path / "given"
    folder.mkdir()
    path = folder / "grey.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * k, np.uint8))))
        out.mux(stream.encode())
    return path


def squeezenet(*arguments):
    net = ("--model", "squeezenet1_1", "--weights", "random", "--input-size", "64x64", "--backend", "eager")
    return ("stream", *arguments, *net)


def test_stream_writes_every_frame_of_a_file_in_order_with_its_time(command, video, tmp_path):
    code, output, errors = command(*squeezenet("--source", video, "--sink", "out.mp4", "--sink", "out.jsonl"))
    assert code == 0, errors
    assert "12 frames received, 12 explained, 12 delivered, 0 dropped" in output
    assert frames_of(tmp_path / "out.mp4") == frames_of(video)
    lines = log_lines(tmp_path / "out.jsonl")
    assert [line["index"] for line in lines] == list(range(12))
    assert {tuple(line["grid"]) for line in lines} == {(3, 3)}
    assert all(line["findings"][0]["heat_u8"] for line in lines)


def test_stream_stops_at_the_frame_limit(command, video, tmp_path):
    assert command(*squeezenet("--source", video, "--sink", "out.mp4", "--frames", 5))[0] == 0
    assert len(frames_of(tmp_path / "out.mp4")) == 5


def test_stream_runs_two_sources_through_one_engine(command, video, tmp_path):
    code, output, _ = command(
        *squeezenet("--source", video, "--source", LINE.format(7), "--sink", "out.mp4", "--sink", "out.jsonl")
    )
    assert code == 0
    assert "19 explained, 19 delivered, 0 dropped" in output
    counts = {path.name: len(frames_of(path)) for path in tmp_path.glob("out*.mp4")}
    assert counts == {"out.grey.mp4": 12, "out.line.mp4": 7}


@pytest.mark.slow
def test_command_line_options_override_the_configuration_file(command, video, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({
        "sources": [{"uri": str(video), "name": "door"}], "sinks": ["a.jsonl"], "frames": 4,
        "engine": {"model": "squeezenet1_1", "weights": "random", "input_size": "64x64"},
    }))  # fmt: skip
    assert command("stream", "run.yaml", "--frames", 2)[0] == 0
    assert [line["camera"] for line in log_lines(tmp_path / "a.jsonl")] == ["door", "door"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_run_on_the_simulated_line(command, path, request):
    model = ()
    if path.name == "detector.yaml":
        weights = request.getfixturevalue("shared_data") / "weights" / "detectors" / "yolox_nano.onnx"
        model = ("--model", weights)
    if "detector" in path.name:
        model += ("--input-size", "192x192")  # a small grid: what the maps cost is not the question
    if path.name == "line-detector.yaml":
        model += ("--backend", "eager")  # the demo runs this detector with the default backend
    code, output, errors = command("stream", path, "--source", LINE.format(3), "--sink", "out.jsonl", *model)
    assert code == 0, errors
    assert "3 frames received, 3 explained" in output


def test_print_config_shows_every_option_and_no_password(command):
    code, output, _ = command("stream", "--source", "rtsp://me:s3cret@host/a?token=t0ken", "--print-config")
    assert code == 0
    shown = yaml.safe_load(output)
    assert shown["sources"][0]["uri"].startswith("rtsp://")
    assert "s3cret" not in output
    assert {"model", "backend", "precision", "fit"} <= set(shown["engine"])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["stream"], "no source"),
        (["stream", "--source", "line:", "--model", "resnet_18x"], "Did you mean 'resnet18'"),
        (["stream", "--source", "line:", "--layer", "featurs"], "Did you mean 'features'"),
        (["stream", "--source", "line:", "--target", "scrach"], "Did you mean 'scratch'"),
        (["stream", "--source", "line:", "--backend", "eagr"], "Did you mean 'eager'"),
        (["stream", "--source", "line:", "--sink", "windw"], "Did you mean 'window'"),
        (["stream", "--source", "rtps://host/x"], "Did you mean 'rtsp"),
        (["stream", "--source", "missing.mp4"], "missing.mp4"),
        (["stream", "--source", "line:", "--frames", "-1"], "--frames: -1"),
        (["stream", "--source", "line:", "--input-size", "big"], "HEIGHTxWIDTH"),
        (["stream", "--source", "line:", "--colormap", "infrno"], "Did you mean 'inferno'"),
        (["stream", "--source", "line:", "--weights", "missing.pth"], "no such"),
        (["stream", "--source", "line:", "--labels", "missing.txt"], "missing.txt"),
        (["stream", "--source", "line:", "--sink", "no/such/folder/out.mp4"], "no/such/folder"),
        (["stream", "missing.yaml"], "no such file"),
        (["view", "tcp://nowhere"], "tcp://nowhere"),
    ],
    ids=lambda arguments: " ".join(arguments) if isinstance(arguments, list) else "",
)
def test_bad_input_is_refused_with_value_and_remedy_and_leaves_no_file(command, tmp_path, arguments, rule):
    code, _, errors = command(*arguments)
    assert code == 2
    assert rule in errors
    assert "error: " in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_run_without_frames_fails_and_names_the_camera(command):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"rtsp://ada:secret@127.0.0.1:{nobody.getsockname()[1]}/door"
        code, _, errors = command(*squeezenet("--source", uri, "--seconds", "0.5"))
    assert code == 3  # a camera's fault, and no mistake in what was asked for
    assert "no frame came from any camera" in errors
    assert "secret" not in errors


def test_view_without_frames_reports_it(command):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        code, _, errors = command("view", address, "--sink", "seen.jsonl", "--seconds", "0.3")
    assert code == 2
    assert f"{address}: no frame came" in errors


def test_sink_that_cannot_be_opened_is_refused_before_the_network_is_built(command, monkeypatch):
    monkeypatch.setattr("commands.wiring.run.make_explainer", lambda _: pytest.fail("the network was built first"))
    code, _, errors = command("stream", "--source", "line:", "--sink", "no/such/folder/out.mp4")
    assert code == 2
    assert "no/such/folder" in errors


@pytest.mark.parametrize("place", ["engine", "models"])
def test_boxes_of_a_classifier_are_refused(command, tmp_path, place):
    engine = {"model": "line_net", "backend": "eager"}
    second = {**engine, "name": "second"}
    chosen = engine if place == "engine" else second
    chosen["boxes"] = {"min_score": 0.5}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"sources": ["line:"], "engine": engine, "models": [second], "frames": 1}))
    code, _, errors = command("stream", str(config))
    assert code == 2
    assert f"{'engine' if place == 'engine' else 'models[0]'}.boxes.min_score: belongs to detectors" in errors


def test_failed_demo_leaves_no_empty_folder(command, monkeypatch, tmp_path):
    monkeypatch.setattr("commands.wiring.run.ROOT", tmp_path / "elsewhere")
    code, _, errors = command("demo", "--seconds", "1")
    assert code == 2, errors
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_demo_with_the_detector_shows_parts_in_boxes(command, tmp_path):
    code, output, errors = command("demo", "--detector", "--seconds", "1")
    assert code == 0, errors
    assert "each part gets a box" in output
    (log,) = (tmp_path / "runs").glob("*/demo.jsonl")
    findings = [finding for line in log_lines(log) for finding in line.get("findings", ())]
    assert findings
    assert all(len(finding["box"]) == 4 and finding["label"] in LABELS for finding in findings)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty"),
        ("- a", "not a map"),
        ("engine: {bakend: eager}\nsources: ['line:']", "Did you mean 'backend'"),
        ("engine: [a]\nsources: ['line:']", "engine"),
        ("sources: ['line:']\nframes: soon", "'soon'"),
    ],
)
def test_bad_configuration_error_names_the_key(command, tmp_path, text, rule):
    (tmp_path / "bad.yaml").write_text(text)
    code, _, errors = command("stream", "bad.yaml")
    assert code == 2
    assert "bad.yaml" in errors
    assert rule in errors


def test_text_file_with_suffix_mp4_is_refused(command, tmp_path):
    (tmp_path / "no.mp4").write_text("hello")
    code, _, errors = command(*squeezenet("--source", "no.mp4", "--sink", "out.mp4"))
    assert code == 2
    assert "no.mp4" in errors
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.slow
def test_damaged_video_gives_its_good_frames_and_the_error_position(command, shared_data, tmp_path):
    path = shared_data / "videos" / "odd" / "corrupted.mp4"
    code, output, errors = command(*squeezenet("--source", path, "--sink", "out.mp4"))
    assert code == 2
    assert "error: " in errors
    count = len(frames_of(tmp_path / "out.mp4"))
    assert count > 0
    assert f"{count} explained" in output


def test_port_in_use_is_named(command):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        code, _, errors = command(*squeezenet("--source", LINE.format(3), "--sink", address))
    assert code == 2
    assert address in errors


def test_window_without_a_display_is_refused(command, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, errors = command(*squeezenet("--source", LINE.format(3), "--sink", "window"))
    assert code == 2
    assert "display" in errors


@pytest.mark.slow
def test_models_fits_eighty_columns_and_lists_layers_with_a_grid(command):
    code, output, _ = command("models", "resnet18", "vit_b_16", "mobilenet_v3_small")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    code, output, _ = command("models", "--layers", "mobilenet_v3_small")
    assert code == 0
    assert "7x7    576  features\n" in output
    code, _, errors = command("models", "resnet81")
    assert code == 2
    assert "Did you mean 'resnet18'" in errors


@pytest.mark.slow
def test_models_and_doctor_print_tables(command):
    code, output, _ = command("doctor")
    assert code == 0
    assert "backend eager" in output
    code, output, _ = command("models", "resnet18", "vgg11", "regnet_x_400mf")
    assert code == 0
    assert output.count("7x7") == 3
    assert "flat" in output


@pytest.mark.parametrize("spelling", ["grey.mp4", "./grey.mp4", "link.mp4", "hard.mp4"])
def test_recording_does_not_overwrite_its_source(command, video, spelling, monkeypatch):
    monkeypatch.chdir(video.parent)
    (video.parent / "link.mp4").symlink_to(video)
    (video.parent / "hard.mp4").hardlink_to(video)
    before = video.read_bytes()
    code, _, errors = command(*squeezenet("--source", "grey.mp4", "--sink", spelling))
    assert code == 2
    assert "overwrite" in errors
    assert video.read_bytes() == before


def test_two_sinks_cannot_share_a_file_by_any_spelling(command, video):
    code, _, errors = command(*squeezenet("--source", video, "--sink", "out.mp4", "--sink", "./out.mp4"))
    assert code == 2
    assert "given twice" in errors


@pytest.mark.parametrize("std", ["0", "nan", "-1"])
def test_std_of_zero_is_refused(command, video, std):
    code, _, errors = command(*squeezenet("--source", video, "--std", std))
    assert code == 2
    assert "--std" in errors


def test_credentials_come_from_environment_or_file_and_are_not_shown(command, monkeypatch, tmp_path):
    monkeypatch.setenv("CAM_PASSWORD", "canary/42")
    (tmp_path / "door.secret").write_text("ada:canary/42\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
        (tmp_path / "run.yaml").write_text(
            f"sources:\n- {{uri: 'rtsp://{host}/door', credentials_file: door.secret}}\n"
            f"- {{uri: 'rtsp://ada:${{CAM_PASSWORD}}@{host}/yard', name: yard}}\nseconds: 2\n"
            "engine: {model: squeezenet1_1, weights: random, input_size: 64x64, backend: eager}\n"
        )
        values = [command("stream", "run.yaml", *more) for more in ([], ["--print-config"])]
    assert [code for code, _, _ in values] == [3, 0]
    assert "connection refused" in values[0][2]
    assert not any("canary" in text for _, out, errors in values for text in (out, errors))


def test_missing_credentials_file_is_named(command, tmp_path):
    (tmp_path / "run.yaml").write_text("sources:\n- {uri: 'rtsp://127.0.0.1/x', credentials_file: no.secret}\n")
    code, _, errors = command("stream", "run.yaml")
    assert code == 2
    assert "credentials file 'no.secret'" in errors
    assert "user:password" in errors


def test_missing_environment_variable_is_named(command):
    code, _, errors = command("stream", "--source", "rtsp://ada:${NO_SUCH_THING}@127.0.0.1/x")
    assert code == 2
    assert "NO_SUCH_THING" in errors


def test_camera_name_with_a_slash_is_recorded(command, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"rtsp://127.0.0.1:{nobody.getsockname()[1]}/hall/door"
        code, _, errors = command(*squeezenet("--source", uri, "--sink", "out.mp4", "--seconds", "2"))
    assert code == 3, errors
    assert "connection refused" in errors


def test_two_runs_cannot_write_the_same_file(command, video, tmp_path):
    from overlays.sinks.locks import claimed

    with claimed([tmp_path / "out.jsonl"]):
        code, _, errors = command(*squeezenet("--source", video, "--sink", "./out.jsonl"))
    assert code == 2
    assert "being written by another run" in errors
    assert not (tmp_path / "out.jsonl").exists()
    assert command(*squeezenet("--source", video, "--sink", "./out.jsonl"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (
            ["--mean", "1,2"],
            "--mean: '1,2': should be three numbers for red, green and blue, or one for all three, not 2",
        ),
        (["--smoothing", "-1"], "--smoothing: -1.0"),
        (["--max-age", "-1"], "--max-age: -1.0"),
        (["--opacity", "2"], "--opacity: 2.0"),
    ],
)
def test_option_error_names_the_command_line_option(command, arguments, result):
    code, _, errors = command(*squeezenet("--source", "line:", "--frames", "1", *arguments))
    assert code == 2
    assert result in errors
    assert len(set(errors.splitlines())) == len(errors.splitlines())


@pytest.mark.slow
def test_log_drops_names_each_dropped_frame_with_its_reason(command, caplog):
    code, output, errors = command("stream", "--source", "line:?frames=12&fps=200", "--log-drops")
    assert code == 0, errors
    dropped = re.search(r"(\d+) dropped", output)
    named = [record for record in caplog.records if re.search(r"frame \d+ dropped: \w+", record.getMessage())]
    assert len(named) == int(dropped[1]) > 0
