"""Connects to the Ray of a fleet, and finds or starts its director and workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from commands.fleet.director import NAME, FleetDirector
from commands.fleet.environment import HEAD, LABEL
from commands.fleet.worker import FleetWorker, WorkerSpec
from pipeline.errors import ReciproStreamError
from pipeline.fleet.messages import FleetTiming

CALL_SECONDS: Final = 15.0
"""Time for the answer to a command."""
_CONCURRENT_CALLS: Final = 64


@contextmanager
def connected(address: str, fleet: str) -> Iterator[None]:
    """Connect to Ray inside the block.

    Args:
        address: ``HOST:PORT`` of the head, or ``auto`` for the Ray that runs on this machine.
        fleet: name of the fleet.

    Raises:
        ReciproStreamError: Ray cannot be reached.
    """
    import ray

    try:
        ray.init(address=address, namespace=fleet, log_to_driver=False, configure_logging=False,
                 logging_level=logging.ERROR)  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ReciproStreamError(
            f"fleet: no Ray answers {where} ({str(error).splitlines()[0]}); start it with run.py fleet FLEET.yaml, or "
            "give --address HOST:PORT and the token of that fleet"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def find_director(fleet: str) -> Any:  # noqa: ANN401 - an actor handle
    """Return the handle of the director.

    Raises:
        ReciproStreamError: the fleet has none.
    """
    import ray

    try:
        return ray.get_actor(NAME, namespace=fleet)
    except ValueError:
        raise ReciproStreamError(f"fleet {fleet!r}: has no director; start it with run.py fleet FLEET.yaml") from None


def start_director(fleet: str, cameras: Mapping[str, float], timing: FleetTiming | None = None) -> Any:  # noqa: ANN401
    """Return the handle of the fleet's director, which is started unless it runs.

    It runs on any node but the head, if there is one: the head and the director should not be lost together.
    """
    import ray

    actor = ray.remote(FleetDirector).options(
        name=NAME, namespace=fleet, lifetime="detached", get_if_exists=True, max_restarts=-1, num_cpus=0,
        max_concurrency=_CONCURRENT_CALLS,
        label_selector={LABEL: f"!{HEAD}"}, fallback_strategy=[{"label_selector": {LABEL: HEAD}}],
    )  # fmt: skip
    return actor.remote(fleet, dict(cameras), timing)


def start_worker(
    spec: WorkerSpec,
    director: Any,  # noqa: ANN401
    node_id: str,
    worker: type[FleetWorker] = FleetWorker,
) -> Any:  # noqa: ANN401
    """Start a worker on a node and return its handle; Ray restarts it there, and ends it with this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(worker).options(
        max_restarts=-1, num_cpus=0, max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )  # fmt: skip
    return actor.remote(spec, director)


def call(method: Any, *arguments: Any, seconds: float = CALL_SECONDS, **options: Any) -> Any:  # noqa: ANN401
    """Call a method of an actor and return its answer.

    Raises:
        ReciproStreamError: none came in time.
    """
    import ray

    try:
        return ray.get(method.remote(*arguments, **options), timeout=seconds)
    except (TimeoutError, ray.exceptions.RayError) as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ReciproStreamError(f"fleet: no answer within {seconds:g} s: {text[-1]}") from None
