"""`run.py models` and `run.py doctor`: what there is, and what this machine lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.terminal import display, say


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

    import engine.checks
    import overlays.checks
    import stream.checks

    found = [*engine.checks.checks(), *stream.checks.checks(), *overlays.checks.checks(display())]
    say(f"Python {platform.python_version()} on {platform.platform()}")
    for check in found:
        mark = "ok " if check.present else "-- "
        cure = f"\n{'':26}{check.cure}" if check.cure and not check.present else ""
        say(f"{mark} {check.name:22} {check.says}{cure}")
