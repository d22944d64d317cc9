"""The settings models of the built-in sources; each option is defined here only.

The models are not in the modules of the sources, because those import FFmpeg and OpenCV.
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
    """Time without data after which the connection counts as lost; increase it for cameras that send less often. HLS
    waits for at least three segment durations."""
    open_timeout_seconds: float = Field(default=3.0, gt=0, le=120)
    """Time limit for connecting."""
    attempts: int | None = Field(default=None, ge=1)
    """Number of failed attempts in a row after which the source fails. Default: no limit."""
    max_pixels: MaxPixels | None = None
    """Maximum pixels of an image; larger images are refused before memory is allocated for them. Default: 40 million;
    128 million for recordings."""


class CameraSettings(LiveSettings):
    """A webcam, by its number."""

    size: Size | None = None
    """Requested image size, WIDTHxHEIGHT. Default: the camera's default."""
    rate: float | None = Field(default=None, gt=0, le=1000)
    """Requested frames per second. Default: the camera's default."""
    encoding: str | None = Field(default=None, pattern=r"^[a-z0-9_]{1,32}$")
    """Requested encoding: mjpeg has the full rate at large sizes, yuyv422 the best image quality. Default: the camera's
    default."""


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
    """An industrial camera (GigE Vision, USB3 Vision), by serial number; with Aravis also by IP address."""

    producer: str | None = None
    """The GenTL producer of the camera's maker: a .cti file, or a folder of .cti files; or aravis, a free library that
    needs no producer. Default: the environment variable GENICAM_GENTL64_PATH; aravis if it is not set."""
    features: Annotated[dict[str, Feature], BeforeValidator(_features)] = Field(default={})
    """Camera features, such as PixelFormat, ExposureTime, TriggerMode, set in this order; in the URI:
    genicam:SERIAL?ExposureTime=5000&TriggerMode=On."""

    @property
    def serial(self) -> str:
        """The serial number in the URI; empty for the first camera found."""
        return self.uri.partition(":")[2]


class NetworkSettings(LiveSettings):
    """The options of every source that is read from the network."""

    credentials_file: Annotated[str | None, SecretFile("credentials", "write one line, user:password, to {path}")] = (
        None
    )
    """A file that contains the credentials of the address, in one line: user:password."""
    decoder: Device | None = None
    """The decoder: cpu; cuda or cuda:N (an NVIDIA GPU; an error if it cannot decode); auto (the GPU if it can decode,
    else the CPU; docs/gpu.md). Default: the setting for all sources."""
    device_frames: bool = False
    """true: frames that a GPU decodes stay in its memory until something on the host reads them; needs engine.device
    cuda, and a decoder on the same GPU. Experimental: it has never run on a GPU (docs/gpu.md)."""


class RtspSettings(NetworkSettings):
    """An RTSP camera."""

    transport: Literal["tcp", "udp"] = "tcp"
    """Transport protocol of the packets."""
    allowed_hosts: list[str] = Field(default=[])
    """Other hosts, HOST or HOST:PORT, that redirects may lead to. Default: only the source's own host."""


class HttpSettings(NetworkSettings):
    """MJPEG, HLS, a still image or a file over HTTP."""

    live: bool | Literal["auto"] = "auto"
    """true: a live stream, which is reconnected when it ends, and of which only the newest image counts; false: a
    recording, which is read to its end without dropping an image; auto: a playlist states whether it is live, a
    response with a length is a recording, and all others are live."""
    still_rate: float = Field(default=1.0, gt=0, le=60)
    """Requests per second for an address that serves a still image, such as /snapshot.jpg."""
    allowed_hosts: list[str] = Field(default=[])
    """Other hosts, HOST or HOST:PORT, that redirects and playlists may lead to. Default: only the source's own host."""


class BroadcastSettings(NetworkSettings):
    """RTMP, or MPEG-TS in UDP packets."""


class FileSettings(SourceSettings):
    """A video file."""

    loop: bool = False
    """Repeats the file endlessly."""
    threads: Literal["auto", "slice"] = "auto"
    """Threading of the decoder: auto for throughput, slice for the least CPU time."""
    decoder: Device | None = None
    """The decoder: cpu; cuda or cuda:N (an NVIDIA GPU; an error if it cannot decode); auto (the GPU if it can decode,
    else the CPU; docs/gpu.md). Default: the setting for all sources."""
    device_frames: bool = False
    """true: frames that a GPU decodes stay in its memory until something on the host reads them; needs engine.device
    cuda, and a decoder on the same GPU. Experimental: it has never run on a GPU (docs/gpu.md)."""
    max_pixels: MaxPixels | None = None
    """Maximum pixels of an image; larger images are refused. Default: 128 million."""


class BagSettings(SourceSettings):
    """A recording of ROS or Foxglove."""

    topic: str | None = Field(default=None, min_length=1)
    """The topic to read, such as /camera/image_raw. Default: all topics with images, each as its own camera."""
    max_pixels: MaxPixels | None = None
    """Maximum pixels of an image; larger images are refused. Default: 128 million."""


def _watch(value: object) -> object:
    spellings = {"0": "no", "1": "new", "False": "no", "True": "new", "false": "no", "true": "new"}
    return spellings.get(str(value), value)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class ImagesSettings(SourceSettings):
    """An image file, a folder of images, or a glob."""

    watch: Annotated[Literal["no", "new", "all"], BeforeValidator(_watch)] = "no"
    """Whether to wait for new images: new (or 1) reads images that appear; all also reads the existing images; no (or
    0) reads the existing images and ends."""
    bits: Annotated[Literal[8, 10, 12, 14, 16], BeforeValidator(_whole)] | None = None
    """Number of bits used in images with 16 bits per channel. Default: derived from each image's largest value."""
    images_per_second: float = Field(default=1.0, gt=0, le=1000)
    """Number of images per second of stream time; determines the images' timestamps."""
    max_pixels: MaxPixels | None = None
    """Maximum pixels of an image; larger images are refused. Default: 128 million."""


class LineSettings(SourceSettings):
    """The simulated inspection line."""

    fps: float = Field(default=30.0, ge=0.1, le=1000)
    """Frames per second."""
    size: Size = "640x480"
    """Image size, WIDTHxHEIGHT; the height must be 120 to 2160 pixels."""
    seed: int = Field(default=7, ge=0)
    """Seed of the random parts; the same seed produces the same images."""
    frames: int | None = Field(default=None, ge=1)
    """Number of frames after which the source ends. Default: no limit."""
    paced: bool = True
    """true: frames in real time, like a camera; false: as fast as they are read, like a file."""
    stamp: bool = False
    """Adds a mark to the images that reveals the label: a shortcut that a network may learn."""
