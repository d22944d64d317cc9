"""User names and passwords that stand outside the configuration: in the environment, or in a file.

Pure: variables and the file's text come from the caller. No message repeats a secret.
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
    """Return ``uri`` with every ``${NAME}`` replaced; before the host the value is escaped, whatever is in it.

    Raises:
        ConfigError: there is no such variable.
    """
    scheme, authority = _SCHEME.match(uri), authority_of(uri)
    is_told = "@" in authority or (scheme is not None and has_certain_host(authority))
    at = (scheme.end() if scheme else 0) + authority.rfind("@") if is_told else uri.rfind("@")

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in variables:
            raise ConfigError(f"source {redact(uri)!r}: the environment has no variable {name}; export {name}=...")
        return quote(variables[name], safe="") if found.start() < at else variables[name]

    return _VARIABLE.sub(value, uri)


def with_credentials(uri: str, secret: str, file: str) -> str:
    """Return ``uri`` with the credentials that a file holds: one line, ``user:password``.

    Args:
        uri: a network address without credentials.
        secret: the file's text.
        file: its name, for messages.

    Raises:
        ConfigError: the text is no such line, or the address has credentials already, or cannot have any.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        raise ConfigError(f"source {redact(uri)!r}: takes no credentials; they belong to network addresses, rtsp://...")
    if "@" in authority_of(uri):
        raise ConfigError(f"source {redact(uri)!r}: has credentials in its address and in {file}; keep one of them")
    lines = secret.splitlines()
    user, colon, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    if not (user and colon):
        raise ConfigError(f"{file}: should hold one line, user:password")
    return f"{scheme[0]}{quote(user, safe='')}:{quote(password, safe='')}@{uri[scheme.end() :]}"


def has_plain_password(uri: str) -> bool:
    """Say whether ``uri`` holds a password or a token in plain words, rather than as ``${NAME}``."""
    bare = _VARIABLE.sub("", uri)
    scheme = _SCHEME.match(bare)
    if scheme is None:
        return False
    if redact(bare) == bare:
        return False
    who, _, place = bare[scheme.end() :].rpartition("@")
    return bool(who.partition(":")[2]) or redact(scheme[0] + place) != scheme[0] + place
