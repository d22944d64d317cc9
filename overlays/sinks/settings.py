"""The settings models of the built-in sinks: they define every option of each kind.

They are not in the modules of the sinks, because these import ZeroMQ, FFmpeg, Starlette and other libraries.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.passages.vote import VoteRule
from pipeline.settings import SecretFile, Settings, SinkSettings

Quality = Annotated[int, Field(ge=1, le=100)]
MaxRate = Annotated[float, Field(gt=0, le=1000)]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
MIB = 1 << 20


def _level(name: str) -> str:
    if re.search(r"[+#/\x00-\x1f\x7f]", name):
        raise ValueError("should be one level of a topic: without /, + and #")
    return name


class WindowSettings(SinkSettings):
    """A window for each camera on the screen of this machine. No options."""


class CurveSettings(Settings):
    """CURVE keys: the stream is encrypted, and only viewers with authorized keys can connect."""

    secret_key_file: str
    """The file with the server's secret key, which `run.py keys new` creates."""
    authorized_keys: str
    """A file or folder with the public keys of the viewers. It is read again when it changes."""


class ZeroMqSettings(SinkSettings):
    """Publishes overlays to viewers on the network by ZeroMQ."""

    quality: Quality = 80
    """JPEG quality of the images."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Scale of the images: 0.5 sends half the width and height."""
    max_rate: MaxRate | None = None
    """Maximum frames per second of each camera. Default: no limit."""
    curve: CurveSettings | None = None
    """Keys of the server and the viewers; required if other machines can reach the address."""
    insecure: bool = False
    """Serve every viewer without keys. Use it only if all machines of the network are trusted."""
    linger_seconds: float = Field(default=0.5, ge=0, le=60)
    """Maximum time at the end of a run to send the remaining messages."""


class WebSettings(SinkSettings):
    """Serves the web page, MJPEG streams and /metrics."""

    quality: Quality = 80
    """JPEG quality of the images."""
    token_file: Annotated[str | None, SecretFile("token", "create it: openssl rand -hex 24 > {path}")] = None
    """A file with the token that viewers must enter; required if other machines can reach the address."""
    allowed_hosts: list[str] = Field(default=[])
    """Further host names of the page, such as the name of a proxy."""
    embed_origins: list[str] = Field(default=[])
    """Other web sites that may embed the page and the MJPEG streams, such as https://dashboard.example."""
    root_path: str = ""
    """Path prefix, such as /cams, if a proxy forwards requests with this prefix. Most proxies remove it."""
    trusted_proxies: list[str] = Field(default=[])
    """Addresses or networks of proxies on other machines or in containers, such as 172.16.0.0/12, whose headers
    X-Forwarded-For and X-Forwarded-Proto are trusted. Proxies on this machine are always trusted."""
    insecure: bool = False
    """Serve every viewer without a token. Use it only if all machines of the network are trusted."""
    video: Literal["auto", "jpeg", "h264"] = "auto"
    """Encoding of the images on the page: jpeg; h264, for browsers that can decode it (fewer bytes, more processor
    time); or auto, which is h264 for browsers on other machines while it uses at most a quarter of this machine's
    processors. Browsers decode H.264 only on pages by HTTPS or from their own machine."""
    edit: bool = False
    """Let viewers change regions, masks, zones, lines and rules during the run. Changes are written to the
    configuration file. If other machines can reach the address, this needs a token, and HTTPS unless insecure is
    set."""
    edit_token_file: Annotated[str | None, SecretFile("token", "create it: openssl rand -hex 24 > {path}")] = None
    """A file with a second token: only viewers who sign in with it may edit. Default: all viewers may edit."""
    view_token_file: Annotated[str | None, SecretFile("token", "create it: openssl rand -hex 24 > {path}")] = None
    """A file with a further token: viewers who sign in with it can see cameras and events, but not change them."""
    why: bool = True
    """Let viewers request maps of a detector for boxes and for places without a box. Answers use the time of other
    maps."""


class MqttSettings(SinkSettings):
    """Publishes findings to an MQTT broker."""

    max_rate: MaxRate | None = None
    """Maximum findings per second of each live camera. Default: 1, and in addition every change of the label."""
    qos: Literal[0, 1] = 0
    """0 sends a finding once; 1 keeps up to 1000 findings until the broker confirms them."""
    status_topic: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_level)] = "status"
    """Name of the level below the topic for the status of this run, online or offline. Runs with the same topic need
    different names."""
    credentials_file: Annotated[str | None, SecretFile("credentials", "write one line, user:password, to {path}")] = (
        None
    )
    """A file with one line, user:password."""
    ca_file: str | None = None
    """Only for mqtts://: a file with the CA certificates (PEM) that verify the broker. Default: those of the system."""


class EncodingSettings(SinkSettings):
    """The options of sinks that record H.264."""

    crf: int = Field(default=23, ge=0, le=51)
    """The constant rate factor of x264: 0 is lossless, 51 is the worst quality."""
    preset: Preset = "ultrafast"
    """The preset of x264. At 720p ultrafast needs 0.3 of the processor time of veryfast; its files are 1.8 times as
    large."""
    fallback_rate: float = Field(default=30.0, gt=0, le=1000)
    """Frames per second that are assumed for the last frame of a recording, and for frames without a time."""


class PushSettings(SinkSettings):
    """The options of H.264 streams that are pushed to a media server."""

    crf: int = Field(default=23, ge=0, le=51)
    """The constant rate factor of x264: 0 is lossless, 51 is the worst quality."""
    preset: Preset = "ultrafast"
    """The preset of x264. At 720p ultrafast needs 0.3 of the processor time of veryfast."""
    max_kilobits: int | None = Field(default=None, ge=16, le=1_000_000)
    """Maximum kilobits per second of each camera, at 30 frames per second or at max_rate. Default: no limit."""
    keyframe_seconds: float = Field(default=2.0, ge=0.1, le=60)
    """Interval of key frames. A new viewer sees the first image at a key frame."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Scale of the images: 0.5 sends half the width and height."""
    max_rate: MaxRate | None = None
    """Maximum frames per second of each camera. Default: no limit."""
    timeout_seconds: float = Field(default=5.0, ge=0.5, le=60)
    """Maximum time to wait for an answer of the server, and for the server to accept data."""
    key_file: Annotated[str | None, SecretFile("key", "write one line, the stream key, to {path}")] = None
    """A file with a stream key, which is appended to the path and not shown; {camera} stands for the camera's name."""
    ca_file: str | None = None
    """Only for rtsps:// and rtmps://: a file with the CA certificates (PEM) that verify the server. Default: those of
    the system."""


class RtspPushSettings(PushSettings):
    """Publishes a stream for each camera to an RTSP server (ANNOUNCE and RECORD over TCP)."""

    credentials_file: Annotated[str | None, SecretFile("credentials", "write one line, user:password, to {path}")] = (
        None
    )
    """A file with one line, user:password."""


class RtmpPushSettings(PushSettings):
    """Publishes a stream for each camera to an RTMP server."""


Mode = Literal["keep", "replace"]


class McapSettings(SinkSettings):
    """Writes an MCAP file for Foxglove, Rerun and other viewers of robot recordings."""

    mode: Mode = "keep"
    """If the file exists: keep it and write a new file beside it, or replace it."""
    quality: Quality = 80
    """JPEG quality of the images."""
    rotate_mib: float = Field(default=1024.0, ge=0.1, le=1e6)
    """Maximum size of a file; the recording then continues in a new file."""
    disk_budget_mib: float | None = Field(default=None, ge=1, le=1e12)
    """Maximum size of all files of this name, including files of earlier runs; the oldest files are deleted. Default:
    no limit."""

    @property
    def budget_bytes(self) -> int | None:
        """``disk_budget_mib`` in bytes."""
        return None if self.disk_budget_mib is None else round(self.disk_budget_mib * MIB)

    @property
    def rotate_bytes(self) -> int:
        """Maximum size of a file in bytes: ``rotate_mib``, or a quarter of the budget if that is less."""
        limit = round(self.rotate_mib * MIB)
        return limit if self.budget_bytes is None else min(limit, self.budget_bytes // 4)


class VideoSettings(EncodingSettings):
    """Writes a video file for each camera."""

    mode: Mode = "keep"
    """If the file exists: keep it and write a new file beside it, or replace it."""


class ClipSettings(EncodingSettings):
    """Writes clips of all frames, or of frames that meet a condition, into a folder, each clip with a log."""

    rotate_seconds: float = Field(default=300.0, ge=1, le=86400)
    """Maximum duration of a clip; the recording then continues in a new clip."""
    rotate_mib: float | None = Field(default=None, ge=0.1, le=1e12)
    """Maximum size of a clip; the recording then continues in a new clip. Default: no limit."""
    disk_budget_mib: float | None = Field(default=None, ge=1, le=1e12)
    """Maximum size of all clips of this run's cameras in the folder, including clips of earlier runs; the oldest clips
    are deleted. Default: no limit."""
    record_when: str | None = Field(default=None, min_length=1)
    """Condition on the frames to record, such as label=scratch and score>0.8. Default: all frames are recorded."""
    seconds_before: float = Field(default=5.0, ge=0, le=600)
    """With record_when: recorded time before the first frame that meets the condition."""
    seconds_after: float = Field(default=5.0, ge=0, le=600)
    """With record_when: recorded time after the last frame that meets the condition."""
    preroll_memory_mib: float = Field(default=64.0, ge=1, le=65536)
    """Maximum memory of each camera for the encoded frames of seconds_before."""

    @property
    def rotate_bytes(self) -> int | None:
        """``rotate_mib`` in bytes."""
        return None if self.rotate_mib is None else round(self.rotate_mib * MIB)

    @property
    def budget_bytes(self) -> int | None:
        """``disk_budget_mib`` in bytes."""
        return None if self.disk_budget_mib is None else round(self.disk_budget_mib * MIB)

    @property
    def preroll_bytes(self) -> int:
        """``preroll_memory_mib`` in bytes."""
        return round(self.preroll_memory_mib * MIB)


class FoxgloveSettings(SinkSettings):
    """Runs a server to which Foxglove connects."""

    quality: Quality = 80
    """JPEG quality of the images."""


STILLS = "stills:"
"""Prefix of a folder of stills; ``FOLDER/?when=...`` is the same without it."""


class StillsSettings(SinkSettings):
    """Saves uncertain frames as images, to be labelled."""

    when: str = Field(default="score<0.6", min_length=1)
    """Condition on the frames to save, in the language of record_when, such as score<0.6 or guard."""
    label_changes: bool = False
    """Also save a frame if its label differs from the label of the camera's previous frame."""
    max_rate: MaxRate = 1.0
    """Maximum number of saved frames per second of each camera."""
    min_difference: int = Field(default=6, ge=0, le=64)
    """Minimum number of different bits (of 64) between the difference hash of a frame and the hashes of the camera's
    last 64 saved frames, so that similar frames are saved once. 0: save all."""
    max_images: int = Field(default=10_000, ge=1)
    """Maximum number of frames that a run saves."""
    quality: Quality = 95
    """JPEG quality of the images."""


class PlcSettings(SinkSettings):
    """The options of servers from which controllers (PLCs) read verdicts."""

    ok_when: str | None = Field(default=None, min_length=1)
    """Condition on frames that are ok, in the language of record_when, such as label=ok and score>0.8, or boxes=0 for a
    detector. Default: a frame is ok if no guard fires."""
    part_when: str | None = Field(default=None, min_length=1)
    """Condition on frames that show a part, such as label!=empty; consecutive frames are one part, which gets a
    verdict. Default: parts are counted by the zones of the camera."""
    part_gap_seconds: float = Field(default=0.3, gt=0, le=60)
    """With part_when: time without a frame that meets the condition after which a part has passed, on the stream's
    clock."""
    part_vote: VoteRule = "mean"
    """With part_when: rule by which the frames of a part, each ok or not, decide its verdict: mean (the larger sum of
    scores), best (the most certain frame), worst (not ok if any frame is not ok), or N of M, such as 3 of 5 (not ok if
    at least N of M consecutive frames are not ok)."""
    stale_seconds: float = Field(default=2.0, gt=0, le=3600)
    """Maximum age of a camera's last frame; the camera's values are bad if it is older."""
    insecure: bool = False
    """Serve every machine that can reach the address. Use it only if all machines of the network are trusted."""


class OpcUaSettings(PlcSettings):
    """Runs an OPC UA server for controllers and SCADA systems."""

    users_file: Annotated[str | None, SecretFile("users", "write a line user:password per user to {path}")] = None
    """A file with one line, user:password, for each user. Default: clients need no user."""
    certificate_file: str | None = None
    """A file with the server's certificate (DER or PEM); with it, connections are signed and encrypted (Basic256Sha256,
    Aes256Sha256RsaPss)."""
    private_key_file: str | None = None
    """A file with the private key of the certificate (PEM)."""
    client_certificates_folder: str | None = None
    """A folder with the certificates (DER or PEM) of the clients that may connect, or of the authority that issued
    them; the certificates of refused clients are stored in its subfolder rejected. Default: the certificates of clients
    are not checked."""


class ModbusSettings(PlcSettings):
    """Runs a Modbus TCP server for controllers."""


class EventSettings(SinkSettings):
    """Writes events with images to a database: alarms of guards, frames that meet a condition, lost signals, drift."""

    when: str | None = Field(default=None, min_length=1)
    """Condition on frames that become events, in addition to the alarms of guards, in the language of record_when, such
    as label=scratch and score>0.8."""
    gap_seconds: float = Field(default=2.0, ge=0, le=3600)
    """Time without an alarm or a frame that meets the condition after which an event ends; shorter gaps do not end
    it."""
    passages: Literal["rejected", "all", "none"] = "rejected"
    """Counted objects that become events: rejected (parts that are not ok), all (parts and crossings), or none."""
    keep_days: float = Field(default=30.0, gt=0, le=36500)
    """Maximum age of events; older events are deleted."""
    disk_budget_mib: float = Field(default=1024.0, ge=16, le=1e6)
    """Maximum size of the database; the oldest events are deleted."""
    image_pixels: int = Field(default=480, ge=64, le=1920)
    """Length of the longer side of an event's images."""
    webhook_file: Annotated[
        str | None, SecretFile("address", "write two lines, the address and the secret, to {path}")
    ] = None
    """A file with a webhook: the first line is the address, to which each start, change and end of an event is posted;
    the second line is the secret that signs the messages (docs/events.md)."""
    webhook_ca_file: str | None = None
    """A file with the CA certificates (PEM) that verify the receiver. Default: those of the system."""

    @property
    def budget_bytes(self) -> int:
        """``disk_budget_mib`` in bytes."""
        return round(self.disk_budget_mib * MIB)


class JsonlSettings(SinkSettings):
    """Writes a log with one JSON line for each explanation."""

    mode: Mode = "keep"
    """If the log exists: keep it and append to it, or replace it when the first explanation is written."""


class ParquetSettings(SinkSettings):
    """Writes a Parquet table with one row for each explanation."""

    mode: Mode = "keep"
    """If the file exists: keep it and write a new file beside it, or replace it at the end of the run."""
