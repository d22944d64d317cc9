"""Reads a detector from an ONNX file: rebuilds the network up to its last convolutions in PyTorch.

The outputs of a file may be decoded boxes, concatenated maps or the result of a non-maximum suppression; these are not
used. From each output, the graph is followed back to the first convolution, whose output is a raw map. The rebuilt
network is compared with the original runtime (``prove_against_runtime``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from engine.detectors.onnx_files.operators import OPERATORS, GraphBuilder, Operand, Value
from pipeline.errors import ModelError

TOLERANCE: Final = 1e-3
"""Maximum difference from the original runtime, as a fraction of a map's largest value."""

_MAX_LISTED: Final = 6


@dataclass(frozen=True, eq=False)
class OnnxDetector:
    """A detector read from a file."""

    module: fx.GraphModule
    """Computes raw maps (N, C, h, w) from images (N, 3, H, W)."""
    tensors: tuple[str, ...]
    """Name of each raw map in the file."""
    shapes: tuple[tuple[int, int, int], ...]
    """Channels, rows and columns of each raw map at ``image_size``."""
    activations: tuple[frozenset[str], ...]
    """The ``Sigmoid``, ``Softmax`` and ``Exp`` operators that follow each raw map."""
    image_size: tuple[int, int]
    """Height and width of the input in pixels: those in the file, or ``image_size`` if they are dynamic."""
    fixed_size: bool
    """True if the file declares its input size."""


def read_onnx(path: Path, image_size: tuple[int, int] | None = None) -> OnnxDetector:
    """Read a detector from a file.

    Args:
        path: the file.
        image_size: height and width in pixels; None: those in the file, or 416x416 if they are dynamic.

    Raises:
        ModelError: the file cannot be read, has an unsupported operator, or no convolution.
    """
    model = load_model(path)
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    stated = _stated_size(inputs, path)
    size = image_size or stated or (416, 416)
    raw = _raw_maps(model, constants)
    if not raw:
        raise ModelError(f"{str(path)!r}: no output comes from a convolution; use the ONNX file of a detector")
    try:
        builder, values = _build(model, constants, inputs[0].name, raw, size)
    except ModelError as reason:
        raise ModelError(f"{str(path)!r}: {reason}; {_listed(model)}") from None
    order = sorted(range(len(raw)), key=lambda k: -values[k].probe.shape[2])
    tensors, values = tuple(raw[k] for k in order), [values[k] for k in order]
    builder.graph.output(tuple(value.node for value in values))
    return OnnxDetector(
        fx.GraphModule(builder.root, builder.graph, "OnnxDetector"), tensors,
        tuple((int(v.probe.shape[1]), int(v.probe.shape[2]), int(v.probe.shape[3])) for v in values),
        tuple(_activations(model, name) for name in tensors), size, stated is not None,
    )  # fmt: skip


def load_model(path: Path) -> Any:  # noqa: ANN401 - onnx has no types
    """Load an ONNX file.

    Raises:
        ModelError: the file is missing or cannot be read, or the package ``onnx`` is missing.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError(
            f"{str(path)!r}: reading ONNX files needs the package onnx: uv sync --inexact --extra export"
        ) from None
    if not path.is_file():
        raise ModelError(f"{str(path)!r}: no such file; use the path of an ONNX file")
    try:
        return onnx.load(str(path))
    except Exception as reason:  # protobuf has its own errors
        first = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
        raise ModelError(f"{str(path)!r}: not readable as an ONNX file ({first})") from reason


def _array(tensor: Any) -> NDArray[Any]:  # noqa: ANN401
    from onnx import numpy_helper

    values: NDArray[Any] = numpy_helper.to_array(tensor)
    return values


def _stated_size(inputs: Sequence[Any], path: Path) -> tuple[int, int] | None:
    if not inputs:
        raise ModelError(f"{str(path)!r}: is empty, or has no input; export it again")
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise ModelError(f"{str(path)!r}: has {len(inputs)} inputs ({names}); a detector has one input, the images")
    sizes = [dimension.dim_value for dimension in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4 or sizes[1] not in {0, 3}:
        raise ModelError(
            f"{str(path)!r}: the input {inputs[0].name!r} has the shape {sizes}; images are (N, 3, H, W), channels "
            "first"
        )
    return (sizes[2], sizes[3]) if sizes[2] and sizes[3] else None


def _raw_maps(model: Any, constants: dict[str, NDArray[Any]]) -> list[str]:  # noqa: ANN401
    """Return the names of the last convolutions' outputs, in order of execution."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    pending, seen = [entry.name for entry in model.graph.output], set[str]()
    while pending:
        name = pending.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv" and not _counts_bins(node, constants):
            found.add(name)
        else:
            pending.extend(node.input)
    return [name for node in model.graph.node for name in node.output if name in found]


def _counts_bins(node: Any, constants: dict[str, NDArray[Any]]) -> bool:  # noqa: ANN401
    """Return whether a convolution only computes a distribution's expectation (YOLOv8's DFL)."""
    weight = constants.get(node.input[1])
    return weight is not None and len(weight) == 1 and np.array_equal(weight.ravel(), np.arange(weight.size))


def _activations(model: Any, name: str) -> frozenset[str]:  # noqa: ANN401
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for source in node.input:
            users.setdefault(source, []).append(node)
    found, pending, seen = set(), [name], set[str]()
    while pending:
        for node in users.get(pending.pop(), []):
            if node.op_type in {"Sigmoid", "Softmax", "Exp"}:
                found.add(str(node.op_type))
            new = [output for output in node.output if output not in seen]
            seen.update(new)
            pending.extend(new)
    return frozenset(found)


def _build(
    model: Any,  # noqa: ANN401
    constants: dict[str, NDArray[Any]],
    image: str,
    raw: Sequence[str],
    size: tuple[int, int],
) -> tuple[GraphBuilder, list[Value]]:
    builder = GraphBuilder()
    values: dict[str, Operand] = dict(constants)
    values[""] = None
    values[image] = Value(builder.graph.placeholder("images"), torch.zeros(1, 3, *size))
    needed = _needed(model, raw)
    with torch.inference_mode():
        for node in model.graph.node:
            if needed.isdisjoint(node.output):
                continue
            results = _translate(builder, node, [values[name] for name in node.input])
            values.update(zip(node.output, results, strict=False))
    return builder, [value for name in raw if isinstance(value := values[name], Value)]


def _needed(model: Any, raw: Sequence[str]) -> set[str]:  # noqa: ANN401
    producers = {name: node for node in model.graph.node for name in node.output}
    needed, pending = set[str](), list(raw)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending.extend(producers[name].input if name in producers else ())
    return needed


def _translate(builder: GraphBuilder, node: Any, operands: list[Operand]) -> Sequence[Operand]:  # noqa: ANN401
    from onnx import helper

    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Shape" and isinstance(operands[0], Value):
        return [np.array(operands[0].probe.shape, dtype=np.int64)]
    if not any(isinstance(operand, Value) for operand in operands):
        return _fold(node, operands)
    translate = OPERATORS.get(node.op_type)
    if translate is None:
        raise ModelError(f"the operator {node.op_type} ({node.output[0]}) is not supported")
    try:
        result = translate(builder, node.output[0], operands, attributes)
    except ModelError as reason:
        raise ModelError(f"the operator {node.op_type} ({node.output[0]}): {reason}") from None
    except (RuntimeError, ValueError, IndexError) as reason:
        first = str(reason).splitlines()[0][:120]
        raise ModelError(f"the operator {node.op_type} ({node.output[0]}) cannot be computed: {first}") from reason
    return [result] if isinstance(result, Value) else list(result)


def _fold(node: Any, operands: list[Operand]) -> list[NDArray[Any]]:  # noqa: ANN401
    """Compute an operator on constants with ONNX's reference implementation."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    inputs = {name: value for name, value in zip(node.input, operands, strict=True) if name}
    entries = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([node], "constant", entries, results)
    computed = ReferenceEvaluator(helper.make_model(graph)).run(None, inputs)
    return [np.asarray(value) for value in computed]


def _listed(model: Any) -> str:  # noqa: ANN401
    kinds = sorted({node.op_type for node in model.graph.node} - set(OPERATORS) - {"Constant", "Shape"})
    if not kinds:
        return "export the detector without it"
    listed = ", ".join(kinds[:_MAX_LISTED]) + (", ..." if len(kinds) > _MAX_LISTED else "")
    return f"operators of the file that are not supported before the last convolutions: {listed}"


def prove_against_runtime(path: Path, detector: OnnxDetector) -> float:
    """Compare the raw maps with ONNX Runtime, or with ONNX's reference implementation.

    Returns:
        The largest difference, as a fraction of the map's largest value.

    Raises:
        ModelError: a map differs.
    """
    probe = torch.rand(1, 3, *detector.image_size, generator=torch.Generator().manual_seed(0)) * 255
    answers = _run_original(load_model(path), detector.tensors, probe.numpy())
    with torch.inference_mode():
        maps: tuple[Tensor, ...] = detector.module(probe)
    worst = 0.0
    for name, found, answer in zip(detector.tensors, maps, answers, strict=True):
        expected = torch.from_numpy(answer)
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        worst = max(worst, difference)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{str(path)!r}: the map {name} of the rebuilt network differs from that of the file by "
                f"{difference:.2g} of its largest value; the limit is {TOLERANCE:g}; this file cannot be used"
            )
    return worst


def _run_original(model: Any, tensors: Sequence[str], probe: NDArray[np.float32]) -> list[NDArray[Any]]:  # noqa: ANN401
    """Run the part of a file that computes ``tensors``."""
    from onnx import helper

    constants = {tensor.name for tensor in model.graph.initializer}
    image = next(entry.name for entry in model.graph.input if entry.name not in constants)
    needed = _needed(model, tensors)
    graph = helper.make_graph(
        [node for node in model.graph.node if not needed.isdisjoint(node.output)], "raw_maps", model.graph.input,
        [helper.make_tensor_value_info(name, 1, None) for name in tensors], model.graph.initializer,
    )  # fmt: skip
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        with np.errstate(all="ignore"):
            answers = ReferenceEvaluator(part).run(list(tensors), {image: probe})
        return [np.asarray(answer) for answer in answers]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    computed: list[NDArray[Any]] = session.run(list(tensors), {image: probe})
    return computed
