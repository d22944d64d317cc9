"""Decodes the image messages of ROS 1, ROS 2 and Foxglove to ``ImageMessage``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from pipeline.errors import SourceError
from stream.bags.container import Topic
from stream.pixels import Form, ImageMessage

_FORMS: Final[dict[str, Form]] = {
    "sensor_msgs/msg/Image": "raw",
    "sensor_msgs/msg/CompressedImage": "compressed",
    "foxglove_msgs/msg/RawImage": "raw",
    "foxglove_msgs/msg/CompressedImage": "compressed",
    "foxglove_msgs/msg/CompressedVideo": "video",
    "foxglove.RawImage": "raw",
    "foxglove.CompressedImage": "compressed",
    "foxglove.CompressedVideo": "video",
}
_NANOSECONDS: Final = 1_000_000_000
_FOXGLOVE_FIELDS: Final = "builtin_interfaces/Time timestamp\nstring frame_id\n"
_FOXGLOVE_TYPES: Final = {
    "foxglove_msgs/msg/RawImage": f"{_FOXGLOVE_FIELDS}uint32 width\nuint32 height\nstring encoding\nuint32 step\n"
    "uint8[] data\n",
    "foxglove_msgs/msg/CompressedImage": f"{_FOXGLOVE_FIELDS}uint8[] data\nstring format\n",
    "foxglove_msgs/msg/CompressedVideo": f"{_FOXGLOVE_FIELDS}uint8[] data\nstring format\n",
}


def ros_name(type_name: str) -> str:
    """Return a type name with ``/msg/``, which ROS 1 omits."""
    package, _, name = type_name.rpartition("/")
    return f"{package}/msg/{name}" if package and not package.endswith("/msg") else type_name


def form_of_topic(topic: Topic) -> Form | None:
    """Return the form of a topic's images; None if its messages are not readable images."""
    return _FORMS.get(ros_name(topic.type_name)) if topic.encoding in {"cdr", "ros1", "protobuf"} else None


def parser_of(topic: Topic) -> Callable[[bytes], ImageMessage]:
    """Return the decoder of a topic's messages; it raises ``SourceError`` for a damaged message.

    Raises:
        SourceError: the topic's messages are not images.
    """
    form = form_of_topic(topic)
    if form is None:
        raise SourceError(
            f"topic {topic.name}: its messages (type {topic.type_name}, encoding {topic.encoding or 'none'}) are not "
            "readable images; choose a topic with sensor_msgs or Foxglove images, encoded in cdr, ros1 or protobuf"
        )
    decode = _protobuf_decoder(topic.type_name) if topic.encoding == "protobuf" else _ros_decoder(topic)

    def parse(data: bytes) -> ImageMessage:
        try:
            return _image_message(form, decode(data))
        except Exception as error:  # noqa: BLE001 - generated code raises anything for damaged bytes
            raise SourceError(
                f"a message of type {topic.type_name} is damaged ({type(error).__name__}: {error})"
            ) from None

    return parse


def _image_message(form: Form, message: Any) -> ImageMessage:  # noqa: ANN401 - a class of a vendor
    data = message.data if isinstance(message.data, bytes) else message.data.tobytes()
    if form != "raw":
        return ImageMessage(form, _stamp_ns(message), str(message.format), data)
    return ImageMessage(
        form,
        _stamp_ns(message),
        str(message.encoding),
        data,
        int(message.width),
        int(message.height),
        int(message.step),
        bool(getattr(message, "is_bigendian", False)),
    )


def _stamp_ns(message: Any) -> int:  # noqa: ANN401 - a class of a vendor
    stamp = message.header.stamp if hasattr(message, "header") else message.timestamp
    if hasattr(stamp, "nanosec"):
        return int(stamp.sec) * _NANOSECONDS + int(stamp.nanosec)
    return int(stamp.seconds) * _NANOSECONDS + int(stamp.nanos)


def _ros_decoder(topic: Topic) -> Callable[[bytes], Any]:
    name = ros_name(topic.type_name)
    store = _typestore(topic.encoding)
    deserialize = store.deserialize_ros1 if topic.encoding == "ros1" else store.deserialize_cdr
    return functools.partial(deserialize, typename=name)


@functools.cache
def _typestore(encoding: str) -> Typestore:
    """Return the types of ROS and Foxglove; image types are the same in all ROS distributions."""
    store = get_typestore(Stores.ROS1_NOETIC if encoding == "ros1" else Stores.ROS2_HUMBLE)
    for name, definition in _FOXGLOVE_TYPES.items():
        store.register(get_types_from_msg(definition, name))
    return store


def _protobuf_decoder(type_name: str) -> Callable[[bytes], Any]:
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
    from foxglove_schemas_protobuf.RawImage_pb2 import RawImage

    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (CompressedImage, CompressedVideo, RawImage)}
    decode: Callable[[bytes], Any] = kinds[type_name].FromString
    return decode
