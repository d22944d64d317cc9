"""HTTP authentication of a client: Basic (RFC 7617) and Digest (RFC 7616)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_ITEM: Final = re.compile(
    r"""(?P<key>[\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<plain>[^\s,"]+))|(?P<scheme>[\w-]+)"""
)
_HASHES: Final = {"SHA-512-256": "sha512_256", "SHA-256": "sha256", "MD5": "md5"}
"""Supported Digest algorithms and their names in ``hashlib``, the strongest first; each also with ``-sess``."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One authentication challenge of a server."""

    scheme: str
    """In lower case: ``basic``, ``digest``."""
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        """The algorithm of a Digest challenge in upper case; MD5 if the challenge names none."""
        return self.parameters.get("algorithm", "MD5").upper()

    @property
    def name(self) -> str:
        """The scheme, for Digest with its algorithm; used in messages."""
        if self.scheme != "digest":
            return self.scheme.capitalize()
        return f"Digest {self.algorithm}"


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """Parse the challenges in values of the header ``WWW-Authenticate``."""
    offered: list[Challenge] = []
    for header in headers:
        for item in _ITEM.finditer(header):
            if item["scheme"]:
                offered.append(Challenge(item["scheme"].lower()))
            elif offered:
                quoted = item["quoted"]
                value = item["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                offered[-1].parameters.setdefault(item["key"].lower(), value)
    return offered


def strongest(offered: Sequence[Challenge]) -> Challenge | None:
    """Return the strongest supported challenge; None if none is supported."""
    supported = [challenge for challenge in offered if challenge.scheme == "basic" or _is_digest(challenge)]
    return min(supported, key=_rank, default=None)


def authorization(
    challenge: Challenge, *, user: str, password: str, method: str, target: str, count: int, cnonce: str
) -> str:
    """Return the value of the header ``Authorization`` that answers ``challenge``.

    Args:
        challenge: a challenge that ``strongest`` returned.
        user: the user name.
        password: the password.
        method: the request's method.
        target: the request's target, as in the request line.
        count: number of requests with the nonce of the challenge, including this request.
        cnonce: the client nonce, a text that was never used before.
    """
    if challenge.scheme == "basic":
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    parameters, algorithm = challenge.parameters, challenge.algorithm
    hash_name = _HASHES[algorithm.removesuffix("-SESS")]

    def hashed(text: str) -> str:
        return hashlib.new(hash_name, text.encode(), usedforsecurity=False).hexdigest()

    realm, nonce = parameters.get("realm", ""), parameters.get("nonce", "")
    offered = [value.strip().lower() for value in parameters.get("qop", "").split(",") if value.strip()]
    qop = "auth" if "auth" in offered else "auth-int" if "auth-int" in offered else ""
    secret = hashed(f"{user}:{realm}:{password}")
    if algorithm.endswith("-SESS"):
        secret = hashed(f"{secret}:{nonce}:{cnonce}")
    request = f"{method}:{target}" + (f":{hashed('')}" if qop == "auth-int" else "")  # a GET has an empty body
    number = f"{count:08x}"
    middle = f"{nonce}:{number}:{cnonce}:{qop}" if qop else nonce
    is_hashed = parameters.get("userhash", "").lower() == "true"
    fields = {
        "username": _quoted(hashed(f"{user}:{realm}") if is_hashed else user),
        "realm": _quoted(realm),
        "nonce": _quoted(nonce),
        "uri": _quoted(target),
        "response": _quoted(hashed(f"{secret}:{middle}:{hashed(request)}")),
    }
    if "algorithm" in parameters:
        fields["algorithm"] = parameters["algorithm"]
    if qop:
        fields |= {"qop": qop, "nc": number, "cnonce": _quoted(cnonce)}
    elif algorithm.endswith("-SESS"):
        fields["cnonce"] = _quoted(cnonce)
    if "opaque" in parameters:
        fields["opaque"] = _quoted(parameters["opaque"])
    if is_hashed:
        fields["userhash"] = "true"
    return "Digest " + ", ".join(f"{key}={value}" for key, value in fields.items())


def _is_digest(challenge: Challenge) -> bool:
    hash_name = _HASHES.get(challenge.algorithm.removesuffix("-SESS"))
    return challenge.scheme == "digest" and hash_name in hashlib.algorithms_available


def _rank(challenge: Challenge) -> int:
    names = list(_HASHES)
    return len(names) if challenge.scheme == "basic" else names.index(challenge.algorithm.removesuffix("-SESS"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
