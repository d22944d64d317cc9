"""torchvision's detectors: raw maps decode to the boxes and scores of torchvision's own code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from engine.detectors import loader
from engine.detectors.loader import load_detector
from pipeline.errors import ConfigError, ModelError
from tests.support.tiny_detector import with_lively_weights

SMALL = (96, 160)


@pytest.fixture(scope="module")
def built():
    """Return a detector and the torchvision network it is made from, built once."""
    found = {}

    def build(name):
        if name not in found:
            nets = []
            with pytest.MonkeyPatch.context() as patch:
                make = loader.load_network
                patch.setattr(loader, "load_network", lambda *args: nets.append(make(*args)) or nets[0])
                detector = load_detector(name, weights="random")
            _check_normalised(detector)
            found[name] = detector, with_lively_weights(nets[0])
            detector.networks.clear()
        return found[name]

    return build


def _check_normalised(detector):
    """The normalised graph equals the module, with the network's own initial weights."""
    size = detector.input.size if detector.fixed_size else SMALL
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for expected, found in zip(detector.module(images), detector.network(size).module(images), strict=True):
            assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def _original(net, images):
    """Boxes and scores of all anchors by torchvision's own heads, anchors and coders."""
    features = list(net.backbone(images).values())
    outputs = net.head(features)
    (anchors,) = net.anchor_generator(ImageList(images, [tuple(images.shape[2:])]), features)
    logits, values = outputs["cls_logits"][0], outputs["bbox_regression"][0]
    if "bbox_ctrness" in outputs:
        scores = torch.sqrt(logits.sigmoid() * outputs["bbox_ctrness"][0].sigmoid())
        return net.box_coder.decode(values, anchors), scores
    boxes = net.box_coder.decode_single(values, anchors)
    is_ssd = type(net).__name__ == "SSD"
    return boxes, F.softmax(logits, dim=-1)[:, 1:] if is_ssd else logits.sigmoid()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn",
        pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_decode_agrees_with_torchvision(built, name):
    detector, net = built(name)
    size = detector.input.size if detector.fixed_size else SMALL
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        boxes, scores = _original(net, images)
        maps = detector.module(images)
        found = detector.layout.decode(maps, size)
    assert scores.std() > 1e-2
    torch.testing.assert_close(found.log_scores[0].exp(), scores, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.boxes[0], boxes, atol=1e-2, rtol=1e-4)


def test_reads_give_the_score_of_each_anchor(built):
    detector, _ = built("retinanet_resnet50_fpn")
    maps = detector.network(SMALL).module(torch.rand(1, 3, *SMALL))
    candidates = detector.layout.decode(maps, SMALL)
    count = candidates.log_scores.shape[1]
    for anchor in (0, 7, count // 2, count - 1):
        position = detector.layout.locate(candidates.grids, anchor)
        assert detector.layout.number(candidates.grids, position) == anchor
        vectors = [maps[r.map][:, :, r.row, r.column] for r in detector.layout.reads(position)]
        found = detector.layout.log_score(vectors, 5, position)
        torch.testing.assert_close(found[0], candidates.log_scores[0, anchor, 5])
    with pytest.raises(IndexError, match=f"is out of range; use 0 to {count - 1}"):
        detector.layout.locate(candidates.grids, count)


def test_cuts_of_a_pyramid_are_the_backbone_outputs(built):
    detector, _ = built("retinanet_resnet50_fpn")
    cut = detector.cut(0, "complete", SMALL)
    assert cut.strides == (8, 16, 32)
    assert [name.split("_")[2] for name in cut.nodes] == ["layer2", "layer3", "layer4"]
    assert "layer_blocks_0" in detector.cut(0, "own level", SMALL).nodes[0]


def test_fixed_detectors_refuse_other_sizes(built):
    detector, _ = built("ssdlite320_mobilenet_v3_large")
    with pytest.raises(ConfigError, match="accepts only 320x320"):
        detector.network((416, 416))


@pytest.mark.slow
def test_load_detector_reads_weights_for_other_class_counts(tmp_path):
    import torchvision

    net = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4
    )
    file = tmp_path / "ssd.pth"
    torch.save(net.state_dict(), file)
    detector = load_detector("ssdlite320_mobilenet_v3_large", weights=file)
    assert detector.layout.classes == 3
    assert detector.labels == ("class 0", "class 1", "class 2")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    for classes, option in ((["a", "b"], "classes"), (names, "labels '.*names.txt'")):
        with pytest.raises(ConfigError, match=rf"^{option}: has 2 names, but .* has 3 classes"):
            load_detector("ssdlite320_mobilenet_v3_large", classes=classes, weights=file)


def test_load_detector_refuses_unknown_names():
    with pytest.raises(ModelError, match=r"'yolox_nan' is unknown. Did you mean 'yolox_nano'"):
        load_detector("yolox_nan")
    with pytest.raises(ConfigError, match="has its own layout"):
        load_detector("yolox_s", layout="yolox", weights="random")
