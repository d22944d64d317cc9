"""Connects to a fleet's Ray cluster, and finds or starts its directors and workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from commands.fleet.director import NAMES, start_director
from commands.fleet.directors import CALL_SECONDS, Directors, last_line
from commands.fleet.worker import FleetWorker, WorkerSpec
from pipeline.errors import ReciproStreamError
from pipeline.fleet.messages import FleetTiming

log = logging.getLogger("recipro-stream")

_RUNNING_SECONDS: Final = 3.0
"""Maximum time since the last beat of a worker that counts as running."""
_PAUSE_SECONDS: Final = 0.5
HEAD_SECONDS: Final = 10.0
"""Default time limit for the first answer of the head."""


@contextmanager
def connected(address: str, fleet: str, listen: str | None = None, *, seconds: float = HEAD_SECONDS) -> Iterator[None]:
    """Connect to Ray inside the block.

    Args:
        address: ``HOST:PORT`` of the head, or ``auto`` for the Ray that runs on this machine.
        fleet: name of the fleet.
        listen: IP address of this process's node. None: Ray uses the address of the route to the internet, or any node
            on this machine.
        seconds: time limit for the first answer of the head.

    Raises:
        ReciproStreamError: Ray cannot be reached.
    """
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die

    from commands.fleet.head import require_head

    try:
        require_head(canonicalize_bootstrap_address_or_die(address) if address == "auto" else address, seconds=seconds)
        ray.init(address=address, namespace=fleet, log_to_driver=False, configure_logging=False,
                 logging_level=logging.ERROR, **({"_node_ip_address": listen} if listen else {}))  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ReciproStreamError(
            f"fleet: Ray does not answer {where} ({str(error).splitlines()[0]}); start it with run.py fleet "
            "FLEET.yaml, or give --address HOST:PORT and the token of that fleet"
        ) from None
    # Ray has a thread that prints errors of other processes. While the head is gone, it polls without a pause and uses
    # a whole core. This event, which Ray sets at its shutdown, ends the thread at its next answer.
    ray._private.worker.global_worker.threads_stopped.set()  # noqa: SLF001
    try:
        yield
    finally:
        ray.shutdown()


def find_directors(fleet: str) -> Directors:
    """Return the directors of a fleet.

    Raises:
        ReciproStreamError: the fleet has no directors.
    """
    import ray

    try:
        return Directors(fleet, [ray.get_actor(name, namespace=fleet) for name in NAMES])
    except ValueError:
        raise ReciproStreamError(f"fleet {fleet!r}: has no director; start it with run.py fleet FLEET.yaml") from None


def start_directors(fleet: str, cameras: Mapping[str, float], timing: FleetTiming | None = None) -> Directors:
    """Return the fleet's two directors; start each director that does not run.

    Args:
        fleet: name of the fleet.
        cameras: frame rate of each camera by name, for a new fleet.
        timing: times and limits of the fleet; None: the defaults.
    """
    return Directors(fleet, [start_director(fleet, number, cameras, timing) for number in range(len(NAMES))])


def start_worker(
    spec: WorkerSpec,
    directors: Directors,
    node_id: str,
    worker: type[FleetWorker] = FleetWorker,
) -> Any:  # noqa: ANN401
    """Start a worker on a node and return its handle.

    If the worker ends, Ray restarts it on the same node. When this process ends, Ray ends the worker.

    Args:
        spec: arguments of the worker.
        directors: client of the fleet's directors.
        node_id: Ray's ID of the node.
        worker: class of the worker.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(worker).options(
        max_restarts=-1, num_cpus=0, max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )  # fmt: skip
    return actor.remote(spec, directors)


def require_free_slots(directors: Directors, node: str, slots: Collection[str], *, seconds: float = 10.0) -> None:
    """Check that no running worker has one of the slots; wait for the loss of a worker of an earlier run.

    Args:
        directors: client of the fleet's directors.
        node: name of the node.
        slots: slots of the workers that the node is to start.
        seconds: time limit; longer than a lease.

    Raises:
        ReciproStreamError: a worker of another node has a slot after the time limit.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            workers = directors.call("status")["workers"]
        except ReciproStreamError as error:
            log.warning("node %s: cannot check that no other node has its name: %s", node, error)
            return
        running = [each["worker"] for each in workers if each["heard_seconds"] < _RUNNING_SECONDS]
        taken = [worker for worker in running if worker.partition("#")[0] in slots]
        if not taken:
            return
        if time.monotonic() >= deadline:
            raise ReciproStreamError(
                f"node {node}: the fleet has a running node of this name (worker {taken[0]}); give this node another "
                "name: --node NAME"
            )
        time.sleep(_PAUSE_SECONDS)


def call(method: Any, *arguments: Any, seconds: float = CALL_SECONDS, **options: Any) -> Any:  # noqa: ANN401
    """Call a method of a Ray actor and return its result.

    Raises:
        ReciproStreamError: no result came within ``seconds``, or the call failed.
    """
    import ray

    try:
        return ray.get(method.remote(*arguments, **options), timeout=seconds)
    except TimeoutError as error:
        raise ReciproStreamError(f"fleet: no answer within {seconds:g} s: {last_line(error)}") from None
    except ray.exceptions.RayError as error:
        raise ReciproStreamError(f"fleet: {last_line(error)}") from None
