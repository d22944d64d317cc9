"""The models of the configuration: every option with its default, range and unit.

``pipeline.config_loader`` parses YAML into these models.
"""

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
    """Parse a size: ``HxW``, [H, W], or one number for a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)(?:\s*[xX*]\s*(\d+))?\s*", value)
        if not match:
            raise ValueError("should be HEIGHTxWIDTH in pixels, such as 224x224 or 384x672")
        return (int(match[1]), int(match[2] or match[1]))
    return value


def _triple(value: object) -> object:
    """Parse three numbers: a list, the text ``a,b,c``, or one number for all three."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value, value, value)
    if isinstance(value, str):
        parts = [_number(part) for part in value.split(",")]
        value = parts * 3 if len(parts) == 1 else parts
    if isinstance(value, list | tuple) and len(value) != 3:
        raise ValueError(f"should be three numbers for red, green and blue, or one for all three, not {len(value)}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{text.strip()[:40]!r} is not a number; give three numbers, such as 0.485,0.456,0.406"
        ) from None


def _word_list(value: object) -> object:
    """Parse a list of words or numbers: a list, a comma-separated text, or one word or number."""
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
    """Parse a URI, also ``line:`` without quotes, which YAML parses as a map with one key."""
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
    """Output layout of an ONNX file: yolox, nanodet, ultralytics or ssd. Default: detected from the output shapes."""
    min_score: float = Field(default=0.3, gt=0, lt=1)
    """Lowest score of a box."""
    iou: float = Field(default=0.45, gt=0, le=1)
    """Boxes of one class that overlap more than this are the same object."""
    mode: Literal["keep", "drop"] = "keep"
    """Meaning of a map's cell: the score with only this cell (keep), or the change of the score without it (drop)."""
    cut: Annotated[list[str], BeforeValidator(_word_list, json_schema_input_type=list[str | int] | str | int)] = Field(
        default=["complete"], min_length=1, max_length=100
    )
    """The masked features. complete: all features that the score of the box depends on. level: only those of the box's
    pyramid level, which costs less time but misses evidence far from the box. Names of ONNX tensors, modules or graph
    nodes: these maps; it is an error if the score also depends on other features.
    """
    cell_px: int = Field(default=32, ge=8, le=256, multiple_of=8)
    """Side of a map's cells in pixels of the network's input."""
    budget: float | None = Field(default=1.0, ge=0, le=1000, allow_inf_nan=False)
    """Time for maps as a fraction of the detector's own time: 1 = both together take at most twice as long as the
    detector alone, 0 = no maps, null = no limit. All boxes are always delivered. If there is no time for all maps, new
    and changed boxes come first, then the others in turn."""
    max_maps: int | None = Field(default=None, ge=1, le=1000)
    """Maximum number of maps per frame."""
    when: str | None = None
    """Condition on a box that gets a map, such as label=person and score>0.5. Default: all boxes get maps."""


class EngineConfig(Settings):
    """The network, its explanation method and its backend."""

    model: str = "line_net"
    """The network: a name that `run.py models` lists, any torchvision or timm CNN, hf-hub:NAME, local-dir:FOLDER, a
    file that `train` or `export` wrote, or another .onnx or OpenVINO .xml file."""
    weights: str | None = None
    """A state dict (.pth, .safetensors); 'random' for random weights. Default: the pretrained weights."""
    labels: str | None = None
    """A file with the class names: one per line, or a JSON list. Default: those of the weights."""
    layer: str | None = None
    """Name of the explained layer in the network. Default: the last layer whose output is a grid."""
    target: Annotated[list[str], BeforeValidator(_word_list, json_schema_input_type=list[str | int] | str | int)] = (
        Field(default=["top1"], min_length=1, max_length=100)
    )
    """The explained classes: top1, top5, class names or class indices, also combined: top1,scratch. The heat map of the
    first class is drawn. The network's top class is always reported."""
    kernel: Literal["point", "gaussian"] = "point"
    """The masks of Recipro-CAM: a single cell (point), or 3x3 cells with Gaussian weights (gaussian)."""
    backend: str = "auto"
    """The backend that runs the network: auto, eager, openvino, inductor or tensorrt; for an .onnx file also
    onnxruntime. `run.py doctor` lists those that are installed."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Floating-point precision of the network. Softmax and heat maps are always float32."""
    device: Device = "auto"
    """The device of the network: auto, cpu, cuda, or cuda:N."""
    input_size: Size | None = None
    """Input size of the network, HEIGHTxWIDTH in pixels. Default: from the weights."""
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    """How a frame is fitted to the input size: stretch, letterbox (keeps the aspect ratio, adds a border) or crop
    (keeps the aspect ratio, cuts off the ends of the longer side)."""
    mean: Triple | None = None
    """Mean per channel, subtracted from RGB in [0, 1]. Default: from the weights."""
    std: Fractions | None = None
    """Standard deviation per channel, by which RGB is divided. Default: from the weights."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads for the network. Default: all cores."""
    batch: int | None = Field(default=None, ge=1, le=1024)
    """Maximum number of frames in a batch. Default on a GPU: 8, or the number of cameras if that is larger. Default on
    a CPU: 1, or up to 4 with several cameras if a measurement at the start shows that frames are then delivered
        sooner."""
    batch_window_ms: float = Field(default=5.0, ge=0, le=1000)
    """With several cameras: time that a batch waits for frames of further cameras."""
    memory_budget_mib: int = Field(default=1024, ge=16)
    """Memory limit for masked feature maps, where the network's explanation needs them."""
    boxes: BoxesConfig = BoxesConfig()
    """Boxes of a detector, and their heat maps."""
    cache: str | None = None
    """Folder that keeps compiled networks between runs; it must belong to you. 'off': nothing is stored. Default: a
    folder in your user's cache folder."""


class TrialConfig(EngineConfig):
    """A second network on trial. It explains the same frames and is compared with the first, which alone decides."""

    name: Name | None = None
    """Name of the network on trial in messages, metrics and events. Default: the name of the network or of its file."""
    max_score_difference: float = Field(default=0.3, ge=0, le=1)
    """Two classifiers disagree if their top classes differ, or the scores of the top class differ by more than this."""
    min_box_score: float = Field(default=0.5, gt=0, lt=1)
    """Two detectors disagree if a box with at least this score matches no box of the other detector. Boxes match if
    they have the same class and an IoU of at least 0.5."""
    max_time_ratio: float | None = Field(default=2.0, gt=0, le=1000)
    """Maximum time of the second network as a multiple of the time of the first, for each camera whose queue drops
    frames. The second network skips frames to stay below it. null: it explains all frames, and the cameras wait."""

    @property
    def title(self) -> str:
        """The name; without one, the name of the network or of its file."""
        return self.name or PurePath(self.model).stem[:64]


class OverlayConfig(Settings):
    """Options of the overlay."""

    colormap: str = "inferno"
    """Colormap of heat maps."""
    opacity: float = Field(default=0.6, ge=0, le=1)
    """Opacity of the heat map where it is hottest, 0 to 1; where it is 0, the image stays unchanged."""
    legend: bool = True
    """Draw label, score, camera, age and frame rate in a corner."""
    contour: bool = False
    """Draw a contour around the hottest region."""
    hottest_box: bool = False
    """Draw a box around the hottest region."""
    input_area: bool = True
    """Draw the outline of a camera's region of interest, and hatch its masks."""
    smoothing_seconds: float = Field(default=0.0, ge=0, le=60)
    """Time constant with which heat maps are smoothed over frames; 0 = no smoothing."""


class Kinds(Protocol):
    """Parses the entries of ``sources`` and ``sinks`` by the registries of the packages."""

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
    """Accepts only the options that every kind has; used where the registries are not available."""

    def source(self, entry: Mapping[str, Any]) -> SourceSettings:
        return SourceSettings.model_validate(dict(entry))

    def sink(self, entry: Mapping[str, Any]) -> SinkSettings:
        return SinkSettings.model_validate(dict(entry))

    def models(self, section: str) -> list[tuple[str, tuple[str, ...], type[EntrySettings]]]:
        return [("", (), SourceSettings if section == "sources" else SinkSettings)]


def _models(value: object) -> object:
    """Parse a list of networks; a text is the ``model`` of a network with default options."""
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
    """A second network on trial, which does not decide: the network of ``engine`` does (docs/parts.md)."""
    overlay: OverlayConfig = OverlayConfig()
    sinks: Annotated[
        list[Annotated[SerializeAsAny[SinkSettings], PlainValidator(_sink)]], BeforeValidator(_as_list)
    ] = Field(default=[])
    """Sinks of overlays. Without sinks, frames are only explained and counted."""
    guards: GuardsConfig = GuardsConfig()
    """Rules on explanations, and the checks that the rules use."""
    external_cameras: list[str] = Field(default=[])
    """Cameras of other processes. Guards and record_when may name them, so that several processes can share one
    configuration file."""
    frames: int | None = Field(default=None, ge=1)
    """Stop after this number of explained frames."""
    seconds: float | None = Field(default=None, gt=0)
    """Stop after this time."""
    overflow: Overflow | None = None
    """Action when a queue is full, for sources without their own ``overflow``."""
    decoder: Device = "cpu"
    """The video decoder, for sources without their own ``decoder``: cpu, auto, cuda, or cuda:N."""
    max_age_seconds: float | None = Field(default=None, gt=0)
    """Maximum age of frames of live sources; older frames are dropped and counted. Default: no limit."""

    @field_validator("models")
    @classmethod
    def _is_one_with_its_own_name(cls, models: list[TrialConfig], info: ValidationInfo) -> list[TrialConfig]:
        if len(models) > 1:
            raise ValueError(f"has {len(models)} networks; only one can be on trial: remove the others")
        name = PurePath(info.data["engine"].model).stem if "engine" in info.data else None
        if models and models[0].title == name:
            raise ValueError(
                f"the network under 'engine' is also named {name!r}; set 'name:' of this network to another name"
            )
        return models
