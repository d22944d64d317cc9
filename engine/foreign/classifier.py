"""Compiles the parts of a foreign classifier, and verifies them against the file.

Head and tail are modules around OpenVINO's compiled parts, so the plans of ``engine.methods`` apply: *pooled* if the
tail starts with a mean over the grid, else *dense*. Plans are compared with the definition: each masked map separately
through the tail of the file.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from engine.backends.openvino import Request, hints_for
from engine.backends.registry import first_line
from engine.foreign.graph import ForeignGraph, read_graph
from engine.methods.dense import DEFAULT_BUDGET_BYTES, DensePlan
from engine.methods.kernels import Kernel
from engine.methods.plan import Plan, verify_plan
from engine.methods.pooled import PooledPlan
from engine.runtime.signal_stack import preserve_signal_stack
from engine.runtime.verification import probe_images
from engine.vendors import stop_telemetry
from pipeline.errors import BackendError, EngineError

log = logging.getLogger(__name__)

TOLERANCE: Final = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Maximum difference between ``tail(head(x))`` and the whole file, as a fraction of the largest logit."""
RUNTIME_TOLERANCE: Final = 1e-3
"""Maximum relative difference between OpenVINO and ONNX Runtime, if installed."""


class CompiledPart(nn.Module):
    """A part of a file, compiled by OpenVINO."""

    def __init__(self, model: Any, precision: str, *, any_batch: bool = False, channels_last: bool = False) -> None:  # noqa: ANN401
        """Compile a model.

        Args:
            model: an OpenVINO model with one input and one output, for a batch of 1.
            precision: fp32, bf16 or fp16.
            any_batch: True: compile it for batches of any size; False: inputs are computed one after the other.
            channels_last: True: the model's input is (N, H, W, C). ``forward`` always takes (N, C, H, W).

        Raises:
            BackendError: OpenVINO cannot compile the model.
        """
        import openvino

        super().__init__()
        self._any_batch, self._channels_last = any_batch, channels_last
        try:
            prepared = with_free_batch(model) if any_batch else model
            with preserve_signal_stack():
                compiled = openvino.Core().compile_model(prepared, "CPU", hints_for(precision))
                self._request = Request(compiled.create_infer_request())
        except RuntimeError as reason:
            raise BackendError(
                f"OpenVINO cannot compile the network ({first_line(reason)}); export it again"
            ) from reason
        self._shape = [int(side) for side in model.input(0).shape][1:]

    def forward(self, values: Tensor) -> Tensor:
        """Return the part's output for a batch."""
        values = values.float().permute(0, 2, 3, 1) if self._channels_last else values.float()
        values = values.reshape(len(values), *self._shape)
        if self._any_batch:
            output: Tensor = self._request(values).float()
            return output
        return torch.cat([self._request(values[k : k + 1]) for k in range(len(values))]).float()


class ClassTail(nn.Module):
    """A tail that returns logits (N, K), whatever the shape of the file's output."""

    def __init__(self, part: CompiledPart) -> None:
        super().__init__()
        self.part = part

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (N, K)."""
        logits: Tensor = self.part(values)
        return logits.flatten(1)


def with_free_batch(model: Any) -> Any:  # noqa: ANN401 - OpenVINO's own type
    """Return a copy of a model with a dynamic batch size, also in reshapes with a fixed batch of 1."""
    from openvino import PartialShape, opset13

    copied = model.clone()
    for node in copied.get_ordered_ops():
        if node.get_type_name() == "Reshape" and list(node.input_value(0).shape)[:1] == [1] and node.shape[0] == 1:
            target = opset13.constant(np.array([-1, *list(node.shape)[1:]], np.int64))
            node.input(1).replace_source_output(target.output(0))
    copied.reshape(PartialShape([-1, *list(copied.input(0).shape)[1:]]))
    return copied


class ForeignClassifier:
    """A classifier from another program: head, tail and plan."""

    def __init__(
        self, path: Path, *, layer: str | None = None, size: tuple[int, int] | None = None, precision: str = "fp32",
        kernel: Kernel = "point", budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:  # fmt: skip
        """Read, split, compile and verify a file.

        Args:
            path: an ``.onnx`` or ``.xml`` file.
            layer: name of the cut; None: the last complete cut that is a grid.
            size: height and width in pixels; None: the size in the file.
            precision: precision of the head; the tail is float32.
            kernel: the shape of the masks.
            budget_bytes: maximum memory of a chunk of masked maps, in bytes.

        Raises:
            ModelError, LayerError, EngineError: the file is no classifier that can be split; see ``read_graph``.
            BackendError: OpenVINO's outputs differ from ONNX Runtime's, or head and tail differ from the file.
        """
        self.graph = graph = read_graph(path, layer, size)
        self.head = CompiledPart(graph.head, precision, channels_last=graph.channels_last)
        definition = ClassTail(CompiledPart(graph.tail, "fp32"))
        with torch.inference_mode():
            self.plan, self.tail = self._choose(definition, kernel, budget_bytes)
            self._prove(definition, precision)

    def _choose(self, definition: ClassTail, kernel: Kernel, budget_bytes: int) -> tuple[Plan, nn.Module]:
        """Return the cheapest plan that agrees with the definition, and the tail for unmasked maps."""
        graph, whys = self.graph, ["the tail does not begin with a mean over the grid"]
        features = self.head(probe_images(1, graph.image_size))
        for model in (graph.after_mean, graph.tail):
            if model is None:
                continue
            try:
                part = ClassTail(CompiledPart(model, "fp32", any_batch=True))
                pooled = model is graph.after_mean
                plan: Plan = (
                    PooledPlan(None, part, kernel, flat=True)
                    if pooled
                    else DensePlan(part, kernel, whys[-1], budget_bytes)
                )
                differs = verify_plan(plan, definition, features, kernel)
            except (BackendError, RuntimeError) as reason:  # a layer with a fixed batch of 1
                differs = first_line(reason)
            if not differs:
                return plan, definition if pooled else part
            whys.append(differs)
        log.warning("%s: its tail takes one map at a time, which is slow (%s)", graph.path, whys[-1])
        return DensePlan(definition, kernel, "the tail takes one map at a time", budget_bytes), definition

    def _prove(self, tail: nn.Module, precision: str) -> None:
        graph, images = self.graph, probe_images(2, self.graph.image_size)
        whole = ClassTail(CompiledPart(graph.whole, "fp32", channels_last=graph.channels_last))(images)
        if not bool(whole.isfinite().all()):
            raise EngineError(f"{graph.path}: its scores for a probe image are not finite; export it again")
        scale = float(whole.abs().max()) or 1.0
        differs = float((tail(self.head(images)) - whole).abs().max()) / scale
        if not differs <= TOLERANCE[precision]:
            raise BackendError(
                f"{graph.path}: the network split at {graph.layer!r} differs from the whole network by "
                f"{differs:.2g} of the largest logit; the limit is {TOLERANCE[precision]:g}; use --precision fp32, or "
                "another --layer"
            )
        other = _by_onnx_runtime(graph, images)
        if other is None:
            return
        scores, scale = (torch.softmax(whole, 1), 1.0) if graph.ends_in_softmax else (whole, scale)
        differs = float((other - scores).abs().max()) / scale
        if not differs <= RUNTIME_TOLERANCE:
            unit = "" if graph.ends_in_softmax else " of the largest logit"
            raise BackendError(
                f"{graph.path}: OpenVINO's scores differ from ONNX Runtime's by {differs:.2g}{unit}; the limit is "
                f"{RUNTIME_TOLERANCE:g}; export it again with other settings, or use the PyTorch network"
            )


def _by_onnx_runtime(graph: ForeignGraph, images: Tensor) -> Tensor | None:
    """Return the scores of ONNX Runtime for images; None if it is missing or cannot run the file."""
    if graph.path.suffix.lower() != ".onnx" or importlib.util.find_spec("onnxruntime") is None:
        return None
    stop_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    values = (images.permute(0, 2, 3, 1) if graph.channels_last else images).contiguous().numpy()
    try:
        session = onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        rows = [session.run(None, {name: values[k : k + 1]})[0] for k in range(len(values))]
    except Exception as reason:  # noqa: BLE001 - ONNX Runtime has many kinds of exceptions
        log.info("%s: ONNX Runtime cannot run it (%s): it is not compared", graph.path, first_line(reason))
        return None
    return torch.from_numpy(np.concatenate(rows)).float().flatten(1)
