"""Guards in the image, on the wire and on the page: shown while they fire, without an effect on other readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from overlays.render.guards import ALARM, alarm_lines
from overlays.render.renderer import HeatRenderer
from overlays.web.status import StatusBoard
from overlays.wire.header import decode_header
from overlays.wire.message import as_overlay, decode_message, encode, explanation_record, record_bytes
from pipeline.errors import WireError
from pipeline.frames import DeletionCheck, Frame, HeatmapStats, Overlay, Region
from pipeline.guards.state import GuardFigure, GuardState
from pipeline.ports import MetricSample, Part
from pipeline.result import RunResult
from pipeline.stats import RunStats

ROOT = Path(__file__).resolve().parents[2]
FIGURE = GuardFigure("heat_inside(belt)", 0.04, 0.6, -0.56)
FIRES = GuardState("on-the-belt", True, 1.25, "heat_inside(belt) >= 0.6, but is 0.04", 2, FIGURE)
CALM = GuardState("in-one-place", False, 0.0, "", 0)
BELT = Region("belt", ((10.0, 40.0), (150.0, 40.0), (150.0, 80.0), (10.0, 80.0)))
CHECKED = DeletionCheck("bottle", 0.9, 0.85, 3, 0.5)
GROUNDS = HeatmapStats(0.0125, 0.4, (60.0, 50.0), 0.75, {"belt": 0.04})


@pytest.fixture
def guarded(explained):
    """An explanation of a 160x120 frame with guards, regions, grounds and a deletion check."""

    def make(*states, regions=(BELT,), checked=CHECKED):
        plain = explained(np.full((120, 160, 3), 100, np.uint8), heat=np.zeros((3, 4), np.float32))
        findings = (replace(plain.first, heatmap_stats=GROUNDS),)
        return replace(plain, findings=findings, guards=states, regions=regions, deletion=checked)

    return make


def sent(explanation):
    return encode(Overlay(explanation.frame.image, explanation), sent_at_unix=1.7e9, now_monotonic=0.0)


def test_guard_states_arrive_over_the_wire(guarded):
    explanation = guarded(FIRES, CALM)
    header, _ = decode_message(sent(explanation))
    got = as_overlay(header, explanation.frame.image, now_unix=0.0, now_monotonic=0.0).explanation
    assert (got.guards, got.regions, got.deletion) == (explanation.guards, explanation.regions, explanation.deletion)
    assert got.first.heatmap_stats == GROUNDS
    assert got.firing == (FIRES,)


def test_regions_and_centroids_are_scaled_with_a_smaller_image(guarded):
    explanation = guarded(FIRES)
    small = np.zeros((60, 80, 3), np.uint8)
    header, _ = decode_message(encode(Overlay(small, explanation), sent_at_unix=0.0, now_monotonic=0.0))
    got = as_overlay(header, small, now_unix=0.0, now_monotonic=0.0).explanation
    assert got.regions[0].polygon == tuple((x / 2, y / 2) for x, y in BELT.polygon)
    assert got.first.heatmap_stats.centre == (30.0, 25.0)


def test_header_without_guards_has_no_guard_keys(explained):
    record = explanation_record(explained(), sent_at_unix=0.0, now_monotonic=0.0)
    assert not {"guards", "regions", "deletion"} & set(record)
    assert "grounds" not in record["findings"][0]


@pytest.mark.parametrize(
    ("position", "damage"),
    [
        (("guards", 0, "firing"), 1),
        (("guards", 0, "name"), "x" * 65),
        (("guards", 0, "fired"), -1),
        (("guards", 0, "figure"), {"name": "score"}),
        (("guards",), {}),
        (("regions", 0, "polygon"), [[1, 2, 3]]),
        (("regions", 0, "polygon"), [[1, 2]] * 300),
        (("regions", 0, "polygon"), [["a", 2]]),
        (("deletion", "score"), "much"),
        (("findings", 0, "grounds", "centre"), [1]),
        (("findings", 0, "grounds", "heat_inside"), {"belt": None}),
    ],
)
def test_damaged_guard_values_are_refused_with_a_message(guarded, position, damage):
    record = explanation_record(guarded(FIRES), sent_at_unix=0.0, now_monotonic=0.0)
    holder = record
    for step in position[:-1]:
        holder = holder[step]
    holder[position[-1]] = damage
    with pytest.raises(WireError, match=str(position[-1])):
        decode_header(record_bytes(record))


def painted(explanation, **options):
    return HeatRenderer(legend=False, **options).render(explanation).image


def test_alarm_draws_a_border_and_leaves_the_middle_free(guarded):
    calm, alarmed = painted(guarded(CALM, regions=())), painted(guarded(FIRES, regions=()))
    assert (calm == 100).all()
    for edge in (alarmed[0], alarmed[-1], alarmed[:, 0], alarmed[:, -1]):
        assert (edge == ALARM).all()
    assert (alarmed[10:75, 10:150] == 100).all()
    assert (alarmed[80:112, 10:100] != 100).any()


def test_regions_are_outlined_named_and_red_while_firing(guarded):
    calm, alarmed = painted(guarded(CALM)), painted(guarded(FIRES))
    assert calm[40, 60].argmax() == 2
    assert alarmed[40, 60].argmax() == 0
    assert (calm[48:72, 20:100] == 100).all()


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (300, 30), (30, 300), (48, 64)])
def test_alarm_is_drawn_on_images_of_any_size(size, guarded, explained):
    far = Region("far away" * 8, ((-1e300, 5.0), (1e300, 5.0), (3.0, 1e9)))
    plain = explained(np.full((*size, 3), 50, np.uint8))
    image = painted(replace(plain, guards=(FIRES, replace(FIRES, name="b" * 64), FIRES, FIRES), regions=(BELT, far)))
    assert image.shape == (*size, 3)


def test_surplus_alarms_are_counted(guarded):
    lines = [line.text for line in alarm_lines([replace(FIRES, name=f"g{k}") for k in range(5)])]
    assert lines[0] == "! g0 · 1.2 s"
    assert lines[1] == FIRES.message
    assert lines[-1] == "and 2 more"


def test_page_state_has_the_greatest_drift_of_each_camera(overlaid):
    class Drifting(Part):
        def metrics(self):
            for camera, statistic, value in (("line", "entropy", 0.1), ("line", "score", 0.4), ("door", "score", 0.2)):
                labels = (("camera", camera), ("label", "dent"), ("statistic", statistic))
                yield MetricSample("drift_psi", value, "how far", labels=labels)

    board = StatusBoard(["line", "door", "gate"])
    board.outcome = RunResult(RunStats([]), [], [], (Drifting(),))
    record = {camera["camera"]: camera["drift"] for camera in board.snapshot()}
    assert record == {"line": "score of dent, PSI 0.40", "door": "score of dent, PSI 0.20", "gate": None}


def test_log_record_names_firing_guards(guarded, tmp_path):
    from overlays.sinks.jsonl import JsonlSink

    explanation = guarded(FIRES, CALM)
    with JsonlSink(tmp_path / "out.jsonl") as log:
        log.put(Overlay(explanation.frame.image, explanation))
    header = decode_header((tmp_path / "out.jsonl").read_bytes().splitlines()[1])
    assert [guard.state() for guard in header.guards] == [FIRES, CALM]
    assert isinstance(explanation.frame, Frame)


def test_table_keeps_all_guard_values(guarded):
    pa = pytest.importorskip("pyarrow")
    from overlays.records.arrow_schema import SCHEMA, from_row, to_row

    for explanation in (guarded(FIRES, CALM), guarded(checked=None, regions=())):
        record = explanation_record(explanation, sent_at_unix=0.0, now_monotonic=0.0)
        (row,) = pa.Table.from_pylist([to_row(record)], schema=SCHEMA).to_pylist()
        assert from_row(row) == record
