"""`run.py schema`: prints the JSON Schema of the configuration or of the wire header."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from commands.options import RUN, option


def schema(
    markdown: Annotated[
        bool, option(RUN, "Print the reference of all options as Markdown instead.", "--markdown")
    ] = False,
    wire: Annotated[bool, option(RUN, "Print the JSON Schema of the wire header instead.", "--wire")] = False,
) -> None:
    """Print the JSON Schema of the configuration: editors complete and check YAML files with it."""
    if wire:
        from overlays.wire.header import wire_schema

        typer.echo(json.dumps(wire_schema(), indent=2))
        return
    from commands.wiring.kinds import KINDS
    from pipeline.config_schema import config_reference, config_schema

    text = config_reference(KINDS) if markdown else json.dumps(config_schema(KINDS), indent=2) + "\n"
    typer.echo(text, nl=False)
