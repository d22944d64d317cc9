"""Exports a network with its explanation to one file, and verifies the file.

The exported program computes scores, classes and heat maps from normalised images. For pooled and flat tails, and for
vision transformers, it consists of the network and a few more operations. For other tails it computes all masked maps
of an image in one batch, because faster plans cannot be exported. The file is kept only if its results equal those of
the engine in every runtime.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.backends.registry import first_line
from engine.export.metadata import EXTRA, SUFFIXES, ExportMetadata, encode_probe
from engine.export.rewriting import without_quadratic_rules
from engine.export.runtimes import INPUT, OUTPUTS, RUNTIMES
from engine.methods.dense import bytes_per_map
from engine.methods.kernels import Kernel, check_kernel, masks
from engine.methods.plan import Plan, PlanInfo
from engine.methods.recipro import ExplainedNetwork, plan_for
from engine.models.labels import parse_target
from engine.models.loader import LoadedModel, class_names
from engine.runtime.runner import CompileConfig, Runner
from engine.runtime.verification import ModelOutputs, output_mismatch, probe_images, rounding_error_bound
from engine.split.network import SplitModel, split_network
from engine.split.vit import ViTTail
from pipeline.config import EngineConfig
from pipeline.errors import BackendError, ConfigError, EngineError, did_you_mean

log = logging.getLogger(__name__)

SCORE_TOLERANCE: Final = 1e-4
"""Maximum difference between the softmax scores of an exported file and the engine, for the probe images."""
HEAT_TOLERANCE: Final = 1e-3
"""Maximum difference between their heat maps, as a mean over the grid."""
PROBES: Final = (1, 3)
"""Batch sizes at which a file is verified."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Result of an export."""

    metadata: ExportMetadata
    bytes: int
    runtimes: tuple[str, ...]
    """The runtimes in which the file was verified."""


class ExportableDensePlan(Plan):
    """Computes heat maps by definition in one graph: the tail runs on all masked maps at once."""

    masks: Tensor

    def __init__(self, tail: nn.Module, kernel: Kernel, grid: tuple[int, int], why: str) -> None:
        super().__init__()
        self.tail = tail
        self.register_buffer("masks", masks(kernel, grid, torch.arange(grid[0] * grid[1])))
        self.info = PlanInfo("dense", why, one_module=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the plain network (N, K) and of every cell (N, h * w, K), before the softmax."""
        vectors = features.flatten(2).transpose(1, 2)
        masked = vectors[:, :, :, None, None] * self.masks[None, :, None]
        scores = self.tail(torch.cat((features[:, None], masked), dim=1).flatten(0, 1))
        scores = scores.view(features.shape[0], 1 + len(self.masks), -1)
        return scores[:, 0], scores[:, 1:]


def check_format(name: str | None, path: Path) -> str:
    """Return ``onnx`` or ``torch``: the given format, or the format of the file's suffix.

    Raises:
        ConfigError: the format is unknown or contradicts the suffix, or a package for it is missing.
    """
    ending = SUFFIXES.get(path.suffix.lower())
    if name is not None and name not in SUFFIXES.values():
        raise ConfigError(f"format {name!r} is unknown; choose onnx or torch.{did_you_mean(name, SUFFIXES.values())}")
    suffix = {kind: suffix for suffix, kind in SUFFIXES.items()}.get(name or "")
    if ending is None or (name is not None and ending != name):
        raise ConfigError(f"output {str(path)!r}: its name must end in {suffix or '.onnx or .pt2'}; rename it")
    lacking = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if ending == "onnx" and lacking:
        raise ConfigError(
            f"format 'onnx': {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing: uv sync "
            "--inexact --extra export, or pip install onnx onnxscript"
        )
    return ending


def export_network(network: LoadedModel, config: EngineConfig, path: Path) -> ExportResult:
    """Export the explained network to ``path``, in the format of its suffix, and verify the file.

    Raises:
        LayerError, EngineError: the network cannot be split at this layer, or cannot be exported.
        ConfigError: the kernel or a class is unknown, or the masked maps exceed the memory budget.
        BackendError: the file's results differ from the engine's, or no installed runtime can run it.
    """
    preprocessing = network.preprocessing(config)
    size = preprocessing.input_size
    split = split_network(network.module, config.layer or network.layer, size)
    labels = class_names(network, split.classes)
    kernel, budget = check_kernel(config.kernel), config.memory_budget_mib << 20
    build = CompileConfig(parse_target(config.target, labels), kernel, "eager", "fp32", torch.device("cpu"), budget)
    with torch.inference_mode():
        plan = plan_for(split, split.head(probe_images(1, size)), kernel, budget)
    if not plan.info.one_module:
        plan = _defined(split, plan.info, kernel, budget)
    engine = Runner(split, build)
    truths = {}
    for count in PROBES:
        images = probe_images(count, size)
        truth = engine(images)
        with torch.inference_mode():
            cell_logits = engine.plan(split.head(images))[1]
        truths[count] = truth, rounding_error_bound(cell_logits, truth[1])
    metadata = ExportMetadata(
        model=network.name, labels=labels, input_size=size, mean=preprocessing.mean,
        std=preprocessing.std, fit=preprocessing.fit, layer=split.layer, grid=split.grid,
        method=f"{split.method}/{kernel}", plan=plan.info.name, target=tuple(config.target),
        probe=encode_probe(*truths[1]), made_with=made_with(),
    )  # fmt: skip
    module = ExplainedNetwork(split.head, plan, build.target, split.grid).eval()
    _write(module, metadata, path)
    return ExportResult(metadata, path.stat().st_size, _checked(path, size, truths))


def _defined(split: SplitModel, facts: PlanInfo, kernel: Kernel, budget_bytes: int) -> ExportableDensePlan:
    """Return the dense plan as one graph, and log its cost. Raises ConfigError above the memory budget."""
    if isinstance(split.tail, ViTTail):
        raise EngineError(
            f"layer {split.layer!r}: has no closed form of ViT-ReciproCAM ({facts.reason}), and only the closed form "
            "can be exported; omit --layer, or use `stream`, which needs no file"
        )
    rows, columns = split.grid
    example = torch.zeros((1, split.channels, rows, columns))
    needed = (1 + rows * columns) * bytes_per_map(split.tail, example)
    hint = "choose a later --layer or omit --layer, which costs almost nothing"
    if needed > budget_bytes:
        raise ConfigError(
            f"layer {split.layer!r}: an exported file would compute all {rows * columns} masked maps of an image at "
            f"once, up to {needed / 2**20:.0f} MiB (the budget is {budget_bytes / 2**20:.0f}); {hint}; a smaller "
            f"--input-size or a larger --memory-budget-mib also works, and `stream --layer {split.layer}` needs no file"
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        split.tail(example)
    products = int(counter.get_total_flops()) // 2 * rows * columns
    instead = "" if facts.multiply_adds is None else f" (the engine needs {facts.multiply_adds / 1e9:.3g} G)"
    log.warning(
        "layer %s: the exported file runs the tail on %d masked maps per image, which takes %.3g G multiply-adds%s "
        "and up to %.0f MiB; %s", split.layer, rows * columns, products / 1e9, instead, needed / 2**20, hint,
    )  # fmt: skip
    return ExportableDensePlan(split.tail, kernel, split.grid, "the definition, in one graph")


def _write(module: nn.Module, metadata: ExportMetadata, path: Path) -> None:
    example = probe_images(2, metadata.input_size)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # silences warnings of torch and onnxscript about their internals
        try:
            with torch.no_grad():
                program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
            program.example_inputs = None  # the constant-folded input would only enlarge the file
            _WRITERS[SUFFIXES[path.suffix.lower()]](program, metadata.metadata(), path)
        except OSError:
            raise
        except Exception as reason:  # both raise many types of exception
            raise EngineError(
                f"model {metadata.model!r} at layer {metadata.layer!r} cannot be exported ({first_line(reason)}); "
                "choose another --layer, --format or --model"
            ) from reason


def _write_onnx(program: Any, metadata: dict[str, str], path: Path) -> None:  # noqa: ANN401 - torch's own type
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)  # silences a line per folded constant
    with without_quadratic_rules():
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(OUTPUTS),
            dynamic_shapes=({0: "batch"},),
        )  # fmt: skip
    if written is None:
        raise EngineError("torch returned no graph")
    written.model.metadata_props.update(metadata)
    written.save(str(path))
    if len(list(path.parent.iterdir())) > 1:
        raise EngineError("its weights do not fit into one file of 2 GiB")


def _write_torch(program: Any, metadata: dict[str, str], path: Path) -> None:  # noqa: ANN401 - torch's own type
    torch.export.save(program, str(path), extra_files={EXTRA: json.dumps(metadata)})


_WRITERS: Final[dict[str, Callable[[Any, dict[str, str], Path], None]]] = {"onnx": _write_onnx, "torch": _write_torch}


def _checked(path: Path, size: tuple[int, int], truths: dict[int, tuple[ModelOutputs, float]]) -> tuple[str, ...]:
    """Verify the file in every installed runtime; return the names of these runtimes."""
    fitting = {name: entry for name, entry in RUNTIMES.items() if entry.suffix == path.suffix.lower()}
    available = tuple(name for name, entry in fitting.items() if not entry.missing())
    if not available:
        raise BackendError(
            f"no installed runtime can run {path.suffix} files, so the file cannot be verified: pip install openvino"
        )
    for name in available:
        program = RUNTIMES[name].load(path, "fp32")
        for count, (truth, slack) in truths.items():
            outputs = program(probe_images(count, size))
            differs = output_mismatch(truth, outputs, SCORE_TOLERANCE, HEAT_TOLERANCE + slack)
            if differs:
                raise BackendError(
                    f"the results of the exported file differ from the engine's in {name}, with {count} images per "
                    f"batch: {differs}; the file was deleted; use `stream`, which needs no file"
                )
    return available


def made_with() -> dict[str, str]:
    """Return the versions of the packages that write the file."""
    versions = {}
    for name in ("recipro-stream", "torch", "torchvision", "onnx"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
