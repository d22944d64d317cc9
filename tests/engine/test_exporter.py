"""Exported files give the engine's results in other programs, contain no masked map, or are refused with the reason."""

import collections
import dataclasses
import functools
import math

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from engine.explainers.exported import ExportedExplainer
from engine.explainers.network import NetworkExplainer
from engine.export import exporter, runtimes
from engine.export.exporter import check_format, export_network
from engine.export.metadata import EXTRA, is_exported, read_metadata
from engine.models.labels import parse_target
from engine.models.loader import LoadedModel, load_network
from engine.models.registry import IMAGENET_MEAN, IMAGENET_STD, MODELS
from engine.runtime.runner import CompileConfig, Runner
from engine.runtime.signal_stack import preserve_signal_stack
from engine.split.network import split_network
from pipeline.atomic import atomic_write
from pipeline.config import EngineConfig
from pipeline.errors import BackendError, ConfigError, ModelError
from pipeline.frames import Frame
from pipeline.ports import Explainer
from tests.conftest import ROOT
from tests.engine.reference import lively, narrow_net, shallow_net

CASES = {
    "resnet18": {"input_size": "96x128"},
    "mobilenet_v3_small": {"input_size": "96x64", "kernel": "gaussian", "target": "top5"},
    "alexnet": {"input_size": "95x127", "target": "7,name 3"},
    "resnet18, inner": {"input_size": "64x64", "layer": "layer3"},
    "line_net": {"input_size": "120x160", "target": "scratch,ok", "fit": "letterbox"},
}
PLANS = {"alexnet": "flat", "resnet18, inner": "dense"}


def network_of(name, size):
    if name == "line_net":
        return load_network(name, weights=ROOT / MODELS[name].file)
    torch.manual_seed(3)
    net = lively((narrow_net if name == "alexnet" else shallow_net)(name, 12), size)
    names = tuple(f"name {k}" for k in range(12))
    return LoadedModel(net, name, names, (224, 224), IMAGENET_MEAN, IMAGENET_STD, None)


@dataclasses.dataclass
class ExportedFile:
    network: LoadedModel
    config: EngineConfig
    path: object
    exported: object

    def answers(self, images):
        """The engine's own answers, whatever plan it chooses."""
        split = split_network(self.network.module, self.config.layer or self.network.layer, self.config.input_size)
        target = parse_target(self.config.target, self.network.labels)
        build = CompileConfig(target, self.config.kernel, "eager", "fp32", torch.device("cpu"), 1 << 28)
        return Runner(split, build)(images)


def make(case, folder, suffix=".onnx", **settings):
    name = case.partition(",")[0]
    config = EngineConfig(model=name, **{**CASES[case], **settings})
    network = network_of(name, config.input_size)
    path = folder / f"explained{suffix}"
    return ExportedFile(network, config, path, export_network(network, config, path))


@pytest.fixture(scope="module")
def export_once(tmp_path_factory):
    """Export a case at its first use."""
    return functools.cache(lambda case, suffix=".onnx": make(case, tmp_path_factory.mktemp("exported"), suffix))


@pytest.mark.slow
def test_network_with_a_flat_map_is_exported(tmp_path, line_program):
    network = load_network("shufflenet_v2_x1_0", weights="random")
    exported = export_network(network, EngineConfig(input_size="64x64"), tmp_path / "a.pt2")
    assert exported.metadata.probe["slack"] > 0.1
    assert line_program.exported.metadata.probe["slack"] < 1e-3


@pytest.fixture(scope="module", params=CASES)
def exported_file(request, export_once):
    return request.param, export_once(request.param)


@pytest.fixture(scope="module")
def line(export_once):
    return export_once("line_net")


@pytest.fixture(scope="module")
def line_program(export_once):
    return export_once("line_net", ".pt2")


def with_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["scores", "classes", "heat"], {"images": images.numpy()})


def with_openvino(path, images):
    with preserve_signal_stack():
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({"images": images.numpy()})
    return [results[name] for name in ("scores", "classes", "heat")]


def assert_same(actual, true):
    scores, classes, heat = map(np.asarray, actual)
    assert [part.shape for part in (scores, classes, heat)] == [tuple(part.shape) for part in true]
    np.testing.assert_allclose(scores, true[0], atol=1e-4)
    np.testing.assert_array_equal(classes, true[1])
    np.testing.assert_allclose(heat, true[2], atol=1e-3)


def images_of(count, size):
    return torch.randn((count, 3, *size), generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
def test_exported_file_equals_the_engine_in_other_runtimes_at_any_batch_size(exported_file):
    case, file = exported_file
    assert file.exported.metadata.plan == PLANS.get(case, "pooled")
    for count in (1, 3):
        images = images_of(count, file.config.input_size)
        true = file.answers(images)
        assert float(true[2].max()) == 1.0
        assert_same(with_onnxruntime(file.path, images), true)
        assert_same(with_openvino(file.path, images), true)


def sizes_behind(graph, node_number):
    """Return the number of elements of each value in the graph, for one image."""
    made_behind = {name for node in graph.node[node_number + 1 :] for name in node.output}
    return [
        math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in graph.value_info
        if value.name in made_behind
    ]


@pytest.mark.slow
def test_exported_pooled_tail_contains_no_masked_maps(exported_file):
    case, file = exported_file
    graph = onnx.shape_inference.infer_shapes(onnx.load(file.path), data_prop=True).graph
    rows, columns = file.exported.metadata.grid
    cells = rows * columns
    if PLANS.get(case) == "dense":
        assert max(sizes_behind(graph, 0)) >= cells * 256 * cells
        return
    parts = list(file.network.module.modules())
    linear = [module for module in parts if isinstance(module, torch.nn.Linear)]
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert not {"Loop", "Scan", "If"} & set(kinds)
    assert kinds["Conv"] <= sum(isinstance(module, torch.nn.Conv2d) for module in parts)
    assert kinds["MatMul"] + kinds["Gemm"] <= 1 + len(linear)
    # Behind the last convolution one image's largest value is a vector for each cell and one for the whole.
    sizes = sizes_behind(graph, max(k for k, node in enumerate(graph.node) if node.op_type == "Conv"))
    width = max(max(module.in_features, module.out_features) for module in linear)
    assert len(sizes) > 10
    assert max(sizes) <= (1 + cells) * width < cells**2 * width


@pytest.mark.slow
def test_metadata_suffices_to_use_the_file(line):
    passport = read_metadata(line.path)
    assert passport == line.exported.metadata
    assert passport.labels == line.network.labels
    assert (passport.input_size, passport.fit, passport.layer) == ((120, 160), "letterbox", "features")
    assert (passport.grid, passport.method, passport.target) == ((15, 20), "recipro-cam/point", ("scratch", "ok"))
    held = {entry.key: entry.value for entry in onnx.load(line.path).metadata_props}
    assert held == passport.metadata()
    assert is_exported(str(line.path))
    assert not is_exported("line_net")


@pytest.mark.slow
def test_exported_file_is_hardly_larger_than_the_network(tmp_path, export_once):
    file = export_once("resnet18")
    plain = tmp_path / "plain.onnx"
    torch.onnx.export(file.network.module, (images_of(2, (96, 128)),), str(plain), dynamo=True, verbose=False,
                      external_data=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))  # fmt: skip
    assert file.path.stat().st_size < 1.05 * plain.stat().st_size
    assert len(onnx.load(file.path).graph.node) <= len(onnx.load(plain).graph.node) + 30


@pytest.mark.slow
def test_torch_program_equals_the_engine(line_program):
    module = torch.export.load(str(line_program.path)).module()
    for count in (1, 3):
        images = images_of(count, (120, 160))
        with torch.inference_mode():
            assert_same(module(images), line_program.answers(images))
    assert read_metadata(line_program.path) == line_program.exported.metadata


def frames(count=3):
    random = np.random.default_rng(2)
    sizes = [(90, 160), (240, 320), (64, 64)]
    return [Frame(random.integers(0, 255, (*sizes[k % 3], 3), np.uint8), f"camera {k}", k, 0.0) for k in range(count)]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "eager"])
def test_exported_explainer_equals_the_engine_for_frames_of_many_cameras(line, line_program, backend):
    path = line_program.path if backend == "eager" else line.path
    exported = ExportedExplainer(path, EngineConfig(model=str(path), backend=backend))
    engine = NetworkExplainer(line.network, line.config.model_copy(update={"backend": "eager"}))
    assert isinstance(exported, Explainer)
    assert exported.explain([]) == []
    assert exported.info.backend == backend
    assert str(path.name) in str(exported.info)
    for count in (3, 1, 3):
        for result, true in zip(exported.explain(frames(count)), engine.explain(frames(count)), strict=True):
            assert (result.model, result.layer, result.method) == (true.model, true.layer, true.method)
            assert result.region == true.region
            assert [finding.label for finding in result.findings][:2] == ["scratch", "ok"]
            assert [finding.label for finding in result.findings] == [finding.label for finding in true.findings]
            for first, other in zip(result.findings, true.findings, strict=True):
                assert first.score == pytest.approx(other.score, abs=1e-4)
                np.testing.assert_allclose(first.heat, other.heat, atol=1e-3)


def test_half_precision_is_the_runtimes_business(line):
    half = ExportedExplainer(line.path, EngineConfig(model=str(line.path), precision="bf16"))
    assert half.info.precision == "bf16"
    with pytest.raises(ConfigError, match="only in fp32"):
        ExportedExplainer(line.path, EngineConfig(model="x", precision="bf16", backend="onnxruntime"))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"layer": "features.0"}, "--layer 'features.0'.*'features'"),
        ({"weights": "w.pth"}, "--weights"),
        ({"labels": "l.txt"}, "--labels"),
        ({"kernel": "gaussian"}, "--kernel"),
        ({"target": "top1"}, "--target"),
        ({"input_size": "64x64"}, "--input-size"),
        ({"fit": "crop"}, "--fit"),
        ({"mean": "0.1"}, "--mean"),
        ({"backend": "inductor"}, "does not run .onnx"),
        ({"backend": "openvin"}, "Did you mean 'openvino'"),
        ({"device": "cuda"}, "CPU"),
    ],
    ids=str,
)
def test_exported_explainer_refuses_settings_that_contradict_the_file(line, settings, rule):
    with pytest.raises(ConfigError, match=rule):
        ExportedExplainer(line.path, EngineConfig(model=str(line.path), **settings))


def test_exported_explainer_accepts_settings_equal_to_the_file(line):
    settings = {"layer": "features", "kernel": "point", "input_size": "120x160", "fit": "letterbox"}
    ExportedExplainer(line.path, EngineConfig(model=str(line.path), **settings))


def copy_of(path, folder, change):
    copy = folder / path.name
    copy.write_bytes(change(path.read_bytes()))
    return copy


@pytest.mark.parametrize("change", [
    lambda held: held[: len(held) // 2], lambda held: b"", lambda held: b"hello world", lambda held: held[:-3],
], ids=["half", "empty", "text", "short"])  # fmt: skip
@pytest.mark.parametrize("kind", ["line", "line_program"])
def test_damaged_file_is_refused_with_a_message(request, tmp_path, kind, change):
    path = copy_of(request.getfixturevalue(kind).path, tmp_path, change)
    with pytest.raises(ModelError, match=r"damaged|did not write it"):
        ExportedExplainer(path, EngineConfig(model=str(path)))


def test_weights_that_changed_are_noticed(line, tmp_path):
    model = onnx.load(line.path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = np.roll(np.frombuffer(weight.raw_data, "<f4"), 999).tobytes()
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(BackendError, match="differ from those at export"):
        ExportedExplainer(path, EngineConfig(model=str(path)))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("format", "recipro-stream explained 9", "but this version reads"),
        ("format", "", "`export` did not write it"),
        ("labels", "[1]", "a list of names"),
        ("labels", "[", "not JSON"),
        ("input_size", "[0, 5]", "height, width"),
        ("fit", "bent", "stretch, letterbox or crop"),
        ("proof", "{}", "damaged"),
        ("layer", "", "lacks 'layer'"),
    ],
)
def test_file_with_wrong_metadata_is_refused(line, tmp_path, key, value, rule):
    model = onnx.load(line.path)
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=rule):
        ExportedExplainer(path, EngineConfig(model=str(path)))


def test_foreign_network_is_recognised(tmp_path):
    path = tmp_path / "foreign.onnx"
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:])), path)
    with pytest.raises(ModelError, match=r"`export` did not write it; write a file with `run\.py export"):
        ExportedExplainer(path, EngineConfig(model=str(path)))
    program = tmp_path / "foreign.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), str(program))
    with pytest.raises(ModelError, match="`export` did not write it"):
        ExportedExplainer(program, EngineConfig(model=str(program)))
    with pytest.raises(ModelError, match="no such file"):
        ExportedExplainer(tmp_path / "missing.onnx", EngineConfig(model="missing.onnx"))


def test_missing_runtime_error_names_the_remedy(line, monkeypatch):
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install openvino"):
        ExportedExplainer(line.path, EngineConfig(model=str(line.path)))
    with pytest.raises(ConfigError, match="uv sync --inexact --extra export"):
        check_format(None, line.path)


@pytest.mark.parametrize(
    ("name", "path", "rule"),
    [
        ("onnx", "a.pt2", "must end in .onnx"),
        ("torch", "a.onnx", "must end in .pt2"),
        (None, "a.bin", ".onnx or .pt2"),
        ("onx", "a.onnx", "Did you mean 'onnx'"),
    ],
)
def test_format_and_suffix_must_agree(tmp_path, name, path, rule):
    with pytest.raises(ConfigError, match=rule):
        check_format(name, tmp_path / path)


@pytest.mark.slow
def test_file_that_differs_from_the_engine_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "SCORE_TOLERANCE", -1.0)
    path = tmp_path / "kept.pt2"
    path.write_text("the old one")

    def attempt():
        with atomic_write(path, raises=ModelError) as temporary:
            export_network(load_network("line_net", weights="random"), EngineConfig(input_size="48x64"), temporary)

    with pytest.raises(BackendError, match="differ from the engine's"):
        attempt()
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_masked_maps_that_fit_no_budget_are_refused_with_a_cure():
    network = network_of("resnet18", (64, 64))
    config = EngineConfig(layer="layer2", input_size="96x96", memory_budget_mib=16)
    with pytest.raises(ConfigError, match=r"144 masked maps.*later --layer"):
        export_network(network, config, ROOT / "never.onnx")
    assert not (ROOT / "never.onnx").exists()


@pytest.mark.slow
def test_expensive_layer_is_exported_with_a_warning(tmp_path, caplog):
    make("resnet18, inner", tmp_path, ".pt2")
    assert "16 masked maps per image" in caplog.text
    assert "multiply-adds (the engine needs" in caplog.text


def test_metadata_of_an_archive_is_one_extra_file(line_program):
    assert EXTRA.endswith(".json")
    assert line_program.path.stat().st_size < 1.1e6
