"""Metrics of the run in the Prometheus text format, read from the run's counters at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from overlays.web.status import StatusBoard
from overlays.wire.text import replace_undecodable
from pipeline.drops import DropReason
from pipeline.ports import MetricSample
from pipeline.result import RunResult
from pipeline.stats import EDGES, Histogram

STATES: Final = ("connecting", "live", "stalled", "waiting", "failed", "ended", "silent")
_BUCKET_STEP: Final = 5
"""Number of internal buckets per exported bucket: 25 bounds from 0.1 ms to 100 s, each 1.8 times the previous."""
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)


def exposition(board: StatusBoard, parts: Sequence[MetricSample]) -> bytes:
    """Return the metrics of the run in the Prometheus text format.

    Args:
        board: state of the cameras and of the run.
        parts: further samples, from sources, sinks and the engine.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(board, parts))
    ProcessCollector(registry=registry)  # memory, processor time and open files of the process (Linux)
    return generate_latest(registry)


class _Collector:
    def __init__(self, board: StatusBoard, parts: Sequence[MetricSample]) -> None:
        self._board = board
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; in label values, undecodable bytes of file names are replaced."""
        for family in self._families():
            family.samples = [
                sample._replace(labels={key: replace_undecodable(value) for key, value in sample.labels.items()})
                for sample in family.samples
            ]
            yield family

    def _families(self) -> Iterator[Metric]:
        cameras = self._board.snapshot()
        outcome = self._board.outcome
        yield from _of_cameras(cameras)
        if outcome is not None:
            yield from _of_run(outcome)
            yield from _of_engine(outcome)
        yield from _of_parts(self._parts)


def _gauge(name: str, text: str, samples: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(f"recipro_{name}", text, labels=["camera"])
    for camera, value in samples:
        family.add_metric([camera], value)
    return family


def _of_cameras(cameras: list[dict[str, Any]]) -> Iterator[Metric]:
    ages = [(c["camera"], c["age_seconds"]) for c in cameras if c["age_seconds"] is not None]
    yield _gauge("frame_age_seconds", "Age of the newest delivered frame.", ages)
    yield _gauge("frame_rate", "Delivered frames per second.", [(c["camera"], c["rate"]) for c in cameras])
    scores = [(c["camera"], c["score"]) for c in cameras]
    yield _gauge("score", "Softmax score of the newest frame's first finding.", scores)
    state = GaugeMetricFamily("recipro_camera_state", "1 for the state a camera is in.", labels=["camera", "state"])
    for camera in cameras:
        for name in STATES if camera["state"] in STATES else (*STATES, camera["state"]):
            state.add_metric([camera["camera"], name], float(camera["state"] == name))
    yield state
    reconnects = CounterMetricFamily("recipro_reconnects", "Times a camera was opened again.", labels=["camera"])
    for camera in cameras:
        reconnects.add_metric([camera["camera"]], camera["reconnects"])
    yield reconnects


def _of_run(outcome: RunResult) -> Iterator[Metric]:
    frames = CounterMetricFamily("recipro_frames", "Frames by outcome.", labels=["camera", "outcome"])
    dropped = CounterMetricFamily("recipro_frames_dropped", "Dropped frames, by reason.", labels=["camera", "reason"])
    corrupt = CounterMetricFamily(
        "recipro_frames_corrupt",
        "Damaged frames that a source left out; they do not count as taken.",
        labels=["camera"],
    )
    for worker in outcome.source_workers:
        camera, counts = worker.camera, outcome.stats.frames
        # Read before ``received``, so that drops and deliveries never exceed the received frames.
        drops, delivered = counts.drops(camera), counts.delivered(camera)
        frames.add_metric([camera, "taken"], worker.received)
        frames.add_metric([camera, "explained"], outcome.stats.cameras[camera].explained)
        frames.add_metric([camera, "delivered"], delivered)
        for reason in DropReason:
            dropped.add_metric([camera, reason.value], drops.get(reason, 0))
        corrupt.add_metric([camera], worker.health.corrupt)
    yield frames
    yield dropped
    yield corrupt
    put = CounterMetricFamily("recipro_sink_frames", "Frames by sink and outcome.", labels=["sink", "outcome"])
    for sink_worker in outcome.sink_workers:
        put.add_metric([sink_worker.name, "delivered"], sink_worker.delivered)
        put.add_metric([sink_worker.name, "dropped"], sink_worker.dropped)
    yield put
    broken = GaugeMetricFamily("recipro_sink_broken", "1 for a sink that has failed.", labels=["sink"])
    for sink_worker in outcome.sink_workers:
        broken.add_metric([sink_worker.name], float(sink_worker.failed))
    yield broken
    left = HistogramMetricFamily("recipro_age_seconds", "Age of frames at delivery to sinks.", labels=["camera"])
    for camera, stats in outcome.stats.cameras.items():
        left.add_metric([camera], *_buckets(stats.age))
    yield left


def _of_engine(outcome: RunResult) -> Iterator[Metric]:
    stages = HistogramMetricFamily("recipro_stage_seconds", "Time that frames spend in each stage.", labels=["stage"])
    for stage, histogram in list(outcome.stats.stages.items()):
        stages.add_metric([stage], *_buckets(histogram))
    yield stages
    sizes = dict(outcome.stats.batches)
    batches = HistogramMetricFamily("recipro_batch_frames", "Frames the engine explained together.")
    buckets = [(str(float(edge)), float(sum(n for size, n in sizes.items() if size <= edge))) for edge in _BATCHES]
    buckets.append(("+Inf", float(sum(sizes.values()))))
    batches.add_metric([], buckets, float(sum(size * n for size, n in sizes.items())))
    yield batches


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets (upper bound, count), each of ``_BUCKET_STEP`` internal buckets, and the sum in s."""
    counts = list(histogram.counts)
    buckets, below = [], 0
    for index, edge in enumerate(EDGES):
        below += counts[index]
        if index % _BUCKET_STEP == 0:
            buckets.append((f"{edge:.6g}", float(below)))
    buckets.append(("+Inf", float(sum(counts))))
    return buckets, histogram.total_seconds


def _of_parts(parts: Sequence[MetricSample]) -> Iterator[Metric]:
    """Yield one metric family for each sample name."""
    families: dict[str, Metric] = {}
    for sample in parts:
        name = f"recipro_{sample.name}"
        family = families.setdefault(name, Metric(name, sample.help, sample.kind))
        suffix = "_total" if family.type == "counter" else ""
        family.add_sample(name + suffix, dict(sample.labels), sample.value)
    yield from families.values()
