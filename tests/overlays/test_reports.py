"""Reports of trainings and evaluations: their figures, and that inserted text cannot become markup."""

import re

import numpy as np
import pytest
from jinja2 import UndefinedError

from overlays.reports.evaluation import conclusion, evaluation_html
from overlays.reports.page import render_page
from overlays.reports.training import training_html

EPOCHS = [
    {"epoch": 1, "loss": 1.2, "validation_loss": 1.0, "validation_score": 0.5, "best": True},
    {"epoch": 2, "loss": 0.6, "validation_loss": 1.1, "validation_score": 0.4, "best": False},
]
IMAGE = np.zeros((20, 30, 3), np.uint8)
TAGS = ("<b>.png", "<i>", "<u>", "<x>", "http:", "https:", "<script src", "<link")


def report(**changes):
    test = {
        "images": 3, "accuracy": 2 / 3, "mean_recall": 0.75, "recalls": [1.0, 0.5], "confusion": [[1, 0], [1, 1]],
        "predictions": [["a.png", 0, 0, 0.9], ["<b>.png", 1, 0, 0.8], ["c.png", 1, 1, 0.7]],
        "interval": [0.208, 0.939],
    }  # fmt: skip
    sample = {"path": "<b>.png", "label": "<i>", "group": "<x>"}
    whole = {
        "model": "part<x>.safetensors", "labels": ["ok", "<i>"], "metrics": {"test": test}, "epochs": EPOCHS,
        "splits": {"train": [sample], "validation": [], "test": [sample]}, "layer": "features<x>",
        "input_size": [64, 64], "fit": "stretch", "left_out": ["<u>.png: no"],
        "provenance": {"wish": {"<x>": "<u>"}, "course": {}, "command": "train <x>"},
        "near_duplicates": [{"split": "test", "path": "<b>.png", "learned": "<u>", "different_bits": 3,
                             "labels": ["<i>", "ok"]}],
    }  # fmt: skip
    return whole | changes


def record(**changes):
    whole = {
        "image": "<b>.png", "label": "<i>", "score": 0.5, "adcc": 0.6, "drop": 0.1, "coherency": 0.7,
        "complexity": 0.2, "heat": [[0.0, 1.0]], "region": [0, 0, 30, 20], "boxes": [[1, 1, 9, 9]],
    }  # fmt: skip
    return whole | changes


def test_training_report_shows_misclassified_images_and_escapes_text():
    read = []
    page = training_html(report(), lambda path: read.append(path) or IMAGE)
    assert read == ["<b>.png"]
    assert "66.7%" in page
    assert "21% to 94%" in page
    assert "&lt;i&gt;, classified as ok 80%" in page
    assert "the weights are those of epoch 1" in page
    assert "<b>&lt;i&gt;, ok</b>" in page
    assert not any(tag in page for tag in TAGS)


def test_training_report_without_epochs_and_mistakes_is_a_page():
    short = report(epochs=[], left_out=[], near_duplicates=[])
    short["metrics"]["test"]["interval"] = None
    page = training_html(short, lambda _: IMAGE, max_images=0)
    assert "No conclusion for other parts: the test has too few different ones" in page
    assert not any(text in page for text in ("<svg", "<img", "Left out", "Near duplicates"))


def test_evaluation_report_shows_figures_and_escapes_text():
    summary = {"average_drop": 0.1, "accuracy": 0.9, "pointing": 0.5, "images_pointed": 1, "images": 2}
    records = [record(), record(image="good.png", adcc=0.9, score=0.72)]
    images = {"<b>.png": IMAGE, "good.png": IMAGE}
    page = evaluation_html("net<x>", {"pictures": "<u>", "<x>": None}, summary, records, images)
    rows = re.findall(r'<tr><td>([^<]*)</td><td class="number">([^<]*)</td>', page)
    assert rows == [
        ("Average Drop", "10.00"),
        ("Correctly classified", "90.00"),
        ("Pointing game", "50.00"),
        ("Images with a box of the class, or a mask", "1"),
    ]
    assert re.search(r">score: mean 0\.610, n 2<", page)
    assert re.findall(r'<rect x="(\d+)"[^>]*height="70\.0"', page)[:2] == ["100", "140"], "the bars of 0.5 and 0.72"
    assert page.index("good.png") < page.index("&lt;b&gt;.png")
    assert not any(tag in page for tag in TAGS)


def test_pages_allow_no_script_but_their_own():
    evaluated = evaluation_html("net", {}, {}, [record()], {"<b>.png": IMAGE})
    assert "script" not in evaluated
    trained = training_html(report(), lambda _: IMAGE)
    assert len(re.findall(r"script-src &#39;sha256-[\w+/=]+&#39;", trained)) == 1
    for page in (evaluated, trained):
        assert "default-src &#39;none&#39;; img-src data:;" in page


def test_render_page_refuses_a_missing_value():
    with pytest.raises(UndefinedError, match="conclusion"):
        render_page("evaluation.html", title="net")


def test_conclusion_does_not_praise_flat_maps():
    text = conclusion({"images": 3, "flat_maps": 3, "randomised": 0.0, "average_drop": 0.0})
    assert "3 of 3 maps are flat and show nothing" in text
    assert "near 0 is right" not in text
    assert "near 0 is right" in conclusion({"images": 3, "flat_maps": 1, "randomised": 0.0})
