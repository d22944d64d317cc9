"""Reads an ONNX or OpenVINO IR classifier and cuts its graph into head and tail.

A *complete cut* is a tensor that every path from the image to the scores passes. Only at a complete cut does masking
affect all information from the image: the part after it has no other input. The default cut is the last complete cut
whose tensor is a grid of cells before the pooling; ``layer`` names another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine.backends.registry import first_line
from engine.vendors import stop_telemetry
from pipeline.errors import EngineError, LayerError, ModelError, did_you_mean

_DEFAULT_SIZE: Final = (224, 224)
_MAX_LISTED: Final = 6
_POOLING: Final = frozenset({"AvgPool", "AdaptiveAvgPool"})
"""Operations whose output does not count as a layer, such as VGG's 7x7 pooling."""
_CONSTANT: Final = frozenset({"Constant", "ShapeOf", "Result"})
"""Operations whose output does not depend on the image, because shapes are fixed."""


@dataclass(frozen=True, eq=False)
class ForeignGraph:
    """A classifier's graph for one image, split at a cut."""

    path: Path
    whole: Any
    """The file's model, from images to logits."""
    head: Any
    """The part from images to the feature map."""
    tail: Any
    """The part from the feature map, its only input, to logits."""
    after_mean: Any | None
    """The tail without its first operation, a mean over the grid; None if that is another operation."""
    layer: str
    grid: tuple[int, int]
    channels: int
    classes: int
    image_size: tuple[int, int]
    """Height and width in pixels."""
    channels_last: bool
    """True if the file takes images (N, H, W, 3)."""
    ends_in_softmax: bool
    """True if the file's output is the softmax of the logits."""


def read_graph(path: Path, layer: str | None = None, size: tuple[int, int] | None = None) -> ForeignGraph:
    """Read a file and split its graph.

    Args:
        path: an ONNX file or the ``.xml`` file of an OpenVINO IR.
        layer: name of the cut, an operation or tensor in the file; None: the default cut.
        size: height and width in pixels; None: the size in the file, or 224x224 if the file has a dynamic size.

    Raises:
        ModelError: the file cannot be read, or is no classifier of RGB images.
        EngineError: the network does not accept the size, or its scores are not for a softmax.
        LayerError: there is no complete cut with this name, or no complete cut at all.
    """
    model = _read(path)
    import openvino

    channels_last, size = _fix_shape(path, model, size)
    logits, ends_in_softmax = _logits(path, model)
    inside = _between(model, logits)
    cuts = _complete_cuts(inside)
    cut = _named(layer, cuts, inside) if layer else _last_grid(cuts)
    behind = inside[1 + [node.get_name() for node in inside].index(cut.get_node().get_name()) :]
    _refuse_transformer(cut, behind)
    whole, head = (openvino.Model([end], model.get_parameters(), "part").clone() for end in (logits, cut))
    mean = _mean_after(cut, behind)
    tail = _part_from(cut, logits).clone()
    after_mean = None if mean is None else _part_from(mean, logits)
    grid, classes = (cut.shape[2], cut.shape[3]), int(np.prod(list(logits.shape)))
    layer = cut.get_node().get_friendly_name()
    return ForeignGraph(
        path, whole, head, tail, after_mean, layer, grid, cut.shape[1], classes, size, channels_last, ends_in_softmax
    )


def grid_of(output: Any) -> tuple[int, int] | None:  # noqa: ANN401 - OpenVINO's own type
    """Return (h, w) of a tensor (1, C, h, w) with more than one cell; None for other tensors."""
    shape = list(output.shape)
    return (shape[2], shape[3]) if len(shape) == 4 and shape[2] * shape[3] > 1 else None


def _read(path: Path) -> Any:  # noqa: ANN401
    stop_telemetry()
    try:
        import openvino
    except ImportError:
        raise ModelError(f"{path}: this file needs OpenVINO, which is not installed: pip install openvino") from None
    if not path.is_file():
        raise ModelError(f"{path}: no such file; use the path of an .onnx file, or of an OpenVINO .xml file")
    try:
        return openvino.Core().read_model(str(path))
    except Exception as reason:  # OpenVINO has many kinds of exceptions
        remedy = "OpenVINO has all of its operators"
        if path.suffix == ".xml" or "external" in str(reason):
            remedy = "the files with its weights are beside it under their original names"
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        detail = lines[-1][:200] if lines else type(reason).__name__
        raise ModelError(
            f"{path}: OpenVINO cannot read it ({detail}); check that it is complete and that {remedy}"
        ) from reason


def _fix_shape(path: Path, model: Any, size: tuple[int, int] | None) -> tuple[bool, tuple[int, int]]:  # noqa: ANN401
    """Set the input shape to one image; return whether channels are last, and the image size."""
    from openvino.passes import ConstantFolding, Manager

    if len(model.inputs) != 1:
        names = ", ".join(entry.any_name for entry in model.inputs)
        raise ModelError(f"{path}: has {len(model.inputs)} inputs ({names}); a classifier has one input, the images")
    entry = model.input(0)
    sides = [side.get_length() if side.is_static else 0 for side in entry.partial_shape]
    kind = entry.element_type.get_type_name()
    if len(sides) != 4 or kind != "f32" or 3 not in (sides[1], sides[3]):
        raise ModelError(
            f"{path}: takes {kind} of shape {entry.partial_shape}; a classifier must take f32 RGB images (N, 3, H, W) "
            "or (N, H, W, 3): export it again with such an input"
        )
    channels_last = sides[1] != 3
    stated = (sides[1], sides[2]) if channels_last else (sides[2], sides[3])
    size = size or (stated if all(stated) else _DEFAULT_SIZE)
    try:
        model.reshape([1, *size, 3] if channels_last else [1, 3, *size])
    except RuntimeError as reason:
        own = "x".join(map(str, stated)) if all(stated) else "no size"
        raise EngineError(
            f"{path}: does not accept one {size[0]}x{size[1]} image ({first_line(reason)}); the file declares {own} "
            f"and a batch of {sides[0] or 'any number'}: export it with a batch of 1 or a dynamic batch, or use "
            "--input-size"
        ) from reason
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    return channels_last, size


def _logits(path: Path, model: Any) -> tuple[Any, bool]:  # noqa: ANN401
    """Return the output that contains the logits, and whether a softmax follows it in the file."""
    if len(model.outputs) != 1:
        raise ModelError(
            f"{path}: has {len(model.outputs)} outputs, but a classifier has only one, the scores (N, classes); if "
            "the file is a detector, export it to ONNX without outputs for other tasks"
        )
    scores = model.output(0).get_node().input_value(0)
    shape = list(scores.shape) if scores.partial_shape.is_static else []
    count = int(np.prod(shape)) if shape else 0
    if len(shape) < 2 or shape[0] != 1 or max(shape) != count:
        raise ModelError(
            f"{path}: its output has the shape {scores.partial_shape}; a classifier's output is (N, classes)"
        )
    if count == 1:
        raise EngineError(
            f"{path}: returns one score, whose softmax is always 1, so every heat map would be empty; export it with "
            "two scores: torch.cat((torch.zeros_like(score), score), 1) is equivalent to a sigmoid"
        )
    kind = scores.get_node().get_type_name()
    if kind == "Sigmoid":
        raise EngineError(
            f"{path}: ends in a sigmoid of each class, but Recipro-CAM is defined for a softmax over all classes; "
            "export the network without its last sigmoid if one class excludes the others"
        )
    return (scores.get_node().input_value(0), True) if kind == "Softmax" else (scores, False)


def _complete_cuts(inside: list[Any]) -> list[Any]:
    """Return the complete cuts in order of execution."""
    position = {node.get_name(): k for k, node in enumerate(inside)}
    cuts, reach = [], 0
    for k, node in enumerate(inside):
        # If a later node reads a node before this one, that is a path around this one.
        if reach <= k and node.get_output_size() == 1 and node.get_type_name() != "Parameter":
            cuts.append(node.output(0))
        readers = [user.get_node() for output in node.outputs() for user in output.get_target_inputs()]
        reach = max([reach, *(position.get(reader.get_name(), 0) for reader in readers)])
    return cuts


def _between(model: Any, logits: Any) -> list[Any]:  # noqa: ANN401
    """Return the operations on paths from the image to the scores, in order of execution."""
    ordered = model.get_ordered_ops()
    carrying = set[str]()
    for node in ordered:
        sources = {value.get_node().get_name() for value in node.input_values()}
        if node.get_type_name() == "Parameter" or (node.get_type_name() not in _CONSTANT and sources & carrying):
            carrying.add(node.get_name())
    needed = {logits.get_node().get_name()}
    for node in reversed(ordered):
        if node.get_name() in needed:
            needed.update(value.get_node().get_name() for value in node.input_values())
    return [node for node in ordered if node.get_name() in carrying & needed]


def _names(output: Any) -> set[str]:  # noqa: ANN401
    return {output.get_node().get_friendly_name(), *output.get_names()}


def _last_grid(cuts: list[Any]) -> Any:  # noqa: ANN401
    """Return the last complete cut that is a grid with more channels than rows and columns."""
    for cut in reversed(cuts):
        grid = grid_of(cut)
        if grid and cut.shape[1] > max(grid) and cut.get_node().get_type_name() not in _POOLING:
            return cut
    raise LayerError(
        "the file has no default layer: no grid (1, C, h, w) with more channels than rows and columns lies on all "
        f"paths from the input to the scores. Choose a complete cut with --layer ({_listed(cuts)}), or use a CNN"
    )


def _named(layer: str, cuts: list[Any], inside: list[Any]) -> Any:  # noqa: ANN401
    names = [name for node in inside for name in _names(node.output(0))]
    found = next((cut for cut in cuts if layer in _names(cut)), None)
    if found is None and layer in names:
        raise LayerError(
            f"layer {layer!r}: the scores also depend on a path that bypasses it, which masks would not change; "
            f"layers that can be used: {_listed(cuts)}"
        )
    if found is None:
        raise LayerError(
            f"the file has no layer {layer!r}.{did_you_mean(layer, names)} Layers that can be used: {_listed(cuts)}"
        )
    if grid_of(found) is None:
        raise LayerError(
            f"layer {layer!r} outputs {tuple(found.shape)}, which is not a grid of cells; layers that can be used: "
            f"{_listed(cuts)}"
        )
    return found


def _listed(cuts: list[Any]) -> str:
    grids = [
        f"{cut.get_node().get_friendly_name()} ({cut.shape[2]}x{cut.shape[3]}, {cut.shape[1]} channels)"
        for cut in cuts
        if grid_of(cut)
    ]
    return ", ".join(grids[-_MAX_LISTED:]) or "none"


def _refuse_transformer(cut: Any, behind: list[Any]) -> None:  # noqa: ANN401
    """Raise LayerError if tokens or attention follow the cut, the input of a transformer."""
    cells = cut.shape[2] * cut.shape[3]
    for node in behind:
        kind, shape = node.get_type_name(), list(node.output(0).partial_shape.to_shape())
        tokens = len(shape) == 3 and shape[1] in {cells, cells + 1} and shape[2] > 1
        if tokens or kind in {"Softmax", "ScaledDotProductAttention"}:
            raise LayerError(
                f"layer {cut.get_node().get_friendly_name()!r} is the input of a transformer ({kind} "
                f"{node.get_friendly_name()!r} follows), and Recipro-CAM does not apply to it; use a CNN, or a vision "
                "transformer of `run.py models` by its name with --weights"
            )


def _part_from(cut: Any, logits: Any) -> Any:  # noqa: ANN401
    """Return the model from ``cut`` to ``logits``; OpenVINO refuses paths around the cut."""
    import openvino
    from openvino import opset13

    entry = values = opset13.parameter(list(cut.shape), openvino.Type.f32)
    if cut.element_type != openvino.Type.f32:  # a file may compute in half precision
        values = opset13.convert(entry, cut.element_type.get_type_name())
    for user in list(cut.get_target_inputs()):
        user.replace_source_output(values.output(0))
    return openvino.Model([logits], [entry], "tail")


def _mean_after(cut: Any, behind: list[Any]) -> Any | None:  # noqa: ANN401
    """Return the output of a mean over the whole grid, if it is the cut's only reader; else None."""
    names = {node.get_name() for node in behind}
    readers = [user.get_node() for user in cut.get_target_inputs() if user.get_node().get_name() in names]
    if len(readers) != 1 or readers[0].get_type_name() not in {"ReduceMean", "AvgPool"}:
        return None
    mean = readers[0].output(0)
    return mean if list(mean.shape) in ([1, cut.shape[1]], [1, cut.shape[1], 1, 1]) else None
