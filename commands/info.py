"""`run.py models` and `run.py doctor`: what there is, and what this machine lacks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated

import typer

from commands.console import display_name, print_line
from pipeline.diagnostics import Diagnostic


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these. Default: all of the table.")] = None,
    layers: Annotated[str | None, typer.Option("--layers", help="List the layers of this model with a grid.")] = None,
) -> None:
    """List the tested models: input size, cut point, grid, and the plan that explains them."""
    if layers is not None:
        _list_layers(layers)
        return
    from engine.models.catalog import describe_models
    from engine.models.registry import MODELS
    from pipeline.errors import ModelError, did_you_mean

    for name in names or []:
        if name not in MODELS:
            raise ModelError(
                f"model {name!r} is none of the table.{did_you_mean(name, MODELS)} `run.py models` lists it; any "
                f"torchvision or timm classifier works by its name: `run.py models --layers {name}`"
            )
    _line(("model", "input", "layer", "grid", "chan.", "weights", "plan"))
    for row in describe_models(names):
        size, grid = (f"{a}x{b}" for a, b in (row.input_size, row.grid))
        _line((row.name, size, row.layer, grid, str(row.channels), f"{row.parameters / 1e6:.1f} M", row.plan))
    print_line(
        "\npooled, flat, tokens: explained for about the price of the verdict.\n"
        "Any other torchvision or timm CNN works by its name. Weights come from\n"
        "torchvision; without a network give a state dict with --weights FILE.\n"
        "`run.py models --layers NAME` lists a model's layers with a grid."
    )


_WIDTHS = (18, 7, 22, 5, 5, 7, 6)
"""Columns of the table, 80 in all; a long layer name keeps its end, which tells it."""


def _line(cells: tuple[str, ...]) -> None:
    """Write one row, the same at a terminal and in a pipe."""
    shown = [
        cell if len(cell) <= width else f"..{cell[-(width - 2) :]}" for cell, width in zip(cells, _WIDTHS, strict=True)
    ]
    print_line(" ".join(cell.ljust(width) for cell, width in zip(shown, _WIDTHS, strict=True)).rstrip())


def _list_layers(name: str) -> None:
    from engine.models.catalog import layers_of

    print_line(f"layers of {name} that can be named by --layer, the first to answer first; grid, channels:")
    for layer, (rows, columns), channels in layers_of(name):
        print_line(f"{f'{rows}x{columns}':>9} {channels:>6}  {layer}")


def doctor() -> None:
    """Tell what this machine has (devices, backends, codecs, display, versions), what is missing, and the cure."""
    import platform

    found = [
        *_found("engine", "torch", lambda checks: checks()),
        *_found("stream", "PyAV", lambda checks: checks()),
        *_found("overlays", "OpenCV, ZeroMQ and PyAV", lambda checks: checks(display_name())),
    ]
    print_line(f"Python {platform.python_version()} on {platform.platform()}")
    for check in found:
        mark = "ok " if check.present else "-- "
        hint = f"\n{'':26}{check.hint}" if check.hint and not check.present else ""
        print_line(f"{mark} {check.name:22} {check.detail}{hint}")


def _found(
    room: str, needs: str, ask: Callable[[Callable[..., list[Diagnostic]]], list[Diagnostic]]
) -> list[Diagnostic]:
    """Return what a room finds; where it cannot even be asked, what that fails of."""
    try:
        return ask(importlib.import_module(f"{room}.diagnostics").diagnostics)
    except Exception as reason:  # noqa: BLE001 - whatever is broken here is what is asked for
        missing = getattr(reason, "name", None) or room
        hint = f"it needs {needs}: uv sync; a library (.so) that is missing comes with the system's packages"
        said = f"cannot be loaded ({type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else missing})"
        return [Diagnostic(room, present=False, detail=said, hint=hint)]
