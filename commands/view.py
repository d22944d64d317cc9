"""`run.py view`: shows a stream of another process or machine."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.console import exit_with_outcome, fail, print_line
from commands.options import ACCESS, CAMERA, IMAGE, option
from commands.signals import shutdown_on_signal
from commands.wiring.kinds import load_config
from commands.wiring.sinks import apply_mqtt_credentials, apply_web_token, open_sinks


def view(
    address: Annotated[str, typer.Argument(help="tcp://HOST:PORT or ipc://PATH of a running stream.")],
    sink: Annotated[
        list[str] | None,
        option(IMAGE, "window (default), http://HOST:PORT, FILE.mp4, FOLDER/, FILE.jsonl. Repeatable."),
    ] = None,
    page_token_file: options.PageTokenFile = None,
    mqtt_credentials: options.MqttCredentials = None,
    key: Annotated[Path | None, option(ACCESS, "This viewer's secret key file, where the stream asks for one.")] = None,
    server_key: Annotated[
        str | None, option(ACCESS, "The stream's public key: its server.key file, or the 40 letters.")
    ] = None,
    camera: Annotated[list[str] | None, option(CAMERA, "Only this camera. Repeatable. Default: all.")] = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
) -> None:
    """Watch a stream over the network: in a window, or in a file if there is no screen."""
    from rich.console import Console

    from overlays.progress import Progress, summary
    from overlays.sinks.locks import claimed, to_claim
    from overlays.sinks.paths import check_outputs
    from overlays.wire.remote import RemoteExplainer, RemoteRenderer, RemoteStream, SignalReporter
    from overlays.wire.viewer import Viewer
    from pipeline.loop import Pipeline
    from pipeline.result import RunLimits, RunResult

    config = load_config({}, "command line", {"sinks": sink or ["window"]})
    settings = apply_mqtt_credentials(apply_web_token(config.sinks, page_token_file), mqtt_credentials)
    cameras = camera or []
    sinks = open_sinks(settings, cameras, config.overlay, painted=True)
    uris = [entry.uri for entry in settings]
    check_outputs(uris, cameras, [])
    begun = threading.Event()
    begun.set()
    with shutdown_on_signal(begun) as stop, ExitStack() as stack:
        viewer = stack.enter_context(Viewer(address, tuple(camera or ("",)), key=key, server_key=server_key))
        stack.enter_context(claimed(to_claim(uris, cameras)))
        for opened in sinks:
            stack.enter_context(opened)
        remote = stack.enter_context(RemoteStream(viewer, cameras))
        signal = SignalReporter(viewer, print_line)
        print_line(f"Watching {address}; q, Esc or Ctrl-C ends.")
        with Progress(Console(stderr=True)) as progress:

            def watch(result: RunResult) -> None:
                progress.watch(result)
                signal.check(result)

            outcome = Pipeline(
                [], RemoteExplainer(), RemoteRenderer(), sinks,
                limits=RunLimits(frames, seconds), stop=stop, watch=watch, discovery=remote,
            ).run()  # fmt: skip
        print_line("\n".join([*summary(outcome), *remote.notes]))
        why = viewer.problem or f"is a stream with --sink {address} running?"
    exit_with_outcome(outcome)
    if not outcome.received and not stop.is_set():
        fail(f"{address}: no frame came; {why}")
