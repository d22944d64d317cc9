"""Table of thresholds: counts follow the definition, in Python and in the page's script."""

import html
import json
import re

import numpy as np
import pytest

from overlays.reports.thresholds import (
    FIRST_THRESHOLD,
    cells_of,
    count_flagged,
    count_named,
    good_class,
)
from overlays.reports.training import conclusion, training_html
from pipeline.frames import Box
from tests.support.browser import CHROMIUM, browsing

LABELS = ("dent", "<b>ok", "ok")
RNG = np.random.default_rng(0)
SCORES = RNG.dirichlet((0.6, 0.6, 0.6), 60).round(4)
TRUTH = RNG.integers(0, 3, 60)


def by_definition(threshold, good=2):
    rows = []
    for k in range(3):
        flagged = [row[k] >= threshold for row in SCORES]
        rows.append([(true == k, hit) for true, hit in zip(TRUTH, flagged, strict=True)])
    rows.append([(true != good, row[good] < threshold) for true, row in zip(TRUTH, SCORES, strict=True)])
    table = []
    for pairs in rows:
        hits = pairs.count((True, True))
        flagged, real = sum(hit for _, hit in pairs), sum(true for true, _ in pairs)
        shares = [f"{int(1000 * hits / whole + 0.5) / 10:.1f}%" if whole else "-" for whole in (flagged, real)]
        table.append([*shares, str(pairs.count((True, False))), str(pairs.count((False, True)))])
    return table


def report():
    top = SCORES.argmax(1)
    confusion = [[int(((true == TRUTH) & (top == label)).sum()) for label in range(3)] for true in range(3)]
    answers = [[f"{k}.png", int(TRUTH[k]), int(top[k]), float(SCORES[k, top[k]])] for k in range(len(TRUTH))]
    test = {
        "images": 60, "accuracy": float((top == TRUTH).mean()), "mean_recall": 0.5, "recalls": [0.5] * 3,
        "confusion": confusion, "predictions": answers, "scores": SCORES.tolist(), "interval": [0.2, 0.4],
    }  # fmt: skip
    return {
        "model": "part.safetensors", "labels": list(LABELS), "metrics": {"test": test}, "epochs": [],
        "splits": {"test": []}, "layer": "features", "input_size": [64, 64], "fit": "stretch", "grouped": True,
        "provenance": {"wish": {}, "course": {}}, "left_out": [],
        "near_duplicates": [{"split": "test", "path": "<u>", "learned": "b", "different_bits": 3}],
    }  # fmt: skip


def test_threshold_table_shows_the_first_threshold_without_a_script():
    page = training_html(report(), lambda _: np.zeros((20, 30, 3), np.uint8))
    rows = re.findall(r'<tr id="(?:class\d|rejected)"><th[^>]*>[^<]*</th>((?:<td[^>]*>[^<]*</td>)+)</tr>', page)
    assert [re.findall(r">([^<]+)<", row) for row in rows] == by_definition(FIRST_THRESHOLD)
    data = json.loads(html.unescape(re.search(r'data-scores="([^"]*)"', page)[1]))
    assert data == {"labels": list(LABELS), "truth": TRUTH.tolist(), "scores": SCORES.tolist()}
    assert "<b>ok" not in page


def test_count_named_follows_the_confusion_matrix():
    table = [[5, 1, 0], [2, 7, 1], [0, 0, 0]]
    assert [count_named(table, k) for k in range(3)] == [
        count_flagged(truth, flagged)
        for truth, flagged in (
            ([True] * 6 + [False] * 10, [True] * 5 + [False] + [True] * 2 + [False] * 8),
            ([False] * 6 + [True] * 10, [False] * 5 + [True] + [False] * 2 + [True] * 7 + [False]),
            ([False] * 16, [False] * 15 + [True]),
        )
    ]
    assert cells_of(count_named([[0, 3], [0, 4]], 0)) == ("-", "0.0%", "3", "0")


@pytest.mark.parametrize(
    ("labels", "good"),
    [
        (("MT_Free", "MT_Crack"), 0),
        (("dent", "OK"), 1),
        (("no defect", "dent"), 0),
        (("ok", "good"), None),
        (("a",), None),
    ],
)
def test_good_class_is_found_by_its_name(labels, good):
    assert good_class(labels) == good


def test_conclusion_counts_missed_classes_and_parts_classified_as_good():
    text = conclusion(report())
    table = np.array(report()["metrics"]["test"]["confusion"])
    assert f"{table[:, 2].sum() - table[2, 2]} images of other classes are classified as ok" in text
    assert "20% to 40%" in text
    assert "without the 1 images that look similar to training images" in text
    ungrouped = conclusion(report() | {"grouped": False})
    assert "%" not in ungrouped[ungrouped.index("No conclusion") :]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_slider_counts_in_the_browser_by_the_definition(tmp_path):
    path = tmp_path / "report.html"
    heats = {"0.png": (np.eye(4, dtype=np.float32), Box(0, 0, 30, 20))}
    path.write_text(training_html(report(), lambda _: np.zeros((20, 30, 3), np.uint8), heats), encoding="utf-8")
    requests: list[str] = []
    problems: list[str] = []
    with browsing() as browser:
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text))
        tab.goto(path.as_uri())

        def rows():
            return tab.evaluate(
                "[...document.querySelectorAll('#thresholds tr[id]:not([hidden])')].map("
                "row => [...row.cells].slice(1).map(cell => cell.textContent))"
            )

        assert rows() == by_definition(FIRST_THRESHOLD)
        for threshold in (0.0, 0.31, 0.9, 1.0):
            tab.locator("#threshold").fill(str(threshold))
            assert tab.locator("#level").inner_text() == f"{threshold:.2f}"
            assert rows() == by_definition(threshold)
        tab.locator("#good").select_option("0")
        assert rows() == by_definition(1.0, good=0)
        tab.locator("#good").select_option("-1")
        assert rows() == by_definition(1.0)[:3]
    assert not problems
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
