"""The settings models of the sources that are built in: every option of each kind, once.

The models do not stand in the sources' modules because those import FFmpeg and OpenCV.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.settings import Device, SecretFile, SourceSettings

MaxPixels = Annotated[int, Field(ge=1, le=2**30)]
Size = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]
"""``WIDTHxHEIGHT``."""


class LiveSettings(SourceSettings):
    """The options of every live source."""

    read_timeout_seconds: float = Field(default=2.0, gt=0, le=60)
    """The silence after which the source counts as lost. A camera that sends less often needs more; HLS gets three of
    its segments' durations at least."""
    open_timeout_seconds: float = Field(default=3.0, gt=0, le=120)
    """Time limit for connecting."""
    attempts: int | None = Field(default=None, ge=1)
    """Failed attempts in a row after which the source is given up. Default: it is tried for ever."""
    max_pixels: MaxPixels | None = None
    """The pixels of an image at most; larger ones are refused before memory is taken for them. Default: 40 million, and
    128 million for recordings."""


class CameraSettings(LiveSettings):
    """A webcam, by its number."""

    size: Size | None = None
    """The size that is asked of the camera, WIDTHxHEIGHT. Default: the camera's own."""
    rate: float | None = Field(default=None, gt=0, le=1000)
    """The frames per second that are asked of the camera. Default: the camera's own."""
    encoding: str | None = Field(default=None, pattern=r"^[a-z0-9_]{1,32}$")
    """The encoding that is asked of the camera: mjpeg has the full rate at large sizes, yuyv422 the cleanest images.
    Default: the camera's own."""


def _features(value: object) -> object:
    if not isinstance(value, str):
        return value
    return dict(part.partition("=")[::2] for part in value.split("&") if part)


def _feature_text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


Feature = Annotated[str, BeforeValidator(_feature_text)]


class GenicamSettings(LiveSettings):
    """An industrial camera, GigE Vision or USB3 Vision, by its serial number; with Aravis also by its IP address."""

    producer: str | None = None
    """The GenTL producer of the camera's maker: a .cti file, or a folder of such files; or aravis, a free library that
    needs no producer. Default: the environment's GENICAM_GENTL64_PATH, and aravis without it."""
    features: Annotated[dict[str, Feature], BeforeValidator(_features)] = Field(default={})
    """Features that are set in this order, such as PixelFormat, ExposureTime, TriggerMode; in the URI:
    genicam:SERIAL?ExposureTime=5000&TriggerMode=On."""

    @property
    def serial(self) -> str:
        """The serial number in the URI; empty: the first camera."""
        return self.uri.partition(":")[2]


class NetworkSettings(LiveSettings):
    """The options of every source that is read from the network."""

    credentials_file: Annotated[
        str | None, SecretFile("credentials", "one line, user:password, belongs into {path}")
    ] = None
    """A file with one line, user:password, for the address."""
    decoder: Device | None = None
    """The decoder: cpu; cuda or cuda:N (NVIDIA GPU, or an error); auto (GPU where possible; docs/gpu.md). Default: that
    of all sources."""


class RtspSettings(NetworkSettings):
    """An RTSP camera."""

    transport: Literal["tcp", "udp"] = "tcp"
    """Transport of packets."""
    allowed_hosts: list[str] = Field(default=[])
    """Further hosts, HOST or HOST:PORT, that redirects may lead to. Default: only the source's own host."""


class HttpSettings(NetworkSettings):
    """MJPEG, HLS, a still image or a file over HTTP."""

    live: bool | Literal["auto"] = "auto"
    """true: it is tried again when it ends, and the newest image counts; false: it is read to its end, and no image is
    dropped; auto: a playlist says so itself, a response with a length is a recording, all others are live."""
    still_rate: float = Field(default=1.0, gt=0, le=60)
    """Requests per second of an address that gives one still image, such as /snapshot.jpg."""
    allowed_hosts: list[str] = Field(default=[])
    """Further hosts, HOST or HOST:PORT, that redirects and playlists may lead to. Default: only its own."""


class BroadcastSettings(NetworkSettings):
    """RTMP, or MPEG-TS in UDP packets."""


class FileSettings(SourceSettings):
    """A video file."""

    loop: bool = False
    """Starts again at the end."""
    threads: Literal["auto", "slice"] = "auto"
    """Threading of the decoder: auto for throughput, slice for the least processor time."""
    decoder: Device | None = None
    """The decoder: cpu; cuda or cuda:N (NVIDIA GPU, or an error); auto (GPU where possible; docs/gpu.md). Default: that
    of all sources."""
    max_pixels: MaxPixels | None = None
    """The pixels of an image at most; larger ones are refused. Default: 128 million."""


class BagSettings(SourceSettings):
    """A recording of ROS or Foxglove."""

    topic: str | None = Field(default=None, min_length=1)
    """The topic to read, such as /camera/image_raw. Default: every topic with images, each as a camera."""
    max_pixels: MaxPixels | None = None
    """The pixels of an image at most; larger ones are refused. Default: 128 million."""


def _watch(value: object) -> object:
    spellings = {"0": "no", "1": "new", "False": "no", "True": "new", "false": "no", "true": "new"}
    return spellings.get(str(value), value)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class ImagesSettings(SourceSettings):
    """A photo, a folder of photos, or a glob."""

    watch: Annotated[Literal["no", "new", "all"], BeforeValidator(_watch)] = "no"
    """Waits for new images: new (or 1) reads those that appear, all those that are there, too; no (or 0) reads what is
    there and ends."""
    bits: Annotated[Literal[8, 10, 12, 14, 16], BeforeValidator(_whole)] | None = None
    """The bits in use of images with 16 bits a channel. Default: from each image's largest value."""
    images_per_second: float = Field(default=1.0, gt=0, le=1000)
    """The rate that is assumed for their times."""
    max_pixels: MaxPixels | None = None
    """The pixels of an image at most; larger ones are refused. Default: 128 million."""


class LineSettings(SourceSettings):
    """The simulated inspection line."""

    fps: float = Field(default=30.0, ge=0.1, le=1000)
    """Frames per second."""
    size: Size = "640x480"
    """The size of the images, WIDTHxHEIGHT; the height is 120 to 2160 pixels."""
    seed: int = Field(default=7, ge=0)
    """The same seed draws the same parts."""
    frames: int | None = Field(default=None, ge=1)
    """Ends after this number of frames. Default: no end."""
    paced: bool = True
    """true: live, in real time; false: as fast as frames are taken, like a file."""
    stamp: bool = False
    """Adds a mark to the images that tells the label: a shortcut that a network may learn."""
