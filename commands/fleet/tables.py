"""The state of a fleet as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_status(state: dict[str, Any]) -> None:
    """Print the workers and the cameras of a fleet."""
    console = Console()
    workers = Table("worker", "capacity", "load", "of limit", "cameras", "heard", "addresses", title="Workers")
    for worker in state["workers"]:
        fraction = worker["load"] / worker["limit"] if worker["limit"] else 0.0
        workers.add_row(
            worker["worker"] + (" (drained)" if worker["is_drained"] else ""),
            f"{worker['capacity']:.1f}/s",
            f"{worker['load']:.1f}/s",
            f"{fraction:.0%}",
            str(len(worker["cameras"])),
            f"{worker['heard_seconds']:.1f} s ago",
            ", ".join(worker["addresses"]),
        )
    console.print(workers)
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
    console.print(cameras)
    console.print(_summary(state))


def _summary(state: dict[str, Any]) -> str:
    """Return the state of the director in one line."""
    place = "on the head" if state["is_on_head"] else "not on the head"
    text = f"director: term {state['term']}, {place}; "
    if state["awaited"]:
        return text + (
            f"deals nothing before half of the workers answer; waits for {', '.join(state['awaited'])}; remove those "
            "that are switched off: run.py fleet forget WORKER"
        )
    if not state["may_grant"]:
        return text + "grants nothing: it reaches neither the head nor most workers"
    if state["quiet_seconds"]:
        return text + f"deals cameras in {state['quiet_seconds']:.1f} s"
    return text + ("deals cameras" if state["is_confirmed"] else "the head is gone; most workers answer")
