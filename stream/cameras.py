"""Splits the entry of a source with several cameras into one entry per camera."""

from __future__ import annotations

from typing import Final

from pipeline.errors import SourceError
from pipeline.settings import SourceSettings
from stream.local_uri import expanded
from stream.paths import shown
from stream.settings import BagSettings

_MAX_NAME: Final = 64
MAX_TOPICS: Final = 64
"""Maximum number of cameras of one bag: each has its own thread, which reads the whole bag."""


def cameras_of(settings: SourceSettings, address: str) -> list[SourceSettings]:
    """Return one settings object per camera; ``[settings]`` for a source with one camera.

    Args:
        settings: the entry of the configuration.
        address: its URI with environment variables expanded.

    Raises:
        SourceError: a bag cannot be read, or has no topic with images, or more than ``MAX_TOPICS`` of them.
    """
    if not isinstance(settings, BagSettings) or settings.topic is not None:
        return [settings]
    try:
        from stream.bags.source import camera_topics
    except ModuleNotFoundError:  # building the source names the missing package
        return [settings]
    topics = camera_topics(expanded(address))
    if len(topics) > MAX_TOPICS:
        raise SourceError(
            f"{shown(settings.uri)}: has {len(topics)} topics with images, and each becomes a camera; the limit is "
            f"{MAX_TOPICS}; add one source per topic that you need: ?topic={topics[0]}"
        )
    return [settings.model_copy(update={"topic": topic, "name": _name(settings, topic, topics)}) for topic in topics]


def _name(settings: SourceSettings, topic: str, topics: list[str]) -> str | None:
    """Return the camera's name: None (the topic's name), the given name, or ``NAME/TOPIC`` for several topics."""
    if settings.name is None or len(topics) == 1:
        return settings.name
    return f"{settings.name}/{topic.strip('/')}"[:_MAX_NAME]
