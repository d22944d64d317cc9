"""Metrics for Prometheus, the page and the dashboard: counters of the run and of its parts, and problems."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.clips.writer import ClipWriter
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.settings import ClipSettings, CurveSettings, ZeroMqSettings
from overlays.sinks.web import WebSink
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve.handshake_errors import REFUSALS
from overlays.wire.curve.keys import create_keyring
from overlays.wire.viewer import Viewer
from pipeline.config_loader import validate_config
from pipeline.drops import DropReason
from pipeline.frames import Frame
from pipeline.guards.drift import BaselineRecorder, DriftDetector
from pipeline.guards.monitor import DriftTracking, ExplanationMonitor
from pipeline.loop import Pipeline
from pipeline.ports import Explainer, MetricSample, Renderer, Sink
from pipeline.result import RunLimits, RunResult
from pipeline.settings import SinkContext
from pipeline.stats import RunStats
from tests.overlays.conftest import figures
from tests.support.fakes import FakeSource
from tests.support.limits import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
ANY = "http://127.0.0.1:0"


class Explaining(Explainer):
    """Returns given explanations, and the metrics of an engine on a GPU."""

    def __init__(self, explained):
        self.explained = explained

    def explain(self, frames):
        return [
            replace(self.explained(camera=f.camera, index=f.index, taken_at=f.captured_at), frame=f) for f in frames
        ]

    def metrics(self):
        return [
            MetricSample("engine_info", 1, "What runs.", labels=(("model", "resnet50"),)),
            MetricSample("device_memory_bytes", 5e8, "Memory.", labels=(("device", "cuda"), ("kind", "tensors"))),
        ]


class Doubting(Explaining):
    """Also supports deletion checks."""

    can_mask = True

    def score_when_masked(self, explanation, finding, masking):
        return 0.1


GUARDED = {
    "regions": [{"name": "part", "polygon": [[0, 0], [1, 0], [1, 1]]}],
    "rules": [{"name": "stands", "rule": "score_drop_when_masked >= 0.2", "hold_seconds": 0}],
    "deletion": {"budget": 0.5},
}


def guardian_of(explained):
    """A monitor that has explained a camera for a minute, with a baseline of the minute before."""
    recorder = BaselineRecorder()
    minute = [explained(camera="a", index=k, taken_at=float(k), pts_seconds=float(k)) for k in range(60)]
    watching = ExplanationMonitor(Explaining(explained), slow=DriftTracking(recorder=recorder))
    for explanation in minute:
        watching.process(explanation)
    slow = DriftTracking(DriftDetector(recorder.baseline(), 600.0))
    ticks = itertools.count().__next__
    guardian = ExplanationMonitor(
        Doubting(explained), validate_config({"guards": GUARDED}, "test").guards, slow=slow, clock=ticks
    )
    for explanation in minute:
        guardian.process(explanation)
    return guardian


class Plain(Renderer):
    def render(self, explanation):
        raise AssertionError("nobody asked for a picture")

    def render_stale(self, explanation, silence):
        raise AssertionError


@contextmanager
def about(*sinks):
    """Return a page with the state of a run that has these sinks, too."""
    with WebSink(ANY, SinkContext(cameras=("line",))) as page:
        page.on_run_start(RunResult(RunStats(["line"]), [], [], parts=(*sinks, page)))
        yield page


def test_metrics_are_the_runs_counters(explained):
    with WebSink(ANY, SinkContext(cameras=("a", "b"))) as sink:
        sources = [(FakeSource(20, "a"), "wait"), (FakeSource(10, "b"), "wait")]
        Pipeline(
            sources, Explaining(explained), Plain(), [sink], limits=RunLimits(batch_size=4), stop=threading.Event()
        ).run()
        metrics = dict(figures(sink))
        assert metrics["recipro_frames_total a explained"] == metrics["recipro_frames_total a taken"] == 20
        assert metrics["recipro_batch_frames_sum"] == 30
        assert metrics["recipro_batch_frames_count"] >= 30 / 4
        assert metrics["recipro_stage_seconds_count queue"] == 30
        assert metrics["recipro_age_seconds_count b"] == 10
        assert (
            metrics["recipro_frames_total a delivered"] + metrics["recipro_frames_dropped_total a sink_queue_full"]
            == 20
        )
        assert metrics["recipro_frames_dropped_total a queue_full"] == 0
        assert metrics["recipro_viewers page"] == 0
        assert metrics["recipro_device_memory_bytes cuda tensors"] == 5e8
        assert metrics["recipro_camera_state a live"] + metrics["recipro_camera_state a ended"] == 1
        assert {name for name, _ in figures(sink)} >= {"recipro_reconnects_total a", "recipro_frame_age_seconds a"}


def test_metrics_are_valid_for_file_names_of_any_bytes():
    with about(JsonlSink(Path(os.fsdecode(b"bad\xff.jsonl")))) as sink:
        assert "recipro_recorder_lost_frames" in dict(figures(sink))


class Aged(FakeSource):
    """A live camera whose every other frame was taken a minute ago."""

    live = True

    def frames(self, stop):
        for index in range(self.count):
            captured_at = time.monotonic() - 60.0 * (index % 2)
            yield Frame(np.zeros((8, 8, 3), np.uint8), self.camera, index, captured_at)


def test_metrics_distinguish_expired_frames_from_overload(explained):
    with WebSink(ANY, SinkContext(cameras=("a",))) as sink:
        limits = RunLimits(queue_frames=30, max_age_seconds=30.0)
        outcome = Pipeline(
            [(Aged(20, "a"), "drop-oldest")], Explaining(explained), Plain(), [sink], limits=limits,
            stop=threading.Event(),
        ).run()  # fmt: skip
        metrics = dict(figures(sink))
    dropped = {reason: metrics[f"recipro_frames_dropped_total a {reason}"] for reason in DropReason}
    assert dropped[DropReason.EXPIRED_BEFORE_ENGINE] + dropped[DropReason.EXPIRED_BEFORE_RENDER] > 0
    assert {reason: count for reason, count in dropped.items() if count} == outcome.drops
    assert (
        metrics["recipro_frames_total a delivered"] + sum(dropped.values())
        == metrics["recipro_frames_total a taken"]
        == 20
    )


def test_metrics_count_web_and_network_viewers(tmp_path, overlaid, wait_until):
    create_keyring(tmp_path / "keys")
    ring = tmp_path / "keys"
    curve = CurveSettings(secret_key_file=str(ring / "server.key_secret"), authorized_keys=str(ring / "allowed"))
    with ZeroMqSink(ZeroMqSettings(uri="tcp://127.0.0.1:0", curve=curve)) as network, about(network) as page:
        metrics = dict(figures(page))
        assert [metrics[f"recipro_handshake_failures_total {kind}"] for kind in REFUSALS] == [0] * len(REFUSALS)
        with Viewer(network.endpoint, key=ring / "viewer.key_secret", server_key=str(ring / "server.key")):
            wait_until(lambda: network.idle() or network.topics)
            network.put(overlaid())
            metrics = dict(figures(page))
            assert metrics["recipro_viewers zeromq"] == 1
            assert metrics["recipro_viewers page"] == 0
        wait_until(lambda: network.idle() or not network.viewers)
        with Viewer(network.endpoint):
            wait_until(lambda: network.idle() or network.refused)
        refused = network.refused
        metrics = dict(figures(page))
        assert {kind: metrics[f"recipro_handshake_failures_total {kind}"] for kind in refused} == refused


@pytest.mark.slow
def test_full_disk_is_reported_in_metrics_and_page_until_there_is_space(tmp_path, overlaid, monkeypatch):
    full = [False]
    add = ClipWriter.add

    def adding(self, coded):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, coded)

    monkeypatch.setattr(ClipWriter, "add", adding)
    now = [0.0]
    settings = ClipSettings(uri=f"{tmp_path}/", disk_budget_mib=1)
    clips = ClipSink(settings, SinkContext(cameras=("line",)), clock=lambda: now[0])

    def record(seconds):
        for _ in range(round(30 * seconds)):
            now[0] += 1 / 30
            grey = np.full((48, 64, 3), 90, np.uint8)
            clips.put(overlaid(grey, index=round(30 * now[0]), pts_seconds=now[0], taken_at=now[0]))

    with clips, about(clips) as page:
        record(1)
        metrics = dict(figures(page))
        assert metrics["recipro_recorder_refused"] == metrics["recipro_recorder_lost_frames"] == 0
        assert metrics["recipro_recorder_bytes"] > 0
        assert metrics["recipro_recorder_budget_bytes"] == 1 << 20
        assert metrics["recipro_recorder_free_bytes"] > 0
        full[0] = True
        record(2)
        metrics = dict(figures(page))
        assert metrics["recipro_recorder_refused"] == 1
        assert metrics["recipro_recorder_lost_frames"] >= 30
        trouble = status(page)["troubles"]
        assert [problem["sink"] for problem in trouble] == [f"{tmp_path}/"]
        assert re.search(r"No space left.*\d\d frames were not recorded", trouble[0]["why"])
        full[0] = False
        record(60)
        assert dict(figures(page))["recipro_recorder_refused"] == 0
        assert status(page)["troubles"] == []


def status(page):
    with connect(page.endpoint.replace("http://", "ws://") + "/frames", proxy=None) as link:
        while True:
            received = link.recv(timeout=LIMIT_SECONDS)
            if isinstance(received, str) and (record := json.loads(received))["kind"] == "status":
                return record


def test_closed_sink_is_named_on_the_page(explained):
    class Broken(Sink):
        uri, lossless = "broken.mp4", True

        def put(self, overlay):
            raise OSError(errno.EIO, "the medium is gone")

    with WebSink(ANY, SinkContext(cameras=("a",))) as page:
        source = [(FakeSource(20, "a"), "wait")]
        Pipeline(
            source, Explaining(explained), Plain(), [page, Broken()], limits=RunLimits(), stop=threading.Event()
        ).run()
        [trouble] = status(page)["troubles"]
        assert trouble["sink"] == "broken.mp4"
        assert "the medium is gone" in trouble["why"]
        assert dict(figures(page))["recipro_sink_broken"] in {0, 1}


def test_dashboard_uses_existing_metrics(explained, tmp_path):
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asks = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    settings = ClipSettings(uri=f"{tmp_path}/", disk_budget_mib=1)
    with (
        WebSink(ANY, SinkContext(cameras=("a",))) as sink,
        ZeroMqSink("tcp://127.0.0.1:0") as network,
        ClipSink(settings, SinkContext(cameras=("a",))) as clips,
    ):
        mqtt = pytest.importorskip("overlays.sinks.mqtt.sink").MqttSink("mqtt://127.0.0.1:1")
        parts = [sink, network]
        source = [(FakeSource(12, "a"), "wait")]
        Pipeline(source, guardian_of(explained), Plain(), parts, limits=RunLimits(), stop=threading.Event()).run()
        sink.on_run_start(replace_parts(sink, clips, mqtt))
        there = {name.split(" ")[0] for name, _ in figures(sink)}
    asked_for = {name for call in asks for name in re.findall(r"\b(?:recipro|process)_\w+", call)}
    assert asked_for <= there
    assert len(asked_for) > 20
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def replace_parts(page, *more):
    outcome = page._status_board.outcome
    outcome.parts = (*outcome.parts, *more)
    return outcome


@pytest.mark.gpu
def test_gpu_network_reports_its_memory():
    import torch

    from engine.explainers.base import _memory

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held = torch.zeros(1 << 20, device="cuda")
    record = {figure.labels[1][1]: figure.value for figure in _memory("cuda")}
    assert held.nbytes <= record["tensors"] <= record["reserved"] <= record["all processes"] <= record["total"]
