"""The base class of explainers: preprocesses frames and converts network outputs to explanations."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
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
from pipeline.frames import ClassScore, Explanation, Finding, Frame
from pipeline.ports import Explainer, MaskingOptions, MetricSample

log = logging.getLogger(__name__)

_MAX_CPU_BATCH: Final = 4
"""Maximum default batch size on a CPU: all frames of a batch wait for the last frame."""
_ROUNDS: Final = 5
_LONG_SECONDS: Final = 5.0
"""Maximum time per batch; the measurement stops above it."""
_SHOWN_CLASSES: Final = 3
"""Number of classes whose scores an explanation contains, with or without a heat map."""


def default_batch_size(cameras: int, device: str) -> int:
    """Return the default maximum batch size for a number of cameras and a device."""
    return min(cameras, _MAX_CPU_BATCH) if device == "cpu" else max(cameras, 8)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Describes a running engine, for the log and metrics."""

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


class EngineExplainer(Explainer):
    """An explainer that runs its network on this machine: a classifier or a detector."""

    labels: tuple[str, ...]
    """The class names."""
    info: EngineInfo
    """Describes the engine, for the log and metrics."""
    classes_exclude_each_other: bool = True
    """True if the scores of all classes add up to 1."""

    @abstractmethod
    def worthwhile_batch(self, cameras: int) -> int:
        """Return the batch size for a number of cameras."""


class BaseExplainer(EngineExplainer):
    """Explains frames; a subclass implements ``_images`` and ``_outputs``."""

    can_mask = True

    def __init__(self, labels: Sequence[str], method: str, preprocessing: Preprocessing, info: EngineInfo) -> None:
        """Create the explainer from the fields common to all explanations.

        Args:
            labels: the K class names.
            method: name of the method with its kernel.
            preprocessing: the network's input format.
            info: the engine's description.
        """
        self.labels = tuple(labels)
        self.info = info
        self._method = method
        self._preprocessing = preprocessing

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return one explanation per frame, in order; frames may have different sizes and cameras."""
        if not frames:
            return []
        started_at = time.perf_counter()
        images = self._images(self._preprocessing.pixels(frames))
        ready = time.perf_counter()
        scores, classes, heat = (part.cpu().numpy() for part in self._outputs(images))
        timings = {"preprocess": ready - started_at, "explain": time.perf_counter() - ready}
        found = [self._findings(*outputs) for outputs in zip(scores, classes, heat, strict=True)]
        return [
            Explanation(
                frame=frame,
                findings=found[n],
                method=self._method,
                layer=self.info.layer,
                timings=timings,
                model=self.info.model,
                heat_region=self._preprocessing.region(frame),
                next_classes=self._next_classes(scores[n], found[n]),
            )
            for n, frame in enumerate(frames)
        ]

    def _findings(
        self, scores: npt.NDArray[Any], classes: npt.NDArray[Any], heat: npt.NDArray[Any]
    ) -> tuple[Finding, ...]:
        """Return the findings of one frame, one per class, always including the network's top class.

        An exported file may explain only other classes; the top class then has an all-zero heat map.

        Args:
            scores: softmax scores (K,).
            classes: the explained classes (T,).
            heat: their heat maps (T, h, w).
        """
        by_class = {int(c): Finding(self.labels[c], float(scores[c]), heat[t].copy(), int(c))
                    for t, c in reversed(list(enumerate(classes)))}  # fmt: skip
        findings = [by_class[c] for c in dict.fromkeys(map(int, classes))]
        best = int(scores.argmax())
        if best not in by_class:
            findings.append(Finding(self.labels[best], float(scores[best]), np.zeros_like(heat[0]), best))
        return tuple(findings)

    def _next_classes(self, scores: npt.NDArray[Any], findings: Sequence[Finding]) -> tuple[ClassScore, ...]:
        """Return the highest scored classes without a finding; findings and these are about three together.

        They need no heat map. ``scores`` has the shape (K,).
        """
        count = min(_SHOWN_CLASSES, len(scores))
        if len(findings) >= count:
            return ()
        explained = {finding.class_index for finding in findings}
        best = np.argpartition(scores, -count)[-count:]
        ordered = sorted(map(int, best), key=lambda index: -float(scores[index]))
        return tuple(ClassScore(self.labels[c], float(scores[c])) for c in ordered if c not in explained)

    def worthwhile_batch(self, cameras: int) -> int:
        """Measure which batch size is better, ``default_batch_size`` or 1, and return it.

        The better size has the smaller mean age of the displayed frames, if the cameras deliver more frames than the
        engine can explain. With b frames per batch, t(b) seconds per frame and n cameras, a frame is delivered b t(b)
        seconds after its batch starts and is displayed for n t(b) seconds, so its mean age is (b + n / 2) t(b). Larger
        batches are faster per frame on CPUs with many cores.
        """
        largest = default_batch_size(cameras, self.info.device)
        if largest == 1:
            return 1
        rows, columns = self._preprocessing.input_size
        pixels = torch.randint(0, 256, (largest, 3, rows, columns), dtype=torch.uint8)
        times: dict[int, list[float]] = {1: [], largest: []}
        for turn in range(_ROUNDS + 1):
            for count, seconds in times.items():
                started_at = time.perf_counter()
                self._outputs(self._images(pixels[:count]))
                elapsed = time.perf_counter() - started_at
                if elapsed > _LONG_SECONDS:
                    log.info("a frame takes %.1f s or more: batch size 1", elapsed / count)
                    return 1
                if turn:
                    seconds.append(elapsed / count)
        best = {count: min(seconds) for count, seconds in times.items()}  # the minimum is least affected by other load
        chosen = min(best, key=lambda count: (count + cameras / 2) * best[count])
        log.info(
            "%.1f ms per frame with batch size 1, %.1f ms with %d: batch size %d",
            1e3 * best[1], 1e3 * best[largest], largest, chosen,
        )  # fmt: skip
        return chosen

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the softmax score of the finding's class after masking the hottest area of the frame.

        Costs one forward pass of one image.
        """
        images = self._images(self._preprocessing.pixels([explanation.frame]))
        scores = self._scores(masked_images(images, hottest_cells(finding.heat, masking.area), masking))
        return float(scores[0, finding.class_index])

    def metrics(self) -> list[MetricSample]:
        """Return the engine's description and, on a CUDA device, its memory."""
        info = self.info
        names = {"model": info.model, "backend": info.backend, "precision": info.precision, "device": info.device}
        labels = (*names.items(), ("plan", info.plan.name))
        samples = [MetricSample("engine_info", 1, "Always 1; the labels describe the engine.", labels=labels)]
        return samples + (_memory(info.device) if info.device.startswith("cuda") else [])

    def _images(self, pixels: Tensor) -> Tensor:
        """Normalise pixels, uint8 (N, 3, H, W), on the network's device and in its dtype."""
        raise NotImplementedError

    def _outputs(self, images: Tensor) -> ModelOutputs:
        """Return softmax scores (N, K), the explained classes (N, T), and their heat maps (N, T, h, w)."""
        raise NotImplementedError

    def _scores(self, images: Tensor) -> Tensor:
        """Return softmax scores (N, K); override this if scores alone cost less."""
        return self._outputs(images)[0]


def _memory(device: str) -> list[MetricSample]:
    """Return the memory in use on a CUDA device: by tensors, by this process, and by all processes."""
    free, total = torch.cuda.mem_get_info(device)
    used_bytes = {
        "tensors": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "all processes": total - free,
        "total": total,
    }
    text = "Memory of the device, by use."
    return [
        MetricSample("device_memory_bytes", count, text, labels=(("device", device), ("kind", kind)))
        for kind, count in used_bytes.items()
    ]
