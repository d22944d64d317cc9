"""TensorRT without a GPU: errors, remedies, cache keys, and engines that are built without running."""

import copy
import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.backends.tensorrt import backend, dynamo
from engine.backends.tensorrt import library as tensorrt_library
from engine.backends.tensorrt import onnx as tensorrt_onnx
from engine.methods.recipro import ExplainedNetwork, Target, plan_for
from engine.runtime import devices
from engine.runtime.compile_cache import CompileCache
from engine.runtime.runner import CompileConfig, Runner
from engine.split.network import split_network
from pipeline.errors import BackendError
from tests.engine.reference import small_net

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 3, 32, 32)


def explained(half=True):
    """The pooled network as one module: its head in half precision, what follows in float32."""
    split = split_network(small_net(), "3", (32, 32))
    with torch.inference_mode():
        plan = plan_for(split, split.head(IMAGE), "point")
    module = copy.deepcopy(ExplainedNetwork(split.head, plan, Target(), split.grid)).eval()
    if half:
        module.head.half()
    return module


def test_missing_names_the_remedy_without_gpu_or_package(monkeypatch):
    assert "--device cuda" in backend.missing("cpu")
    monkeypatch.setattr(tensorrt_library, "NAMES", ("no_such_tensorrt",))
    assert "uv sync --inexact --extra tensorrt" in backend.missing("cuda")
    tensorrt_library.library.cache_clear()
    with pytest.raises(BackendError, match=r"no TensorRT is installed.*--backend inductor"):
        tensorrt_library.library()


def test_tensorrt_on_a_cpu_is_refused_with_the_remedy():
    split = split_network(small_net(), "3", (32, 32))
    with pytest.raises(BackendError, match=r"runs on NVIDIA GPUs.*--device cuda"):
        Runner(split, CompileConfig(Target(), "point", "tensorrt", "fp16", CPU, 1 << 28))


def test_library_reports_the_import_error(monkeypatch, tmp_path):
    (tmp_path / "broken_tensorrt.py").write_text("raise Exception('no driver, no joy')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_library, "NAMES", ("broken_tensorrt",))
    tensorrt_library.library.cache_clear()
    with pytest.raises(BackendError, match=r"broken_tensorrt: no driver, no joy"):
        tensorrt_library.library()


@pytest.mark.parametrize("answer", [None, TypeError("factory function returned nullptr")])
def test_create_reports_the_library_error(answer):
    def builder(logger):
        if answer is not None:
            raise answer
        logger.errors.append("CUDA initialization failure with error: 35")

    api, logger = SimpleNamespace(Builder=builder), SimpleNamespace(errors=[])
    library = tensorrt_library.Library("tensorrt", "11.0", api, logger)
    with pytest.raises(
        BackendError, match=r"tensorrt 11.0 does not work on this machine \((CUDA initialization|factory function)"
    ):
        tensorrt_library.build_engine(b"", using=library)


def test_torch_tensorrt_import_error_becomes_backend_error(monkeypatch, tmp_path):
    (tmp_path / "torch_tensorrt.py").write_text("raise Exception('no CUDA device is here')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(BackendError, match=r"torch-tensorrt cannot be loaded .no CUDA device is here"):
        dynamo.build(explained(), IMAGE.half())


def test_torch_tensorrt_compiles_the_whole_module_and_loads_it(monkeypatch, tmp_path):
    options = {}

    def compiling(module, **arguments):
        options.update(arguments)
        return torch.export.export(module, (arguments["arg_inputs"][0],))

    def saving(program, path, *, output_format, arg_inputs):
        assert output_format == "exported_program"
        torch.export.save(program, path.removesuffix(".ep") + ".pt2")
        Path(path).write_bytes(Path(path.removesuffix(".ep") + ".pt2").read_bytes())

    def loading(path):
        copied = Path(path).with_suffix(".pt2")
        copied.write_bytes(Path(path).read_bytes())
        return torch.export.load(copied)

    vendor = SimpleNamespace(compile=compiling, save=saving, load=loading)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", vendor)
    module = explained(half=False)
    result = dynamo.load(dynamo.build(module, IMAGE), IMAGE)(IMAGE)
    with torch.inference_mode():
        for first, other in zip(result, module(IMAGE), strict=True):
            torch.testing.assert_close(first, other)
    assert options["ir"] == "dynamo"
    assert options["require_full_compilation"] is True
    assert "enabled_precisions" not in options
    assert options["disable_tf32"] is True


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_set_product_precision_keeps_float32_and_allows_tf32_for_half_precision(precision):
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    reduced = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    try:
        for part in parts:
            part.allow_tf32 = precision == "fp32"
        devices.set_product_precision(precision, CPU)
        assert [part.allow_tf32 for part in parts] == [precision == "fp32"] * 2, "a CPU has nothing to do with it"
        devices.set_product_precision(precision, torch.device("cuda", 0))
        assert [part.allow_tf32 for part in parts] == [precision != "fp32"] * 2
        assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    finally:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = reduced
        for part, value in zip(parts, before, strict=True):
            part.allow_tf32 = value


def test_float32_engine_does_not_use_tf32():
    cleared = []
    settings = SimpleNamespace(clear_flag=cleared.append)
    tensorrt_library.keep_float32(SimpleNamespace(BuilderFlag=SimpleNamespace(TF32=7)), settings)
    tensorrt_library.keep_float32(SimpleNamespace(BuilderFlag=SimpleNamespace()), settings)
    assert cleared == [7]


def test_compile_tries_both_routes_and_reports_both_errors(monkeypatch):
    def refusing(word):
        def build(module, example):
            raise BackendError(word)

        return backend.Route(str, build, lambda payload, example: None)

    monkeypatch.setattr(backend, "ROUTES", {"onnx": refusing("a hole"), "dynamo": refusing("a fire")})
    with pytest.raises(BackendError, match="by onnx: a hole; by dynamo: a fire; use --backend inductor"):
        backend.compile(explained(), IMAGE.half(), "fp16")


def fake_route(built, loads=True):
    def build(module, example):
        built.append(tuple(example.shape))
        return b"engine"

    def load(payload, example):
        if not loads and len(built) < 2:
            raise BackendError("made for another card")
        return lambda images: (payload, images)

    return backend.Route(str, build, load)


def test_engine_cache_key_has_weights_shape_route_and_machine(monkeypatch, tmp_path):
    built: list[tuple[int, ...]] = []
    card = {"gpu": "one", "driver": "1"}
    monkeypatch.setattr(backend, "ROUTES", {"onnx": fake_route(built), "dynamo": fake_route(built)})
    monkeypatch.setattr(backend, "_library_versions", lambda route: "rtx 1.4")
    monkeypatch.setattr(backend, "_gpu", lambda example: card)
    tmp_path.chmod(0o700)
    module, other, two = explained(), explained(), torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        next(other.head.parameters()).add_(1)
    for _ in range(2):
        backend.compile(module, IMAGE.half(), "fp16", CompileCache(tmp_path))
    assert len(built) == 1
    for again in (
        lambda: backend.compile(other, IMAGE.half(), "fp16", CompileCache(tmp_path)),
        lambda: backend.compile(module, two.half(), "fp16", CompileCache(tmp_path)),
        lambda: backend.compile_by("dynamo", module, IMAGE.half(), "fp16", CompileCache(tmp_path)),
        lambda: card.update(driver="2") or backend.compile(module, IMAGE.half(), "fp16", CompileCache(tmp_path)),
        lambda: card.update(gpu="other") or backend.compile(module, IMAGE.half(), "fp16", CompileCache(tmp_path)),
    ):
        before = len(built)
        again()
        assert len(built) == before + 1


def test_engine_that_cannot_be_loaded_is_built_again(monkeypatch, tmp_path, caplog):
    built: list[tuple[int, ...]] = []
    monkeypatch.setattr(backend, "_library_versions", lambda route: "rtx 1.4")
    tmp_path.chmod(0o700)
    monkeypatch.setattr(backend, "ROUTES", {"onnx": fake_route(built)})
    backend.compile(explained(), IMAGE.half(), "fp16", CompileCache(tmp_path))
    monkeypatch.setattr(backend, "ROUTES", {"onnx": fake_route(built, loads=False)})
    backend.compile(explained(), IMAGE.half(), "fp16", CompileCache(tmp_path))
    assert len(built) == 2
    assert "compiled again" in caplog.text


@pytest.mark.slow
def test_onnx_graph_has_half_precision_and_float32_softmax():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    payload, names, wide = tensorrt_onnx.graph_of(explained(), IMAGE.half())
    assert wide == 0
    graph = onnx.load_from_string(payload).graph
    assert [value.name for value in graph.output] == names
    assert len(names) == 3
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds[graph.input[0].name] == onnx.TensorProto.FLOAT16
    assert kinds[names[0]] == kinds[names[2]] == onnx.TensorProto.FLOAT
    inner = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    assert {inner[node.output[0]] for node in softmaxes} == {onnx.TensorProto.FLOAT}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert {inner[node.output[0]] for node in convolutions} == {onnx.TensorProto.FLOAT16}


def pooled_with_convolution():
    """A network whose pooled tail has a 1x1 convolution of its own before the mean; its head in half precision."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU())
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    split = split_network(net, "1", (32, 32))
    with torch.inference_mode():
        plan = plan_for(split, split.head(IMAGE), "point")
    module = copy.deepcopy(ExplainedNetwork(split.head, plan, Target(), split.grid)).eval()
    module.head.half()
    return module


@pytest.mark.slow
def test_float32_convolutions_of_a_pooled_tail_are_not_counted_as_lost_precision():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    module = pooled_with_convolution()
    graph, _, intended = tensorrt_onnx.graph_of(module, IMAGE.half())
    assert graph
    assert intended > 0
    kind = SimpleNamespace(CONVOLUTION=1)
    float32, half = (SimpleNamespace(type=1, get_output=lambda _, d=d: SimpleNamespace(dtype=d)) for d in ("f", "h"))
    api = SimpleNamespace(LayerType=kind, DataType=SimpleNamespace(FLOAT="f"))
    layers = [half] + [float32] * intended
    network = SimpleNamespace(num_layers=len(layers), get_layer=lambda k: layers[k])
    assert tensorrt_library.wide_convolutions(api, network) == intended
    tensorrt_library.check_half(api, network, intended)
    with pytest.raises(BackendError, match="1 convolutions would run in float32"):
        tensorrt_library.check_half(api, network, intended - 1)


@pytest.fixture
def rtx():
    """TensorRT for RTX builds without a GPU; the others do not."""
    if tensorrt_library.installed() != "tensorrt_rtx":
        pytest.skip("needs TensorRT for RTX (pip install tensorrt-rtx-cu13), which builds without a GPU")
    if lacking := tensorrt_onnx.lacking():
        pytest.skip(lacking)
    tensorrt_library.library.cache_clear()
    return tensorrt_library.library()


@pytest.mark.tensorrt
def test_build_works_without_a_gpu(rtx):
    payload = tensorrt_onnx.build(explained(), IMAGE.half(), rtx)
    names, blob = tensorrt_library.unpack(payload)
    assert len(names) == 3
    assert len(blob) > 1000
    head = tensorrt_onnx.build(explained().head, IMAGE.half(), rtx)
    assert len(json.loads(head.partition(b"\n")[0])) == 1


@pytest.mark.tensorrt
def test_build_refuses_a_half_precision_engine_in_float32(rtx):
    graph, _, wide = tensorrt_onnx.graph_of(explained(half=False), IMAGE)
    assert wide == 2
    with pytest.raises(BackendError, match="2 convolutions would run in float32"):
        tensorrt_library.build_engine(graph, half=True, using=rtx)
    assert tensorrt_library.build_engine(graph, using=rtx)


@pytest.mark.tensorrt
def test_build_engine_refuses_an_invalid_graph(rtx):
    with pytest.raises(BackendError, match="cannot read this network"):
        tensorrt_library.build_engine(b"no graph", using=rtx)


@pytest.mark.tensorrt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_program_without_a_gpu_raises_backend_error(rtx):
    with pytest.raises(BackendError, match="cannot load the engine on this machine"):
        backend.compile_by("onnx", explained(), IMAGE.half(), "fp16")


class FakeCurrentDevice:
    """The current device, and a fake TensorRT that records the device of each call."""

    def __init__(self, monkeypatch):
        self.now, self.seen = 0, []
        monkeypatch.setattr(torch.cuda, "device", self.device)
        stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: None)
        monkeypatch.setattr(tensorrt_onnx, "_new_stream", lambda device: stream)
        monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype))

    @contextmanager
    def device(self, device):
        before, self.now = self.now, device.index
        yield
        self.now = before

    def note(self, what, result):
        self.seen.append((what, self.now))
        return result

    def library(self):
        mode, kinds = SimpleNamespace(INPUT=0, OUTPUT=1), SimpleNamespace(FLOAT=1)
        context = SimpleNamespace(
            set_tensor_address=lambda name, address: None,
            execute_async_v3=lambda stream: self.note("run", True),
        )
        engine = SimpleNamespace(
            num_io_tensors=2, get_tensor_name=lambda k: ("images", "scores")[k],
            get_tensor_mode=lambda name: int(name == "scores"), get_tensor_shape=lambda name: (1, 3, 32, 32),
            get_tensor_dtype=lambda name: kinds.FLOAT,
            create_execution_context=lambda: self.note("context", context),
        )  # fmt: skip
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda blob: self.note("load", engine))
        api = SimpleNamespace(Runtime=lambda logger: self.note("runtime", runtime), TensorIOMode=mode, DataType=kinds)
        return tensorrt_library.Library("tensorrt", "11.0", api, SimpleNamespace(errors=[]))


class OnGpu(torch.Tensor):
    """A tensor that reports to be on the second GPU."""

    device = torch.device("cuda", 1)
    is_cuda = True


def test_engine_is_built_loaded_and_run_on_the_device_of_its_input(monkeypatch):
    cuda = FakeCurrentDevice(monkeypatch)
    library, example = cuda.library(), IMAGE.as_subclass(OnGpu)
    monkeypatch.setattr(tensorrt_onnx, "graph_of", lambda module, example: (b"graph", ["scores"], 0))
    monkeypatch.setattr(tensorrt_onnx, "build_engine", lambda graph, **_: cuda.note("build", b"engine"))
    payload = tensorrt_onnx.build(nn.Identity(), example, library)
    program = tensorrt_onnx.Program(payload, example, library)
    program(example)
    assert [what for what, _ in cuda.seen] == ["build", "runtime", "load", "runtime", "load", "context", "run"]
    assert {number for _, number in cuda.seen} == {1}
    assert cuda.now == 0


@pytest.fixture(autouse=True)
def quiet_exporters():
    """Restore the levels of the loggers that an export changes."""
    before = {name: logging.getLogger(name).level for name in ("onnx_ir", "onnxscript", "torch.onnx")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    tensorrt_library.library.cache_clear()
