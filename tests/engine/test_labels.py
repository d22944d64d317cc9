"""Label files in all usual forms, and suggestions for unknown targets."""

import json
import logging

import pytest
from torch import nn

from engine.models.labels import parse_target, read_labels
from engine.models.loader import LoadedModel, class_names
from pipeline.errors import ConfigError


def names(labels, **more):
    return LoadedModel(nn.Identity(), "net", tuple(labels), (8, 8), (0, 0, 0), (1, 1, 1), None, **more)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffKratzer\r\nok\r\n".encode(),
        "Kratzer\nok\n".encode("utf-16"),
        b"{0: 'Kratzer',\n 1: 'ok'}",
        b'{"0": ["n01", "Kratzer"], "1": ["n02", "ok"]}',
        b'{"Kratzer": 0, "ok": 1}',
        b"\xef\xbb\xbf" + json.dumps(["Kratzer", "ok"]).encode(),
        b"['Kratzer', 'ok']",
        b"('Kratzer',\n 'ok')".replace(b"(", b"[").replace(b")", b"]"),
        b"0: Kratzer\n1: 'ok'\n",
        b"0,Kratzer\n1,ok\n",
        b"1\tok\n0\tKratzer\n",
        b"0 Kratzer\r\n1 ok\r\n",
        b'"Kratzer",\n"ok"\n',
        b'{"id2label": {"0": "Kratzer", "1": "ok"}, "label2id": {"Kratzer": 0, "ok": 1}}',
        b"names:\n  0: Kratzer\n  1: ok\n",
        b'{"names": {"0": "Kratzer", "1": "ok"}}',
    ],
)
def test_read_labels_accepts_all_usual_forms(tmp_path, content):
    (tmp_path / "l.txt").write_bytes(content)
    assert read_labels(tmp_path / "l.txt") == ("Kratzer", "ok")


@pytest.mark.parametrize("line", ["1 fine", "n01440764 tench, Tinca tinca", "a: b", "3.5 mm, long"])
def test_read_labels_keeps_text_that_resembles_an_index(tmp_path, line):
    (tmp_path / "l.txt").write_text(f"{line}\nother\n", encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == (line, "other")


def test_read_labels_keeps_numbers_that_distinguish_labels(tmp_path):
    (tmp_path / "l.txt").write_text("0 spots\n1 spots\n", encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == ("0 spots", "1 spots")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"{1: 'a', 5: 'b'}", "from 0 to 1; this one has 1, 5"),
        (b'{"a": 0, "b": 0}', "from 0 to 1"),
        (b"[" * 50_000, "neither JSON nor a Python literal"),
        (b"{0: __import__('os')}", "neither JSON nor a Python literal"),
        (b"[1, {}]", "is not a class name"),
        (b"[" + b"9" * 5000 + b"]", "labels"),
        (b"\xff\xfe\xff", "UTF-8"),
        (b"\xef\xbb\xbf\n", "contains no names"),
    ],
)
def test_read_labels_refuses_files_that_do_not_name_each_class_once(tmp_path, content, rule):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rule):
        read_labels(tmp_path / "l.txt")


def test_read_labels_warns_of_numbers_that_are_no_indices(tmp_path, caplog):
    (tmp_path / "l.txt").write_text("3: a\n7: b\n", encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == ("3: a", "7: b")
    assert "read as part of the names" in caplog.text


@pytest.mark.parametrize(
    ("labels", "warning"), [(["a", "b", "a"], "'a' 2 times"), (["ok"], "its score is always 1"), (["a", "b"], "")]
)
def test_class_names_warns_of_single_and_repeated_labels(caplog, labels, warning):
    with caplog.at_level(logging.WARNING):
        assert class_names(names(labels), len(labels)) == tuple(labels)
    assert warning in caplog.text
    assert bool(caplog.records) == bool(warning)


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("car", "'sports car' or 'passenger car'?"),
        ("Wheel", "'paddlewheel'?"),
        ("tabby", "'tabby cat'?"),
        ("ambulence", "'ambulance'?"),
    ],
)
def test_parse_target_suggests_labels_that_contain_an_unknown_word(word, suggested):
    labels = ["sports car", "scarf", "passenger car", "paddlewheel", "tabby cat", "ambulance"]
    with pytest.raises(ConfigError, match=f"Did you mean {suggested.replace('?', '[?]')}"):
        parse_target([word], labels)


def test_parse_target_suggests_labels_that_end_with_the_word_first():
    labels = ["car mirror", "car wheel", "freight car", "car, auto", "passenger car", "sports car"]
    with pytest.raises(ConfigError, match="Did you mean 'freight car' or 'passenger car' or 'sports car' or"):
        parse_target(["car"], labels)
