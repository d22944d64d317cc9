"""Why an RTSP camera admits nobody: what it asks for, where FFmpeg cannot answer that."""

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
    """Ask a camera that refused FFmpeg for its challenges; return why none can be answered, None where one can.

    FFmpeg answers Basic, and Digest by MD5 with ``qop=auth`` or without; else it sends no credentials at all.
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
    if not offered or any(_is_answered(one) for one in offered):
        return None
    names = re.sub(r"[^\w ,=-]", "?", ", ".join(dict.fromkeys(map(_name, offered))))[:80]
    words = (
        f"it asks for {names}, which is not spoken over RTSP here: no password was sent; "
        "allow Digest by MD5, or Basic, in its settings (401)"
    )
    return Failure(words, "slow", "unauthorised", hint="")


def _is_answered(challenge: Challenge) -> bool:
    if challenge.scheme == "basic":
        return True
    return challenge.scheme == "digest" and challenge.algorithm == "MD5" and _qop(challenge) != "auth-int"


def _qop(challenge: Challenge) -> str:
    offered = [one.strip().lower() for one in challenge.parameters.get("qop", "").split(",")]
    return "auth-int" if "auth-int" in offered and "auth" not in offered else ""


def _name(challenge: Challenge) -> str:
    return challenge.name + (f" qop={_qop(challenge)}" if _qop(challenge) else "")


def _describe(host: str, port: int, target: str, seconds: float) -> str:
    """Return the head of the answer to a DESCRIBE without credentials."""
    if re.search(r"[\x00-\x20\x7f]", target):
        return ""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.sendall(f"DESCRIBE {target} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _MAX_ANSWER_BYTES and (part := connection.recv(4096)):
            answer += part
    return answer.decode("latin-1")
