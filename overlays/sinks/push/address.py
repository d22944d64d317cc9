"""Addresses of media servers: ``rtsp[s]://HOST/PATH`` and ``rtmp[s]://HOST/APP/KEY``. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from overlays.sinks.paths import safe_file_name

CAMERA: Final = "{camera}"
"""Placeholder for the camera's name in a path."""
SECRET: Final = "***"  # noqa: S105 - the placeholder
_PORTS: Final = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}
_ADDRESS: Final = re.compile(
    r"(?P<scheme>\w+)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::(?P<port>\d+))?/(?P<path>.*)"
)
_PATH: Final = re.compile(r"[\w!$&'()*+,;=:@%.~{}-]+(?:/[\w!$&'()*+,;=:@%.~{}-]+)*", re.ASCII)
_KEY: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a media server; its path may contain the placeholder for the camera's name."""

    scheme: str
    """``rtsp``, ``rtsps``, ``rtmp`` or ``rtmps``."""
    host: str
    """Host name or address, IPv6 without brackets."""
    port: int
    path: str
    """Path without the first slash."""
    public_parts: int
    """Number of parts of the path before the stream key; all parts if there is no key."""
    has_secret: bool = False
    """True if the path contains a stream key, which messages do not show."""

    @property
    def is_rtmp(self) -> bool:
        """True for RTMP, with or without TLS."""
        return self.scheme in {"rtmp", "rtmps"}

    @property
    def uses_tls(self) -> bool:
        """True if the connection is encrypted, and the server's certificate is verified."""
        return self.scheme in {"rtsps", "rtmps"}

    @property
    def host_port(self) -> str:
        """Host and port as in a URL, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_for_every_camera(self) -> bool:
        """True if each camera has its own path."""
        return CAMERA in self.path

    def path_of(self, camera: str, taken: Iterable[str] = ()) -> str:
        """Return the path of a camera, different from all paths in ``taken``."""
        name, used = safe_file_name(camera), set(taken)
        path, number = self.path.replace(CAMERA, name), 2
        while path in used and self.is_for_every_camera:
            path, number = self.path.replace(CAMERA, f"{name}_{number}"), number + 1
        return path

    def split(self, path: str) -> tuple[str, str]:
        """Return the parts of a path before the stream key, and the key."""
        parts = path.split("/")
        return "/".join(parts[: self.public_parts]), "/".join(parts[self.public_parts :])

    def shown(self, path: str) -> str:
        """Return the URL of a path for messages: without the stream key."""
        if self.has_secret:
            path = f"{self.split(path)[0]}/{SECRET}"
        return f"{self.scheme}://{self.host_port}/{path}"


def parse_server(uri: str, key: str = "") -> ServerAddress:
    """Parse the address of a media server. No error contains a text that may be a secret.

    Args:
        uri: ``rtsp://host[:port]/path``, ``rtmp://host[:port]/app/key``, or the same with ``rtsps``, ``rtmps``.
        key: the stream key in a file, which is appended to the path.

    Raises:
        ValueError: the address is invalid; the message shows a valid one.
    """
    example = "rtsp://127.0.0.1:8554/line" if uri.lower().startswith("rtsp") else "rtmp://127.0.0.1/live/line"
    if "@" in uri.partition("://")[2].partition("/")[0] or "?" in uri:
        raise ValueError(
            "contains a user, a password or options after '?', which all users can see in the process list; write user "
            "and password to a file (credentials_file), or the stream key and all text after it (key_file)"
        )
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise ValueError(f"should be {example}")
    scheme, path = match["scheme"].lower(), match["path"].strip("/")
    port = int(match["port"] or _PORTS[scheme])
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is not from 1 to 65535; {scheme} servers listen on {_PORTS[scheme]}")
    if not _PATH.fullmatch(path):
        raise ValueError(f"the path is empty or holds characters that URLs do not have; write {example}")
    if "{" in path.replace(CAMERA, "") or "}" in path.replace(CAMERA, ""):
        raise ValueError(
            f"the path has braces, which are allowed only in {CAMERA} (the camera's name); remove the others"
        )
    if key and not _KEY.fullmatch(key):
        raise ValueError("the key file should be one line without spaces: the stream key")
    whole = f"{path}/{key}" if key else path
    if scheme.startswith("rtmp") and "/" not in whole:
        raise ValueError(f"an RTMP address has an application and a key; write {example}, or set key_file")
    public_parts = len(path.split("/")) - (scheme.startswith("rtmp") and not key)
    has_secret = bool(key) or (scheme.startswith("rtmp") and CAMERA not in path and not _is_loopback(match["host"]))
    return ServerAddress(scheme, match["host"].strip("[]"), port, whole, public_parts, has_secret)


def without_key(uri: str) -> str:
    """Return an RTMP address of another machine without its stream key; other URIs are returned unchanged."""
    try:
        address = parse_server(uri) if uri.lower().startswith(("rtmp://", "rtmps://")) else None
    except ValueError:
        return uri
    return uri if address is None or not address.has_secret else address.shown(address.path)


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "[::1]"} or re.fullmatch(r"127(\.\d+){3}", host) is not None
