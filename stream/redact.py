"""Take the secrets out of a URI before anybody sees it."""

from __future__ import annotations

import re

SECRET = "***"  # noqa: S105 - what stands in place of one
"""What stands where a user name, a password or a token was."""

_AUTHORITY = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>.*)$", re.DOTALL)
# No user is called so, so what it stands before is no password.
_CERTAIN_HOST = re.compile(r"(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+(%\w+)?\]|localhost)(:\d*)?$")
# Some cameras take credentials in the path: rtsp://host/user=admin&password=secret&channel=1.sdp
_SECRET_KEY = re.compile(
    r"(?P<key>[/?&;#][^=/?&;#]*(?:pass|pwd|token|secret|sig|auth|key|user|login|credential)[^=/?&;#]*=)[^&;#]*",
    re.IGNORECASE,
)


def authority_of(uri: str) -> str:
    """Return what stands between ``SCHEME://`` and the path: credentials, host and port; empty without a scheme."""
    found = _AUTHORITY.match(uri)
    return re.split(r"[/?#]", found["rest"], maxsplit=1)[0] if found else ""


def has_certain_host(authority: str) -> bool:
    """Say whether the host is certain, so that an ``@`` behind ``authority`` ends no credentials."""
    host = authority.rpartition("@")[2]
    return _CERTAIN_HOST.match(host) is not None or not ({"@", ":"} & set(authority))


def redact(uri: str) -> str:
    """Return ``uri`` without user name, password and tokens; anything without them comes back as it was.

    Everything before the last ``@`` ahead of the query is taken for credentials: a password may hold ``/``, ``?`` or
    ``@`` that its owner forgot to escape, and hiding too much is the safe mistake. Where an IP address, or a name
    without anything before or behind it, stands for the host, an ``@`` behind it belongs to the path.
    """
    found = _AUTHORITY.match(uri)
    if not found:
        # A scheme mistyped as rtsp: or rtsp:/ must not show what follows it either.
        return re.sub(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:/*)?)[^/@]*:.*@", rf"\g<1>{SECRET}@", uri)
    rest = found["rest"]
    authority = authority_of(uri)
    at = authority.rfind("@") if has_certain_host(authority) else rest.rfind("@")
    if at >= 0:
        rest = f"{SECRET}@{rest[at + 1 :]}"
    return found["scheme"] + _SECRET_KEY.sub(rf"\g<key>{SECRET}", rest)


def host_and_path(uri: str) -> str:
    """Return host and path of a network URI, without scheme, credentials, query: a name a person recognises."""
    clean = redact(uri)
    found = _AUTHORITY.match(clean)
    rest = found["rest"] if found else clean
    rest = rest.partition("?")[0].partition("#")[0]
    return rest.rpartition(f"{SECRET}@")[2].strip("/") or "stream"


def redact_in_text(text: str, uri: str) -> str:
    """Return ``text``, a message of somebody else's code, with every mention of ``uri`` redacted."""
    return text.replace(uri, redact(uri))
