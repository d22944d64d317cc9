"""`run.py keys`: who may look in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.console import print_line, relative_path
from pipeline.errors import ConfigError

keys_app = typer.Typer(no_args_is_help=True, help="Make keys, so that only those may look in who are on the list.")


@keys_app.command("new")
def keys_new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go. Nothing is ever overwritten.")],
) -> None:
    """Make a stream's keys and a first viewer's."""
    from overlays.wire.curve.keys import create_keyring

    create_keyring(folder)
    place = relative_path(folder)
    print_line(
        f"{place}/server.key_secret  stays here, readable by you alone\n"
        f"{place}/server.key         for every viewer, it is no secret\n"
        f"{place}/viewer.key_secret  for the viewer: move it there by a safe way, such as scp\n"
        f"{place}/allowed/           whose public key lies here may look in; add and remove while the stream runs\n\n"
        f"here:   uv run run.py stream --source camera:0 --sink tcp://0.0.0.0:5555 --curve-keys {place}\n"
        "there:  uv run run.py view tcp://HOST:5555 --key viewer.key_secret --server-key server.key\n"
        f"one more viewer:  uv run run.py keys add {place} NAME"
    )


@keys_app.command("add")
def keys_add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `keys new`.")],
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
) -> None:
    """Make one more viewer's keys and put them on the list."""
    from overlays.wire.curve.keys import ALLOWED, make_pair

    if not (folder / ALLOWED).is_dir():
        raise ConfigError(
            f"{str(folder)!r}: holds no list of viewers; make it first: run.py keys new {relative_path(folder)}"
        )
    public, secret = make_pair(folder, name, public_folder=folder / ALLOWED)
    print_line(
        f"{relative_path(secret)}  for the viewer: move it there by a safe way\n{relative_path(public)}  lets it in"
    )
