"""Base classes of the settings of sources and sinks, and the values that a run adds to them.

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
from pipeline.errors import did_you_mean
from pipeline.input_area import InputAreaOptions, MaskOption, RoiOption
from pipeline.passages.config import Lines, Zones
from pipeline.ports import Overflow
from pipeline.queries import PlaceQueries
from pipeline.shapes import one_line


class Settings(BaseModel):
    """A frozen model that refuses unknown keys and numbers that are not finite; docstrings describe its fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueError(f"a device is auto, cpu, cuda or cuda:N.{did_you_mean(value, ('auto', 'cpu', 'cuda'))}")
    return value


Device = Annotated[str, AfterValidator(_device)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(one_line)]


@dataclass(frozen=True, slots=True)
class SecretFile:
    """Marks a field that names a file with a secret.

    Example: ``Annotated[str | None, SecretFile("token")]``. ``commands`` reads the file before the run begins and
    passes its text to the source or sink as ``context.secrets[FIELD]``.
    """

    what: str = "secret"
    """The content, as messages name it."""
    remedy: str = ""
    """Instructions to create such a file; ``{path}`` stands for its path."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The text of a secret file."""

    text: str = field(repr=False)
    path: str = ""
    """The file, for messages."""
    read_again: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """Returns the file's present text; raises ``OSError`` or ``ValueError``. None: the file can be read once only."""


def _text(value: object) -> str:
    """Return the text unchanged: file names may not be valid Unicode, which pydantic refuses."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "should be text")
    return value


Uri = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


class EntrySettings(Settings):
    """The settings of one source or sink, which a URI names."""

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
    """Zones of a detector's objects: each passage through one is a part with a verdict."""
    lines: Lines = []
    """Counting lines of a detector's objects."""
    same_object_overlap: float = Field(default=0.5, gt=0, le=1)
    """Boxes that overlap by more than this fraction of the smaller one are counted as one object. Raise it to 0.9 where
    objects cover each other, as vehicles do."""
    roi: RoiOption = None
    """Region of interest: the network gets only this part of the frame: [x, y, width, height] or corners [[x, y], ...],
    as fractions of the frame where no number is above 1, else as pixels. Default: the whole frame. Heat maps and boxes
    stay in coordinates of the whole frame (docs/sources.md)."""
    mask: MaskOption = Field(default=[])
    """Polygons that are painted over before the network: [[[x, y], ...], ...], in the units of roi. The delivered image
    stays as it is: a mask keeps nothing secret."""

    @property
    def input_area(self) -> InputAreaOptions | None:
        """The part of the frames that the network gets; None: the whole frames."""
        return None if self.roi is None and not self.mask else InputAreaOptions.of(self.roi, self.mask)


class SinkSettings(EntrySettings):
    """The options of every sink."""

    uri: Uri
    """The sink: window, tcp://HOST:PORT or ipc://PATH (ZeroMQ), http://HOST:PORT (web page), mqtt://HOST:PORT/TOPIC,
    rtsp://HOST/PATH or rtmp://HOST/APP/KEY (media server), foxglove://HOST:PORT, modbus://HOST:PORT,
    opc.tcp://HOST:PORT/NAME, FILE.mp4 or FILE.mkv, FOLDER/ (clips), FOLDER/?when=... (stills), FILE.jsonl or
    FILE.parquet (log), FILE.mcap (Foxglove), or a kind of an installed package (docs/python.md)."""

    @classmethod
    def of(cls, given: Self | str | os.PathLike[str]) -> Self:
        """Return ``given``; for a URI or a path, its settings with every option at its default."""
        return given if isinstance(given, cls) else cls.model_construct(uri=os.fspath(given))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Data that a run adds to the settings of a source."""

    camera: str | None = None
    """The camera's name; None: the source takes one from its URI."""
    decoder: str = "cpu"
    """The decoder of sources that do not state one."""
    gpu: int = 0
    """The number of the GPU that the decoders ``cuda`` and ``auto`` mean."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """The secret files' texts, by the names of their fields."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """Data that a run adds to the settings of a sink."""

    cameras: tuple[str, ...] = ()
    """The names of the cameras, where they are known before the run begins."""
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """The secret files' texts, by the names of their fields."""
    display: str | None = None
    """The display for windows: DISPLAY or WAYLAND_DISPLAY, or any text on systems that always have a screen (macOS,
    Windows); None: no display."""
    colormap: str = "inferno"
    """The colormap of heat maps that are drawn later, in the browser."""
    opacity: float = 0.6
    """The opacity of the hottest spot there, as long as the viewer does not change it."""
    queries: PlaceQueries | None = None
    """Takes the questions of viewers to the detector; None: the explanations come from another run."""
    setup: CameraSetup | None = None
    """Changes what is drawn and required of the cameras; None: this run cannot be changed by a page."""
    painted: bool = False
    """True if received images already contain heat maps, drawn by another run."""
