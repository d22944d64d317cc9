"""Clips and replay by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from tests.support.logs import log_lines

LINE = "line:?fps=30&size=320x240&seed=3&paced=0&frames={}"


def images(path):
    with av.open(str(path)) as film:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]


@pytest.mark.slow
def test_stream_records_a_folder_of_clips(command, tmp_path):
    code, _, errors = command("stream", "--source", LINE.format(70), "--sink", "clips/", "--rotate-seconds", "1")
    assert code == 0, errors
    films = sorted((tmp_path / "clips").glob("*.mp4"))
    assert [len(images(film)) for film in films] == [30, 30, 10]
    assert all(film.name.startswith("line_") and film.with_suffix(".jsonl").exists() for film in films)


def test_clip_options_are_validated_and_apply_to_clip_sinks_only(command):
    arguments = ("stream", "--source", "line:", "--sink", "clips/", "--sink", "out.mp4", "--print-config")
    code, shown, errors = command(*arguments, "--record-when", "score>0.5", "--disk-budget-mib", "100")
    assert code == 0, errors
    folder, film = yaml.safe_load(shown)["sinks"]
    assert (folder["record_when"], folder["disk_budget_mib"]) == ("score>0.5", 100)
    assert "record_when" not in film
    for more, message in [
        (["--record-when", "label=a b"], "Quote a name"),
        (["--disk-budget-mib", "-1"], "--disk-budget-mib"),
        (["--rotate-seconds", "0"], "--rotate-seconds"),
    ]:
        code, _, errors = command("stream", "--source", "line:", "--sink", "clips/", *more)
        assert code == 2
        assert message in errors
        assert not Path("clips").exists()
    code, _, errors = command("stream", "--source", "line:", "--sink", "out.mp4", "--record-when", "score>0.5")
    assert code == 2
    assert "add --sink FOLDER/" in errors


@pytest.mark.slow
def test_replay_shows_the_images_of_the_run(command, tmp_path):
    video = tmp_path / "plain.mp4"
    with av.open(str(video), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * k, np.uint8))))
        out.mux(stream.encode())
    net = ("--model", "squeezenet1_1", "--weights", "random", "--input-size", "64x64")
    result = command("stream", "--source", video, "--sink", "then.mp4", "--sink", "then.jsonl", *net)
    assert result[0] == 0, result
    code, output, errors = command("replay", "then.jsonl", video, "--sink", "again.mp4")
    assert code == 0, errors
    assert "12 frames, 12 with a heat map, 0 without" in output
    then, again = images("then.mp4"), images("again.mp4")
    assert [time for time, _ in then] == [time for time, _ in again]
    # The legend's age differs, and its edges where it is encoded; a neighbour's picture is 20 lighter.
    away = [np.abs(first[1][40:].astype(int) - other[1][40:]).mean() for first, other in zip(then, again, strict=True)]
    assert max(away) < 4.0
    assert command("replay", "then.jsonl", "--sink", "black.mp4")[0] == 0
    assert len(images("black.mp4")) == 12


@pytest.mark.slow
def test_replay_refuses_bad_input_with_a_message(command, tmp_path):
    code, _, errors = command("replay", "none.jsonl", "--sink", "x.mp4")
    assert (code, "cannot be read" in errors) == (2, True)
    record = command("stream", "--source", LINE.format(3), "--sink", "a.jsonl")
    assert record[0] == 0, record
    code, _, errors = command("replay", "a.jsonl", "--sink", "a.jsonl")
    assert (code, "overwrite" in errors) == (2, True)
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps(line | {"index": 900 + k, "pts_seconds": None}) + "\n"
                for k, line in enumerate(log_lines(tmp_path / "a.jsonl")))
    )  # fmt: skip
    code, _, errors = command("replay", "b.jsonl", LINE.format(3), "--sink", "x.mp4")
    assert (code, "no record belongs to a frame" in errors) == (2, True)
