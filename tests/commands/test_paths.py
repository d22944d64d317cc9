"""Paths that the system refuses are reported in one line with exit code 2, for every option."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.errors import of_path

LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["stream", f"{LONG}.yaml"],
        ["stream", "--source", f"{LONG}.mp4"],
        ["stream", "--source", "line:", "--model", f"{LONG}.safetensors"],
        ["stream", "--source", "line:", "--model", "resnet18", "--weights", f"{LONG}.pt"],
        ["stream", "--source", "line:", "--baseline", f"{LONG}.json"],
        ["stream", "--source", "line:", "--sink", f"{LONG}.jsonl"],
        ["stream", "--source", "line:", "--sink", f"{LONG}.mp4"],
        ["stream", "--source", "line:", "--sink", f"{LONG}/"],
        ["stream", "--source", "line:", "--sink", f"ipc:///tmp/{LONG}"],
        ["stream", "--source", "line:", "--sink", "http://127.0.0.1:0", "--page-token-file", LONG],
        ["stream", "--source", "line:", "--sink", "tcp://127.0.0.1:0", "--curve-keys", LONG],
        ["replay", f"{LONG}.jsonl"],
        ["baseline", "--source", "line:", "--output", f"{LONG}/b.json"],
        ["export", "--model", "line_net", "--output", f"{LONG}/m.onnx"],
        ["keys", "new", LONG],
    ],
    ids=lambda arguments: " ".join(arguments[:4]).replace(LONG, "LONG"),
)
def test_command_refuses_an_invalid_path_in_one_line_with_exit_code_2(command, arguments):
    code, _, stderr = command(*arguments)
    assert code == 2
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.EROFS])
def test_path_error_names_the_path_and_a_remedy(command, monkeypatch, number):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number), "/mnt/share/part.mp4")

    monkeypatch.setattr("commands.wiring.reload.read_text", refuse)
    code, _, errors = command("stream", "run.yaml")
    assert code == 2
    assert errors.startswith(f"error: '/mnt/share/part.mp4': cannot be used ({os.strerror(number)}); ")
    assert len(errors.splitlines()) == 1


def test_error_without_a_path_keeps_its_traceback(command, monkeypatch):
    def refuse(*_args, **_options):
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("commands.wiring.reload.read_text", refuse)
    with pytest.raises(ConnectionResetError):
        command("stream", "run.yaml")
    assert of_path(OSError(errno.ENOMEM, "out of memory")) is None
