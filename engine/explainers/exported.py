"""The path of a batch through an exported network: what it is stands in its file, and a runtime runs it."""

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
    """Explains frames with a file that ``engine.export.exporter`` wrote."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        """Read the passport, load the file, and see that it still answers the probe as the engine did.

        Raises:
            ModelError: the file is missing, damaged, or none of this system's.
            ConfigError: a knob contradicts what the file carries, or names a backend that cannot run it.
            BackendError: nothing here runs it, or its answers are not what they were when it was exported.
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
        self._prove(path, metadata, name, config.precision)
        seconds = time.perf_counter() - started_at
        super().__init__(metadata.labels, metadata.method, preprocessing, EngineInfo(
            metadata.model, metadata.layer, metadata.grid, metadata.input_size, plan, name, config.precision, "cpu",
            seconds,
        ))  # fmt: skip

    def _images(self, pixels: Tensor) -> Tensor:
        return self._preprocessing.normalised(pixels)

    def _outputs(self, images: Tensor) -> ModelOutputs:
        return self._program(images)

    def _prove(self, path: Path, metadata: ExportMetadata, backend: str, precision: str) -> None:
        truth, slack = metadata.probe_outputs(path)
        try:
            scores, classes, heat = self._program(probe_images(1, metadata.input_size))
        except (RuntimeError, ValueError, KeyError) as reason:
            raise BackendError(f"{path}: {backend} cannot run it ({reason}); export it again") from reason
        told = scores, classes[:, :1], heat[:, :1]
        if any(one.shape != other.shape for one, other in zip(truth, told, strict=True)):
            raise BackendError(f"{path}: its answers have other shapes than it says; export it again")
        differs = output_mismatch(truth, told, SCORE_TOLERANCE[precision], HEAT_TOLERANCE[precision] + slack)
        if differs:
            raise BackendError(
                f"{path}: {backend} in {precision} does not answer the probe as the engine did when it was exported: "
                f"{differs}; export it again, or use --precision fp32 or another --backend"
            )


def choose_runtime(path: Path, config: EngineConfig) -> str:
    """Return the name of what will run the file.

    Raises:
        ConfigError: the backend, precision or device that was asked for is not for such files.
        BackendError: a package is missing.
    """
    fitting = {name: entry for name, entry in RUNTIMES.items() if entry.suffix == path.suffix.lower()}
    if config.backend != "auto" and config.backend not in fitting:
        raise ConfigError(
            f"backend {config.backend!r} does not run {path.suffix} files; choose auto, {', '.join(fitting)}."
            f"{did_you_mean(config.backend, fitting)}"
        )
    if config.device.startswith("cuda"):
        raise ConfigError(f"device {config.device!r}: {path} runs on the CPU; name the network itself for a GPU")
    asked = fitting if config.backend == "auto" else {config.backend: fitting[config.backend]}
    able = {name: entry for name, entry in asked.items() if config.precision in entry.precisions}
    if not able:
        raise ConfigError(
            f"precision {config.precision!r}: {', '.join(asked)} runs {path.name} in fp32 only; leave --precision out"
        )
    lacking = {name: entry.missing() for name, entry in able.items()}
    here = [name for name, said in lacking.items() if not said]
    if not here:
        raise BackendError("; ".join(f"backend {name!r}: {said}" for name, said in lacking.items()))
    return here[0]


def _refuse_settings(path: Path, metadata: ExportMetadata, config: EngineConfig) -> None:
    """Refuse what would change a network that is finished; a knob that says the same as the file is welcome."""
    carried = {
        "weights": None, "labels": None, "layer": metadata.layer, "target": list(metadata.target),
        "kernel": metadata.method.partition("/")[2], "input_size": metadata.input_size, "mean": metadata.mean,
        "std": metadata.std, "fit": metadata.fit,
    }  # fmt: skip
    for setting, value in carried.items():
        asked = getattr(config, setting)
        if setting in config.model_fields_set and asked is not None and asked != value:
            option = "--" + setting.replace("_", "-")
            has = "carries its own" if value is None else f"was exported with {value!r}"
            raise ConfigError(f"{option} {asked!r}: {path} {has}; leave {option} out, or export the network again")
