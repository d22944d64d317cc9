"""Fakes: a camera that counts."""

import time

import numpy as np

from pipeline.frames import Frame
from pipeline.ports import Health, Source


class FakeSource(Source):
    """Yields numbered frames, as fast as they are read."""

    uri = "fake:"

    def __init__(self, count=10, camera="fake", fails=None, gate=None):
        self.camera = camera
        self.count = count
        self.fails = fails
        self.gate = gate
        self.given = 0
        self.health = Health("live")

    def frames(self, stop):
        for k in range(self.count):
            if self.gate is not None:
                while not self.gate.wait(0.01):
                    if stop.is_set():
                        return
            if stop.is_set():
                return
            self.given += 1
            yield Frame(np.zeros((2, 2, 3), np.uint8), self.camera, k, time.monotonic())
        if self.fails:
            raise self.fails
