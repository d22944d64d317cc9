"""Builds the explainer of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import BoxesConfig, EngineConfig, TrialConfig
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engine.detectors.detector import Detector
    from engine.detectors.two_stage import RegionDetector
    from engine.explainers.detector import DetectorExplainer


def is_detector(model: str) -> bool:
    """Return whether a model is a detector: a known name, a file of ``train``, or a foreign ONNX detector."""
    from engine.detectors.checkpoint import is_detector_file
    from engine.detectors.loader import DETECTORS
    from engine.export.metadata import is_foreign_classifier, is_foreign_onnx

    if model in DETECTORS or is_detector_file(model):
        return True
    return is_foreign_onnx(model) and not is_foreign_classifier(model)


def check_has_no_boxes(config: EngineConfig) -> None:
    """Check that the configuration of a classifier sets no option of boxes.

    Raises:
        ConfigError: it sets one.
    """
    defaults = BoxesConfig()
    if keys := [key for key, value in config.boxes if value != getattr(defaults, key)]:
        key = f"{'models[0]' if isinstance(config, TrialConfig) else 'engine'}.boxes.{keys[0]}"
        raise ConfigError(
            f"{key}: belongs to detectors, but model {config.model!r} is a classifier; remove the key, or choose a "
            "detector (docs/detectors.md)"
        )


def load_configured_detector(config: EngineConfig) -> Detector | RegionDetector:
    """Load the detector of a configuration.

    Raises:
        ModelError: the file cannot be read, its output layout is not supported, or its check fails.
        ConfigError: an option does not fit a detector.
    """
    from commands.wiring.run import bundled_weights
    from engine.detectors.loader import load_detector

    labels = None if config.labels is None else Path(config.labels)
    weights = config.weights or bundled_weights(config.model)
    return load_detector(config.model, config.boxes.layout, labels, weights=weights)


def build_detector_explainer(config: EngineConfig) -> DetectorExplainer:
    """Return the explainer of the configured detector.

    Raises:
        ModelError: the file cannot be read, its output layout is not supported, or its check fails.
        ConfigError: an option does not fit a detector.
        BackendError: the device, precision or backend is not available for detectors.
    """
    from engine.explainers.detector import DetectorExplainer
    from engine.runtime.compile_cache import default_folder

    for key, default in (("mean", None), ("std", None), ("fit", "stretch")):
        if getattr(config, key) != default:
            raise ConfigError(f"engine.{key}: the layout of a detector determines its input format; remove the key")
    if config.kernel != "point":
        raise ConfigError("engine.kernel: belongs to classifiers; remove the key (a detector has boxes.cell_px)")
    if config.target != ["top1"]:
        raise ConfigError("engine.target: a detector explains its boxes; choose them by engine.boxes.when")
    cache = config.cache or default_folder()
    return DetectorExplainer(load_configured_detector(config), config.model_copy(update={"cache": cache}))
