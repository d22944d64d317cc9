"""What sinks may be told, as plain values: no sink reads the environment or a file of the user's."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    curve_allow: str | None = None
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
    insecure: bool = False
    """Whether others may look without saying who they are: the network itself is closed."""
    hosts: tuple[str, ...] = ()
    """Further names the page is reached by, such as a proxy's."""
    colormap: str = "inferno"
    """The heat's colours, where it is painted later: in the browser."""
    opacity: float = 0.6
    """How much the hottest spot covers there, until somebody changes it."""
    painted: bool = False
    """Whether the frames that come have heat on them already: they were received, not taken."""
