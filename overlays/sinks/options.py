"""What sinks may be told, as plain values: no sink reads the environment or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

VIEWERS: Final = "Who looks on."
ENCODED: Final = "Pictures that were compressed for viewers, each once whatever their number."


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """What a folder of clips is told."""

    rotate_seconds: float | None = 300.0
    """A clip is closed and the next begun after so long; None: never."""
    rotate_bytes: int | None = None
    """... or when it has become so large."""
    budget_bytes: int | None = None
    """What all clips of this recorder may take on the disk; the oldest are removed. None: all are kept."""
    when: str | None = None
    """Which frames are worth a clip (``overlays.condition``); None: all are."""
    seconds_before: float = 5.0
    """What is kept of the time before the first of them."""
    seconds_after: float = 5.0
    """... and after the last."""
    ring_bytes: int = 64 << 20
    """What one camera's time before an event may take in memory, encoded."""


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """What a sink that tells a broker is told."""

    qos: int = 0
    """0: a finding is sent once and forgotten; 1: it is kept until the broker has confirmed it."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    """Who vouches for the broker (mqtts://); None: those whom this machine trusts."""
    status_topic: str = "status"
    """The topic's level that says whether we are there."""


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """The knobs of every sink; each takes those that concern it."""

    jpeg_quality: int = 80
    """Of pictures on the wire, 1 to 100."""
    scale: float = 1.0
    """Of pictures on the wire, above 0 to 1: sent smaller than they came."""
    max_rate: float | None = None
    """Frames per second of each camera on the wire at the most; None: all."""
    curve_secret_key_file: str | None = None
    """The network sink's secret key; None: it asks for no keys."""
    curve_authorized_keys: str | None = None
    """A file or folder of the public keys of those who may look in."""
    linger_seconds: float = 0.5
    """How long the network sink may take at the end to send what waits."""
    video_quality: int = 23
    """x264's constant rate factor of recordings: 0 lossless, 51 worst."""
    video_preset: str = "ultrafast"
    """x264's. At 720p ``ultrafast`` takes 0.3 of the processor time of ``veryfast`` and makes files 1.8x as large."""
    fallback_rate: float = 30.0
    """Frames per second of a recording's last frame, and of frames without any time."""
    display: str | None = None
    """Where a window can open: DISPLAY or WAYLAND_DISPLAY, or any word where the system always has a screen (macOS,
    Windows); None: there is none."""
    token: str | None = field(default=None, repr=False)
    """Asked of whoever wants to see the page; None: nothing is."""
    token_source: Callable[[], str] | None = field(default=None, repr=False, compare=False)
    """Reads the token again, which may have changed; raises ``OSError`` or ``ValueError`` where it cannot be had."""
    insecure: bool = False
    """Whether others may look without saying who they are: the network itself is closed."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names the page is reached by, such as a proxy's."""
    embed_origins: tuple[str, ...] = ()
    """Other sites, such as https://dashboard.example, that may show the page's MJPEG streams."""
    root_path: str = ""
    """What a proxy leaves before the page's paths, such as /cams."""
    colormap: str = "inferno"
    """The heat's colours, where it is painted later: in the browser."""
    opacity: float = 0.6
    """How much the hottest spot covers there, until somebody changes it."""
    painted: bool = False
    """Whether the frames that come have heat on them already: they were received, not taken."""
    clips: ClipOptions = field(default_factory=ClipOptions)
    """Of recordings into a folder."""
    mqtt: MqttOptions = field(default_factory=MqttOptions)
    """Of findings told to a broker."""
