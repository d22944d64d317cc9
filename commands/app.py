"""The command line application with all commands of ``recipro-stream``."""

from __future__ import annotations

import typer

from commands.baseline import baseline
from commands.evaluate import evaluate
from commands.explain_archive import explain_archive
from commands.export import export
from commands.fleet.app import fleet_app
from commands.info import doctor, models
from commands.keys import keys_app
from commands.replay import replay
from commands.schema import schema
from commands.stream import demo, stream
from commands.train import train
from commands.train_line import train_line
from commands.view import view
from commands.why import why

app = typer.Typer(
    name="recipro-stream",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explain live video: class scores and an exact Recipro-CAM heat map for every frame.\n\n"
    "Without a command, the demo runs for 30 seconds: a simulated inspection line, without a camera or a GPU.",
)
app.add_typer(fleet_app, name="fleet")
app.add_typer(keys_app, name="keys")
for command in (
    demo, stream, why, export, evaluate, explain_archive, view, replay, models, doctor, train, train_line, baseline,
    schema,
):  # fmt: skip
    app.command()(command)


@app.callback(invoke_without_command=True)
def main_callback(context: typer.Context) -> None:
    """Run the demo when no command is given."""
    if context.invoked_subcommand is None:
        demo(seconds=30.0)
