"""`run.py models` lists the tested models; `run.py doctor` checks this machine."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from commands.console import display_name, print_line
from pipeline.diagnostics import Diagnostic


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Models to list. Default: all tested models.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="List the layers of this model that have a grid.")
    ] = None,
) -> None:
    """List the tested models with input size, explained layer, grid, channels, parameters and plan."""
    if layers is not None:
        _list_layers(layers)
        return
    from engine.models.catalog import describe_models
    from engine.models.registry import MODELS
    from pipeline.errors import ModelError, did_you_mean

    for name in names or []:
        if name not in MODELS:
            raise ModelError(
                f"model {name!r}: not in the table.{did_you_mean(name, MODELS)} `run.py models` prints the table; any "
                f"torchvision or timm classifier works by its name: `run.py models --layers {name}`"
            )
    _line(("model", "input", "layer", "grid", "chan.", "weights", "plan"))
    for row in describe_models(names):
        size, grid = (f"{a}x{b}" for a, b in (row.input_size, row.grid))
        _line((row.name, size, row.layer, grid, str(row.channels), f"{row.parameters / 1e6:.1f} M", row.plan))
    print_line(
        "\npooled, flat, tokens: an explanation costs about as much as the prediction.\n"
        "Any other torchvision or timm CNN works by its name. Weights come from\n"
        "torchvision; without Internet access, give a state dict with --weights FILE.\n"
        "`run.py models --layers NAME` lists the layers of a model that have a grid."
    )


_WIDTHS = (18, 7, 22, 5, 5, 7, 6)
"""Widths of the table's columns in characters. A long layer name keeps only its end."""


def _line(cells: tuple[str, ...]) -> None:
    """Print one row of the table, with the same widths in a terminal and in a pipe."""
    shown = [
        cell if len(cell) <= width else f"..{cell[-(width - 2) :]}" for cell, width in zip(cells, _WIDTHS, strict=True)
    ]
    print_line(" ".join(cell.ljust(width) for cell, width in zip(shown, _WIDTHS, strict=True)).rstrip())


def _list_layers(name: str) -> None:
    from engine.models.catalog import layers_of

    print_line(f"layers of {name} for --layer, in the order they run; grid, channels, name:")
    for layer, (rows, columns), channels in layers_of(name):
        print_line(f"{f'{rows}x{columns}':>9} {channels:>6}  {layer}")


def doctor() -> None:
    """Check this machine: devices, backends, codecs, display, versions; what is missing, and how to install it."""
    import platform

    reports = [
        *_diagnose("engine", "torch"),
        *_diagnose("stream", "PyAV"),
        *_diagnose("overlays", "OpenCV, ZeroMQ and PyAV", display_name()),
    ]
    print_line(f"Python {platform.python_version()} on {platform.platform()}")
    for check in reports:
        mark = "ok " if check.present else "-- "
        hint = f"\n{'':26}{check.hint}" if check.hint and not check.present else ""
        print_line(f"{mark} {check.name:22} {check.detail}{hint}")


def _diagnose(package: str, needs: str, *arguments: str | None) -> list[Diagnostic]:
    """Return the diagnostics of a package; if the import fails, return one diagnostic with the reason."""
    try:
        diagnostics: list[Diagnostic] = importlib.import_module(f"{package}.diagnostics").diagnostics(*arguments)
    except Exception as reason:  # noqa: BLE001 - a broken installation may raise anything
        hint = f"it needs {needs}; run `uv sync`; a missing library (.so) comes with the system's packages"
        first_line = str(reason).partition("\n")[0] or getattr(reason, "name", None) or package
        detail = f"cannot be loaded ({type(reason).__name__}: {first_line})"
        return [Diagnostic(package, present=False, detail=detail, hint=hint)]
    return diagnostics
