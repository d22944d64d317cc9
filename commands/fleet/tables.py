"""Formats the state of a fleet as tables for a terminal, or as plain lines."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group
from rich.markup import escape
from rich.table import Table

_LATE_SECONDS: Final = 1.5
"""Time in seconds without a beat after which a worker is shown as late; workers beat twice a second."""


def status_tables(state: dict[str, Any]) -> Group:
    """Return the workers and the cameras of a fleet as tables for a terminal."""
    workers = Table("worker", "capacity", "load", "of limit", "cameras", "heard", "addresses", title="Workers")
    for worker in state["workers"]:
        workers.add_row(
            _name(worker),
            f"{worker['capacity']:.1f}/s",
            f"{worker['load']:.1f}/s",
            f"{_fraction(worker):.0%}",
            str(len(worker["cameras"])),
            f"{worker['heard_seconds']:.1f} s ago",
            escape(", ".join(worker["addresses"])),
        )
    cameras = Table("camera", "frames/s", "node", "epoch", "no worker, because", title="Cameras")
    for camera in state["cameras"]:
        has_worker = camera["worker"] is not None
        cameras.add_row(
            camera["camera"],
            f"{camera['rate']:g}",
            camera["node"] if has_worker else "",
            str(camera["epoch"]) if has_worker else "",
            "" if has_worker else camera["reason"],
        )
    return Group(workers, cameras, director_line(state))


def status_lines(state: dict[str, Any]) -> list[str]:
    """Return the state as lines of text that change only when the fleet changes."""
    lines = [director_line(state)]
    for worker in state["workers"]:
        late = f", not heard for {worker['heard_seconds']:.0f} s" if worker["heard_seconds"] > _LATE_SECONDS else ""
        lines.append(
            f"worker {_name(worker)}: {len(worker['cameras'])} cameras, {_fraction(worker):.0%} of "
            f"{worker['limit']:.1f} frames/s{late}; {', '.join(worker['addresses']) or 'no address'}"
        )
    for camera in state["cameras"]:
        place = f"{camera['worker'].partition('#')[0]}, epoch {camera['epoch']}" if camera["worker"] else "no worker, "
        lines.append(f"camera {camera['camera']}: {place}{camera.get('reason', '')}")
    return lines


def director_line(state: dict[str, Any]) -> str:
    """Return the state of the active director as one line."""
    place = "on the head" if state["is_on_head"] else "not on the head"
    text = f"director: term {state['term']}, {place}; "
    if state["awaited"]:
        return text + (
            f"assigns no cameras before half of the workers answer; waits for {', '.join(state['awaited'])}; remove "
            "those that are switched off: run.py fleet forget WORKER"
        )
    if not state["may_grant"]:
        return text + (
            "assigns no cameras: neither the head nor most workers answer, or the director before it may still assign "
            "them"
        )
    if state["quiet_seconds"]:
        return text + f"assigns cameras in {state['quiet_seconds']:.1f} s"
    return text + (
        "assigns cameras" if state["is_confirmed"] else "assigns cameras; the head does not answer, but most workers do"
    )


def _name(worker: dict[str, Any]) -> str:
    return str(worker["worker"]) + (" (drained)" if worker["is_drained"] else "")


def _fraction(worker: dict[str, Any]) -> float:
    return worker["load"] / worker["limit"] if worker["limit"] else 0.0
