"""Validates entries of ``sources`` and ``sinks`` with the registries of their kinds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from overlays.sinks.registry import SINKS
from pipeline.config import Config
from pipeline.config_loader import validate_config
from pipeline.kinds import split_query
from pipeline.settings import EntrySettings, SinkSettings, SourceSettings
from stream.credentials import expand_env
from stream.sources import SOURCES

Models = list[tuple[str, tuple[str, ...], type[EntrySettings]]]


class RegisteredKinds:
    """Parses entries of ``sources`` and ``sinks`` with the registries."""

    def source(self, entry: Mapping[str, Any]) -> SourceSettings:
        """Return the settings of one source; a URI that starts with ``${NAME}`` is expanded to find the kind."""
        uri = entry.get("uri")
        if not isinstance(uri, str):
            return SOURCES.parse(entry)
        uri = uri.strip()
        if not uri.startswith("${"):
            return SOURCES.parse({**entry, "uri": uri})
        settings = SOURCES.parse({**entry, "uri": expand_env(uri, os.environ)})
        return settings.model_copy(update={"uri": split_query(uri)[0]})

    def sink(self, entry: Mapping[str, Any]) -> SinkSettings:
        """Return the settings of one sink."""
        return SINKS.parse(entry)

    def models(self, section: str) -> Models:
        """Return the name, the URI keys and the settings model of each kind in ``sources`` or ``sinks``."""
        kinds = SOURCES.all_kinds() if section == "sources" else SINKS.all_kinds()
        return [(kind.name, kind.keys, kind.settings) for kind in kinds]


KINDS = RegisteredKinds()


def load_config(settings: Mapping[str, Any], name: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the validated configuration; each source and sink has the settings model of its kind.

    Args:
        settings: the keys of the configuration.
        name: name of the configuration in messages.
        overrides: keys that replace or extend ``settings``.

    Raises:
        ConfigError: a key or a value is invalid.
    """
    return validate_config(settings, name, overrides, kinds=KINDS)
