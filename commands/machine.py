"""`run.py models` and `run.py doctor`: what there is, and what this machine lacks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated

import typer

from commands.terminal import display, say
from pipeline.checks import Check


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these. Default: all of the table.")] = None,
) -> None:
    """List the tested models: input size, cut point, grid, and the plan that explains them."""
    from rich.console import Console
    from rich.table import Table

    from engine.catalogue import rows

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("model", "input", "layer", "grid", "channels", "parameters", "plan"):
        table.add_column(heading, no_wrap=True)
    for row in rows(names):
        size, grid = (f"{a}x{b}" for a, b in (row.input_size, row.grid))
        count = f"{row.parameters / 1e6:.1f} M"
        table.add_row(row.name, size, row.layer, grid, str(row.channels), count, row.plan)
    console = Console()
    console.print(table)
    console.print(
        "\npooled, flat: explained for about the price of the verdict. Any other torchvision or timm CNN works by its "
        "name.\nWeights come from torchvision; without a network give a state dict with --weights FILE.",
        highlight=False,
    )


def doctor() -> None:
    """Tell what this machine has (devices, backends, codecs, display, versions), what is missing, and the cure."""
    import platform

    found = [
        *_found("engine", "torch", lambda checks: checks()),
        *_found("stream", "PyAV", lambda checks: checks()),
        *_found("overlays", "OpenCV, ZeroMQ and PyAV", lambda checks: checks(display())),
    ]
    say(f"Python {platform.python_version()} on {platform.platform()}")
    for check in found:
        mark = "ok " if check.present else "-- "
        cure = f"\n{'':26}{check.cure}" if check.cure and not check.present else ""
        say(f"{mark} {check.name:22} {check.says}{cure}")


def _found(room: str, needs: str, ask: Callable[[Callable[..., list[Check]]], list[Check]]) -> list[Check]:
    """Return what a room finds; where it cannot even be asked, what that fails of."""
    try:
        return ask(importlib.import_module(f"{room}.checks").checks)
    except Exception as reason:  # noqa: BLE001 - whatever is broken here is what is asked for
        missing = getattr(reason, "name", None) or room
        cure = f"it needs {needs}: uv sync; a library (.so) that is missing comes with the system's packages"
        said = f"cannot be loaded ({type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else missing})"
        return [Check(room, present=False, says=said, cure=cure)]
