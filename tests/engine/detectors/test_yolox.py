"""YOLOX: the sizes of the paper, the authors' checkpoints, and weights from ONNX files."""

from __future__ import annotations

import pytest
import torch

from engine.detectors.loader import load_detector
from engine.detectors.networks.yolox import YOLOX_SIZES, Yolox
from pipeline.errors import ConfigError, ModelError
from tests.support.tiny_detector import with_lively_weights


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("yolox_nano", 0.91), ("yolox_tiny", 5.06), ("yolox_s", 8.97), ("yolox_m", 25.33), ("yolox_l", 54.21),
        ("yolox_x", 99.07),
    ],
)  # fmt: skip
def test_yolox_has_the_parameters_of_the_paper(name, millions):
    with torch.device("meta"):
        net = Yolox(YOLOX_SIZES[name])
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_yolox_has_the_names_of_official_checkpoints():
    with torch.device("meta"):
        names = set(Yolox(YOLOX_SIZES["yolox_nano"]).state_dict())
    expected = {
        "backbone.backbone.stem.conv.conv.weight", "backbone.backbone.dark2.0.dconv.bn.running_mean",
        "backbone.backbone.dark3.1.m.2.conv2.pconv.conv.weight", "backbone.backbone.dark5.1.conv2.bn.weight",
        "backbone.lateral_conv0.conv.weight", "backbone.C3_p4.conv3.bn.bias", "backbone.bu_conv2.dconv.conv.weight",
        "backbone.C3_n4.m.0.conv1.conv.weight", "head.stems.2.bn.weight", "head.cls_convs.0.1.pconv.conv.weight",
        "head.reg_convs.1.0.dconv.conv.weight", "head.cls_preds.2.bias", "head.reg_preds.0.weight",
        "head.obj_preds.1.weight",
    }  # fmt: skip
    assert expected <= names


def test_load_detector_reads_a_checkpoint_of_the_authors_form(tmp_path):
    net = with_lively_weights(Yolox(YOLOX_SIZES["yolox_nano"], classes=3), seed=5)
    file = tmp_path / "best_ckpt.pth"
    torch.save({"start_epoch": 300, "model": net.state_dict(), "optimizer": {"state": {}}}, file)
    detector = load_detector("yolox_nano", classes=["a", "b", "c"], weights=file)
    images = torch.rand(1, 3, 64, 96)
    for expected, found in zip(net(images), detector.network((64, 96)).module(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert detector.labels == ("a", "b", "c")


def test_load_detector_refuses_weights_of_another_size(tmp_path):
    file = tmp_path / "tiny.pth"
    torch.save({"model": Yolox(YOLOX_SIZES["yolox_nano"]).state_dict()}, file)
    with pytest.raises(ModelError, match=r"do not fit yolox_tiny.*use the detector"):
        load_detector("yolox_tiny", weights=file)


def test_load_detector_refuses_yolox_without_weights():
    with pytest.raises(ModelError, match=r"'yolox_s': add --weights FILE"):
        load_detector("yolox_s")


@pytest.mark.slow
def test_yolox_with_weights_of_the_onnx_file_equals_onnx_runtime(detector_weights):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = detector_weights / "yolox_nano.onnx"
    detector = load_detector("yolox_nano", weights=file)
    images = torch.rand(1, 3, 416, 416, generator=torch.Generator().manual_seed(0)) * 255
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images.numpy()})
    maps = detector.network().module(images)
    joined = [
        torch.cat((maps[k + 2], maps[k + 1].sigmoid(), maps[k].sigmoid()), 1).flatten(2).transpose(1, 2)
        for k in (0, 3, 6)
    ]
    found, expected = torch.cat(joined, 1), torch.from_numpy(answer)
    assert expected[..., 4:].std() > 1e-3
    difference = (found - expected).abs()
    assert float(difference[..., 4:].max()) < 2e-5
    assert float(difference[..., :4].max() / expected[..., :4].abs().max()) < 2e-5
    with pytest.raises(ModelError, match=r"(113 convolutions, but|has the shape).*use another size"):
        load_detector("yolox_m", weights=file)


def test_detector_refuses_sizes_that_are_no_multiples_of_32():
    detector = load_detector("yolox_nano", weights="random")
    with pytest.raises(ConfigError, match="416x400: both sides must be multiples of 32"):
        detector.network((416, 400))
    assert [tuple(m.shape[2:]) for m in detector.network((96, 160)).module(torch.zeros(1, 3, 96, 160))[::3]] == [
        (12, 20), (6, 10), (3, 5),
    ]  # fmt: skip
