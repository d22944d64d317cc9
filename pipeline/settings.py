"""Base classes of the settings of sources and sinks, and the context that a run passes to them.

Each kind of source and sink has one settings model, a subclass of ``SourceSettings`` or ``SinkSettings``: every option
of the kind is a field with its type, range, default and docstring. ``pipeline.kinds`` reads the models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from pipeline.camera_setup import CameraSetup
from pipeline.device_image import CopyPlanes
from pipeline.errors import did_you_mean
from pipeline.input_area import InputAreaOptions, MaskOption, RoiOption
from pipeline.passages.config import Lines, Zones
from pipeline.ports import Overflow
from pipeline.queries import PlaceQueries
from pipeline.shapes import one_line


class Settings(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity; the docstrings of its fields are descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueError(f"should be auto, cpu, cuda or cuda:N.{did_you_mean(value, ('auto', 'cpu', 'cuda'))}")
    return value


Device = Annotated[str, AfterValidator(_device)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(one_line)]


@dataclass(frozen=True, slots=True)
class SecretFile:
    """Marks a field that names a file with a secret.

    Example: ``Annotated[str | None, SecretFile("token")]``. The package ``commands`` reads the file before the run
    begins, and passes its text to the source or sink as ``context.secrets[FIELD]``.
    """

    what: str = "secret"
    """Name of the content in messages, such as ``token``."""
    remedy: str = ""
    """Instructions to create the file, for messages; ``{path}`` stands for its path."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The content of a secret file."""

    text: str = field(repr=False)
    path: str = ""
    """Path of the file, for messages."""
    read_again: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """Returns the current text of the file; raises ``OSError`` or ``ValueError``. None: it can be read only once."""


def _text(value: object) -> str:
    """Return a text unchanged, also one with surrogates, which pydantic's own check of text refuses.

    A file name that is not valid UTF-8 contains surrogates.
    """
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "should be text")
    return value


Uri = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


class EntrySettings(Settings):
    """The settings of one source or sink."""

    uri: Uri


class SourceSettings(EntrySettings):
    """The options of every source."""

    uri: Uri
    """The source: camera:0, genicam:SERIAL, rtsp://..., http(s)://..., rtmp://..., udp://..., a video file, a folder or
    glob of images, a bag (.mcap, .db3, .bag or a bag folder), line: (the simulated line), or a kind of an installed
    package (docs/python.md). ${NAME} stands for an environment variable."""
    name: Name | None = None
    """The camera's name in topics, legends and file names. Default: from the URI."""
    overflow: Overflow | None = None
    """Action when the queue is full. Default: drop-oldest for live sources, wait for files and folders, also for
    watched folders."""
    zones: Zones = []
    """Zones for the objects of a detector: each passage through a zone is counted as a part with a verdict."""
    lines: Lines = []
    """Counting lines for the objects of a detector."""
    same_object_overlap: float = Field(default=0.5, gt=0, le=1)
    """Boxes that overlap by more than this fraction of the smaller box are counted as one object. Set 0.9 if objects
    cover each other, for example vehicles."""
    roi: RoiOption = None
    """Region of interest, the only part of the frame that the network gets: [x, y, width, height] or corners [[x, y],
    ...], in fractions of the frame if no number is above 1, else in pixels. Default: the whole frame. Heat maps and
    boxes keep the coordinates of the whole frame (docs/sources.md)."""
    mask: MaskOption = Field(default=[])
    """Polygons that are painted over in the network's input: [[[x, y], ...], ...], in the units of roi. The delivered
    image still shows them: a mask hides nothing from viewers."""

    @property
    def input_area(self) -> InputAreaOptions | None:
        """The part of the frames that the network gets; None for whole frames."""
        return None if self.roi is None and not self.mask else InputAreaOptions.of(self.roi, self.mask)


class SinkSettings(EntrySettings):
    """The options of every sink."""

    uri: Uri
    """The sink: window, tcp://HOST:PORT or ipc://PATH (ZeroMQ), http://HOST:PORT (web page), mqtt://HOST:PORT/TOPIC,
    rtsp(s)://HOST/PATH or rtmp(s)://HOST/APP/KEY (media server), foxglove://HOST:PORT, modbus://HOST:PORT,
    opc.tcp://HOST:PORT/NAME, FILE.mp4 or FILE.mkv, FOLDER/ (clips), FOLDER/?when=... (stills), FILE.jsonl or
    FILE.parquet (log), FILE.mcap (Foxglove), or a kind of an installed package (docs/python.md)."""

    @classmethod
    def of(cls, given: Self | str | os.PathLike[str]) -> Self:
        """Return settings unchanged; for a URI or a path, return settings with default options."""
        return given if isinstance(given, cls) else cls.model_construct(uri=os.fspath(given))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Values that a run passes to a source beside its settings."""

    camera: str | None = None
    """The camera's name; None: the source derives a name from its URI."""
    decoder: str = "cpu"
    """The decoder for sources without the option ``decoder``."""
    gpu: int = 0
    """Number of the GPU for the decoders ``cuda`` and ``auto``."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """The secret files' texts, by the names of their fields."""
    copy_planes: CopyPlanes | None = field(default=None, compare=False)
    """Copies a decoded frame within the memory of the engine's GPU; None: the engine reads host memory."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """Values that a run passes to a sink beside its settings."""

    cameras: tuple[str, ...] = ()
    """The names of the cameras, if they are known before the run begins; else empty."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """The secret files' texts, by the names of their fields."""
    display: str | None = None
    """The display for windows: DISPLAY or WAYLAND_DISPLAY, or any text on systems that always have a screen (macOS,
    Windows); None: no display."""
    colormap: str = "inferno"
    """The colormap of heat maps that the browser draws."""
    opacity: float = 0.6
    """The opacity of the hottest spot in the browser, 0 to 1; the viewer can change it."""
    queries: PlaceQueries | None = None
    """Passes queries of viewers to the network; None if the explanations come from another run."""
    setup: CameraSetup | None = None
    """Changes the shapes and rules of the cameras; None if a page cannot change this run."""
    painted: bool = False
    """True if received images already contain heat maps, drawn by another run."""
