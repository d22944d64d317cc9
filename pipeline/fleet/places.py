"""Finds the address at which a fleet publishes each camera, from the director's state. Pure functions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.ports import MetricSample

State = Mapping[str, Any]
"""The result of ``Director.status``: JSON values."""

_LATE_SECONDS: Final = 1.5
"""Time without a beat (normally two per second) after which the cameras of a worker count as unreachable."""
_URI = re.compile(r"(?P<scheme>\w+)://(?P<host>\[[^\]]*\]|[^:/]*):(?P<port>\d+)/?")
_STREAMS: Final = ("tcp", "ipc")


@dataclass(frozen=True, slots=True)
class Place:
    """The node and the address that publish a camera of a fleet."""

    node: str = ""
    """Name of the node that has the camera; empty if no node has it."""
    address: str = ""
    """Address of the stream on that node."""
    epoch: int = 0
    reason: str = ""
    """The reason why no frames of the camera can be received; empty if they can."""


def reachable_address(uri: str, host: str) -> str:
    """Return the address at which other machines reach a sink.

    Args:
        uri: the address of the sink.
        host: name of the sink's machine; it replaces the host of a sink that listens on all interfaces.
    """
    match = _URI.fullmatch(uri)
    if match is None or not _is_wildcard(match["host"].strip("[]")):
        return uri
    return f"{match['scheme']}://{f'[{host}]' if ':' in host else host}:{match['port']}"


def _is_wildcard(host: str) -> bool:
    try:
        return host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def stream_address(worker: State) -> str:
    """Return the address of a worker's stream; empty if it has none."""
    return next((each for each in worker["addresses"] if each.partition("://")[0] in _STREAMS), "")


def stream_addresses(state: State) -> frozenset[str]:
    """Return the addresses of the streams of all workers."""
    return frozenset(filter(None, map(stream_address, state["workers"])))


def places(state: State) -> dict[str, Place]:
    """Return the place of each camera of the fleet, by name."""
    workers = {worker["worker"]: worker for worker in state["workers"]}
    return {camera["camera"]: _place(camera, workers) for camera in state["cameras"]}


def _place(camera: State, workers: Mapping[str, State]) -> Place:
    if camera["worker"] is None:
        return Place(reason=camera["reason"])
    worker = workers[camera["worker"]]
    node, address, heard = worker["node"], stream_address(worker), worker["heard_seconds"]
    reason = ""
    if not address:
        reason = f"node {node} has the camera, but publishes no stream; add a sink such as tcp://{node}:5555 there"
    elif heard > _LATE_SECONDS:
        reason = (
            f"node {node} has the camera, but has not reported for {heard:.0f} s; another node gets the camera after "
            "3.3 s"
        )
    return Place(node, address, camera["epoch"], reason)


def metrics_targets(state: State) -> list[dict[str, Any]]:
    """Return the metrics addresses of the workers in the format of Prometheus' ``http_sd``, labelled by node."""
    return [
        {
            "targets": [match["host"] + ":" + match["port"]],
            "labels": {"node": worker["node"], "device": worker["device"], "fleet_worker": _slot(worker)},
        }
        for worker in state["workers"]
        for match in map(_URI.fullmatch, worker["addresses"])
        if match is not None and match["scheme"] == "http"
    ]


def fleet_metrics(state: State) -> Iterator[MetricSample]:
    """Yield the metrics of the fleet from the director's state."""
    held = sum(camera["worker"] is not None for camera in state["cameras"])
    yield MetricSample("fleet_cameras", held, _CAMERAS, labels=(("state", "held"),))
    yield MetricSample("fleet_cameras", len(state["cameras"]) - held, _CAMERAS, labels=(("state", "waiting"),))
    yield MetricSample("fleet_term", state["term"], "Number of the active director.")
    yield MetricSample("fleet_deals", float(state["may_grant"]), "1 while the director may grant leases.")
    for worker in state["workers"]:
        labels = (("node", worker["node"]), ("fleet_worker", _slot(worker)))
        for name, value, text in (
            ("fleet_worker_cameras", len(worker["cameras"]), "Cameras that a worker has."),
            ("fleet_worker_load", worker["load"], "Frames per second of its cameras."),
            ("fleet_worker_limit", worker["limit"], "Frames per second that its cameras may have."),
            ("fleet_worker_heard_seconds", worker["heard_seconds"], "Time since its last beat."),
            ("fleet_worker_drained", float(worker["is_drained"]), "1 for a worker whose node is drained."),
        ):
            yield MetricSample(name, value, text, labels=labels)


_CAMERAS: Final = "Cameras of the fleet, by whether a worker has them."


def _slot(worker: State) -> str:
    """Return the slot of a worker, which stays the same when the worker is restarted."""
    return str(worker["worker"]).partition("#")[0]
