"""The state of a fleet of one worker, as its director gives it."""

from __future__ import annotations

from typing import Any

from pipeline.fleet.director import Director
from pipeline.fleet.messages import Beat, FleetTiming, WorkerInfo

STREAM, PAGE = "tcp://10.0.0.5:5555", "http://10.0.0.5:8000"


def state(
    *addresses: str, cameras: tuple[str, ...] = ("north",), now: float = 0.0, capacity: float = 100.0
) -> dict[str, Any]:
    """Return the state of a fleet whose only worker, on the node ``a``, was heard at 0."""
    director = Director(dict.fromkeys(cameras, 10.0), term=1, members=(), now=0.0, timing=FleetTiming())
    info = WorkerInfo("a", "cuda:0", addresses)
    director.beat(Beat("a/cuda:0-0#1", "a/cuda:0-0", 1, capacity, info=info), 0.0)
    director.admit(director.newcomers)
    director.beat(Beat("a/cuda:0-0#1", "a/cuda:0-0", 2, capacity, info=info), 0.0)
    return director.status(now)
