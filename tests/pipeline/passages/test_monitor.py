"""The explainer that counts."""

from __future__ import annotations

import math
from dataclasses import replace

from pipeline.frames import Box
from pipeline.passages.config import LineConfig, ZoneConfig
from pipeline.passages.counter import Places
from pipeline.passages.monitor import PassageMonitor
from pipeline.ports import Explainer
from tests.support.detections import detection, detection_frame, detections

ZONE = ZoneConfig(name="station", polygon=[(0.3, 0.0), (0.7, 0.0), (0.7, 1.0), (0.3, 1.0)])
LINE = LineConfig(name="gate", points=[(0.5, 1.0), (0.5, 0.0)])


def box_at(x: float) -> Box:
    return Box(x - 12.0, 48.0, x + 12.0, 72.0)


class Passing(Explainer):
    """Shows one object after another that moves from left to right, one every 40 frames, each second one dented."""

    def __init__(self):
        self.forgotten = []

    def explain(self, frames):
        found = []
        for frame in frames:
            number, k = divmod(frame.index, 40)
            label = "dent" if number % 2 else "ok"
            box = detection(box_at(5.0 * k), track=number + 1, label=label)
            found.append(detections(frame, [box] if k < 30 else ()))
        return found

    def forget_camera(self, camera):
        self.forgotten.append(camera)


def _run(monitor, frames, camera="road", start=0):
    passages = []
    for k in range(start, start + frames):
        passages += monitor.explain([detection_frame(k, camera=camera)])[0].passages
    return passages


def _values(monitor):
    return {(s.name, *(value for name, value in s.labels if name != "camera")): s.value for s in monitor.metrics()}


def test_monitor_counts_cameras_with_places_only():
    monitor = PassageMonitor(Passing(), lambda name: Places((ZONE,)) if name == "road" else Places(), ok_default={"ok"})
    assert len(_run(monitor, 80)) == 2
    assert _run(monitor, 80, camera="other") == []
    assert monitor.explain([detection_frame(0, camera="other")])[0].places == ()


def test_explanations_carry_recent_passages():
    monitor = PassageMonitor(Passing(), lambda _: Places((ZONE,)), ok_default={"ok"})
    _run(monitor, 80)
    [explained] = monitor.explain([detection_frame(80)])
    assert [passage.sequence for passage in explained.recent_passages] == [1, 2]
    assert explained.passages == ()


def test_metrics_have_counts_rate_rejects_and_time_to_the_verdict():
    monitor = PassageMonitor(Passing(), lambda _: Places((ZONE,), (LINE,)), ok_default={"ok"})
    _run(monitor, 40 * 40)  # 40 parts in 64 s
    values = _values(monitor)
    assert values["parts", "station", "ok"] == values["parts", "station", "dent"] == 20
    assert values["crossings", "gate", "dent", "forward"] == 20
    assert values["reject_ratio",] == 0.5
    assert values["parts_per_minute",] in {37.0, 38.0}  # one every 1.6 s
    assert values["part_verdict_seconds", "0.5"] >= 0.0
    assert values["parts_unfinished",] == 0


def test_camera_that_left_continues_its_counts_and_not_its_objects():
    explainer = Passing()
    monitor = PassageMonitor(explainer, lambda _: Places((ZONE,)), ok_default={"ok"})
    assert [p.sequence for p in _run(monitor, 60)] == [1]
    monitor.forget_camera("road")  # with the second part in the zone
    assert explainer.forgotten == ["road"]
    again = _run(monitor, 80)
    assert [(p.sequence, p.number) for p in again] == [(2, 2), (3, 3)]
    assert [place.total for place in monitor.explain([detection_frame(80)])[0].places] == [3]
    assert _values(monitor)["parts", "station", "ok"] == 2
    assert _values(monitor)["parts_unfinished",] == 1


def test_camera_that_came_back_has_the_zones_of_that_time():
    zones = {"road": Places((ZONE,))}
    monitor = PassageMonitor(Passing(), lambda name: zones[name], ok_default={"ok"})
    _run(monitor, 40)
    zones["road"] = Places((ZONE.model_copy(update={"name": "other"}),))
    assert [p.place for p in _run(monitor, 40, start=40)] == ["station"]
    monitor.forget_camera("road")
    assert [p.place for p in _run(monitor, 40, start=80)] == ["other"]


def test_frame_with_a_number_that_is_not_finite_is_not_counted():
    class Broken(Passing):
        def explain(self, frames):
            return [replace(each, timings={"explain": math.nan}) for each in super().explain(frames)]

    assert _run(PassageMonitor(Broken(), lambda _: Places((ZONE,))), 80) == []


def test_zone_outside_the_image_is_reported(caplog):
    zone = ZoneConfig(name="far", polygon=[(500.0, 0.0), (600.0, 0.0), (600.0, 100.0)])
    _run(PassageMonitor(Passing(), lambda _: Places((zone,))), 1)
    assert "road: zone far counts nothing: it lies outside the image of 160x120 pixels" in caplog.text
