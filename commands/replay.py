"""`run.py replay`: draws logged heat maps on the original video."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from commands import options
from commands.console import exit_with_outcome, fail, print_line
from commands.options import CAMERA, IMAGE, drop_none, option
from commands.signals import shutdown_on_signal
from commands.wiring.kinds import load_config
from commands.wiring.sinks import apply_web_token, open_sinks
from pipeline.errors import ConfigError


def replay(
    record: Annotated[
        Path, typer.Argument(metavar="LOG", help="The log that --sink FILE.jsonl or FILE.parquet wrote.")
    ],
    video: Annotated[
        Path | None, typer.Argument(metavar="[VIDEO]", help="The explained video or images. Default: heat on black.")
    ] = None,
    sink: Annotated[
        list[str] | None, option(IMAGE, "window (default), http://HOST:PORT, FILE.mp4. Repeatable.")
    ] = None,
    page_token_file: options.PageTokenFile = None,
    colormap: options.Colormap = None,
    opacity: options.Opacity = None,
    camera: Annotated[str | None, option(CAMERA, "The camera, if the log has several cameras.")] = None,
    run: Annotated[
        int | None, option(CAMERA, "Number of the run, if the log has several runs. Default: the last.", min=1)
    ] = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
) -> None:
    """Overlay logged heat maps on the original video, each on its own frame."""
    from overlays.records.replay import BlankFrameSource, LoggedExplainer, RealTimeSource
    from overlays.render.renderer import HeatRenderer
    from overlays.sinks.locks import claimed, to_claim
    from overlays.sinks.paths import check_outputs
    from pipeline.loop import Pipeline
    from pipeline.result import RunLimits
    from stream.sources import build_source

    settings = {"overlay": drop_none({"colormap": colormap, "opacity": opacity}), "sinks": sink or ["window"]}
    config = load_config({}, "command line", settings)
    sink_settings = apply_web_token(config.sinks, page_token_file)
    started = threading.Event()
    with shutdown_on_signal(started) as stop, ExitStack() as stack:
        logged = stack.enter_context(LoggedExplainer(record, camera, run=run, video=video))
        source = BlankFrameSource(logged) if video is None else build_source(str(video), camera=logged.camera)
        if source.live:
            raise ConfigError(f"{str(video)!r}: is a live source; give the recording that the log was written for")
        check_outputs(
            [sink.uri for sink in sink_settings], [logged.camera], [str(sink) for sink in (record, video) if sink]
        )
        sinks = open_sinks(sink_settings, [logged.camera], config.overlay)
        if any(not sink.lossless for sink in sinks):
            source = RealTimeSource(source)
        stack.enter_context(source)
        stack.enter_context(claimed(to_claim((sink.uri for sink in sink_settings), [logged.camera])))
        for door in sinks:
            stack.enter_context(door)
        started.set()
        renderer = HeatRenderer(**config.overlay.model_dump())
        outcome = Pipeline(
            [(source, "wait")], logged, renderer, sinks, limits=RunLimits(frames, seconds, 1), stop=stop
        ).run()
    print_line(
        f"{logged.matched + logged.unmatched} frames, {logged.matched} with a heat map, {logged.unmatched} without a "
        f"record in the log; the log has {logged.line_count} records of {logged.camera!r}"
    )
    exit_with_outcome(outcome)
    if video is None and logged.line_count and not logged.matched and not stop.is_set() and seconds is None:
        fail(
            f"{record}: no record of {logged.camera!r} can be read; give a file that --sink FILE.jsonl or "
            "FILE.parquet wrote"
        )
    if logged.unmatched and not logged.matched:
        fail(f"{record}: no record belongs to a frame of {video}; give the video that the log was written for")
