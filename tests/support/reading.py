"""One source read in a thread, and the error of one attempt."""

import contextlib
import threading

import pytest

from pipeline.errors import ConnectionLostError
from stream.sources import build_source
from tests.support.limits import WAITS
from tests.support.reader import Reader

QUICK = {"read_timeout_seconds": 1.0, "open_timeout_seconds": 2.0}
"""For tests of stalls: a slow machine may cause further ones."""


ONCE = {**WAITS, "attempts": 1}


LOST = ("waiting", "connecting")


@contextlib.contextmanager
def reading(url, options=WAITS):
    with build_source(url, **options) as source, Reader(source) as reader:
        yield reader


def failing(url, options=WAITS):
    """Return the message of the typed error of one attempt."""
    with build_source(url, **options, attempts=1) as source, pytest.raises(ConnectionLostError) as caught:
        list(source.frames(threading.Event()))
    return str(caught.value)
