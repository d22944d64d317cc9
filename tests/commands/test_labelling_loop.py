"""The labelling loop of the documentation: record, label, train, stream."""

from __future__ import annotations

import re
import shlex

import pytest

from engine.models.checkpoint import load_checkpoint
from tests.conftest import ROOT
from tests.support.logs import log_lines

LINE = "line:?frames=30&fps=1&paced=0&size=160x120&seed=3"
REPLACED = {
    "camera:0": LINE,
    "part.safetensors": "line_net",
    "review/?when=score<0.7": "review/?when=score<1",
    "window": "out.jsonl",
}
"""Arguments of the documented commands, and their replacements in the test."""
QUICK = {
    "stream": ("--backend", "eager", "--cache", "off", "--threads", "1"),
    "train": ("--epochs", "1", "--weights", "random", "--input-size", "32x32", "--threads", "1"),
}


def documented_commands():
    """Return the arguments of the document's commands, and the move between them."""
    text = (ROOT / "docs/integrations/factory.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "mv review/" in block]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [line[:3] for line in lines if line[0] != "mv"] == [["uv", "run", "run.py"]] * 3
    record, move, train, stream = lines
    return [record[3:], train[3:], stream[3:]], move


@pytest.mark.slow
def test_moved_photos_teach_the_network_that_the_stream_runs_next(command, tmp_path):
    (record, train, stream), (_, _, target) = documented_commands()

    def run(arguments):
        code, output, errors = command(*(REPLACED.get(each, each) for each in arguments), *QUICK[arguments[0]])
        assert code == 0, output + errors

    run(record)
    photos = sorted((tmp_path / "review").rglob("line-*.jpg"))
    assert len(photos) > 12
    (tmp_path / target).mkdir(exist_ok=True)
    for number, photo in enumerate(photos):
        if number % 2 or len(list(photo.parent.iterdir())) < 6:  # a label needs three photos at least
            photo.rename(tmp_path / target / photo.name)
    for folder in (tmp_path / "review").iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    run(train)
    labels = load_checkpoint(tmp_path / "part-2.safetensors").labels
    assert set(labels) == {path.name for path in (tmp_path / "review").iterdir() if path.is_dir()}
    run(stream)
    lines = log_lines(tmp_path / "out.jsonl")
    assert len(lines) == 30
    assert {line["findings"][0]["label"] for line in lines} <= set(labels)
