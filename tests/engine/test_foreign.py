"""Classifiers of other programs: cut, proven and explained as the same network in PyTorch."""

import logging
import warnings

import onnx
import openvino
import pytest
import torch
from onnx import helper
from torch import nn

from engine.explainers.foreign import ForeignExplainer
from engine.export.metadata import is_foreign_classifier
from engine.foreign.classifier import ForeignClassifier
from engine.foreign.graph import read_graph
from engine.methods.plan import reference_scores
from engine.models.loader import load_network
from engine.runtime.verification import probe_images
from engine.split.network import split_network
from pipeline.config import EngineConfig
from pipeline.errors import ConfigError, EngineError, LayerError, ModelError
from tests.bench.foreign_exactness import compared
from tests.engine.reference import lively

SIZE = (96, 96)


class Residual(nn.Module):
    """Adds a branch to its input: no tensor inside the branch is a complete cut."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 1))

    def forward(self, x):
        return x + self.branch(x)


def body():
    return (nn.Conv2d(3, 24, 5, stride=8, padding=2), nn.SiLU(), Residual(), nn.Hardswish())


def pooled(*last):
    torch.manual_seed(0)
    net = lively(nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 6)), SIZE)
    return nn.Sequential(*net, *last).eval()


def flat():
    torch.manual_seed(1)
    return lively(nn.Sequential(*body(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 36, 6)), SIZE).eval()


def exported(net, path, *, dynamo=False, free=True, size=SIZE):
    images = torch.randn(2 if free and dynamo else 1, 3, *size)
    shapes = {"dynamic_axes": {"images": {0: "n"}}} if free else {}
    if dynamo:
        shapes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if free else {}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of each other and of themselves
        torch.onnx.export(net, (images,), path, dynamo=dynamo, verbose=False, external_data=False, **names, **shapes)
    return path


def definition(net, images, layer=None):
    """Return the logits of all cells by the definition in PyTorch, (N, h * w, K)."""
    split = split_network(net, layer, SIZE)
    with torch.inference_mode():
        features = split.head(images)
        cells = torch.arange(features.shape[2] * features.shape[3])
        return torch.cat([reference_scores(split.tail, features, "point", part) for part in cells.split(16)], 1)


def close(actual, expected):
    scale = (expected - expected.mean(1, keepdim=True)).abs().max()
    assert scale > 0.05  # the maps are not flat
    assert (actual - expected).abs().max() < 2e-5 * expected.abs().max()


def cell_logits(network, images):
    with torch.inference_mode():
        return network.plan(network.head(images))[1]


@pytest.mark.parametrize(("build", "plan", "dynamo", "free"), [
    (pooled, "pooled", False, True), pytest.param(pooled, "pooled", True, False, marks=pytest.mark.slow),
    (flat, "dense", False, False),
])  # fmt: skip
def test_foreign_classifier_equals_the_definition(tmp_path, build, plan, dynamo, free):
    net = build()
    network = ForeignClassifier(exported(net, tmp_path / "net.onnx", dynamo=dynamo, free=free))
    images = probe_images(2, SIZE)
    assert (network.plan.info.name, network.graph.grid, network.graph.classes) == (plan, (12, 12), 6)
    close(cell_logits(network, images), definition(net, images, "3"))


def test_foreign_classifier_reads_openvino_ir(tmp_path):
    net = pooled()
    model = openvino.Core().read_model(exported(net, tmp_path / "net.onnx"))
    openvino.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    network = ForeignClassifier(tmp_path / "net.xml", size=SIZE)
    images = probe_images(1, SIZE)
    close(cell_logits(network, images), definition(net, images, "3"))
    (tmp_path / "net.bin").unlink()
    with pytest.raises(ModelError, match=r"cannot read it.*weights"):
        ForeignClassifier(tmp_path / "net.xml", size=SIZE)


def test_foreign_classifier_that_computes_in_half_precision_gives_float32(tmp_path):
    class Half(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net.half()

        def forward(self, x):
            return self.net(x.half()).float()

    network = ForeignClassifier(exported(Half(pooled()).eval(), tmp_path / "half.onnx", free=False))
    images = probe_images(1, SIZE)
    actual, expected = cell_logits(network, images), definition(pooled(), images, "3")
    assert actual.dtype == torch.float32
    assert (expected - expected.mean(1, keepdim=True)).abs().max() > 0.05  # the maps are not flat
    assert (actual - expected).abs().max() < 5e-3 * expected.abs().max()


def test_foreign_classifier_explains_a_named_cut(tmp_path):
    net, images = pooled(), probe_images(1, SIZE)
    path = exported(net, tmp_path / "net.onnx")
    network = ForeignClassifier(path, layer="/1/Mul_output_0")
    close(cell_logits(network, images), definition(net, images, "1"))


def test_foreign_graph_refuses_a_cut_that_a_path_bypasses(tmp_path):
    path = exported(pooled(), tmp_path / "net.onnx")
    with pytest.raises(LayerError, match=r"path that bypasses it.*layers that can be used: .*/2/Add"):
        read_graph(path, "/2/branch/branch.1/Relu")
    with pytest.raises(LayerError, match=r"no layer '/2/Ad'.*Did you mean '/2/Add.*24 channels"):
        read_graph(path, "/2/Ad")


def test_foreign_classifier_runs_a_tail_of_one_map(tmp_path):
    net = pooled()
    path = exported(net, tmp_path / "net.onnx", free=False)
    model = onnx.load(path)
    last = model.graph.node[-1]
    # Adds a zero of one image's shape by a sum over the batch: right for one map, wrong for several.
    model.graph.initializer.append(helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1, 6], [0.0] * 6))
    model.graph.initializer.append(helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [0]))
    last.output[0] = "scores"
    model.graph.node.append(helper.make_node("ReduceSum", ["scores", "axis"], ["summed"], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["summed", "zero"], ["logits"]))
    onnx.save(model, path)
    network, images = ForeignClassifier(path), probe_images(1, SIZE)
    assert "one map at a time" in network.plan.info.reason
    close(cell_logits(network, images), definition(net, images, "3"))


def test_foreign_classifier_reads_logits_before_a_softmax(tmp_path):
    network = ForeignClassifier(exported(pooled(nn.Softmax(1)), tmp_path / "net.onnx"))
    images = probe_images(1, SIZE)
    close(cell_logits(network, images), definition(pooled(), images, "3"))


@pytest.mark.parametrize(("last", "message"), [
    (nn.Sigmoid(), "ends in a sigmoid"), (nn.Linear(6, 1), "returns one score"),
])  # fmt: skip
def test_foreign_graph_refuses_scores_without_a_softmax(tmp_path, last, message):
    with pytest.raises(EngineError, match=message):
        read_graph(exported(pooled(last), tmp_path / "net.onnx"))


def test_foreign_graph_refuses_a_transformer(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 32, 16, 16), nn.Flatten(2))
    layer = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.layer, self.last = net, layer, nn.Linear(32, 5)

        def forward(self, images):
            return self.last(self.layer(self.patches(images).transpose(1, 2))[:, 0])

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        path = exported(Tokens().eval(), tmp_path / "net.onnx")
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(LayerError, match="input of a transformer"):
        read_graph(path)


def test_foreign_explainer_states_what_a_file_lacks(tmp_path, caplog):
    path = exported(pooled(), tmp_path / "net.onnx")
    with caplog.at_level(logging.WARNING):
        explainer = ForeignExplainer(path, EngineConfig(model=str(path)))
    assert explainer.labels == tuple(f"class {k}" for k in range(6))
    assert "--labels FILE" in caplog.text
    assert "ImageNet's mean and std are used" in caplog.text
    with pytest.raises(ConfigError, match="omit --weights"):
        ForeignExplainer(path, EngineConfig(model=str(path), weights="w.pth"))
    with pytest.raises(ConfigError, match="runs on the CPU"):
        ForeignExplainer(path, EngineConfig(model=str(path), device="cuda"))
    with pytest.raises(EngineError, match="does not accept one 90x80 image"):
        ForeignExplainer(exported(flat(), tmp_path / "flat.onnx"), EngineConfig(model=str(path), input_size="90x80"))
    with pytest.raises(ModelError, match="use the PyTorch network"):
        load_network(str(path))


def test_is_foreign_classifier_reads_the_outputs(tmp_path):
    path = exported(pooled(), tmp_path / "net.onnx")
    assert is_foreign_classifier(str(path))
    assert not is_foreign_classifier(str(exported(nn.Sequential(*body()), tmp_path / "maps.onnx")))
    assert not is_foreign_classifier(str(tmp_path / "missing.onnx"))
    path.write_bytes(path.read_bytes()[:999])
    assert not is_foreign_classifier(str(path))


def test_foreign_exactness_compares_with_the_definition(tmp_path):
    line = next(compared("squeezenet1_1", tmp_path, exporters=["torchscript"]))
    assert line["plan"] == "pooled"
    assert max(line["cell_logits"], line["logits"]) < 1e-5
