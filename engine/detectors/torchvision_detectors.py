"""Builds one-stage and two-stage detectors from torchvision's networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.error import URLError

import torch
from torch import Tensor, nn

from engine.detectors.detector import Detector
from engine.detectors.input_format import InputFormat
from engine.detectors.networks.state import fit_classes
from engine.detectors.networks.torchvision_nets import TORCHVISION_DETECTORS, TWO_STAGE, SsdMaps, unfrozen
from engine.detectors.two_stage import RegionDetector
from engine.models.weights import read_state
from pipeline.errors import ModelError

RANDOM: Final = "random"
"""Value of ``weights`` for an untrained network, to measure cost or to train from scratch."""
TORCHVISION_NAMES: Final = (*TORCHVISION_DETECTORS, *TWO_STAGE)
"""torchvision's detectors by name."""
COCO_COLUMNS: Final = 91
"""Default number of classes of torchvision's detectors: COCO's ids and the background."""

Network = TypeVar("Network")


def has_background(name: str) -> bool:
    """Return whether the first class of a torchvision network is the background."""
    return name in TWO_STAGE or TORCHVISION_DETECTORS[name].maps is SsdMaps


def is_fixed_size(name: str) -> bool:
    """Return whether a network accepts only its own input size."""
    return name in TORCHVISION_DETECTORS and TORCHVISION_DETECTORS[name].fixed_size


def coco_columns() -> tuple[str, ...]:
    """Return the class names of torchvision's detectors: COCO's ids, with 0 for the background."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    return tuple(RetinaNet_ResNet50_FPN_Weights.DEFAULT.meta["categories"])


def build_network(name: str, columns: int) -> Any:  # noqa: ANN401 - torchvision has no types
    """Return an untrained network.

    Args:
        name: a name in ``TORCHVISION_NAMES``.
        columns: number of classes, including the background if the network has a class for it.
    """
    import torchvision

    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=columns)


def load_network(name: str, weights: str | Path | None) -> Any:  # noqa: ANN401 - torchvision has no types
    """Load a network with its weights, in inference mode.

    Args:
        name: a name in ``TORCHVISION_NAMES``.
        weights: a state dict file of any number of classes; ``random``; None: torchvision's pretrained weights, which
            are downloaded.

    Raises:
        ModelError: the weights do not fit, or cannot be downloaded.
    """
    import torchvision

    if weights == RANDOM:
        return seeded(lambda: build_network(name, COCO_COLUMNS)).eval()
    if weights is not None:

        def build(columns: int) -> nn.Module:
            net: nn.Module = build_network(name, columns)
            return net

        return fit_classes(build, read_state(Path(weights)), name, Path(weights)).eval()
    known = _pretrained(name)
    net = _downloaded(name, known.url, lambda: torchvision.models.get_model(name, weights=known))
    return unfrozen(net.eval())


def download_state(name: str) -> dict[str, Tensor]:
    """Download torchvision's pretrained weights of a detector, for COCO's classes.

    Raises:
        ModelError: they cannot be downloaded.
    """
    known = _pretrained(name)
    state: dict[str, Tensor] = _downloaded(name, known.url, lambda: known.get_state_dict(progress=False))
    return state


def _pretrained(name: str) -> Any:  # noqa: ANN401 - torchvision has no types
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT


def _downloaded(name: str, url: str, download: Callable[[], Network]) -> Network:
    try:
        return download()
    except (URLError, OSError, RuntimeError) as reason:
        raise ModelError(
            f"detector {name!r}: its pretrained weights cannot be downloaded ({reason}); download {url} on "
            "another computer and use the file as its weights"
        ) from reason


def seeded(build: Callable[[], Network]) -> Network:
    """Call ``build`` with torch's random seed 0, and return its result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def class_count(name: str, net: Any) -> int:  # noqa: ANN401 - torchvision has no types
    """Return the number of classes of a network without the background."""
    if name in TWO_STAGE:
        columns = net.roi_heads.box_predictor.cls_score.out_features
    elif has_background(name):
        columns = net.head.classification_head.num_columns
    else:
        columns = net.head.classification_head.num_classes
    return int(columns) - has_background(name)


def input_format(name: str, net: Any) -> InputFormat:  # noqa: ANN401 - torchvision has no types
    """Return the input format with which a torchvision network is trained."""
    mean, std = (tuple(255.0 * v for v in values) for values in (net.transform.image_mean, net.transform.image_std))
    # torchvision pads normalised images with zeros, which is the mean color.
    if name in TWO_STAGE:
        return InputFormat((320, 320) if "320" in name else (640, 640), "rgb", mean, std, "corner", mean)
    entry = TORCHVISION_DETECTORS[name]
    return InputFormat(entry.input_size, "rgb", mean, std, "stretch" if entry.fixed_size else "corner", mean)


def as_detector(
    name: str, network: str, net: Any, labels: tuple[str, ...], input_format: InputFormat  # noqa: ANN401
) -> Detector | RegionDetector:  # fmt: skip
    """Wrap a torchvision network as a detector; the weights are shared.

    Args:
        name: name of the detector.
        network: the network's name in ``TORCHVISION_NAMES``.
        net: the network, which is set to inference mode.
        labels: one name per class, without the background.
        input_format: the network's input format.
    """
    net.eval()
    if network in TWO_STAGE:
        return RegionDetector(name, net, labels, input_format)
    entry = TORCHVISION_DETECTORS[network]
    maps = entry.maps(net).eval()
    layout = entry.layout(net, maps, input_format.size)
    return Detector(name, maps, layout, labels, input_format, entry.fixed_size, iou=net.nms_thresh)
