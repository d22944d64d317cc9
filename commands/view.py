"""`run.py view`: shows streams of other processes or machines."""

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
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="ADDRESS...",
            help="tcp://HOST:PORT or ipc://PATH of a running stream. With several, cameras are named CAMERA@HOST.",
        ),
    ],
    sink: Annotated[
        list[str] | None,
        option(IMAGE, "window (default), http://HOST:PORT, FILE.mp4, FOLDER/, FILE.jsonl. Repeatable."),
    ] = None,
    page_token_file: options.PageTokenFile = None,
    mqtt_credentials: options.MqttCredentials = None,
    key: Annotated[Path | None, option(ACCESS, "Secret key file of this viewer, if the stream requires keys.")] = None,
    server_key: Annotated[
        str | None, option(ACCESS, "Public key of the stream: the file server.key, or its 40 characters.")
    ] = None,
    camera: Annotated[list[str] | None, option(CAMERA, "Only this camera. Repeatable. Default: all.")] = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
) -> None:
    """Watch streams over the network: in a window, or in a file if there is no screen."""
    from rich.console import Console

    from overlays.progress import Progress, summary
    from overlays.sinks.locks import claimed, to_claim
    from overlays.sinks.paths import check_outputs
    from overlays.wire.joined import JoinedStreams, cameras_by_stream, stream_suffixes
    from overlays.wire.remote import RemoteExplainer, RemoteRenderer, RemoteStream, SignalReporter
    from overlays.wire.viewer import Viewer
    from pipeline.loop import Pipeline
    from pipeline.result import RunLimits, RunResult

    config = load_config({}, "command line", {"sinks": sink or ["window"]})
    settings = apply_mqtt_credentials(apply_web_token(config.sinks, page_token_file), mqtt_credentials)
    cameras = camera or []
    suffixes = stream_suffixes(addresses)
    chosen = cameras_by_stream(cameras, suffixes)
    sinks = open_sinks(settings, cameras, config.overlay, painted=True)
    uris = [entry.uri for entry in settings]
    check_outputs(uris, cameras, [])
    begun = threading.Event()
    begun.set()
    with shutdown_on_signal(begun) as stop, ExitStack() as stack:
        viewers = [
            stack.enter_context(Viewer(address, names or ("",), key=key, server_key=server_key))
            for address, names in zip(addresses, chosen, strict=True)
        ]
        stack.enter_context(claimed(to_claim(uris, cameras)))
        for opened in sinks:
            stack.enter_context(opened)
        streams = [
            stack.enter_context(RemoteStream(viewer, names, suffix=suffix))
            for viewer, names, suffix in zip(viewers, chosen, suffixes, strict=True)
        ]
        joined = JoinedStreams(streams)
        signals = [SignalReporter(viewer, print_line) for viewer in viewers]
        print_line(f"Watching {', '.join(stream.uri for stream in streams)}; q, Esc or Ctrl-C ends.")
        with Progress(Console(stderr=True)) as progress:

            def watch(result: RunResult) -> None:
                progress.watch(result)
                for signal in signals:
                    signal.check(result)

            outcome = Pipeline(
                [], RemoteExplainer(lambda: joined.problem), RemoteRenderer(), sinks,
                limits=RunLimits(frames, seconds), stop=stop, watch=watch, discovery=joined,
            ).run()  # fmt: skip
        print_line("\n".join([*summary(outcome), *joined.notes]))
        why = viewers[0].problem or f"is a stream with --sink {addresses[0]} running?"
    exit_with_outcome(outcome)
    if not outcome.received and not stop.is_set():
        fail(f"{', '.join(addresses)}: no frame came; {why}")
