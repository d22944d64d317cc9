"""The address and the authentication state of an RTSP camera."""

from __future__ import annotations

import re
import secrets
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pipeline.http_auth import Challenge, authorization, challenges, strongest
from stream.failures import Failure
from stream.origin import AllowedHosts, Origin


class RtspCamera:
    """The address, credentials and authentication state of one camera."""

    def __init__(self, uri: str, allowed_hosts: tuple[str, ...] = ()) -> None:
        parts = urlsplit(uri)
        credentials, _, netloc = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self.own = Origin.of(parts._replace(netloc=netloc).geturl(), "rtsp")
        self.allowed = AllowedHosts(self.own, allowed_hosts)
        self.address = request_address(parts, self.own)
        """The camera's address without credentials, with its port."""
        self._user, self._password = unquote(user), unquote(password)
        self._has_credentials = bool(credentials)
        self._challenge: Challenge | None = None
        self._count = 0

    def authorization(self, method: str, target: str) -> str:
        """Return the value of the header ``Authorization``; empty if none is required."""
        if self._challenge is None:
            return ""
        self._count += 1
        return authorization(
            self._challenge,
            user=self._user,
            password=self._password,
            method=method,
            target=target,
            count=self._count,
            cnonce=secrets.token_hex(8),
        )

    def accepts(self, headers: list[str]) -> bool:
        """Choose the strongest authentication method of a 401 response; return whether to retry."""
        chosen = strongest(challenges(headers)) if self._has_credentials else None
        previous, self._challenge, self._count = self._challenge, chosen, 0
        is_stale = chosen is not None and chosen.parameters.get("stale", "").lower() == "true"
        return chosen is not None and (previous is None or is_stale or previous.parameters != chosen.parameters)

    def refusal(self, headers: list[str]) -> Failure | None:
        """Return the failure if no authentication method of a 401 response is supported, else None."""
        offered = challenges(headers)
        if not self._has_credentials or not offered or strongest(offered) is not None:
            return None
        names = re.sub(r"[^\w ,-]", "?", ", ".join(dict.fromkeys(challenge.name for challenge in offered)))[:80]
        message = (
            f"the camera requires {names}, which is not supported: no password was sent; "
            "allow Digest or Basic in its settings (401)"
        )
        return Failure(message, "slow", "unauthorised", hint="")


def request_address(parts: SplitResult, origin: Origin) -> str:
    """Return the address as used in requests: with its port, without credentials and spaces."""
    address = parts._replace(netloc=origin.host_port, fragment="").geturl()
    return re.sub(r"[\x00-\x20\x7f]", lambda match: quote(match[0]), address)
