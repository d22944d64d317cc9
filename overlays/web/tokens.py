"""The tokens of a page: checked at the start, and read again from their files while the page runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from overlays.sinks.settings import WebSettings
from overlays.web.auth import PageAddress, check_token, is_loopback
from pipeline.errors import SinkError
from pipeline.settings import Secret

log = logging.getLogger(__name__)

_FIELDS: Final = {"token_file": "token", "edit_token_file": "edit_token", "view_token_file": "view_token"}
"""Field of ``AccessPolicy`` by the option that sets it."""
_FURTHER: Final = {
    "edit_token_file": "the token of viewers who may not edit",
    "view_token_file": "the token of viewers who may change events",
}


class PageTokens:
    """The tokens of one page."""

    def __init__(self, uri: str, secrets: Mapping[str, Secret]) -> None:
        """Check the tokens.

        Args:
            uri: address of the page, for messages.
            secrets: the tokens by the option that sets them.

        Raises:
            ValueError: a token is invalid; see ``check_token``.
        """
        self._uri, self._secrets = uri, secrets
        self._tokens = {name: check_token(secret.text) for name, secret in secrets.items()}
        self._logged: set[str] = set()

    def check(self, settings: WebSettings, address: PageAddress) -> None:
        """Check that the tokens sufficiently protect a page with these settings.

        Raises:
            SinkError: other machines could view or change the page without a token, ``token_file`` is missing, or two
                tokens are equal.
        """
        token = self._tokens.get("token_file")
        is_open = token is None and not is_loopback(address.host)
        if settings.edit and is_open:
            raise SinkError(
                f"{self._uri}: edit: every machine that reaches this address could change the cameras; give a token "
                "(openssl rand -hex 24 > page.token, then token_file: page.token), or serve on "
                f"http://127.0.0.1:{address.port}"
            )
        for name, whose in _FURTHER.items():
            if token is None and name in self._tokens:
                raise SinkError(f"{self._uri}: {name}: needs token_file, too, which holds {whose}")
            others = [self._tokens.get(other) for other in _FIELDS if other != name]
            if name in self._tokens and self._tokens[name] in others:
                raise SinkError(
                    f"{self._uri}: {name}: has the same token as another file; give each file its own token"
                )
        if is_open and not settings.insecure:
            raise SinkError(
                f"{self._uri}: every machine that reaches this address could view the page; give a token "
                "(openssl rand -hex 24 > page.token, then --page-token-file page.token), serve on "
                f"http://127.0.0.1:{address.port}, or set 'insecure: true' if the network itself is closed"
            )

    def current(self) -> dict[str, str]:
        """Read the token files and return the tokens by field of ``AccessPolicy``.

        If a file has an error, a warning is logged once and its last valid token is returned.
        """
        for name, secret in self._secrets.items():
            if secret.read_again is None:
                continue
            try:
                self._tokens[name] = check_token(secret.read_again())
            except (OSError, ValueError) as error:
                if str(error) not in self._logged:
                    self._logged.add(str(error))
                    log.warning("%s: the %s cannot be used, the last token stays valid: %s", self._uri,
                                name.replace("_", " "), error)  # fmt: skip
        return self.as_fields()

    def as_fields(self) -> dict[str, str]:
        """Return the tokens of the last read by field of ``AccessPolicy``, without reading the files."""
        return {_FIELDS[name]: token for name, token in self._tokens.items()}
