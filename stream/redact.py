"""Take the secrets out of a URI before anybody sees it."""

from __future__ import annotations

import re

SECRET = "***"  # noqa: S105 - what stands in place of one
"""What stands where a user name, a password or a token was."""

_AUTHORITY = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>.*)$", re.DOTALL)
# Some cameras take credentials in the path: rtsp://host/user=admin&password=secret&channel=1.sdp
_SECRET_KEY = re.compile(
    r"(?P<key>[/?&;#][^=/?&;#]*(?:pass|pwd|token|secret|sig|auth|key|user|login|credential)[^=/?&;#]*=)[^&;#]*",
    re.IGNORECASE,
)


def redact(uri: str) -> str:
    """Return ``uri`` without user name, password and tokens; anything without them comes back as it was.

    Everything before the last ``@`` ahead of the query is taken for credentials: a password may hold ``/``, ``?`` or
    ``@`` that its owner forgot to escape, and hiding too much is the safe mistake.
    """
    found = _AUTHORITY.match(uri)
    if not found:
        # A scheme mistyped as rtsp: or rtsp:/ must not show what follows it either.
        return re.sub(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:/*)?)[^/@]*:.*@", rf"\g<1>{SECRET}@", uri)
    rest = found["rest"]
    at = rest.rfind("@")
    if at >= 0:
        rest = f"{SECRET}@{rest[at + 1 :]}"
    return found["scheme"] + _SECRET_KEY.sub(rf"\g<key>{SECRET}", rest)


def place(uri: str) -> str:
    """Return host and path of a network URI, without scheme, credentials, query: a name a person recognises."""
    clean = redact(uri)
    found = _AUTHORITY.match(clean)
    rest = found["rest"] if found else clean
    rest = rest.partition("?")[0].partition("#")[0]
    return rest.rpartition(f"{SECRET}@")[2].strip("/") or "stream"


def scrub(text: str, uri: str) -> str:
    """Return ``text``, a message of somebody else's code, with every mention of ``uri`` redacted."""
    return text.replace(uri, redact(uri))
