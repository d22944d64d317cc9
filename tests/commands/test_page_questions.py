"""A viewer of `stream` asks the running detector over the page, and is answered while the frames go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from commands.wiring.kinds import load_config
from commands.wiring.run import run_from_config
from engine.detectors.detector import Detector
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.networks.yolox import STRIDES, Yolox, YoloxSize
from engine.detectors.outputs import Level
from engine.explainers.detector import DetectorExplainer
from overlays.web.framing import unpack
from tests.support.broker import free_port
from tests.support.limits import LIMIT_SECONDS
from tests.support.tiny_detector import SIZE, with_lively_weights

LABELS = ("car", "truck", "bus", "person", "dog", "cat")


def build(config):
    """Return the explainer of a small random detector."""
    net = with_lively_weights(Yolox(YoloxSize(0.33, 0.125, depthwise=True), classes=6))
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "_preds" in name:
                weight.mul_(0.03)
    levels = [Level(stride, 3 * k, 3 * k + 1, 3 * k + 2) for k, stride in enumerate(STRIDES)]
    layout = InputFormat(SIZE, mean=(128.0,) * 3, std=(64.0,) * 3, fit="stretch")
    return DetectorExplainer(Detector("tiny", net, YoloxLayout(levels, 6), LABELS, layout), config.engine)


class Asker:
    """Asks about the first frame that it gets, then about a place outside it, and ends the run."""

    def __init__(self, address):
        self.address, self.answers, self.seen = address, [], []
        self.error = None

    def run(self):
        try:
            self._ask()
        except Exception as error:  # noqa: BLE001 - raised by the test
            self.error = error
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def _ask(self):
        with self._connection() as link:
            frame = json.loads(unpack(self._next(link, bytes))[0])
            self.seen.append(frame["index"])
            place = {"camera": frame["camera"], "index": frame["index"], "box": [40, 40, 160, 160], "label": "dog"}
            link.send(json.dumps({"id": 1, "hold": place}))
            self.answers.append(self._next(link, str))
            for number, change in ((2, {}), (3, {"box": [900, 40, 960, 160]})):
                link.send(json.dumps({"id": number, "why": place | change}))
                self.answers.append(self._next(link, str))
            link.send(json.dumps({"shown": frame["camera"]}))
            self.seen.append(json.loads(unpack(self._next(link, bytes))[0])["index"])

    def _connection(self):
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                return connect(f"{self.address}/frames", compression=None, proxy=None, max_size=None)
            except OSError:
                assert time.monotonic() < deadline, "the page did not open"
                time.sleep(0.05)

    @staticmethod
    def _next(link, kind):
        """Return the next frame, or the next answer."""
        while True:
            received = link.recv(timeout=LIMIT_SECONDS)
            if kind is bytes and isinstance(received, bytes):
                return received
            if kind is str and isinstance(received, str) and (message := json.loads(received))["kind"] == "answer":
                return message


@pytest.mark.slow
def test_stream_answers_a_viewer_while_frames_go_on(monkeypatch):
    monkeypatch.setattr("commands.wiring.run.make_explainer", build)
    monkeypatch.setattr("overlays.web.viewer_queries.MIN_INTERVAL_SECONDS", 0.0)
    port = free_port()
    settings = {
        "sources": ["line:?fps=10&size=320x240"],
        "sinks": [f"http://127.0.0.1:{port}"],
        "engine": {"backend": "eager", "cache": "off", "boxes": {"min_score": 0.6, "max_maps": 2}},
        "seconds": 8 * LIMIT_SECONDS,
    }
    asker = Asker(f"ws://127.0.0.1:{port}")
    thread = threading.Thread(target=asker.run)
    thread.start()
    outcome = run_from_config(load_config(settings, "test"))
    thread.join()
    if asker.error is not None:
        raise asker.error
    held, answer, outside = asker.answers
    assert held["labels"] == list(LABELS)
    assert (answer["index"], answer["label"]) == (asker.seen[0], "dog")
    assert [finding["map"]["mode"] for finding in answer["maps"]] == ["keep", "drop"]
    assert np.isfinite(answer["score"])
    assert "outside the image of 320x240" in outside["error"]
    assert asker.seen[1] > asker.seen[0]
    assert outcome.errors == []
