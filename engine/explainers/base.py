"""What all explainers share: frames to a batch, and the network's answers to explanations."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.methods.masking import hottest_cells, masked_images
from engine.methods.plan import PlanInfo
from engine.models.preprocess import Preprocessing
from engine.runtime.verification import ModelOutputs
from pipeline.frames import Explanation, Finding, Frame
from pipeline.ports import MaskingOptions, MetricSample

log = logging.getLogger(__name__)

_BATCH_SIZES: Final = 4
"""Frames of several cameras that a CPU explains together at the most: every one is as late as the last."""
_ROUNDS: Final = 5
_LONG_SECONDS: Final = 5.0
"""A batch that takes longer is not tried again and again."""


def default_batch_size(cameras: int, device: str) -> int:
    """Return how many frames may come at once where the configuration does not say."""
    return min(cameras, _BATCH_SIZES) if device == "cpu" else max(cameras, 8)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs, for the log and for people."""

    model: str
    layer: str
    grid: tuple[int, int]
    input_size: tuple[int, int]
    plan: PlanInfo
    backend: str
    precision: str
    device: str
    build_seconds: float

    def __str__(self) -> str:
        rows, columns = self.grid
        height, width = self.input_size
        return (
            f"{self.model} at {height}x{width}, layer {self.layer} ({rows}x{columns} cells), {self.plan.name} plan "
            f"({self.plan.reason}), {self.backend} {self.precision} on "
            f"{self.device}, built in {self.build_seconds:.1f} s"
        )


class BaseExplainer:
    """Explains frames with what a member says about itself and how it answers a batch."""

    def __init__(self, labels: Sequence[str], method: str, preprocessing: Preprocessing, facts: EngineInfo) -> None:
        """Take what every explanation says alike."""
        self.labels = tuple(labels)
        self.info = facts
        self._method = method
        self._preprocessing = preprocessing

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""
        if not frames:
            return []
        started_at = time.perf_counter()
        images = self._images(self._preprocessing.pixels(frames))
        ready = time.perf_counter()
        scores, classes, heat = (part.cpu().numpy() for part in self._outputs(images))
        timings = {"preprocess": ready - started_at, "explain": time.perf_counter() - ready}
        return [
            Explanation(
                frame=frame,
                findings=self._findings(scores[n], classes[n], heat[n]),
                method=self._method,
                layer=self.info.layer,
                timings=timings,
                model=self.info.model,
                heat_region=self._preprocessing.region(frame),
            )
            for n, frame in enumerate(frames)
        ]

    def _findings(
        self, scores: npt.NDArray[Any], classes: npt.NDArray[Any], heat: npt.NDArray[Any]
    ) -> tuple[Finding, ...]:
        """Return one frame's findings, each class once; the network's top class is always among them.

        An exported file may explain other classes only: its top class then has an all-zero heat map.
        """
        found = {int(c): Finding(self.labels[c], float(scores[c]), heat[t].copy(), int(c))
                 for t, c in reversed(list(enumerate(classes)))}  # fmt: skip
        told = [found[c] for c in dict.fromkeys(map(int, classes))]
        best = int(scores.argmax())
        if best not in found:
            told.append(Finding(self.labels[best], float(scores[best]), np.zeros_like(heat[0]), best))
        return tuple(told)

    def worthwhile_batch(self, cameras: int) -> int:
        """Return how many frames of so many cameras to explain together: ``default_batch_size``, or 1.

        Whichever leaves fresher pictures where cameras give more than can be explained. A frame leaves when its batch
        does, b images at t(b) seconds each, and stands until its camera's turn comes again, n t(b) seconds later: on
        average what is shown is (b + n / 2) t(b) old. Measured here, in turn: many cores may want several frames to be
        busy, few are busy with one.
        """
        most = default_batch_size(cameras, self.info.device)
        if most == 1:
            return 1
        rows, columns = self._preprocessing.input_size
        pixels = torch.randint(0, 256, (most, 3, rows, columns), dtype=torch.uint8)
        taken: dict[int, list[float]] = {1: [], most: []}
        for turn in range(_ROUNDS + 1):
            for count, seconds in taken.items():
                started_at = time.perf_counter()
                self._outputs(self._images(pixels[:count]))
                took = time.perf_counter() - started_at
                if took > _LONG_SECONDS:
                    log.info("a frame takes %.1f s and more: cameras' frames are explained one by one", took / count)
                    return 1
                if turn:
                    seconds.append(took / count)
        least = {count: min(seconds) for count, seconds in taken.items()}  # what else runs here disturbs less
        chosen = min(least, key=lambda count: (count + cameras / 2) * least[count])
        told = (1e3 * least[1], most, 1e3 * least[most], "one by one" if chosen == 1 else "together")
        log.info("a frame alone takes %.1f ms, among %d %.1f ms: cameras' frames are explained %s", *told)
        return chosen

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the finding's class's score when the frame's hottest area is masked: one more pass of one image."""
        images = self._images(self._preprocessing.pixels([explanation.frame]))
        scores = self._scores(masked_images(images, hottest_cells(finding.heat, masking.area), masking))
        return float(scores[0, finding.class_index])

    def metrics(self) -> list[MetricSample]:
        """Return what runs, and what it takes on a CUDA device; where there is none, nothing is said of memory."""
        facts = self.info
        names = {"model": facts.model, "backend": facts.backend, "precision": facts.precision, "device": facts.device}
        told = [
            MetricSample("engine_info", 1, "1, with what runs.", labels=(*names.items(), ("plan", facts.plan.name)))
        ]
        return told + (_memory(facts.device) if facts.device.startswith("cuda") else [])

    def _images(self, pixels: Tensor) -> Tensor:
        """Return the normalised batch of uint8 pixels (N, 3, H, W), where and how the network wants it."""
        raise NotImplementedError

    def _outputs(self, images: Tensor) -> ModelOutputs:
        """Return softmax scores (N, K), the explained classes (N, T), and their heat (N, T, h, w)."""
        raise NotImplementedError

    def _scores(self, images: Tensor) -> Tensor:
        """Return softmax scores (N, K): override it where they can be had for less than with their reasons."""
        return self._outputs(images)[0]


def _memory(device: str) -> list[MetricSample]:
    """Return the bytes of a CUDA device by who holds them: tensors, all of this process (cached), all processes."""
    free, total = torch.cuda.mem_get_info(device)
    held = {
        "tensors": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "all processes": total - free,
        "total": total,
    }
    said = "Memory of the device, by who holds it."
    return [
        MetricSample("device_memory_bytes", count, said, labels=(("device", device), ("kind", kind)))
        for kind, count in held.items()
    ]
