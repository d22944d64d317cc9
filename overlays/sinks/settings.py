"""The settings models of the sinks that are built in: every option of each kind, once.

The models do not stand in the sinks' modules because those import ZeroMQ, FFmpeg, Starlette and other vendors.
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
    """A window for each camera on this machine's screen; it has no options."""


class CurveSettings(Settings):
    """CURVE keys: encryption, and a list of the viewers that are admitted."""

    secret_key_file: str
    """The server's secret key, as `run.py keys new` makes it."""
    authorized_keys: str
    """A file or folder of the public keys of the viewers; read again when it changes."""


class ZeroMqSettings(SinkSettings):
    """Overlays published for viewers on the network."""

    quality: Quality = 80
    """JPEG quality of the images."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Scale of the images: 0.5 sends half the width and height."""
    max_rate: MaxRate | None = None
    """Maximum frames per second of each camera. Default: all."""
    curve: CurveSettings | None = None
    """Admits viewers by keys; needed where others can reach the address."""
    insecure: bool = False
    """Serves everyone without keys: only for closed networks."""
    linger_seconds: float = Field(default=0.5, ge=0, le=60)
    """At the end of a run, the time limit for messages that are not sent yet."""


class WebSettings(SinkSettings):
    """The web page, its MJPEG streams and /metrics."""

    quality: Quality = 80
    """JPEG quality of the images."""
    token_file: Annotated[str | None, SecretFile("token", "make one: openssl rand -hex 24 > {path}")] = None
    """A file with the token that the page asks for; needed where others can reach the address."""
    allowed_hosts: list[str] = Field(default=[])
    """Further host names of the page, such as a proxy's."""
    embed_origins: list[str] = Field(default=[])
    """Other sites that may show the MJPEG streams and, in a frame, the page, such as https://dashboard.example."""
    root_path: str = ""
    """The path that a proxy leaves before the page's paths, such as /cams. Most proxies remove it."""
    trusted_proxies: list[str] = Field(default=[])
    """Addresses or networks of proxies on other machines or in containers, such as 172.16.0.0/12, whose X-Forwarded-For
    and X-Forwarded-Proto are believed. This machine's own are believed always."""
    insecure: bool = False
    """Serves everyone without a token: only for closed networks."""
    video: Literal["auto", "jpeg", "h264"] = "auto"
    """Images of the page: jpeg; h264 for browsers that decode it (fewer bytes, more processor time); auto: h264 for
    browsers on other machines, until it takes over a quarter of this machine's processors. Browsers decode H.264 on
    pages by HTTPS or of their own machine only."""
    edit: bool = False
    """Viewers may change regions, masks, zones, lines and rules of the running cameras; changes are written to the
    configuration file. Off this machine it needs a token, and HTTPS unless insecure is set."""
    edit_token_file: Annotated[str | None, SecretFile("token", "make one: openssl rand -hex 24 > {path}")] = None
    """A file with a second token: only viewers who sign in with it may change anything. Default: token_file's may."""
    view_token_file: Annotated[str | None, SecretFile("token", "make one: openssl rand -hex 24 > {path}")] = None
    """A file with a further token: viewers who sign in with it see cameras and events, and change neither."""
    why: bool = True
    """Viewers may ask a detector for maps of boxes and of places without a box; answers take the time of other maps."""


class MqttSettings(SinkSettings):
    """Findings published to an MQTT broker."""

    max_rate: MaxRate | None = None
    """Maximum findings per second of each camera. Default: 1, and every change of the label."""
    qos: Literal[0, 1] = 0
    """0 sends a finding once; 1 keeps up to 1000 findings until the broker confirms them."""
    status_topic: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_level)] = "status"
    """The level below the topic with this run's status, online or offline. Runs that share a topic need different
    levels."""
    credentials_file: Annotated[
        str | None, SecretFile("credentials", "one line, user:password, belongs into {path}")
    ] = None
    """A file with one line, user:password."""
    ca_file: str | None = None
    """mqtts:// only: the CA certificates that the broker's certificate is checked with (PEM). Default: the system's."""


class EncodingSettings(SinkSettings):
    """The options of sinks that encode H.264."""

    crf: int = Field(default=23, ge=0, le=51)
    """The constant rate factor of x264: 0 is lossless, 51 is the worst quality."""
    preset: Preset = "ultrafast"
    """The preset of x264. At 720p ultrafast takes 0.3 of the processor time of veryfast; its files are 1.8 times as
    large."""
    fallback_rate: float = Field(default=30.0, gt=0, le=1000)
    """Frames per second of a recording's last frame, and of frames without a time."""


class PushSettings(SinkSettings):
    """The options of streams that are pushed to a media server, in H.264."""

    crf: int = Field(default=23, ge=0, le=51)
    """The constant rate factor of x264: 0 is lossless, 51 is the worst quality."""
    preset: Preset = "ultrafast"
    """The preset of x264. At 720p ultrafast takes 0.3 of the processor time of veryfast."""
    max_kilobits: int | None = Field(default=None, ge=16, le=1_000_000)
    """Kilobits per second of each camera at most, at 30 frames per second or max_rate. Default: as crf needs."""
    keyframe_seconds: float = Field(default=2.0, ge=0.1, le=60)
    """Interval of key frames: viewers begin at one."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Scale of the images: 0.5 sends half the width and height."""
    max_rate: MaxRate | None = None
    """Maximum frames per second of each camera. Default: all."""
    timeout_seconds: float = Field(default=5.0, ge=0.5, le=60)
    """Time limit for each answer of the server, and for data that it does not take."""
    key_file: Annotated[str | None, SecretFile("key", "one line, the stream key, belongs into {path}")] = None
    """A file with a stream key, which is appended to the path and not shown; {camera} stands for the camera's name."""


class RtspPushSettings(PushSettings):
    """A stream for each camera at an RTSP server (ANNOUNCE and RECORD over TCP)."""

    credentials_file: Annotated[
        str | None, SecretFile("credentials", "one line, user:password, belongs into {path}")
    ] = None
    """A file with one line, user:password."""


class RtmpPushSettings(PushSettings):
    """A stream for each camera at an RTMP server."""


Mode = Literal["keep", "replace"]


class McapSettings(SinkSettings):
    """An MCAP file for Foxglove, Rerun and other viewers of robots' recordings."""

    mode: Mode = "keep"
    """keep: a file of an earlier run stays, and the new one is put beside it; replace: it is replaced."""
    quality: Quality = 80
    """JPEG quality of the images."""
    rotate_mib: float = Field(default=1024.0, ge=0.1, le=1e6)
    """The size at which a file is completed and the next one is begun."""
    disk_budget_mib: float | None = Field(default=None, ge=1, le=1e12)
    """The size of all files of this name, those of earlier runs included; the oldest files are removed. Default: no
    limit."""

    @property
    def budget_bytes(self) -> int | None:
        """``disk_budget_mib`` in bytes."""
        return None if self.disk_budget_mib is None else round(self.disk_budget_mib * MIB)

    @property
    def rotate_bytes(self) -> int:
        """The size of a file at most: ``rotate_mib``, or a quarter of the budget where that is less."""
        limit = round(self.rotate_mib * MIB)
        return limit if self.budget_bytes is None else min(limit, self.budget_bytes // 4)


class VideoSettings(EncodingSettings):
    """A video file for each camera."""

    mode: Mode = "keep"
    """keep: a file of an earlier run stays, and the new one is put beside it; replace: it is replaced."""


class ClipSettings(EncodingSettings):
    """A folder of clips with an index, by time or by events."""

    rotate_seconds: float = Field(default=300.0, ge=1, le=86400)
    """The duration after which a clip is closed and the next one is begun."""
    rotate_mib: float | None = Field(default=None, ge=0.1, le=1e12)
    """The size at which a clip is closed and the next one is begun. Default: no limit."""
    disk_budget_mib: float | None = Field(default=None, ge=1, le=1e12)
    """The size of all clips of this run's cameras in the folder, those of earlier runs included; the oldest clips are
    removed. Default: no limit."""
    record_when: str | None = Field(default=None, min_length=1)
    """The frames that are recorded, such as label=scratch and score>0.8. Default: all."""
    seconds_before: float = Field(default=5.0, ge=0, le=600)
    """With record_when: the time before such a frame that is recorded, too."""
    seconds_after: float = Field(default=5.0, ge=0, le=600)
    """With record_when: the time after the last such frame that is recorded, too."""
    preroll_memory_mib: float = Field(default=64.0, ge=1, le=65536)
    """The memory for the time before an event, encoded, for each camera."""

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
    """A server that Foxglove connects to."""

    quality: Quality = 80
    """JPEG quality of the images."""


STILLS = "stills:"
"""Prefix of a folder of stills; ``FOLDER/?when=...`` is the same without it."""


class StillsSettings(SinkSettings):
    """A folder of doubtful frames to label."""

    when: str = Field(default="score<0.6", min_length=1)
    """The frames that are saved, in the language of record_when, such as score<0.6 or guard."""
    label_changes: bool = False
    """Saves a frame, too, if its label differs from that of the camera's frame before."""
    max_rate: MaxRate = 1.0
    """Saved frames per second of each camera at most."""
    min_difference: int = Field(default=6, ge=0, le=64)
    """The bits of 64 in which the difference hash of a frame differs from those of the camera's last 64 saved frames,
    at least: similar frames are saved once. 0 saves all."""
    max_images: int = Field(default=10_000, ge=1)
    """Number of frames that a run saves at most."""
    quality: Quality = 95
    """JPEG quality of the images."""


class PlcSettings(SinkSettings):
    """The verdicts that controllers read."""

    ok_when: str | None = Field(default=None, min_length=1)
    """The frames that are ok, in the language of record_when, such as label=ok and score>0.8; boxes=0 for a detector.
    Default: those in which no guard fires."""
    part_when: str | None = Field(default=None, min_length=1)
    """The frames that show a part, such as label!=empty: each passage gets a verdict. Default: the parts of the zones
    of the camera."""
    part_gap_seconds: float = Field(default=0.3, gt=0, le=60)
    """A part has passed when no frame met part_when for this time, on the clock of the frames."""
    part_vote: VoteRule = "mean"
    """With part_when: the vote of a part's frames, each ok or not, by the rules of zones: mean (the larger sum of
    scores), best (the most certain frame), worst (one that is not ok is enough), or N of M."""
    stale_seconds: float = Field(default=2.0, gt=0, le=3600)
    """A camera's values are bad when its last frame is older."""
    insecure: bool = False
    """Serves every machine that reaches the address: only for closed networks."""


class OpcUaSettings(PlcSettings):
    """An OPC UA server for controllers and SCADA systems."""

    users_file: Annotated[str | None, SecretFile("users", "lines of user:password belong into {path}")] = None
    """A file with the users, a line each: user:password. Default: clients need no user."""
    certificate_file: str | None = None
    """The server's certificate (DER or PEM): connections are then signed and encrypted (Basic256Sha256,
    Aes256Sha256RsaPss)."""
    private_key_file: str | None = None
    """The private key of the certificate (PEM)."""
    client_certificates_folder: str | None = None
    """A folder with the certificates (DER or PEM) of the clients that may connect, or of the authority that issued
    them; refused ones are kept in its subfolder rejected. Default: the certificates of clients are not checked."""


class ModbusSettings(PlcSettings):
    """A Modbus TCP server for controllers."""


class EventSettings(SinkSettings):
    """A database of events with images: guards that fire, frames that meet a condition, lost signals, drift."""

    when: str | None = Field(default=None, min_length=1)
    """Frames that become events beside those of guards, in the language of record_when, such as label=scratch and
    score>0.8."""
    gap_seconds: float = Field(default=2.0, ge=0, le=3600)
    """An event of frames ends when no frame showed it for this time: an alarm that comes and goes within it is one
    event."""
    passages: Literal["rejected", "all", "none"] = "rejected"
    """Counted objects that become events: parts that are not ok, or all parts and crossings."""
    keep_days: float = Field(default=30.0, gt=0, le=36500)
    """Age of events at most; older ones are deleted."""
    disk_budget_mib: float = Field(default=1024.0, ge=16, le=1e6)
    """The size of the database at most; the oldest events are deleted."""
    image_pixels: int = Field(default=480, ge=64, le=1920)
    """The longer side of an event's images."""
    webhook_file: Annotated[
        str | None, SecretFile("address", "a line with the address, one with the secret, belong into {path}")
    ] = None
    """A file with the address to which the start, the end and each change of an event is posted, and on the second
    line the secret that signs it (docs/events.md)."""
    webhook_ca_file: str | None = None
    """The CA certificates that the receiver's certificate is checked with (PEM). Default: the system's."""

    @property
    def budget_bytes(self) -> int:
        """``disk_budget_mib`` in bytes."""
        return round(self.disk_budget_mib * MIB)


class JsonlSettings(SinkSettings):
    """A log with one JSON line for each explanation."""

    mode: Mode = "keep"
    """keep: a log of an earlier run is continued; replace: it is emptied when the first explanation comes."""


class ParquetSettings(SinkSettings):
    """A table with one row for each explanation."""

    mode: Mode = "keep"
    """keep: a table of an earlier run stays, and the new one is put beside it; replace: it is replaced at the end."""
