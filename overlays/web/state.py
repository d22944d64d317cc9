"""Everything the page's answers are made of, and its own figures."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from overlays.sinks.metric_help import ENCODED, VIEWERS
from overlays.web.auth import AccessPolicy
from overlays.web.broadcast import Broadcaster, WebClient
from overlays.web.clip import PacketBuffer, RenderStyle
from overlays.web.status import StatusBoard
from pipeline.ports import MetricSample

log = logging.getLogger(__name__)

MAX_LEFT_SESSIONS: Final = 10_000
SMALL_PIXELS: Final = 640
"""The longer side of a small picture."""
_FILES: Final = Path(__file__).parent / "static"


@dataclass(slots=True)
class Clip:
    """A clip that may be asked for again, in pieces."""

    camera: str
    opacity: float
    packed: bytes
    used_at: float
    """Monotonic."""
    tag: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(slots=True)
class WebState:
    """Everything the answers are made of."""

    access: AccessPolicy
    broadcaster: Broadcaster
    status: StatusBoard
    packets: PacketBuffer
    style: RenderStyle = field(default_factory=RenderStyle)
    painted: bool = False
    """Whether the frames that come have heat on them already."""
    encoded: Callable[[], int] = lambda: 0
    """How many pictures were compressed."""
    uri: str = ""
    """What the page is called in figures."""
    refused: int = 0
    skipped: int = 0
    """By viewers that have left."""
    making: bool = False
    """Whether a clip is being made: one at a time."""
    stopped: threading.Event = field(default_factory=threading.Event)
    token_source: Callable[[], str | None] | None = None
    """Gives the token that is asked for now; None where the page has no token file."""
    left: dict[str, None] = field(default_factory=dict)
    """Sessions that were ended by their owners, the oldest first."""
    clip: Clip | None = None
    """The clip that was made last: players ask for it in pieces."""
    files: dict[str, bytes] = field(
        default_factory=lambda: {path.name: path.read_bytes() for path in sorted(_FILES.iterdir())}
    )

    def metrics(self) -> list[MetricSample]:
        """Return the page's own figures."""
        clients, here = self.broadcaster.clients, ("sink", self.uri)
        viewers = [("page", sum(not client.rendered for client in clients))]
        viewers += [("mjpeg", sum(client.rendered for client in clients))]
        skipped = self.skipped + sum(client.skipped for client in clients)
        held = self.packets.total_bytes
        return [
            *(MetricSample("viewers", count, VIEWERS, labels=(("kind", kind), here)) for kind, count in viewers),
            MetricSample("jpeg_encodes", self.encoded(), ENCODED, "counter", (here,)),
            MetricSample("page_skipped", skipped, "Frames that a slow viewer missed.", "counter", (here,)),
            MetricSample("page_refused", self.refused, "Requests without the token, or from a foreign site.", "counter",
                   (here,)),
            MetricSample("page_ring_bytes", held, "Memory that the last half minute takes.", labels=(here,)),
        ]  # fmt: skip

    def told(self) -> dict[str, Any]:
        """Return what every page is told now and then, in plain JSON values."""
        outcome = self.status.outcome
        figures = self.metrics() if outcome is None else outcome.metrics()
        return {
            "cameras": [camera | self._links(camera["camera"]) for camera in self.status.snapshot()],
            "troubles": [{"sink": uri, "why": why} for uri, why in (outcome.problems() if outcome else {}).items()],
            "viewers": int(sum(figure.value for figure in figures if figure.name == "viewers")),
        }

    def _links(self, camera: str) -> dict[str, Any]:
        return {} if self.access.token is None else {"stream_token": self.access.stream_token(camera)}

    def read_token(self) -> None:
        """Take the token that stands in its file now; with another one, everybody has to show it again."""
        token = self.access.token if self.token_source is None else self.token_source()
        if token is None or token == self.access.token:
            return
        self.access = replace(self.access, token=token)
        log.warning("page: the token has changed; whoever looks on has to show the new one")
        for client in self.broadcaster.clients:
            client.close()

    def has_left(self, session: str) -> bool:
        """Say whether a session was ended by its owner."""
        return session in self.left

    def end_session(self, session: str) -> None:
        """End a session: its cookie opens nothing any more, wherever it was copied to."""
        if not session:
            return
        self.left[session] = None
        while len(self.left) > MAX_LEFT_SESSIONS:
            del self.left[next(iter(self.left))]
        for client in self.broadcaster.clients:
            if client.session == session:
                client.close()

    def unsubscribe(self, client: WebClient) -> None:
        """Forget a client, not its count."""
        self.broadcaster.unsubscribe(client)
        self.skipped += client.skipped
