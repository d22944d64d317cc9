"""The configuration: every option with its default, range and unit. ``pipeline.config_loader`` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.guards.config import GuardsConfig
from pipeline.ports import Overflow
from pipeline.settings import Device, EntrySettings, Name, Settings, SinkSettings, SourceSettings


def _size(value: object) -> object:
    """Read ``HxW`` or [H, W]; one number means a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)(?:\s*[xX*]\s*(\d+))?\s*", value)
        if not match:
            raise ValueError("a size is HEIGHTxWIDTH in pixels, such as 224x224 or 384x672")
        return (int(match[1]), int(match[2] or match[1]))
    return value


def _triple(value: object) -> object:
    """Read one number, three, or ``a,b,c``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value, value, value)
    if isinstance(value, str):
        parts = [_number(part) for part in value.split(",")]
        value = parts * 3 if len(parts) == 1 else parts
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"three numbers, for red, green and blue, or one for all; these are {len(value)}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text.strip()[:40]!r} is not a number; give three, such as 0.485,0.456,0.406") from None


def _word_list(value: object) -> object:
    """Read one word or number, a comma-separated list, or a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        return [str(part) if isinstance(part, int) else part for part in value]
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Mapping) else value


def _uri_map(value: object) -> object:
    """Read a URI; YAML parses ``line:`` without quotes as a map of one key, which is read as that URI."""
    if isinstance(value, Mapping) and len(value) == 1 and "uri" not in value:
        (scheme, nothing), *_ = value.items()
        if nothing is None and re.fullmatch(r"[a-z][a-z0-9+.-]*", str(scheme)):
            return {"uri": f"{scheme}:"}
    return {"uri": str(value)} if isinstance(value, str | int) and not isinstance(value, bool) else value


Side = Annotated[int, Field(ge=8, le=16384)]
MAX_INPUT_PIXELS: Final = 1 << 24


def _area(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_INPUT_PIXELS:
        raise ValueError(f"a network's input has at most {MAX_INPUT_PIXELS} pixels, such as 4096x4096; reduce it")
    return size


Size = Annotated[
    tuple[Side, Side],
    BeforeValidator(_size, json_schema_input_type=tuple[Side, Side] | str | int),
    AfterValidator(_area),
]
Number = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Triple = Annotated[
    tuple[Number, Number, Number], BeforeValidator(_triple, json_schema_input_type=list[Number] | str | float)
]
Share = Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)]
Fractions = Annotated[
    tuple[Share, Share, Share], BeforeValidator(_triple, json_schema_input_type=list[Share] | str | float)
]


class BoxesConfig(Settings):
    """Boxes of a detector, and their heat maps."""

    layout: str | None = None
    """Output layout of an ONNX file: yolox, nanodet, ultralytics or ssd. Default: found by the shapes of its maps."""
    min_score: float = Field(default=0.3, gt=0, lt=1)
    """Lowest score of a box."""
    iou: float = Field(default=0.45, gt=0, le=1)
    """Boxes of one class that overlap more than this are the same object."""
    mode: Literal["keep", "drop"] = "keep"
    """Meaning of a map's cell: the score with this cell alone (keep), or what its absence changes (drop)."""
    cut: Annotated[list[str], BeforeValidator(_word_list, json_schema_input_type=list[str | int] | str | int)] = Field(
        default=["complete"], min_length=1, max_length=100
    )
    """Masked features: all that reach the box (complete), those of its own pyramid level (level: cheap, but blind to
    evidence far from the box), or names of maps (ONNX tensors, modules, graph nodes), proven to be complete."""
    cell_px: int = Field(default=32, ge=8, le=256, multiple_of=8)
    """Side of a map's cells in pixels of the network's input."""
    budget: float | None = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Time for maps as a fraction of the detector's own time: 1 = at most twice the plain time, 0 = no maps, null = no
    limit. Boxes are always complete; maps take turns, new and changed boxes first."""
    max_maps: int | None = Field(default=None, ge=1, le=1000)
    """Maximum number of maps per frame."""
    when: str | None = None
    """Boxes that get maps, as a condition on each: label=person and score>0.5. Default: all."""


class EngineConfig(Settings):
    """The network and how it is explained and run."""

    model: str = "line_net"
    """The network: a name of `run.py models`, any torchvision or timm CNN, hf-hub:NAME, local-dir:FOLDER, a file of
    `train` or `export`, or another .onnx or OpenVINO .xml file."""
    weights: str | None = None
    """A state dict (.pth, .safetensors); 'random' for random weights. Default: the pretrained weights."""
    labels: str | None = None
    """A file with the class names: one per line, or a JSON list. Default: those of the weights."""
    layer: str | None = None
    """The explained layer, by its name in the network. Default: the last one whose output is a grid."""
    target: Annotated[list[str], BeforeValidator(_word_list, json_schema_input_type=list[str | int] | str | int)] = (
        Field(default=["top1"], min_length=1, max_length=100)
    )
    """The explained classes: top1, top5, names or indices, or both: top1,scratch. The heat map of the first is drawn.
    The network's top class is reported in any case."""
    kernel: Literal["point", "gaussian"] = "point"
    """The masks of Recipro-CAM: one cell (point), or spread over 3x3 cells (gaussian)."""
    backend: str = "auto"
    """The backend that runs the network: auto, eager, openvino, inductor or tensorrt; onnxruntime, too, for an .onnx
    file (see doctor)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network. Softmax and heat maps are always float32."""
    device: Device = "auto"
    """The device of the network: auto, cpu, cuda, or cuda:N."""
    input_size: Size | None = None
    """Input size of the network, HEIGHTxWIDTH in pixels. Default: from the weights."""
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    """Fits a frame to the input size: stretch, letterbox (keep the aspect ratio, add a border) or crop (the middle)."""
    mean: Triple | None = None
    """Mean per channel, subtracted from RGB in [0, 1]. Default: from the weights."""
    std: Fractions | None = None
    """Standard deviation per channel, by which RGB is divided. Default: from the weights."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads for the network. Default: all cores."""
    batch: int | None = Field(default=None, ge=1, le=1024)
    """Maximum frames per batch. Default: 8 on a GPU, or the number of cameras if larger; on a CPU 1, or up to 4 with
    several cameras if a measurement shows that frames are then delivered sooner."""
    batch_window_ms: float = Field(default=5.0, ge=0, le=1000)
    """Time limit for frames of further cameras in a batch; only with several cameras."""
    memory_budget_mib: int = Field(default=1024, ge=16)
    """Memory budget for masked maps, for plans that need them."""
    boxes: BoxesConfig = BoxesConfig()
    """Boxes of a detector, and their heat maps."""
    cache: str | None = None
    """A folder of your own that keeps compiled networks between runs; 'off' for none. Default: a folder in your cache
    folder."""


class TrialConfig(EngineConfig):
    """A second network, on trial: it explains the same frames, decides nothing, and is compared with the first."""

    name: Name | None = None
    """Its name in messages, metrics and events. Default: that of the network or its file."""
    max_score_difference: float = Field(default=0.3, ge=0, le=1)
    """Classifiers differ if their top classes differ, or its scores differ by more than this."""
    min_box_score: float = Field(default=0.5, gt=0, lt=1)
    """Detectors differ if a box with at least this score has no box of its class with an IoU of 0.5 in the other."""
    max_time_ratio: float | None = Field(default=2.0, gt=0, le=1000)
    """Time of the second network relative to that of the first, at most, for each camera whose queue drops frames. A
    slower one leaves frames out. null: it explains all frames, and the camera waits for it."""

    @property
    def title(self) -> str:
        """The name, or that of the network or its file."""
        return self.name or PurePath(self.model).stem[:64]


class OverlayConfig(Settings):
    """Options of the overlay."""

    colormap: str = "inferno"
    """Colormap of heat maps."""
    opacity: float = Field(default=0.6, ge=0, le=1)
    """Opacity of the hottest spot, 0 to 1; cold areas stay unchanged."""
    legend: bool = True
    """Label, score, camera, age and rate in a corner."""
    contour: bool = False
    """A contour around the hottest region."""
    hottest_box: bool = False
    """A box around the hottest region."""
    input_area: bool = True
    """The outline of a camera's region of interest, and hatched masks."""
    smoothing_seconds: float = Field(default=0.0, ge=0, le=60)
    """Time constant of smoothing over frames; 0 = no smoothing."""


class Kinds(Protocol):
    """Parses the entries of ``sources`` and ``sinks``; the packages' registries know the kinds."""

    def source(self, entry: Mapping[str, Any]) -> SourceSettings:
        """Return the settings of one source."""
        ...

    def sink(self, entry: Mapping[str, Any]) -> SinkSettings:
        """Return the settings of one sink."""
        ...

    def models(self, section: str) -> list[tuple[str, tuple[str, ...], type[EntrySettings]]]:
        """Return name, URI keys and settings model of every kind of ``sources`` or ``sinks``."""
        ...


def _source(value: object, info: ValidationInfo) -> SourceSettings:
    if type(value) is SourceSettings:  # the default
        value = value.model_dump(exclude_unset=True)
    return value if isinstance(value, SourceSettings) else _kinds(info).source(_entry(value))


def _sink(value: object, info: ValidationInfo) -> SinkSettings:
    return value if isinstance(value, SinkSettings) else _kinds(info).sink(_entry(value))


def _entry(value: object) -> Mapping[str, Any]:
    entry = _uri_map(value)
    if not isinstance(entry, Mapping):
        raise PydanticCustomError("model_type", "should be a map of keys")
    return entry


class _BaseKinds:
    """Accepts the options that every kind has: for configurations without the registries."""

    def source(self, entry: Mapping[str, Any]) -> SourceSettings:
        return SourceSettings.model_validate(dict(entry))

    def sink(self, entry: Mapping[str, Any]) -> SinkSettings:
        return SinkSettings.model_validate(dict(entry))

    def models(self, section: str) -> list[tuple[str, tuple[str, ...], type[EntrySettings]]]:
        return [("", (), SourceSettings if section == "sources" else SinkSettings)]


def _models(value: object) -> object:
    """Read a list of networks; a text stands for a network with the default options."""
    listed = _as_list(value)
    return (
        [{"model": each} if isinstance(each, str) else each for each in listed] if isinstance(listed, list) else value
    )


def _kinds(info: ValidationInfo) -> Kinds:
    return (info.context or {}).get("kinds") or BASE_KINDS


BASE_KINDS: Final[Kinds] = _BaseKinds()


class Config(Settings):
    """The configuration of a run."""

    sources: Annotated[
        list[Annotated[SerializeAsAny[SourceSettings], PlainValidator(_source)]],
        BeforeValidator(_as_list),
        Field(min_length=1),
    ] = Field(default=[SourceSettings(uri="line:")], validate_default=True)
    """Sources of frames."""
    engine: EngineConfig = EngineConfig()
    models: Annotated[list[TrialConfig], BeforeValidator(_models)] = Field(default=[])
    """A second network on trial beside that of ``engine``, which decides; docs/parts.md."""
    overlay: OverlayConfig = OverlayConfig()
    sinks: Annotated[
        list[Annotated[SerializeAsAny[SinkSettings], PlainValidator(_sink)]], BeforeValidator(_as_list)
    ] = Field(default=[])
    """Sinks of overlays; none = frames are only explained and counted."""
    guards: GuardsConfig = GuardsConfig()
    """Rules on explanations, and the checks that they use."""
    external_cameras: list[str] = Field(default=[])
    """Cameras of other processes: guards and record_when may name them, so that several processes can share one
    file."""
    frames: int | None = Field(default=None, ge=1)
    """Stop after this number of explained frames."""
    seconds: float | None = Field(default=None, gt=0)
    """Stop after this time."""
    overflow: Overflow | None = None
    """Default for sources without their own ``overflow``."""
    decoder: Device = "cpu"
    """For every source that does not say its own."""
    max_age_seconds: float | None = Field(default=None, gt=0)
    """Maximum age of frames of live sources; older frames are dropped and counted. Default: no limit."""

    @field_validator("models")
    @classmethod
    def _is_one_with_its_own_name(cls, models: list[TrialConfig], info: ValidationInfo) -> list[TrialConfig]:
        if len(models) > 1:
            raise ValueError(f"{len(models)} networks; one can be on trial beside that of engine: remove the others")
        name = PurePath(info.data["engine"].model).stem if "engine" in info.data else None
        if models and models[0].title == name:
            raise ValueError(f"{name!r} is the name of engine's network, too; add name: NAME to the second")
        return models
