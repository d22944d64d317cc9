"""The explainer of exported networks, which run in ONNX Runtime, OpenVINO or torch."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from engine.explainers.base import BaseExplainer, EngineInfo
from engine.export.metadata import ExportMetadata, read_metadata
from engine.export.runtimes import RUNTIMES
from engine.methods.plan import PlanInfo
from engine.models.preprocess import Preprocessing
from engine.runtime.verification import HEAT_TOLERANCE, SCORE_TOLERANCE, ModelOutputs, output_mismatch, probe_images
from pipeline.config import EngineConfig
from pipeline.errors import BackendError, ConfigError, did_you_mean


class ExportedExplainer(BaseExplainer):
    """Explains frames with a file written by ``engine.export.exporter``."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        """Read the metadata, load the file, and verify its outputs for the probe input.

        Args:
            path: the exported file.
            config: the engine's settings.

        Raises:
            ModelError: the file is missing, damaged, or was not exported by recipro-stream.
            ConfigError: a setting contradicts the file, or the backend cannot run the file.
            BackendError: no installed runtime can run the file, or its outputs differ from those at export.
        """
        started_at = time.perf_counter()
        if config.threads:
            torch.set_num_threads(config.threads)
        metadata = read_metadata(path)
        _refuse_settings(path, metadata, config)
        name = choose_runtime(path, config)
        self._program = RUNTIMES[name].load(path, config.precision)
        preprocessing = Preprocessing(metadata.input_size, metadata.mean, metadata.std, metadata.fit)
        plan = PlanInfo(metadata.plan, f"exported to {path.name}", one_module=True)
        self._verify(path, metadata, name, config.precision)
        seconds = time.perf_counter() - started_at
        super().__init__(metadata.labels, metadata.method, preprocessing, EngineInfo(
            metadata.model, metadata.layer, metadata.grid, metadata.input_size, plan, name, config.precision, "cpu",
            seconds,
        ))  # fmt: skip

    def _images(self, pixels: Tensor) -> Tensor:
        return self._preprocessing.normalised(pixels)

    def _outputs(self, images: Tensor) -> ModelOutputs:
        return self._program(images)

    def _verify(self, path: Path, metadata: ExportMetadata, backend: str, precision: str) -> None:
        reference, slack = metadata.probe_outputs(path)
        try:
            scores, classes, heat = self._program(probe_images(1, metadata.input_size))
        except (RuntimeError, ValueError, KeyError) as reason:
            raise BackendError(f"{path}: {backend} cannot run it ({reason}); export the network again") from reason
        outputs = scores, classes[:, :1], heat[:, :1]
        if any(expected.shape != actual.shape for expected, actual in zip(reference, outputs, strict=True)):
            raise BackendError(f"{path}: its outputs do not have the shapes in its metadata; export the network again")
        differs = output_mismatch(reference, outputs, SCORE_TOLERANCE[precision], HEAT_TOLERANCE[precision] + slack)
        if differs:
            raise BackendError(
                f"{path}: the outputs of {backend} in {precision} for the probe image differ from those at export: "
                f"{differs}; export the network again, or use --precision fp32 or another --backend"
            )


def choose_runtime(path: Path, config: EngineConfig) -> str:
    """Return the name of the runtime for a file.

    Raises:
        ConfigError: the backend, precision or device of the configuration does not support such files.
        BackendError: a package is missing.
    """
    fitting = {name: entry for name, entry in RUNTIMES.items() if entry.suffix == path.suffix.lower()}
    if config.backend != "auto" and config.backend not in fitting:
        raise ConfigError(
            f"backend {config.backend!r} does not run {path.suffix} files; choose auto, {', '.join(fitting)}."
            f"{did_you_mean(config.backend, fitting)}"
        )
    if config.device.startswith("cuda"):
        raise ConfigError(
            f"device {config.device!r}: {path} runs only on the CPU; omit --device, or for a GPU use the name of the "
            "network, not the file"
        )
    candidates = fitting if config.backend == "auto" else {config.backend: fitting[config.backend]}
    suitable = {name: entry for name, entry in candidates.items() if config.precision in entry.precisions}
    if not suitable:
        raise ConfigError(
            f"precision {config.precision!r}: {path.name} runs only in fp32 (by {' or '.join(candidates)}); omit "
            "--precision"
        )
    missing = {name: entry.missing() for name, entry in suitable.items()}
    available = [name for name, reason in missing.items() if not reason]
    if not available:
        raise BackendError("; ".join(f"backend {name!r}: {reason}" for name, reason in missing.items()))
    return available[0]


def _refuse_settings(path: Path, metadata: ExportMetadata, config: EngineConfig) -> None:
    """Raise ConfigError for a setting that contradicts the exported file."""
    exported = {
        "weights": None, "labels": None, "layer": metadata.layer, "target": list(metadata.target),
        "kernel": metadata.method.partition("/")[2], "input_size": metadata.input_size, "mean": metadata.mean,
        "std": metadata.std, "fit": metadata.fit,
    }  # fmt: skip
    for setting, value in exported.items():
        configured = getattr(config, setting)
        if setting in config.model_fields_set and configured is not None and configured != value:
            option = "--" + setting.replace("_", "-")
            has = f"has its own {setting}" if value is None else f"was exported with {value!r}"
            raise ConfigError(f"{option} {configured!r}: {path} {has}; omit {option}, or export the network again")
