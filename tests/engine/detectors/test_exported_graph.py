"""An exported detector gives the boxes, scores and maps of the engine, in other programs too."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from engine.detectors.detector import Detector
from engine.detectors.exported_graph import ExplainedDetector
from engine.detectors.graph import normalise
from engine.detectors.input_format import InputFormat
from engine.detectors.layouts import YoloxLayout
from engine.detectors.loader import load_detector
from engine.detectors.outputs import Level
from engine.export.detectors import OUTPUTS, export_detector, mismatch
from engine.export.metadata import is_foreign_onnx, read_metadata
from pipeline.errors import ConfigError, EngineError, LayerError, ModelError
from tests.support.tiny_detector import SIZE, with_lively_weights

LABELS = tuple("abcdef")


@pytest.fixture(scope="module")
def detector(yolox_module, yolox):
    """A random detector whose scores are not saturated."""
    module = copy.deepcopy(yolox_module)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "_preds" in name:
                weight.mul_(0.03)
    return Detector("tiny", module, yolox[1], LABELS, InputFormat(SIZE, "bgr", (128.0,) * 3, (64.0,) * 3))


@pytest.fixture(scope="module")
def headed():
    """A detector of few layers, since an export takes its time for each of them."""
    return headed_detector([nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU()])


@pytest.fixture(scope="module")
def exported(headed, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "explained.onnx"
    return path, export_detector(headed, path)


def outputs_of(module, images, min_score):
    with torch.inference_mode():
        values = module(images, torch.tensor(min_score))
    return {name: value.numpy().copy() for name, value in zip(OUTPUTS, values, strict=True)}


def lowest(detector, images, boxes):
    return float(detector.candidates(images).log_scores.flatten().topk(boxes).values[-1].exp())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_exported_graph_gives_the_boxes_and_maps_of_the_engine(detector, mode):
    module = ExplainedDetector(detector, SIZE, 40, mode).eval()
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(8))
    min_score = lowest(detector, images, 150)
    outputs = outputs_of(module, images, min_score)
    assert mismatch(detector, module, outputs, images, min_score) == ""
    count = int(outputs["count"])
    assert count > 10
    assert np.ptp(outputs["heat"][:count], axis=(1, 2)).max() > 1e-3
    windows = outputs["regions"][:count]
    assert (windows.min() < 0.0) or (windows[:, 2].max() > SIZE[1])  # maps at the image's edges are among them
    outputs["heat"][1, 2, 2] += 0.1 * np.ptp(outputs["heat"][1])
    assert "the map of box 1" in mismatch(detector, module, outputs, images, min_score)


def test_exported_graph_returns_no_box_above_the_highest_score(detector):
    module = ExplainedDetector(detector, SIZE, 10, "keep").eval()
    outputs = outputs_of(module, torch.zeros(1, 3, *SIZE), 0.999999)
    assert int(outputs["count"]) == 0
    assert (outputs["classes"] == -1).all()
    assert not any(outputs[name].any() for name in ("boxes", "scores", "heat", "regions", "outside"))


def test_exported_graph_never_returns_a_nan_score(detector):
    module = ExplainedDetector(detector, SIZE, 10, "keep").eval()
    outputs = outputs_of(module, torch.full((1, 3, *SIZE), torch.nan), 0.01)
    assert int(outputs["count"]) == 0


@pytest.mark.slow
def test_exported_file_gives_the_maps_of_the_engine_in_onnx_runtime(headed, exported):
    path, result = exported
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(9))
    min_score = lowest(headed, images, 60)
    session = onnxruntime.InferenceSession(str(path))
    values = session.run(list(OUTPUTS), {"images": images.numpy(), "min_score": np.array(min_score, np.float32)})
    module = ExplainedDetector(headed, SIZE, result.max_boxes, "keep").eval()
    outputs = dict(zip(OUTPUTS, values, strict=True))
    count = int(outputs["count"])
    assert count > 3
    assert np.ptp(outputs["heat"][:count], axis=(1, 2)).max() > 1e-3
    assert mismatch(headed, module, outputs, images, min_score) == ""


@pytest.mark.slow
def test_exported_file_states_its_labels_and_cut(exported):
    metadata = {entry.key: entry.value for entry in onnx.load(exported[0]).metadata_props}
    assert json.loads(metadata["labels"]) == ["a", "b"]
    assert json.loads(metadata["input_size"]) == list(SIZE)
    assert (metadata["cut"], metadata["mode"], metadata["order"]) == ("level", "keep", "bgr")
    assert json.loads(metadata["cell_px"]) == [8, 16]
    assert len(json.loads(metadata["cut_nodes"])) == 2


@pytest.mark.slow
def test_exported_detector_is_refused_as_the_model_of_a_stream(exported):
    assert not is_foreign_onnx(str(exported[0]))
    with pytest.raises(ModelError, match="is an exported detector, which only other programs can run"):
        read_metadata(exported[0])


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([nn.GroupNorm(2, 8)], LayerError, "GroupNorm"),
        ([nn.MaxPool2d(3, 1, 1)], EngineError, "neither a convolution that keeps the grid"),
    ],
    ids=["group_norm", "pooling"],
)
def test_export_refuses_heads_by_the_name_of_their_layer(layers, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_detector(headed_detector(layers), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


class _Headed(nn.Module):
    """Two levels whose class branches have a layer between convolutions."""

    def __init__(self, layers):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.classes = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), *layers, nn.Conv2d(8, 2, 3, 1, 1))
        self.others = nn.ModuleList(nn.Conv2d(8, count, 1) for count in (1, 4))

    def forward(self, images):
        fine = self.stem(images)
        coarse = self.down(fine)
        return tuple(head(x) for x in (fine, coarse) for head in (self.classes, *self.others))


def headed_detector(layers):
    module = with_lively_weights(_Headed(layers))
    layout = YoloxLayout([Level(8, 0, 1, 2), Level(16, 3, 4, 5)], 2)
    form = InputFormat(SIZE, "bgr", (128.0,) * 3, (64.0,) * 3)
    return Detector("headed", module, layout, ("a", "b"), form, networks={SIZE: normalise(module, SIZE)})


def test_export_refuses_two_stage_detectors(tmp_path):
    detector = load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", weights="random")
    with pytest.raises(ConfigError, match="two-stage detector cannot be exported"):
        export_detector(detector, tmp_path / "a.onnx")
