"""The authentication challenges of an RTSP camera that FFmpeg cannot answer."""

from __future__ import annotations

import re
import socket
from typing import Final
from urllib.parse import urlsplit

from stream.attempt import Attempt
from stream.failures import Failure
from stream.http_auth import Challenge, challenges

_MAX_ANSWER_BYTES: Final = 1 << 16
_SECONDS: Final = 2.0


def why_unauthorised(uri: str, attempt: Attempt) -> Failure | None:
    """Return the failure where FFmpeg can answer no challenge of a camera.

    FFmpeg answers Basic, and Digest with MD5, with or without ``qop=auth``; otherwise it sends no credentials. Returns
    None where it can answer one, or where the camera does not reply.
    """
    parts = urlsplit(uri)
    if parts.scheme.lower() != "rtsp" or not parts.hostname or "@" not in parts.netloc:
        return None
    target = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    try:
        answer = _describe(parts.hostname, parts.port or 554, target, min(_SECONDS, attempt.answer_seconds))
    except (OSError, UnicodeError):
        return None
    offered = challenges(re.findall(r"(?im)^www-authenticate:[ \t]*([^\r\n]*)", answer))
    if not offered or any(_is_supported(challenge) for challenge in offered):
        return None
    names = re.sub(r"[^\w ,=-]", "?", ", ".join(dict.fromkeys(map(_name, offered))))[:80]
    message = (
        f"it requires {names}, which is not supported over RTSP: no password was sent; "
        "allow Digest with MD5, or Basic, in its settings (401)"
    )
    return Failure(message, "slow", "unauthorised", hint="")


def _is_supported(challenge: Challenge) -> bool:
    if challenge.scheme == "basic":
        return True
    return challenge.scheme == "digest" and challenge.algorithm == "MD5" and _qop(challenge) != "auth-int"


def _qop(challenge: Challenge) -> str:
    offered = [value.strip().lower() for value in challenge.parameters.get("qop", "").split(",")]
    return "auth-int" if "auth-int" in offered and "auth" not in offered else ""


def _name(challenge: Challenge) -> str:
    return challenge.name + (f" qop={_qop(challenge)}" if _qop(challenge) else "")


def _describe(host: str, port: int, target: str, seconds: float) -> str:
    """Return the headers of the answer to a DESCRIBE request without credentials."""
    if re.search(r"[\x00-\x20\x7f]", target):
        return ""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.sendall(f"DESCRIBE {target} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _MAX_ANSWER_BYTES and (part := connection.recv(4096)):
            answer += part
    return answer.decode("latin-1")
