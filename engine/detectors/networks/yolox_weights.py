"""Loads weights of YOLOX from the authors' checkpoints and from ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from engine.detectors.networks.registry import OWN_DETECTORS
from engine.detectors.networks.state import load_state
from engine.detectors.networks.yolox import Yolox
from engine.models.weights import read_state
from pipeline.errors import ModelError


def load_yolox(name: str, path: Path) -> Yolox:
    """Build a YOLOX network with the weights of a checkpoint (.pth, .safetensors) or an ONNX file.

    Args:
        name: a key of ``OWN_DETECTORS``.
        path: the file.

    Raises:
        ModelError: the file cannot be read or does not fit.
    """
    state = _onnx_state(name, path) if path.suffix == ".onnx" else read_state(path)
    predictions = [key for key in state if key.endswith("head.cls_preds.0.weight")]
    classes = len(state[predictions[0]]) if predictions else 80
    return load_state(OWN_DETECTORS[name].build(classes), state, name, path).eval()


def _onnx_state(name: str, path: Path) -> dict[str, Tensor]:
    """Return the state dict of an ONNX file, whose batch norms are merged into the convolutions.

    Exporters keep only the names of the prediction layers; other convolutions are matched in order of execution.
    """
    from engine.detectors.onnx_files.reader import load_model

    model = load_model(path)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    files = [node for node in model.graph.node if node.op_type == "Conv"]
    classes = _class_count(arrays)
    net = OWN_DETECTORS[name].build(classes)
    blocks = _convolutions(net)
    if len(files) != len(blocks):
        raise ModelError(
            f"weights {str(path)!r}: has {len(files)} convolutions, but {name} has {len(blocks)}; use another size: "
            f"{', '.join(OWN_DETECTORS)}"
        )
    state = dict(net.state_dict())
    for node, module in zip(files, blocks, strict=True):
        weight, bias = (_tensor(arrays, node, k, path) for k in (1, 2))
        if weight.shape != state[f"{module}.weight"].shape:
            raise ModelError(
                f"weights {str(path)!r}: {node.output[0]} has the shape {tuple(weight.shape)}, but {module} of {name} "
                f"has {tuple(state[f'{module}.weight'].shape)}; use another size: {', '.join(OWN_DETECTORS)}"
            )
        state.update(_folded(module, weight, bias, state))
    return state


def _class_count(arrays: Mapping[str, Any]) -> int:
    predictions = arrays.get("head.cls_preds.0.weight")
    return 80 if predictions is None else int(predictions.dims[0])


def _convolutions(net: Yolox) -> Sequence[str]:
    """Return the names of all convolutions in order of execution."""
    parts = dict(net.named_modules())
    traced = fx.symbolic_trace(net)
    names = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    return [name for name in names if isinstance(parts[name], nn.Conv2d)]


def _tensor(arrays: Mapping[str, Any], node: Any, index: int, path: Path) -> Tensor:  # noqa: ANN401
    from onnx import numpy_helper

    if index >= len(node.input) or node.input[index] not in arrays:
        parameter = "weight" if index == 1 else "bias"
        raise ModelError(
            f"weights {str(path)!r}: the convolution {node.output[0]} has no constant {parameter}; export the network "
            "with its batch norms folded"
        )
    return torch.from_numpy(np.array(numpy_helper.to_array(arrays[node.input[index]]), dtype=np.float32))


def _folded(module: str, weight: Tensor, bias: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of one convolution; a batch norm after it is set to only add the bias."""
    if f"{module}.bias" in state:
        return {f"{module}.weight": weight, f"{module}.bias": bias}
    norm = module.removesuffix("conv") + "bn"
    one = torch.ones_like(bias)
    return {
        f"{module}.weight": weight, f"{norm}.bias": bias, f"{norm}.weight": one, f"{norm}.running_mean": 0 * one,
        f"{norm}.running_var": one * (1 - 1e-3),
    }  # fmt: skip
