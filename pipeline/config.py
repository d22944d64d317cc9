"""Every knob with its default, range and unit. ``pipeline.config_loader`` reads them, and says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.errors import did_you_mean
from pipeline.guards.config import GuardsConfig
from pipeline.ports import Overflow


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
        raise ValueError(f"{text.strip()[:40]!r} is no number; give three, such as 0.485,0.456,0.406") from None


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
    """Read a bare URI; ``line:`` without quotes, which YAML takes for a map of one key, is one too."""
    if isinstance(value, Mapping) and len(value) == 1 and "uri" not in value:
        (scheme, nothing), *_ = value.items()
        if nothing is None and re.fullmatch(r"[a-z][a-z0-9+.-]*", str(scheme)):
            return {"uri": f"{scheme}:"}
    return {"uri": str(value)} if isinstance(value, str | int) and not isinstance(value, bool) else value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueError(f"a device is auto, cpu, cuda or cuda:N.{did_you_mean(value, ('auto', 'cpu', 'cuda'))}")
    return value


def _one_line(name: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", name):
        raise ValueError("should be one line without control characters; it stands in logs, legends and file names")
    return name


def _level(name: str) -> str:
    if re.search(r"[+#/\x00-\x1f\x7f]", name):
        raise ValueError("should be one level of a topic: without /, + and #")
    return name


Device = Annotated[str, AfterValidator(_device)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
Side = Annotated[int, Field(ge=8, le=16384)]
MAX_INPUT_PIXELS: Final = 1 << 24


def _area(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_INPUT_PIXELS:
        raise ValueError(f"a network's input has at most {MAX_INPUT_PIXELS} pixels, such as 4096x4096; give a smaller")
    return size


Size = Annotated[tuple[Side, Side], BeforeValidator(_size), AfterValidator(_area)]
Number = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Triple = Annotated[tuple[Number, Number, Number], BeforeValidator(_triple)]
Share = Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)]
Fractions = Annotated[tuple[Share, Share, Share], BeforeValidator(_triple)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class SourceConfig(_Settings):
    """One camera."""

    uri: str
    """camera:0, rtsp://..., http(s)://..., rtmp://..., udp://..., a video file (FILE?loop=1), a folder or glob of
    images (FOLDER?watch=1: new ones as they appear; docs/sources.md), or line: (simulated).
    ${NAME} stands for a variable of the environment."""
    credentials_file: str | None = None
    """A file with one line, user:password, for this address: it need not stand in the configuration."""
    name: Name | None = None
    """The camera's name: topic, legend, file names. Default: from the URI."""
    overflow: Overflow | None = None
    """What a full queue does. Default: drop-oldest for live sources, wait for files and folders, also watched
    ones."""
    transport: Literal["tcp", "udp"] = "tcp"
    """How RTSP carries its packets."""
    read_timeout_seconds: float = Field(default=2.0, gt=0, le=60)
    """How long a live source may be silent before it counts as lost. A camera whose pictures come more rarely needs
    more; HLS is given three of its segments' durations at the least."""
    live: bool | Literal["auto"] = "auto"
    """http(s):// only: whether it is live. true: it is tried again when it ends, and the newest picture counts; false:
    it is read to its end, and no picture is dropped. auto: a playlist says so itself; what has a length is a
    recording, all else is live."""
    still_rate: float = Field(default=1.0, gt=0, le=60)
    """http(s):// only: pictures a second asked of an address that gives one still, such as /snapshot.jpg."""
    allowed_hosts: list[str] = []
    """http(s):// only: further hosts, HOST or HOST:PORT, that redirects and playlists of this camera may lead to.
    Default: none but its own."""
    open_timeout_seconds: float = Field(default=3.0, gt=0, le=120)
    """How long connecting may take."""
    decoder: Device | None = None
    """What decodes files and network streams: cpu; cuda or cuda:N, the decoder of an NVIDIA card, or an error; auto, a
    card where it can (docs/gpu.md). Default: that of all sources."""
    max_pixels: int | None = Field(default=None, ge=1, le=2**30)
    """How many pixels a picture may have; larger ones are refused before memory is taken for them. Default: 40 million
    for live sources, 128 million for files and folders."""


class EngineConfig(_Settings):
    """The network and how it is explained and run."""

    model: str = "line_net"
    """The network: a name of `run.py models`, any torchvision or timm CNN, or a file that `train` or `export` wrote."""
    weights: str | None = None
    """A state dict (.pth, .safetensors); 'random' for untrained ones. Default: the pretrained weights."""
    labels: str | None = None
    """A file with the class names: one a line, or a JSON list. Default: those of the weights."""
    layer: str | None = None
    """The explained layer, by its name in the network. Default: the last one whose output is a grid."""
    target: Annotated[list[str], BeforeValidator(_word_list)] = Field(default=["top1"], min_length=1, max_length=100)
    """The explained classes: top1, top5, names or indices, or both: top1,scratch. The first one's heat is drawn. The
    verdict is the network's top class, whatever is explained."""
    kernel: Literal["point", "gaussian"] = "point"
    """The masks of Recipro-CAM: one-hot, or spread over 3x3 cells."""
    backend: str = "auto"
    """What runs the network: auto, eager, openvino, inductor or tensorrt; onnxruntime, too, for an .onnx file (see
    doctor)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The network's arithmetic. Softmax and heat are float32 always."""
    device: Device = "auto"
    """Where the network runs: auto, cpu, cuda, or cuda:N."""
    input_size: Size | None = None
    """The network's input, HEIGHTxWIDTH in pixels. Default: what the weights were made for."""
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    """How a frame is brought to the input size: stretched, bordered, or its middle cut out."""
    mean: Triple | None = None
    """Subtracted from RGB in [0, 1]. Default: from the weights."""
    std: Fractions | None = None
    """Divided by. Default: from the weights."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads for the network. Default: all cores."""
    batch: int | None = Field(default=None, ge=1, le=1024)
    """Frames explained together at the most. Default: 8 on a GPU, or as many as there are cameras; on a CPU one, or up
    to four of several cameras where pictures are found to be fresher so."""
    batch_window_ms: float = Field(default=5.0, ge=0, le=1000)
    """How long a batch waits for more cameras; only with several."""
    memory_budget_mib: int = Field(default=1024, ge=16)
    """Memory for masked maps where they cannot be avoided."""
    cache: str | None = None
    """A folder of your own where compiled networks are kept between runs; 'off' for none. Default: one in your cache
    folder."""


class OverlayConfig(_Settings):
    """How explanations are drawn."""

    colormap: str = "inferno"
    """The heat's colours."""
    opacity: float = Field(default=0.6, ge=0, le=1)
    """How much of the frame the hottest spot covers; cold areas stay untouched."""
    legend: bool = True
    """Label, score, camera, age and rate in a corner."""
    contour: bool = False
    """A line around the hottest region."""
    hottest_box: bool = False
    """A box around the hottest region."""
    smoothing_seconds: float = Field(default=0.0, ge=0, le=60)
    """Time constant of smoothing over frames; 0 = each frame stands alone."""


class CurveConfig(_Settings):
    """Who may look in, by keys."""

    secret_key_file: str
    """The server's secret key, as `run.py keys new` makes it."""
    authorized_keys: str
    """A file or folder of the public keys of those who may look in; read again when it changes."""


class SinkConfig(_Settings):
    """One door through which overlays leave."""

    uri: str
    """window, tcp://host:port or ipc://path (ZeroMQ), http://host:port (web page), mqtt://host:port/topic (a broker),
    FILE.mp4, FOLDER/ (clips), FILE.jsonl or FILE.parquet (the log), or what a package adds (docs/python.md)."""
    quality: int = Field(default=80, ge=1, le=100)
    """JPEG quality on the network."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Of the picture on the network (tcp://, ipc://): 0.5 sends half its width and height."""
    max_rate: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second of each camera on the network (tcp://, ipc://) at the most. Default: all. Findings of each
    camera a second told to a broker (mqtt://); default: 1, and every change of the label."""
    curve: CurveConfig | None = None
    """tcp:// and ipc:// only: admit viewers by keys; needed where others can reach the address."""
    token_file: str | None = None
    """http:// only: a file that holds the token the page asks for; needed where others can reach the address."""
    allowed_hosts: list[str] = []
    """http:// only: further names the page is reached by, such as a proxy's."""
    embed_origins: list[str] = []
    """http:// only: other sites that may show the MJPEG streams, such as https://dashboard.example."""
    root_path: str = ""
    """http:// only: what a proxy leaves before the page's paths, such as /cams. Most proxies take it away."""
    insecure: bool = False
    """Serve others without asking who they are: only where the network itself is closed."""
    qos: Literal[0, 1] = 0
    """mqtt:// only: 0 sends a finding once; 1 keeps up to 1000 until the broker has confirmed them."""
    status_topic: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_level)] = "status"
    """mqtt:// only: where under the topic it stands whether this run is online. Runs that share a topic need one
    each."""
    credentials_file: str | None = None
    """mqtt:// only: a file that holds user:password."""
    ca_file: str | None = None
    """mqtts:// only: who vouches for the broker (PEM). Default: those whom this machine trusts."""
    rotate_seconds: float = Field(default=300.0, ge=1, le=86400)
    """FOLDER/ only: a clip is closed and the next begun after so long."""
    rotate_mib: float | None = Field(default=None, ge=0.1, le=1e12)
    """FOLDER/ only: ... or when it has become so large. Default: no matter."""
    disk_budget_mib: float | None = Field(default=None, ge=1, le=1e12)
    """FOLDER/ only: what the clips of this run's cameras may take there, those of earlier runs too; the oldest are
    removed. Default: all are kept."""
    record_when: str | None = Field(default=None, min_length=1)
    """FOLDER/ only: which frames are worth a clip, such as label=scratch and score>0.8. Default: all."""
    seconds_before: float = Field(default=5.0, ge=0, le=600)
    """With record_when: what is kept of the time before such a frame."""
    seconds_after: float = Field(default=5.0, ge=0, le=600)
    """With record_when: how long a clip goes on after the last such frame."""


class Config(_Settings):
    """A whole run."""

    sources: Annotated[
        list[Annotated[SourceConfig, BeforeValidator(_uri_map)]], BeforeValidator(_as_list), Field(min_length=1)
    ] = [SourceConfig(uri="line:")]
    """Where frames come from."""
    engine: EngineConfig = EngineConfig()
    overlay: OverlayConfig = OverlayConfig()
    sinks: Annotated[list[Annotated[SinkConfig, BeforeValidator(_uri_map)]], BeforeValidator(_as_list)] = []
    """Where overlays go; none = the frames are explained and counted only."""
    guards: GuardsConfig = GuardsConfig()
    """What must be true of the reasons, and what is said when it is not."""
    external_cameras: list[str] = []
    """Cameras that another process carries: guards and record_when may name them, so that one file serves all."""
    frames: int | None = Field(default=None, ge=1)
    """Stop after so many explained frames."""
    seconds: float | None = Field(default=None, gt=0)
    """Stop after so long."""
    overflow: Overflow | None = None
    """For every source that does not say its own."""
    decoder: Device = "cpu"
    """For every source that does not say its own."""
    max_age_seconds: float | None = Field(default=None, gt=0)
    """Frames of live sources that are older are not worth showing: dropped and counted. Default: none is."""
