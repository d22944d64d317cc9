"""`run.py keys`: creates CurveZMQ keys for streams and viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.console import print_line, relative_path
from pipeline.errors import ConfigError

keys_app = typer.Typer(no_args_is_help=True, help="Create keys, so that only listed viewers can connect.")


@keys_app.command("new")
def keys_new(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder for the keys. Existing files are not overwritten.")
    ],
) -> None:
    """Create the keys of a stream and of a first viewer."""
    from overlays.wire.curve.keys import create_keyring

    create_keyring(folder)
    shown = relative_path(folder)
    print_line(
        f"{shown}/server.key_secret  secret key of the stream: stays here, readable by you only\n"
        f"{shown}/server.key         public key of the stream: give it to every viewer\n"
        f"{shown}/viewer.key_secret  secret key of the viewer: copy it by a secure way, such as scp\n"
        f"{shown}/allowed/           public keys of the viewers that can connect; add and remove them at any time\n\n"
        f"here:   uv run run.py stream --source camera:0 --sink tcp://0.0.0.0:5555 --curve-keys {shown}\n"
        "there:  uv run run.py view tcp://HOST:5555 --key viewer.key_secret --server-key server.key\n"
        f"one more viewer:  uv run run.py keys add {shown} NAME"
    )


@keys_app.command("add")
def keys_add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `keys new`.")],
    name: Annotated[str, typer.Argument(help="Name of the viewer.")],
) -> None:
    """Create the keys of one more viewer and add the viewer to the list."""
    from overlays.wire.curve.keys import ALLOWED, make_pair

    if not (folder / ALLOWED).is_dir():
        raise ConfigError(
            f"{str(folder)!r}: contains no list of viewers; create it with `run.py keys new {relative_path(folder)}`"
        )
    public, secret = make_pair(folder, name, public_folder=folder / ALLOWED)
    print_line(
        f"{relative_path(secret)}  secret key of the viewer: copy it by a secure way\n"
        f"{relative_path(public)}  allows the viewer to connect"
    )
