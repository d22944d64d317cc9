"""Report of a detector's training: figures, suspects and escaped text."""

import re

import numpy as np
import pytest

from overlays.reports.detector_training import (
    ShownImage,
    class_evidence,
    conclusion,
    detector_training_html,
    suspects,
)
from pipeline.frames import Box

TAGS = ("<b>.png", "<i>", "<u>", "<x>", "http:", "https:", "<script src", "<link")
IMAGE = np.full((40, 60, 3), 90, np.uint8)


def judged(label, evidence, energy, **changes):
    methods = {"keep": {"evidence": evidence}, "drop": {"energy": energy, "deletion": 0.2, "evidence": energy}}
    entry = {
        "label": label, "score": 0.9, "iou": 0.8, "cell_px": 8, "input_size": [32, 32], "box": [5, 5, 20, 20],
        "methods": methods, "maps": {"keep": [[0.0, 1.0]], "drop": [[1.0, 0.0]]},
    }  # fmt: skip
    return entry | changes


def report(*entries, **changes):
    test = {
        "images": 2, "boxes": 3, "map50": 0.75, "map50_95": 0.5, "class_map50": [1.0, 0.5, None],
        "curves": [[1.0] * 101, [0.5] * 101, []], "map50_interval": [0.4, 0.9],
    }  # fmt: skip
    sample = {"path": "<b>.png", "label": "<i>", "group": "<x>"}
    epoch = {
        "epoch": 1,
        "loss": 3.0,
        "validation_loss": 2.0,
        "validation_score": 0.5,
        "best": True,
        "measure": "mAP50:95",
    }
    whole = {
        "model": "part<x>.safetensors", "labels": ["ok", "<i>", "none"], "input_size": [32, 32], "grouped": True,
        "provenance": {"wish": {"<x>": "<u>"}, "course": {}, "command": "train <x>"}, "epochs": [epoch],
        "metrics": {"test": test}, "score": 0.31,
        "confusion": [[1, 0, 0, 0], [1, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0]],
        "evidence": [{"image": "<b>.png", "region": [0, 0, 60, 40], "judged": list(entries)}],
        "splits": {"train": [sample], "validation": [], "test": [sample]},
        "near_duplicates": [], "left_out": ["<u>.png: no"],
    }  # fmt: skip
    return whole | changes


def page(*entries, **changes):
    shown = ShownImage(
        "<b>.png",
        [(Box(1, 1, 9, 9), "ok", 0.9, "ok"), (Box(9, 9, 20, 20), "ok", 0.8, "<i>"), (Box(5, 5, 9, 9), "ok", 0.4, None)],
        [(Box(30, 5, 40, 20), "<i>")],
    )
    return detector_training_html(report(*entries, **changes), lambda _: IMAGE, [], [shown])


def test_report_shows_figures_of_each_class_and_the_boxes_of_an_image():
    html = page(judged("ok", 0.9, 0.8))
    table, _, _ = html.partition("precision and recall")
    rows = {
        label: [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>[^<]*</td>", row)]
        for label, row in re.findall(r'<th scope="row">([^<]+)</th>(.*?)</tr>', table, re.DOTALL)
    }
    assert rows["ok"] == ["1", "100.0%", "20.0%", "100.0%", "90.0%", "80.0%", "20.0%"]
    assert rows["&lt;i&gt;"][:4] == ["4", "50.0%", "100.0%", "25.0%"]
    assert rows["none"][:4] == ["0", "-", "-", "-"]
    assert "ok 90%; ok 80%, is &lt;i&gt;; ok 40%, no object" in html
    assert "missed" in html
    assert len(re.findall(r"<polyline", html)) == 2 + 3
    assert "0.31" in html


def test_report_escapes_what_it_inserts():
    html = page(judged("<i>", 0.9, 0.8))
    assert not [tag for tag in TAGS if tag in html]


def test_report_without_found_objects_has_no_evidence():
    html = page()
    assert "evidence in box" not in html
    assert "Least evidence" not in html


@pytest.mark.parametrize(
    ("evidence", "energy", "count", "expected"),
    [(0.2, 0.3, 3, ["ok"]), (0.2, 0.3, 2, []), (0.6, 0.3, 3, []), (0.2, 0.6, 3, []), (None, None, 3, [])],
)
def test_suspects_are_classes_whose_evidence_lies_outside_in_both_modes(evidence, energy, count, expected):
    records = report(*[judged("ok", evidence, energy)] * count, judged("<i>", 0.9, 0.9))["evidence"]
    assert suspects(class_evidence(records)) == expected
    text = conclusion(report(*records[0]["judged"]))
    assert ("Check the evidence of ok." in text) == bool(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "40% to 90%"), ({"grouped": False}, "unknown which images show the same part")],
)
def test_conclusion_states_the_interval_or_why_there_is_none(changes, words):
    assert words in conclusion(report(**changes))
