"""The page of a training tells its figures and lets no word from outside become markup."""

import numpy as np

from overlays.reports.evaluation import conclusion
from overlays.reports.training import training_html

EPOCHS = [
    {"epoch": 1, "loss": 1.2, "validation_loss": 1.0, "validation_recall": 0.5, "best": True},
    {"epoch": 2, "loss": 0.6, "validation_loss": 1.1, "validation_recall": 0.4, "best": False},
]


def report(**more):
    found = {
        "images": 3, "accuracy": 2 / 3, "mean_recall": 0.75, "recalls": [1.0, 0.5], "confusion": [[1, 0], [1, 1]],
        "predictions": [["a.png", 0, 0, 0.9], ["<b>.png", 1, 0, 0.8], ["c.png", 1, 1, 0.7]],
        "interval": [0.208, 0.939],
    }  # fmt: skip
    sample = {"path": "<b>.png", "label": "<i>", "group": "s"}
    told = {
        "model": "part.safetensors", "labels": ["ok", "<i>"], "metrics": {"test": found}, "epochs": EPOCHS,
        "splits": {"train": [sample], "validation": [], "test": [sample]}, "layer": "features",
        "input_size": [64, 64], "fit": "stretch", "provenance": {"wish": {}, "course": {}}, "left_out": ["<u>.png: no"],
    }  # fmt: skip
    return told | more


def test_the_page_shows_the_mistaken_pictures_and_escapes_every_word():
    read = []
    page = training_html(report(), lambda path: read.append(path) or np.zeros((20, 30, 3), np.uint8))
    assert read == ["<b>.png"]
    assert "66.7%" in page
    assert "21% to 94%" in page
    assert "&lt;i&gt;, classified as ok 80%" in page
    assert "the weights are those of epoch 1" in page
    assert not any(word in page for word in ("<b>.png", "<i>", "<u>", "http:", "https:", "<script src"))


def test_a_training_without_epochs_or_mistakes_still_makes_a_page():
    told = report(epochs=[], left_out=[])
    told["metrics"]["test"]["interval"] = None
    page = training_html(told, lambda _: np.zeros((20, 30, 3), np.uint8), max_images=0)
    assert "<svg" not in page
    assert "No conclusion for other parts: the test has too few different ones" in page
    assert "<img" not in page


def test_evaluation_of_flat_maps_does_not_praise_them():
    told = conclusion({"images": 3, "flat_maps": 3, "randomised": 0.0, "average_drop": 0.0})
    assert "3 of 3 maps are flat and show nothing" in told
    assert "near 0 is right" not in told
    assert "near 0 is right" in conclusion({"images": 3, "flat_maps": 1, "randomised": 0.0})
