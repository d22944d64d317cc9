"""The source of bags: the images of one topic, in the bag's order, with the stamps of the cameras."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from pipeline.errors import CorruptMediaError, SourceError, did_you_mean
from pipeline.frames import Frame, Image
from pipeline.ports import Health, Source
from pipeline.settings import SourceContext
from stream.bags.container import BagDamageError, BagMessage, Topic, reader_of
from stream.bags.images import TopicDecoder, is_readable
from stream.bags.messages import form_of_topic, parser_of
from stream.bags.paths import bag_files
from stream.limits import FILE_MAX_PIXELS
from stream.local_uri import expanded
from stream.paths import check_file, refuse_missing, shown
from stream.pixels import ImageMessage
from stream.settings import BagSettings

log = logging.getLogger(__name__)

_NANOSECONDS: Final = 1_000_000_000


class BagSource(Source):
    """The frames of one topic; ``pts_seconds`` and ``stamp_ns`` come from the message headers."""

    def __init__(self, path: str, *, topic: str | None, camera: str | None, max_pixels: int | None) -> None:
        """Create the source; the bag is opened on entering.

        Args:
            path: a bag file or folder.
            topic: the topic's name; None: the only topic with images.
            camera: the camera's name; None: the topic's name.
            max_pixels: maximum pixels of an image.
        """
        self.camera = camera or (topic or Path(path).stem).strip("/") or "camera"
        self.uri = shown(path)
        self._path, self._topic_name, self._max_pixels = path, topic, max_pixels
        self._topic: Topic | None = None
        self._name = shown(Path(path).name)
        self._damaged = 0
        """Number of damaged messages and files."""
        self._first_damage = ""
        self._delivered = 0

    def __enter__(self) -> Self:
        topic = self._topic = _chosen(self._path, self._topic_name)
        self.frames_total = topic.count
        return self

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield every intact image.

        Raises:
            CorruptMediaError: after the last frame, if messages were damaged or the bag is cut off.
            SourceError: no message contains an image.
        """
        assert self._topic is not None  # noqa: S101 - set on entering
        self.health = Health("live")
        self._damaged, self._first_damage, self._delivered = 0, "", 0
        decoder = TopicDecoder(parser_of(self._topic), self._max_pixels)
        first_ns: int | None = None
        with closing(self._images(decoder, self._topic, stop)) as images:
            for stamp_ns, image in images:
                if first_ns is None:
                    first_ns = stamp_ns
                yield Frame(
                    image,
                    self.camera,
                    self._delivered,
                    time.monotonic(),
                    (stamp_ns - first_ns) / _NANOSECONDS,
                    source_name=self._name,
                    stamp_ns=stamp_ns,
                )
                self._delivered += 1
                if stop.is_set():
                    return
        if not stop.is_set():
            self._finish()

    def _images(
        self, decoder: TopicDecoder, topic: Topic, stop: threading.Event
    ) -> Generator[tuple[int, Image], None, None]:
        """Yield stamp and image of each intact message; record the damaged ones."""
        for message in self._messages(topic):
            if stop.is_set():
                return
            try:
                yield from decoder.decode(message.data, message.log_ns)
            except SourceError as error:
                self._note(f"{topic.name}: {error}")
        try:
            yield from decoder.flush()
        except SourceError as error:
            self._note(f"{topic.name}: {error}")

    def _messages(self, topic: Topic) -> Iterator[BagMessage]:
        for file in bag_files(self._path):
            name = f"{shown(file.name)}: " if Path(self._path).is_dir() else ""
            try:
                yield from reader_of(file).messages(topic.name)
            except (BagDamageError, OSError) as error:
                self._note(f"{name}{error}")

    def _note(self, damage: str) -> None:
        if not self._damaged:
            log.warning("%s: %s; reading continues", self.uri, damage)
        self._damaged += 1
        self._first_damage = self._first_damage or damage
        self.health = Health("live", damage, corrupt=self._damaged)

    def _finish(self) -> None:
        """Set the final state; raise ``CorruptMediaError`` if anything was damaged."""
        if not self._damaged and self._delivered:
            self.health = Health("ended")
            return
        if not self._damaged:
            message = f"{self.uri}: {self._topic_name or 'its topic'} has no image; choose another topic: ?topic=NAME"
            self.health = Health("failed", message)
            raise SourceError(message)
        more = f" and {self._damaged - 1} more" if self._damaged > 1 else ""
        message = f"{self.uri}: {self._first_damage}{more}; {self._delivered} intact images were read"
        self.health = Health("failed", message, corrupt=self._damaged)
        raise CorruptMediaError(message)


def open_bag(settings: BagSettings, context: SourceContext) -> Source:
    """Create the source of one topic of a bag."""
    path = expanded(settings.uri)
    refuse_missing(path, examples="a bag file (.mcap, .db3, .bag) or a bag folder")
    return BagSource(
        path,
        topic=settings.topic,
        camera=context.camera,
        max_pixels=settings.max_pixels or FILE_MAX_PIXELS,
    )


def camera_topics(path: str) -> list[str]:
    """Return the names of the topics with readable images, in the bag's order.

    For raw images the first message decides, because a depth or heat map is not a camera image.

    Raises:
        SourceError: the path is not a bag, or has no topic with readable images.
    """
    topics = [topic for topic in _topics(path) if form_of_topic(topic) is not None]
    is_camera, damage = _examined(path, topics)
    names = [topic.name for topic in topics if is_camera.get(topic.name, False)]
    if not names:
        raise SourceError(f"{shown(path)}: {damage}" if damage else _no_images(path, topics))
    return names


def _chosen(path: str, name: str | None) -> Topic:
    """Return the topic ``name``; None: the only topic with images. Raises ``SourceError``."""
    if name is None:
        names = camera_topics(path)
        if len(names) > 1:
            raise SourceError(
                f"{shown(path)}: has several image topics; choose one: ?topic={' or ?topic='.join(names)}"
            )
        name = names[0]
    topics = {topic.name: topic for topic in _topics(path)}
    if name not in topics:
        raise SourceError(
            f"{shown(path)}: has no topic {name!r}.{did_you_mean(name, topics)} The bag's topics: "
            f"{', '.join(topics) or 'none'}"
        )
    parser_of(topics[name])  # raises SourceError if the topic has no images
    return topics[name]


def _topics(path: str) -> list[Topic]:
    """Return the topics in all files of a bag. Raises ``SourceError``."""
    topics: dict[str, Topic] = {}
    for file in bag_files(path):
        check_file(str(file))
        try:
            found = reader_of(file).topics()
        except (BagDamageError, OSError) as error:
            raise SourceError(f"{shown(file)}: {error}") from None
        for topic in found:
            topics[topic.name] = _joined(topics.get(topic.name), topic)
    return list(topics.values())


def _joined(first: Topic | None, second: Topic) -> Topic:
    """Merge a topic of two files; its message counts are added if both files state them."""
    if first is None:
        return second
    counts = (first.count, second.count)
    return replace(first, count=None if None in counts else sum(count or 0 for count in counts))


def _examined(path: str, topics: Iterable[Topic]) -> tuple[dict[str, bool], str]:
    """Return for each topic with messages whether its first one is a readable image; and damage."""
    waiting = {topic.name: parser_of(topic) for topic in topics}
    found: dict[str, bool] = {}
    damage = ""
    for file in bag_files(path):
        try:
            for message in reader_of(file).messages():
                if not waiting:
                    return found, damage
                if (parse := waiting.pop(message.topic, None)) is not None:
                    found[message.topic] = _is_image(parse, message.data)
        except (BagDamageError, OSError) as error:
            damage = damage or str(error)  # frames() reports it if there is an image
    return found, damage


def _is_image(parse: Callable[[bytes], ImageMessage], data: bytes) -> bool:
    try:
        return is_readable(parse(data))
    except SourceError:
        return True  # damaged, but of an image type


def _no_images(path: str, topics: list[Topic]) -> str:
    if topics:
        listed = ", ".join(topic.name for topic in topics)
        return f"{shown(path)}: no message of its image topics ({listed}) is a camera's image; check the recording"
    return f"{shown(path)}: has no topic with images; supported are sensor_msgs and Foxglove images and CompressedVideo"
