"""Parses the user and the password in a credentials file."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.settings import Secret


def read_login(secret: Secret | None) -> tuple[str, str] | None:
    """Return the user and the password in a credentials file; None without a file.

    Raises:
        ConfigError: the file is not one line, user:password.
    """
    if secret is None:
        return None
    lines = secret.text.splitlines()
    user, colon, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    if not (user and colon):
        raise ConfigError(f"{secret.path}: should hold one line, user:password")
    return user, password
