"""Removes secrets from URIs, for messages and logs."""

from __future__ import annotations

import re

SECRET = "***"  # noqa: S105 - the placeholder
"""Replaces user names, passwords and tokens."""

_AUTHORITY = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>.*)$", re.DOTALL)
# A user name never looks like this, so the text after it is not a password.
_CERTAIN_HOST = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+(%\w+)?\]|localhost)(:\d*)?$")
# Some cameras take credentials in the path: rtsp://host/user=admin&password=secret&channel=1.sdp
_SECRET_KEY = re.compile(
    r"(?P<key>[/?&;#][^=/?&;#]*(?:pass|pwd|token|secret|sig|auth|key|user|login|credential)[^=/?&;#]*=)[^&;#]*",
    re.IGNORECASE,
)


def authority_of(uri: str) -> str:
    """Return credentials, host and port of ``uri``; empty without ``SCHEME://``."""
    match = _AUTHORITY.match(uri)
    return re.split(r"[/?#]", match["rest"], maxsplit=1)[0] if match else ""


def has_certain_host(authority: str) -> bool:
    """Return whether ``authority`` certainly ends with a host, not with a part of a password."""
    host = authority.rpartition("@")[2]
    return _CERTAIN_HOST.match(host) is not None or not ({"@", ":"} & set(authority))


def redact(uri: str) -> str:
    """Replace user name, password and tokens in ``uri`` by ``SECRET``.

    Everything before the last ``@`` counts as credentials: a password may contain an unescaped ``/``, ``?`` or ``@``,
    and redacting too much is safe. If the host is certain (an IP address, or a name without user and port), an ``@``
    after it belongs to the path.
    """
    match = _AUTHORITY.match(uri)
    if not match:
        # Also redacts credentials after a mistyped scheme, rtsp: or rtsp:/.
        return re.sub(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:/*)?)[^/@]*:.*@", rf"\g<1>{SECRET}@", uri)
    rest = match["rest"]
    authority = authority_of(uri)
    at = authority.rfind("@") if has_certain_host(authority) else rest.rfind("@")
    if at >= 0:
        rest = f"{SECRET}@{rest[at + 1 :]}"
    return match["scheme"] + _SECRET_KEY.sub(rf"\g<key>{SECRET}", rest)


def host_and_path(uri: str) -> str:
    """Return host and path of a network URI, as a display name."""
    redacted = redact(uri)
    match = _AUTHORITY.match(redacted)
    rest = match["rest"] if match else redacted
    rest = rest.partition("?")[0].partition("#")[0]
    return rest.rpartition(f"{SECRET}@")[2].strip("/") or "stream"
