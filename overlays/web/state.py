"""State that the page's handlers share, and the page's own metrics."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from overlays.sinks.metric_help import ENCODED, VIEWERS
from overlays.web.auth import AccessPolicy, is_loopback
from overlays.web.broadcast import Broadcaster, WebClient
from overlays.web.clip import PacketBuffer, RenderStyle
from overlays.web.events import EventState
from overlays.web.fleet import FleetState
from overlays.web.status import StatusBoard
from pipeline.camera_setup import CameraSetup
from pipeline.frames import Overlay
from pipeline.ports import MetricSample
from pipeline.queries import PlaceQueries

log = logging.getLogger(__name__)

MAX_ENDED_SESSIONS: Final = 10_000
SMALL_PIXELS: Final = 640
"""Maximum longer side of a small image in pixels."""
_FILES: Final = Path(__file__).parent / "static"


@dataclass(slots=True)
class Clip:
    """A finished clip, stored because players request it in several ranges."""

    camera: str
    opacity: float
    packed: bytes
    used_at: float
    """Time of the last request in monotonic seconds."""
    tag: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(slots=True)
class WebState:
    """State that the page's handlers share."""

    access: AccessPolicy
    broadcaster: Broadcaster
    status: StatusBoard
    packets: PacketBuffer
    style: RenderStyle = field(default_factory=RenderStyle)
    painted: bool = False
    """True if the received frames already have the heat map drawn on them."""
    queries: PlaceQueries | None = None
    """Queue of viewers' questions to the network; None if viewers cannot ask."""
    setup: CameraSetup | None = None
    """Reads and changes the set-up of cameras; None if viewers may not change it."""
    edits_in_clear: bool = False
    """True if other machines may change the set-up without HTTPS."""
    video: Literal["auto", "jpeg", "h264"] = "jpeg"
    """Encoding for viewers. ``auto``: H.264 for viewers on other machines, unless encoding takes too much time."""
    video_given_up: Callable[[], bool] = lambda: False
    """Returns whether ``auto`` has stopped H.264, because encoding took too much time."""
    video_encoded: Callable[[], int] = lambda: 0
    """Returns the number of images encoded as H.264."""
    events: EventState = field(default_factory=EventState)
    fleet: FleetState = field(default_factory=FleetState)
    newest: Callable[[str], Overlay | None] = lambda _camera: None
    """Returns the newest overlay of a camera, by its name on the page; None before the first frame."""
    encoded: Callable[[], int] = lambda: 0
    """Returns the number of images encoded as JPEG."""
    uri: str = ""
    """Address of the page, used as its label in metrics."""
    refused: int = 0
    skipped: int = 0
    """Number of frames skipped by clients that have disconnected."""
    making_clip: bool = False
    """True while a clip is being made; only one clip is made at a time."""
    stopped: threading.Event = field(default_factory=threading.Event)
    token_source: Callable[[], Mapping[str, Any]] | None = None
    """Returns the current tokens by their field of ``AccessPolicy``; None if the page has no token file."""
    ended_sessions: dict[str, None] = field(default_factory=dict)
    """Identifiers of sessions that signed out, oldest first."""
    clip: Clip | None = None
    """The last clip, from which further ranges are served."""
    files: dict[str, bytes] = field(
        default_factory=lambda: {path.name: path.read_bytes() for path in sorted(_FILES.iterdir())}
    )
    """Static files by name."""

    def offers_video(self, host: str) -> bool:
        """Return whether a viewer at this address may receive H.264. ``auto`` excludes viewers on this machine."""
        if self.video == "auto":
            return not self.video_given_up() and not is_loopback(host)
        return self.video == "h264"

    def metrics(self) -> list[MetricSample]:
        """Return the page's own metrics."""
        clients, label = self.broadcaster.clients, ("sink", self.uri)
        viewers = [("page", sum(not client.rendered for client in clients))]
        viewers += [("mjpeg", sum(client.rendered for client in clients))]
        skipped = self.skipped + sum(client.skipped for client in clients)
        used = self.packets.total_bytes
        return [
            *(MetricSample("viewers", count, VIEWERS, labels=(("kind", kind), label)) for kind, count in viewers),
            MetricSample("jpeg_encodes", self.encoded(), ENCODED, "counter", (label,)),
            MetricSample("page_video_encodes", self.video_encoded(), "Images encoded as H.264.", "counter", (label,)),
            MetricSample("page_skipped", skipped, "Frames that a slow viewer missed.", "counter", (label,)),
            MetricSample("page_refused", self.refused, "Requests without the token, or from a foreign site.", "counter",
                   (label,)),
            MetricSample("page_ring_bytes", used, "Memory of the last 30 s kept for clips, in bytes.", labels=(label,)),
        ]  # fmt: skip

    def status_message(self) -> dict[str, Any]:
        """Return the status message for all pages as JSON values: cameras, sink problems and viewers."""
        outcome = self.status.outcome
        samples = self.metrics() if outcome is None else outcome.metrics()
        return {
            "cameras": [camera | self._links(camera["camera"]) for camera in self.status.snapshot()],
            "troubles": [{"sink": uri, "why": why} for uri, why in (outcome.problems() if outcome else {}).items()],
            "building_seconds": self.status.building_seconds,
            "viewers": int(sum(sample.value for sample in samples if sample.name == "viewers")),
        }

    def _links(self, camera: str) -> dict[str, Any]:
        return {} if self.access.token is None else {"stream_token": self.access.stream_token(camera)}

    def read_token(self) -> None:
        """Read the tokens again; if one has changed, disconnect all clients, which have to sign in again."""
        if self.token_source is None:
            return
        tokens = self.token_source()
        access = replace(self.access, **tokens)
        if access == self.access:
            return
        self.access = access
        log.warning("page: the token has changed; all viewers have to sign in again")
        for client in self.broadcaster.clients:
            client.close()

    def has_ended(self, session: str) -> bool:
        """Return whether the session has signed out."""
        return session in self.ended_sessions

    def end_session(self, session: str) -> None:
        """Sign a session out: its cookie and all copies of the cookie become invalid."""
        if not session:
            return
        self.ended_sessions[session] = None
        while len(self.ended_sessions) > MAX_ENDED_SESSIONS:
            del self.ended_sessions[next(iter(self.ended_sessions))]
        for client in self.broadcaster.clients:
            if client.session == session:
                client.close()

    def unsubscribe(self, client: WebClient) -> None:
        """Remove a client and add its skipped frames to ``skipped``."""
        self.broadcaster.unsubscribe(client)
        self.skipped += client.skipped
