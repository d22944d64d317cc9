"""What a picture or a connection held is free as soon as it is over: nothing waits for Python's collector of circles,
which comes seldom where much is alive, and would find megabytes behind every reconnect.
"""

import gc

import av
import av.error
import numpy as np
import pytest

from stream.convert import RgbConverter
from stream.sources import build_source
from tests.support.cameras import elsewhere
from tests.support.reader import Reader

HELD = (av.container.InputContainer, av.video.stream.VideoStream, av.VideoFrame, av.CodecContext, av.error.FFmpegError)


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def living(kinds=HELD):
    return sorted(type(get_object).__name__ for get_object in gc.get_objects() if issubclass(type(get_object), kinds))


def test_frame_is_freed_after_conversion(without_collector):
    before = living()
    for _ in range(3):
        RgbConverter().convert(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8)))
    assert living() == before


@pytest.mark.slow
def test_lost_connection_is_freed(without_collector):
    with elsewhere(1) as there, build_source(there.urls[0], camera="door") as source:
        before = living()
        with Reader(source) as reader:
            for attempt in range(5):
                reader.until(lambda expected=attempt: source.health.reconnects == expected and reader.frames)
                assert living().count("InputContainer") == 1
                reader.frames.clear()
                there.tell("die" if attempt == 2 else "close", 0)
                if attempt == 2:
                    reader.until(lambda: source.health.cause == "refused")
                    there.tell("come_back", 0)
        reader.frames.clear()
        assert living() == before
