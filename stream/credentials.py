"""Credentials from environment variables and files.

The caller reads the environment and the file. No error message contains a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from pipeline.errors import ConfigError
from stream.redact import authority_of, has_certain_host, redact

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SCHEME: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def expand_env(uri: str, variables: Mapping[str, str]) -> str:
    """Replace each ``${NAME}`` in ``uri``; values before the host are percent-encoded.

    Raises:
        ConfigError: a variable is not set.
    """
    scheme, authority = _SCHEME.match(uri), authority_of(uri)
    is_delimited = "@" in authority or (scheme is not None and has_certain_host(authority))
    credentials_end = (scheme.end() if scheme else 0) + authority.rfind("@") if is_delimited else uri.rfind("@")

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            raise ConfigError(f"source {redact(uri)!r}: the environment has no variable {name}; export {name}=...")
        return quote(variables[name], safe="") if match.start() < credentials_end else variables[name]

    return _VARIABLE.sub(value, uri)


def with_credentials(uri: str, secret: str, file: str) -> str:
    """Insert the credentials of a file, one line ``user:password``, into ``uri``.

    Args:
        uri: a network address without credentials.
        secret: the file's text.
        file: the file's name, for messages.

    Raises:
        ConfigError: the text is not one such line, or the address already has credentials or cannot have any.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        raise ConfigError(
            f"source {redact(uri)!r}: is not a network address and takes no credentials; remove them, or use an "
            "address such as rtsp://HOST/PATH"
        )
    if "@" in authority_of(uri):
        raise ConfigError(
            f"source {redact(uri)!r}: has credentials in the address and in {file}; remove one of the two"
        )
    lines = secret.splitlines()
    user, colon, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    if not (user and colon):
        raise ConfigError(f"{file}: must contain exactly one line, user:password")
    return f"{scheme[0]}{quote(user, safe='')}:{quote(password, safe='')}@{uri[scheme.end() :]}"


def has_plain_password(uri: str) -> bool:
    """Return whether ``uri`` contains a password or token in clear text."""
    bare = _VARIABLE.sub("", uri)
    scheme = _SCHEME.match(bare)
    if scheme is None:
        return False
    if redact(bare) == bare:
        return False
    credentials, _, rest = bare[scheme.end() :].rpartition("@")
    return bool(credentials.partition(":")[2]) or redact(scheme[0] + rest) != scheme[0] + rest
