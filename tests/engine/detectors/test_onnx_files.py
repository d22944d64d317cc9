"""Detectors from ONNX files: rebuilt networks, found layouts, and decoding against the original runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.detectors.cuts import find_cut, named_cut, own_level_cut
from engine.detectors.detections import missed_anchor
from engine.detectors.identify import RawMap, identify_layout, tensorflow_defaults
from engine.detectors.loader import load_detector
from engine.detectors.onnx_files.operators import OPERATORS
from engine.detectors.onnx_files.reader import prove_against_runtime, read_onnx
from engine.detectors.split import build_split
from pipeline.errors import ConfigError, LayerError, ModelError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper = onnx.helper


def _run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    answers = session.run(names, {session.get_inputs()[0].name: images.numpy()})
    return {name: torch.from_numpy(answer) for name, answer in zip(names, answers, strict=True)}


@pytest.fixture(scope="module")
def yolox(detector_weights):
    return load_detector(detector_weights / "yolox_nano.onnx")


@pytest.fixture(scope="module")
def nanodet(detector_weights):
    return load_detector(detector_weights / "nanodet_plus_m_416.onnx")


@pytest.fixture(scope="module")
def ssd(detector_weights):
    return load_detector(detector_weights / "ssd_mobilenet_v1_coco.onnx")


def test_yolox_decodes_as_the_original_runtime(yolox, detector_weights, street):
    images = yolox.input.prepare([street])
    answer = _run(detector_weights / "yolox_nano.onnx", images)["output"][0]
    found = yolox.candidates(images)
    assert yolox.layout.name == "yolox"
    scores = answer[:, 4:5] * answer[:, 5:]
    assert scores.max() > 0.5
    torch.testing.assert_close(found.log_scores[0].exp(), scores, atol=2e-5, rtol=0)
    cells = [(r, c, s) for s in (8, 16, 32) for r in range(416 // s) for c in range(416 // s)]
    grid = torch.tensor([[c, r, s] for r, c, s in cells], dtype=torch.float32)
    centre, size = (answer[:, :2] + grid[:, :2]) * grid[:, 2:], answer[:, 2:4].exp() * grid[:, 2:]
    torch.testing.assert_close(
        found.boxes[0], torch.cat((centre - size / 2, centre + size / 2), 1), atol=2e-2, rtol=1e-4
    )


def test_nanodet_decodes_as_the_original_runtime(nanodet, detector_weights, street):
    images = nanodet.input.prepare([street])
    answers = _run(detector_weights / "nanodet_plus_m_416.onnx", images)
    found = nanodet.candidates(images)
    scores, boxes = [], []
    for stride in (8, 16, 32, 64):
        scores.append(answers[f"cls{stride}"][0].flatten(1).T)
        values = answers[f"dis{stride}_pre"][0]
        side = (values.view(4, 8, *values.shape[1:]).softmax(1) * torch.arange(8.0)[:, None, None]).sum(1) * stride
        y, x = torch.meshgrid(*(torch.arange(float(n)) * stride for n in values.shape[1:]), indexing="ij")
        boxes.append(torch.stack((x - side[0], y - side[1], x + side[2], y + side[3])).flatten(1).T)
    assert nanodet.layout.name == "nanodet"
    torch.testing.assert_close(found.log_scores[0].exp(), torch.cat(scores), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.boxes[0], torch.cat(boxes), atol=1e-2, rtol=1e-4)


def test_ssd_decodes_as_the_original_runtime(detector_weights, street):
    file = detector_weights / "ssd_mobilenet_v1_anchors.npy"
    ssd = load_detector(detector_weights / "ssd_mobilenet_v1_coco.onnx", "ssd", anchors=file)
    images = ssd.input.prepare([street])
    answers = _run(detector_weights / "ssd_mobilenet_v1_coco.onnx", images)
    anchors = torch.from_numpy(np.load(file)).float()
    found = ssd.candidates(images)
    assert ssd.layout.name == "ssd"
    torch.testing.assert_close(found.log_scores[0].exp(), answers["scores"][0, :, 1:], atol=2e-5, rtol=0)
    codes = answers["box_codes"][0]
    centre = codes[:, :2] / 10 * anchors[:, 2:] + anchors[:, :2]
    half = (codes[:, 2:] / 5).exp() * anchors[:, 2:] / 2
    boxes = torch.cat((centre - half, centre + half), 1)[:, [1, 0, 3, 2]] * 300
    torch.testing.assert_close(found.boxes[0], boxes, atol=1e-2, rtol=1e-4)


def test_default_boxes_equal_those_of_tensorflow(detector_weights, ssd):
    anchors = torch.from_numpy(np.load(detector_weights / "ssd_mobilenet_v1_anchors.npy")).float()
    grids = [(n, n) for n in (19, 10, 5, 3, 2, 1)]
    found = torch.cat([level.reshape(-1, 4) for level in tensorflow_defaults(grids)])
    step = float(anchors.max()) / 255  # the file's values have 8 bits
    assert float((anchors / step - (anchors / step).round()).abs().max()) < 1e-4
    torch.testing.assert_close(found[:, [1, 0, 3, 2]], anchors, atol=step / 2 + 1e-6, rtol=0)
    assert sum(d[..., 0].numel() for d in ssd.layout.defaults) == 1917


@pytest.mark.parametrize(
    ("name", "label"), [("yolox", "car"), ("nanodet", "car"), ("ssd", "car")]
)  # fmt: skip
def test_detectors_find_the_car_in_a_street(request, street, name, label):
    detector = request.getfixturevalue(name)
    (found,) = detector.detect(detector.input.prepare([street]))
    boxes = detector.input.place(*street.shape[:2]).to_image(found.boxes)
    cars = [box for box, k in zip(boxes, found.classes, strict=True) if detector.labels[int(k)] == label]
    assert any(torch.allclose(box, torch.tensor([133.0, 318.0, 233.0, 370.0]), atol=6) for box in cars)


def test_missed_anchor_of_a_detected_box_is_its_own(yolox, street):
    images = yolox.input.prepare([street])
    candidates, (found,) = yolox.candidates(images), yolox.detect(images)
    missed = missed_anchor(candidates, found.boxes[0], int(found.classes[0]))
    assert missed.anchor == int(found.anchors[0])
    assert missed.score == pytest.approx(float(found.scores[0]), abs=1e-6)
    assert missed.iou == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_cuts_of_the_yolox_file_have_the_known_tensors(yolox, level):
    network, layout = yolox.network(), yolox.layout
    assert find_cut(network, layout, level).nodes == named_cut(network, ["781", "841", "886"]).nodes
    assert own_level_cut(network, layout, level).nodes == named_cut(network, [("956", "990", "1024")[level]]).nodes


def test_the_cut_c4_alone_is_refused_for_the_yolox_file(yolox):
    network, layout = yolox.network((96, 128)), yolox.layout
    with pytest.raises(LayerError, match=r"t841 is not complete"):
        build_split(network, named_cut(network, ["841"]), layout.levels[1].score_maps)
    build_split(network, named_cut(network, ["781", "841", "886"]), layout.levels[1].score_maps)


def test_cuts_of_nanodet_and_ssd_cover_the_boxes(nanodet, ssd):
    assert nanodet.cut(0).strides == (8, 16, 32)
    assert nanodet.cut(0, "own level").strides == (8,)
    assert ssd.cut(0).strides == (16,)
    assert ssd.cut(0).nodes != ssd.cut(0, "own level").nodes
    assert ssd.cut(5).strides == (32,)


def test_onnx_files_take_other_sizes_and_batches(yolox):
    images = torch.rand(2, 3, 64, 96) * 255
    both = yolox.candidates(images)
    one = yolox.candidates(images[1:])
    torch.testing.assert_close(both.log_scores[1:], one.log_scores, atol=1e-4, rtol=1e-4)


def test_load_detector_refuses_default_boxes_of_another_network(detector_weights, tmp_path):
    path = detector_weights / "ssd_mobilenet_v1_coco.onnx"
    np.save(tmp_path / "few.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(ModelError, match=r"the network needs \(1917, 4\)"):
        load_detector(path, anchors=tmp_path / "few.npy")


def test_load_detector_refuses_another_layout_and_lists_the_maps(detector_weights):
    with pytest.raises(ModelError, match=r"'nanodet' does not fit.*1045 \(80, 52, 52\)"):
        load_detector(detector_weights / "yolox_nano.onnx", "nanodet")
    with pytest.raises(ConfigError, match="unknown layout"):
        load_detector(detector_weights / "yolox_nano.onnx", "yolo")
    with pytest.raises(ConfigError, match="has its own weights"):
        load_detector(detector_weights / "yolox_nano.onnx", weights="random")


def _maps(*shapes):
    return [RawMap(k, *shape, f"m{k}") for k, shape in enumerate(shapes)]


def test_identify_layout_finds_ultralytics_heads():
    maps = _maps(*((c, n, n) for n in (40, 20, 10) for c in (64, 5)))
    layout = identify_layout(maps, (320, 320), None)
    assert layout.name == "ultralytics"
    assert layout.classes == 5
    assert [v.stride for v in layout.levels] == [8, 16, 32]


def test_ultralytics_boxes_are_distances_from_the_middle_of_the_cell():
    layout = identify_layout(_maps(*((c, n, n) for n in (4, 2, 1) for c in (64, 3))), (32, 32), "ultralytics")
    values = torch.full((1, 64, 4, 4), -50.0)
    for side, distance in enumerate((1, 2, 3, 4)):
        values[0, side * 16 + distance] = 50.0
    rest = [torch.zeros(1, 3, 4, 4), values] + [torch.zeros(1, c, n, n) for n in (2, 1) for c in (3, 64)]
    maps = [rest[1], rest[0], rest[3], rest[2], rest[5], rest[4]]
    found = layout.decode(maps, (32, 32)).boxes[0, 6]  # row 1, column 2 of stride 8
    torch.testing.assert_close(found, torch.tensor([20.0 - 8, 12.0 - 16, 20.0 + 24, 12.0 + 32]))


def test_identify_layout_refuses_unknown_heads():
    with pytest.raises(ModelError, match=r"layout cannot be identified.*m0 \(255, 40, 40\)"):
        identify_layout(_maps((255, 40, 40), (255, 20, 20), (255, 10, 10)), (320, 320), None)
    with pytest.raises(ModelError, match="only for torchvision's own networks"):
        identify_layout(_maps((4, 4, 4)), (32, 32), "fcos")


def test_read_onnx_refuses_what_is_no_detector(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="not readable as an ONNX file"):
        read_onnx(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="no output comes from a convolution"):
        read_onnx(_save(tmp_path, [helper.make_node("Relu", ["images"], ["y"])], {}))
    with pytest.raises(ModelError, match=r"operator LRN \(x\) is not supported"):
        read_onnx(_with_conv(tmp_path, [helper.make_node("LRN", ["images"], ["x"], size=3)], "x", 3))


def _save(tmp_path, nodes, constants, size=(16, 24)):
    graph = helper.make_graph(
        nodes, "detector", [helper.make_tensor_value_info("images", 1, ["N", 3, *size])],
        [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def _with_conv(tmp_path, nodes, name, channels, constants=()):
    weight = np.random.default_rng(0).normal(size=(5, channels, 1, 1)).astype(np.float32)
    nodes = [*nodes, helper.make_node("Conv", [name, "w"], ["y"])]
    return _save(tmp_path, nodes, {"w": weight, **dict(constants)})


_F = np.float32
_CASES = {
    "HardSigmoid": (["images"], {"alpha": 0.3, "beta": 0.4}, {}),
    "HardSigmoid torch": (["images"], {"alpha": 1 / 6, "beta": 0.5}, {}),
    "HardSwish": (["images"], {}, {}),
    "LeakyRelu": (["images"], {"alpha": 0.2}, {}),
    "PRelu": (["images", "a"], {}, {"a": _F([[[0.1]], [[0.2]], [[0.3]]])}),
    "Clip": (["images", "a", "b"], {}, {"a": _F(-0.2), "b": _F(0.7)}),
    "Elu": (["images"], {}, {}),
    "Mish": (["images"], {}, {}),
    "Sub": (["images", "a"], {}, {"a": _F([[[0.1]], [[0.2]], [[0.3]]])}),
    "Div": (["images", "a"], {}, {"a": _F(3)}),
    "Transpose": (["images"], {"perm": [0, 1, 3, 2]}, {}),
    "Gather": (["images", "a"], {"axis": 1}, {"a": np.array([2, 0, -2])}),
    "Slice": (["images", "a", "b", "c", "d"], {}, {
        "a": np.array([1, -20]), "b": np.array([9999, -2]), "c": np.array([2, 3]), "d": np.array([2, 1]),
    }),
    "Resize": (["images", "", "a"], {"mode": "nearest"}, {"a": _F([1, 1, 2, 2])}),
    "Resize linear": (["images", "", "a"], {"mode": "linear"}, {"a": _F([1, 1, 2, 2])}),
    "Resize sizes": (["images", "", "", "a"], {"mode": "nearest"}, {"a": np.array([1, 3, 32, 48])}),
    "MaxPool": (["images"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, {}),
    "MaxPool ceil": (["images"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, {}),
    "AveragePool": (["images"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {}),
    "BatchNormalization": (["images", "a", "b", "c", "d"], {}, {
        "a": _F([1, 2, 3]), "b": _F([0, 1, 0]), "c": _F([0.1, 0.2, 0.3]), "d": _F([1, 2, 0.5]),
    }),
    "Conv": (["images", "a"], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {
        "a": np.random.default_rng(1).normal(size=(3, 3, 4, 3)).astype(_F),
    }),
    "GlobalAveragePool": (["images"], {}, {}),
    "ReduceMean": (["images", "a"], {"keepdims": 1}, {"a": np.array([2, 3])}),
    "Softmax": (["images"], {"axis": 1}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(_CASES))
def test_operators_compute_as_onnx_runtime(tmp_path, case):
    inputs, attributes, constants = _CASES[case]
    node = helper.make_node(case.split()[0], inputs, ["x"], **attributes)
    path = _with_conv(tmp_path, [node], "x", 3, constants)
    assert prove_against_runtime(path, read_onnx(path)) < 1e-5
    assert case.split()[0] in OPERATORS


def test_operators_of_constants_are_computed_while_reading(tmp_path):
    """Sizes that exporters compute from the input's shape are constants here."""
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["sides"]),
        helper.make_node("Mul", ["sides", "factor"], ["larger"]),
        helper.make_node("Concat", ["head", "larger"], ["sizes"], axis=0),
        helper.make_node("Resize", ["images", "", "", "sizes"], ["x"], mode="nearest"),
    ]
    constants = {
        "two": np.array([2]), "four": np.array([4]), "factor": np.array([2]), "head": np.array([1, 3]),
    }  # fmt: skip
    path = _with_conv(tmp_path, nodes, "x", 3, constants)
    found = read_onnx(path)
    assert found.shapes == ((5, 32, 48),)
    assert prove_against_runtime(path, found) < 1e-5


def test_split_gives_one_value_per_part(tmp_path):
    nodes = [
        helper.make_node("Split", ["images", "parts"], ["a", "b"], axis=1),
        helper.make_node("Concat", ["b", "a"], ["x"], axis=1),
    ]
    path = _with_conv(tmp_path, nodes, "x", 3, {"parts": np.array([1, 2])})
    assert prove_against_runtime(path, read_onnx(path)) < 1e-6


@pytest.mark.parametrize(
    ("order", "groups"),
    [([0, 3, 1, 4, 2, 5], 2), ([0, 2, 4, 1, 3, 5], 3), ([0, 3, 1, 5, 2, 4], 0), ([1, 0], 0), ([0], 0)],
)
def test_gather_of_alternating_channels_is_a_shuffle(tmp_path, order, groups):
    weight = np.random.default_rng(2).normal(size=(len(order), 3, 1, 1)).astype(_F)
    nodes = [
        helper.make_node("Conv", ["images", "first"], ["a"]),
        helper.make_node("Gather", ["a", "order"], ["x"], axis=1),
    ]
    path = _with_conv(tmp_path, nodes, "x", len(order), {"first": weight, "order": np.array(order)})
    found = read_onnx(path)
    assert prove_against_runtime(path, found) < 1e-5
    shuffles = [part.groups for part in found.module.modules() if isinstance(part, torch.nn.ChannelShuffle)]
    assert shuffles == ([groups] if groups else [])


class _Ultralytics(torch.nn.Module):
    """A head of YOLOv8's form with its decoding: distributions, a convolution that counts bins, joined outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.ModuleList(torch.nn.Conv2d(3 if k == 0 else 8, 8, 3, 2, 1) for k in range(5))
        self.boxes = torch.nn.ModuleList(torch.nn.Conv2d(8, 64, 1) for _ in range(3))
        self.classes = torch.nn.ModuleList(torch.nn.Conv2d(8, 4, 1) for _ in range(3))
        self.bins = torch.nn.Conv2d(16, 1, 1, bias=False)
        self.bins.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)

    def forward(self, x):
        joined = []
        for k, conv in enumerate(self.stem):
            x = F.silu(conv(x))
            if k >= 2:
                joined.append(torch.cat((self.boxes[k - 2](x), self.classes[k - 2](x)), 1).flatten(2))
        boxes, scores = torch.cat(joined, 2).split((64, 4), 1)
        shares = boxes.view(1, 4, 16, -1).transpose(2, 1).softmax(1)
        return torch.cat((self.bins(shares).flatten(1, 2), scores.sigmoid()), 1)


@pytest.mark.slow
def test_load_detector_reads_a_freshly_exported_file(tmp_path):
    """The current exporter's files, with decoding behind the maps, are cut at the last convolutions."""
    torch.manual_seed(0)
    net, path, images = _Ultralytics().eval(), tmp_path / "fresh.onnx", torch.rand(1, 3, 64, 96)
    torch.onnx.export(net, (images,), str(path), dynamo=True, verbose=False)
    detector = load_detector(path, classes=["a", "b", "c", "d"])
    assert detector.layout.name == "ultralytics"
    found = detector.candidates(images)
    expected = net(images)[0].T
    torch.testing.assert_close(found.log_scores[0].exp(), expected[:, 4:], atol=1e-5, rtol=1e-4)
    stride = torch.cat([torch.full((count,), float(s)) for s, count in ((8, 96), (16, 24), (32, 6))])
    size = found.boxes[0, :, 2:] - found.boxes[0, :, :2]
    torch.testing.assert_close(size, (expected[:, :2] + expected[:, 2:4]) * stride[:, None], atol=1e-3, rtol=1e-4)
