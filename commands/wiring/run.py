"""The rooms joined: configuration to sources, explainer and sinks, and frames carried through them."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import say
from commands.plausibility import warn_of_doubts
from commands.signals import until_interrupted
from commands.wiring.gpu import make_card_explainer, make_renderer, stays_on_card
from commands.wiring.guards import make_guardian, read_slow, report_guards
from commands.wiring.sinks import read_secret, sink_options
from pipeline.config import Config, SourceConfig
from pipeline.guards.drift import Recorder
from pipeline.loop import Outcome
from pipeline.ports import Overflow, Sink, Source

if TYPE_CHECKING:
    from engine.explainers.base import FrameExplainer
    from engine.models.loader import Network

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("recipro-stream")

NO_SINK = (
    "no sink: frames are explained and counted only; add --sink window, http://127.0.0.1:8000, tcp://..., out.mp4 or "
    "out.jsonl"
)


def carry_frames(
    config: Config, tell: Callable[[str], None] | None = None, recorder: Recorder | None = None
) -> Outcome:
    """Join the rooms as the configuration says and carry frames until the end.

    Args:
        config: what runs.
        tell: takes the progress as lines.
        recorder: takes the reasons of every frame.
    """
    from rich.console import Console

    from overlays.progress import Progress
    from overlays.render.renderer import HeatRenderer
    from overlays.sinks.locks import claimed, to_claim
    from pipeline.loop import Limits, carry
    from pipeline.systemd import Supervisor

    begun = threading.Event()
    with until_interrupted(begun) as stop, ExitStack() as stack:
        sources = make_sources(config)
        cameras = [source.camera for source, _ in sources]
        slow = read_slow(config, cameras, recorder)
        if not config.sinks and recorder is None:
            log.warning("%s", NO_SINK)
        sinks = make_sinks(config, cameras)
        drawing = HeatRenderer(**config.overlay.model_dump())
        for source, _ in sources:
            stack.enter_context(source)
        stack.enter_context(claimed(to_claim((one.uri for one in config.sinks), cameras)))
        for sink in sinks:
            stack.enter_context(sink)
        explainer = make_explainer(config)
        renderer = make_renderer(drawing, explainer, sinks)
        log.info("%s", explainer.facts)
        warn_of_doubts(config, explainer.labels)
        window = config.engine.batch_window_ms / 1e3 if len(sources) > 1 else 0.0
        batch = usual_batch(config, explainer)
        limits = Limits(config.frames, config.seconds, batch, window, max_age_seconds=config.max_age_seconds)
        guardian = make_guardian(config, explainer, slow)
        gc.collect()
        gc.freeze()  # what was built stays: to look through it again and again would hold up every camera
        begun.set()
        with Progress(Console(stderr=True), tell) as progress, Supervisor(os.environ) as supervisor:
            outcome = carry(
                sources, guardian, renderer, sinks,
                limits=limits, stop=stop, watch=progress.watch, alive=supervisor.alive,
            )  # fmt: skip
        _report(outcome)  # a sink that cannot be closed must not keep it back
        report_guards(guardian)
    if not outcome.taken and not outcome.errors and not stop.is_set():
        waited = (f"{pump.camera}: {pump.health.reason or pump.health.state}" for pump in outcome.pumps)
        outcome.errors.append("no frame came from any camera; " + "; ".join(waited))
    return outcome


def make_sources(config: Config) -> list[tuple[Source, Overflow | None]]:
    """Return each source and what its full queue does; None: what is usual for its kind."""
    from stream.redact import place
    from stream.sources import SourceOptions, build_source, plain_name, unique_names

    card = config.engine.device.partition(":")[2]  # pictures are decoded where they will be explained
    built = [
        build_source(
            _address(one),
            camera=one.name
            or (place(one.uri) if one.credentials_file else None),  # an @ in the path is in the way later
            options=SourceOptions(
                one.read_timeout_seconds,
                one.open_timeout_seconds,
                one.transport,
                decoder=one.decoder or config.decoder,
                card=int(card or 0),
                max_pixels=one.max_pixels,
                live=None if one.live == "auto" else one.live,
                allowed_hosts=tuple(one.allowed_hosts),
                still_rate=one.still_rate,
            ),
        )
        for one in config.sources
    ]
    names = [one.name or plain_name(source.camera) for one, source in zip(config.sources, built, strict=True)]
    for source, name in zip(built, unique_names(names), strict=True):
        source.camera = name
    return [(source, one.overflow or config.overflow or getattr(source, "overflow", None))
            for source, one in zip(built, config.sources, strict=True)]  # fmt: skip


def _address(source: SourceConfig) -> str:
    """Return where a source reads from, with the credentials that stand outside its configuration."""
    from stream.credentials import expanded, signed

    uri = expanded(source.uri, os.environ)
    if source.credentials_file is None:
        return uri
    file = source.credentials_file
    secret = read_secret(Path(file), "credentials", f"one line, user:password, belongs into {file}")
    return signed(uri, secret.strip("\r\n"), file)


def make_sinks(config: Config, cameras: list[str]) -> list[Sink]:
    """Return the sinks, none of which would overwrite an input or another's output."""
    from overlays.sinks.paths import check_outputs
    from overlays.sinks.registry import build_sink
    from stream.sources import path_of

    engine = config.engine
    inputs = [*(path_of(one.uri) for one in config.sources), engine.model, engine.weights, engine.labels]
    made = [build_sink(one.uri, cameras=cameras, options=sink_options(one, config.overlay)) for one in config.sinks]
    check_outputs([one.uri for one in config.sinks], cameras, [one for one in inputs if one])
    return made


def make_explainer(config: Config) -> FrameExplainer:
    """Return what explains the frames: an exported file, or a network built for this machine."""
    from engine.export.metadata import is_exported

    if is_exported(config.engine.model):
        from engine.explainers.exported import ExportedExplainer

        return ExportedExplainer(Path(config.engine.model), config.engine)
    from engine.explainers.base import most_together
    from engine.explainers.network import NetworkExplainer
    from engine.runtime.compile_cache import default_folder
    from engine.runtime.devices import choose_device

    kept = config.engine.cache or default_folder()
    settings = config.engine.model_copy(update={"cache": kept})
    device = choose_device(config.engine.device).type
    network, cameras = make_network(config), len(config.sources)
    if stays_on_card(config, device):
        together = most_together(cameras, device)
        return make_card_explainer(config.model_copy(update={"engine": settings}), network, together=together)
    return NetworkExplainer(network, settings, together=min(cameras, most_together(cameras, device)))


def usual_batch(config: Config, explainer: FrameExplainer) -> int:
    """Return how many frames are explained together at the most."""
    from engine.explainers.base import most_together

    if config.engine.batch is not None:
        return config.engine.batch
    device, cameras = explainer.facts.device, len(config.sources)
    return explainer.worthwhile_batch(cameras) if device == "cpu" else most_together(cameras, device)


def make_network(config: Config) -> Network:
    """Load the network of the configuration; the shipped weights where it names none."""
    from engine.models.loader import load_network

    weights = config.engine.weights or find_shipped_weights(config.engine.model)
    labels = None if config.engine.labels is None else Path(config.engine.labels)
    return load_network(config.engine.model, weights=weights, labels=labels)


def find_shipped_weights(model: str) -> str | None:
    """Return the file of weights that comes with a network of the table; None where there is none."""
    from engine.models.registry import lookup

    entry = lookup(model)
    return None if entry is None or entry.file is None else str(ROOT / entry.file)


def redacted(config: Config) -> Config:
    """Return the configuration with credentials taken out of its URIs."""
    from stream.redact import redact

    sources = [one.model_copy(update={"uri": redact(one.uri)}) for one in config.sources]
    sinks = [one.model_copy(update={"uri": redact(one.uri)}) for one in config.sinks]
    return config.model_copy(update={"sources": sources, "sinks": sinks})


def _report(outcome: Outcome) -> None:
    from overlays.progress import summary

    say("\n".join(summary(outcome)))
