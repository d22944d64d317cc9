"""`run.py stream` and `run.py demo`: explain cameras live."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from commands import options
from commands.console import exit_with_outcome, print_line, relative_path
from commands.multi_device import run_sharded
from commands.options import ACCESS, CAMERA, IMAGE, NETWORK, RUN, drop_none, option
from commands.parent_process import ends_with_parent
from commands.wiring.kinds import KINDS, load_config
from commands.wiring.reload import ConfigFile, ConfigText, stamp_of
from commands.wiring.run import redact_config, run_from_config
from commands.wiring.sinks import (
    apply_curve_keys,
    apply_mqtt_credentials,
    apply_page_edit,
    apply_recording_options,
    apply_web_token,
)
from pipeline.config import Config
from pipeline.config_loader import read_yaml, to_yaml
from pipeline.config_yaml import to_documented_yaml
from pipeline.errors import ConfigError
from pipeline.log_format import make_formatter
from pipeline.sharding import read_devices

log = logging.getLogger("recipro-stream")

DEMO_BOXES: Final = {"min_score": 0.5, "mode": "drop", "budget": 8.0}
"""Options of the demo's boxes. The budget is high, because a map takes several times as long as a detection."""

DEMO_PLACES: Final = {
    "zones": [{"name": "station", "polygon": [[0.25, 0.07], [0.75, 0.07], [0.75, 0.93], [0.25, 0.93]]}]
}
"""The zone in which the demo counts parts: the middle of the image, between the rails."""


def demo(
    seconds: Annotated[float, option(RUN, "Duration. [default: 30]", "--seconds", min=0.5)] = 30.0,
    seed: Annotated[int, option(RUN, "The same seed draws the same parts. [default: 7]", min=0)] = 7,
    detector: Annotated[
        bool, option(NETWORK, "Use the shipped detector: each part gets a box with its own heat map.", "--detector")
    ] = False,
) -> None:
    """Explain the simulated inspection line with the shipped network; leaves a video and a log in runs/."""
    folder = _run_folder()
    video, record = folder / "demo.mp4", folder / "demo.jsonl"
    settings = {
        "sources": [{"uri": f"line:?fps=30&size=640x480&seed={seed}"} | (DEMO_PLACES if detector else {})],
        "sinks": [str(video), str(record)],
        "seconds": seconds,
        "engine": {"model": "line_detector", "boxes": DEMO_BOXES} if detector else {"model": "line_net"},
    }
    shown = (
        "each part gets a box and a heat map, and a verdict when it has passed the zone"
        if detector
        else "some have a defect"
    )
    print_line(f"Explains the simulated line for {seconds:g} s: parts pass a camera, {shown}.")
    try:
        outcome = run_from_config(load_config(settings, "demo"))
    finally:
        with suppress(OSError):
            folder.rmdir()  # removes the folder only if it is empty
    print_line(
        f"\nSee it:   {relative_path(video)}\nRead it:  {relative_path(record)} "
        " (one explanation per line, with its heat map)"
    )
    print_line(
        "\nWhat next:\n"
        "  a webcam        uv run run.py stream --source camera:0 --model resnet50 --sink window\n"
        "  an RTSP camera  uv run run.py stream --source rtsp://USER@HOST/PATH --model resnet50 --sink out.mp4\n"
        "  a file          uv run run.py stream --source VIDEO.mp4 --model resnet50 --sink out.mp4\n"
        "  over a network  uv run run.py stream --source line: --sink tcp://127.0.0.1:5555\n"
        "                  uv run run.py view tcp://127.0.0.1:5555"
    )
    exit_with_outcome(outcome)


def stream(
    config: Annotated[Path | None, typer.Argument(help="A YAML file; see configs/. Options take precedence.")] = None,
    source: Annotated[
        list[str] | None,
        option(CAMERA, "camera:0, rtsp://..., http(s)://..., a video, a folder or glob of images, line:. Repeatable."),
    ] = None,
    overflow: Annotated[
        str | None,
        option(CAMERA, "If a queue is full: drop-oldest (default for live sources) or wait (default for files)."),
    ] = None,
    decoder: Annotated[
        str | None,
        option(
            CAMERA, "Decoder of files and network streams: cpu (default), cuda, cuda:N, or auto (a GPU if possible)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(NETWORK, "A name of `run.py models`, any torchvision or timm CNN, or a trained or exported file."),
    ] = None,
    trial: Annotated[
        str | None,
        option(NETWORK, "A second network on trial: it explains the same frames; the run counts the differences."),
    ] = None,
    weights: options.Weights = None,
    labels: options.Labels = None,
    layer: options.Layer = None,
    target: options.Target = None,
    kernel: options.Kernel = None,
    backend: Annotated[
        str | None,
        option(NETWORK, "auto (default), eager, openvino, inductor, tensorrt; also onnxruntime for .onnx files."),
    ] = None,
    precision: Annotated[str | None, option(NETWORK, "fp32 (default), bf16 or fp16.")] = None,
    device: Annotated[str | None, option(NETWORK, "auto (default), cpu, cuda or cuda:N.")] = None,
    devices: Annotated[
        str | None, option(NETWORK, "Distribute the cameras over GPUs, such as cuda:0,cuda:1; one process per GPU.")
    ] = None,
    input_size: options.InputSize = None,
    fit: options.Fit = None,
    mean: options.Mean = None,
    std: options.Std = None,
    threads: options.Threads = None,
    cache: Annotated[str | None, option(NETWORK, "A folder for compiled networks, or off.")] = None,
    sink: Annotated[
        list[str] | None,
        option(
            IMAGE,
            "window, tcp://HOST:PORT, ipc://PATH, http://HOST:PORT, mqtt://HOST/TOPIC, foxglove://HOST:PORT, "
            "rtsp(s)://HOST/PATH, rtmp(s)://HOST/APP/KEY, FILE.mp4, FOLDER/, FILE.jsonl, FILE.parquet, FILE.mcap, "
            "FILE.sqlite (events). Options behind a path: "
            "FILE.mp4?crf=28. Repeatable.",
        ),
    ] = None,
    record_when: Annotated[
        str | None, option(IMAGE, "FOLDER/: record only events, such as label=scratch and score>0.8.")
    ] = None,
    seconds_before: Annotated[
        float | None, option(IMAGE, "FOLDER/: recorded seconds before an event. [default: 5]")
    ] = None,
    seconds_after: Annotated[
        float | None, option(IMAGE, "FOLDER/: recorded seconds after an event. [default: 5]")
    ] = None,
    rotate_seconds: Annotated[float | None, option(IMAGE, "FOLDER/: duration of a clip. [default: 300]")] = None,
    disk_budget_mib: Annotated[
        float | None, option(IMAGE, "FOLDER/: size of all clips; the oldest are removed. Default: no limit.")
    ] = None,
    page_token_file: options.PageTokenFile = None,
    page_edit: Annotated[
        bool,
        option(
            ACCESS,
            "Let viewers of the http:// page change regions, masks and rules; it writes the YAML file.",
            "--page-edit",
        ),
    ] = False,
    mqtt_credentials: options.MqttCredentials = None,
    curve_keys: Annotated[
        Path | None,
        option(ACCESS, "A folder of `run.py keys new`. tcp:// sinks admit only the keys in its subfolder allowed/."),
    ] = None,
    allow: Annotated[
        Path | None,
        option(ACCESS, "File or folder of the admitted public keys, read again after a change. Default: allowed/."),
    ] = None,
    insecure: Annotated[
        bool, option(ACCESS, "Serve everyone who reaches the address, without keys or token.", "--insecure")
    ] = False,
    colormap: options.Colormap = None,
    opacity: options.Opacity = None,
    smoothing: Annotated[
        float | None, option(IMAGE, "Time constant of the smoothing of heat maps, in seconds. [default: 0, off]")
    ] = None,
    baseline: Annotated[Path | None, option(RUN, "Report the drift from a file of `run.py baseline`.")] = None,
    max_age: Annotated[
        float | None,
        option(CAMERA, "Drop frames of live sources that are older than this, in seconds. Default: no limit."),
    ] = None,
    frames: Annotated[int | None, option(RUN, "Stop after this number of explained frames.")] = None,
    seconds: Annotated[float | None, option(RUN, "Stop after this time.")] = None,
    watch_config: Annotated[
        bool, option(RUN, "Apply changes of cameras and guards in the YAML file during the run.", "--watch-config")
    ] = False,
    log_format: Annotated[str, option(RUN, "Format of log lines: text (default) or json.", "--log")] = "text",
    log_drops: Annotated[
        bool, option(RUN, "Log each frame that is not delivered, with its reason.", "--log-drops")
    ] = False,
    print_config: Annotated[bool, option(RUN, "Print the configuration and exit.", "--print-config")] = False,
    every: Annotated[bool, option(RUN, "With --print-config: every key with its description.", "--all")] = False,
) -> None:
    """Explain cameras, streams and files, and send the overlays to sinks."""
    if log_format not in {"text", "json"}:
        raise ConfigError(f"--log {log_format!r}: choose text or json")
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setFormatter(make_formatter(log_format))
    logging.getLogger("pipeline.drops").setLevel(logging.DEBUG if log_drops else logging.NOTSET)
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "target": target, "kernel": kernel,
        "backend": backend, "precision": precision, "device": device, "input_size": input_size, "fit": fit,
        "mean": mean, "std": std, "threads": threads, "cache": cache,
    }  # fmt: skip
    overlay = {"colormap": colormap, "opacity": opacity, "smoothing_seconds": smoothing}
    settings_given = {
        "sources": source, "sinks": sink, "overflow": overflow, "decoder": decoder, "frames": frames,
        "seconds": seconds, "max_age_seconds": max_age, "engine": drop_none(engine), "overlay": drop_none(overlay),
        "guards": {} if baseline is None else {"baseline": str(baseline)}, "models": trial,
    }  # fmt: skip
    overrides = {key: value for key, value in drop_none(settings_given).items() if value != {}}
    clips = {
        "record_when": record_when, "seconds_before": seconds_before, "seconds_after": seconds_after,
        "rotate_seconds": rotate_seconds, "disk_budget_mib": disk_budget_mib,
    }  # fmt: skip

    def parse(text: str) -> Config:
        settings = read_yaml(text, text_name)
        if not settings.get("sources") and not source:
            raise ConfigError("no source: give --source URI (camera:0, rtsp://..., a file, line:) or a YAML config")
        loaded = load_config(settings, text_name, {} if config is None else overrides)
        with_secrets = apply_mqtt_credentials(apply_web_token(loaded.sinks, page_token_file), mqtt_credentials)
        sinks = apply_curve_keys(with_secrets, curve_keys, allow, insecure=insecure)
        sinks = apply_recording_options(sinks, drop_none(clips))
        return loaded.model_copy(update={"sinks": apply_page_edit(sinks) if page_edit else sinks})

    text_name = config.name if config else "command line"
    text = _config_text(config, text_name, parse, overrides, source)
    watched = _watched(config, text, source, devices) if watch_config else None
    resolved = text.read()
    text.accept()
    _warn_of_shown_passwords(source or [])
    if every and not print_config:
        raise ConfigError("--all: applies to --print-config only; give both options")
    if print_config:
        shown = redact_config(resolved)
        typer.echo(to_documented_yaml(shown, KINDS) if every else to_yaml(shown), nl=False)
        return
    _refuse_editing(resolved, devices)
    if devices is not None:
        run_sharded(resolved, read_devices(devices), log_format=log_format)
        return
    with ends_with_parent(os.environ):
        tell = log.info if log_format == "json" else None
        outcome = run_from_config(resolved, tell=tell, watched=watched, text=text)
    exit_with_outcome(outcome)


def _refuse_editing(config: Config, devices: str | None) -> None:
    """Raise ``ConfigError`` if a page may change cameras and several processes run the cameras."""
    if devices is not None and any(getattr(sink, "edit", False) for sink in config.sinks):
        raise ConfigError("--page-edit (edit: true): is not possible with --devices; start one run for each device")


def _config_text(
    config: Path | None,
    name: str,
    parse: Callable[[str], Config],
    overrides: Mapping[str, Any],
    source: Sequence[str] | None,
) -> ConfigText:
    """Return the text of the configuration file; without a file, the command line options as YAML."""
    if config is not None:
        return ConfigText(name, parse, path=config, has_sources=not source)
    if source:
        load_config({}, name, overrides)  # errors of this call name the options; errors of the YAML text could not
    return ConfigText(name, parse, path=None, text=yaml.safe_dump(dict(overrides), sort_keys=False, allow_unicode=True))


def _watched(config: Path | None, text: ConfigText, source: Sequence[str] | None, devices: str | None) -> ConfigFile:
    """Return the configuration file to watch; raise ``ConfigError`` if ``--watch-config`` cannot be used."""
    if config is None or source:
        raise ConfigError("--watch-config: needs the cameras in a YAML file; move each --source into the file")
    if devices is not None:
        raise ConfigError("--watch-config: is not possible with --devices; start one run for each device")
    return ConfigFile(config, text.read, stamp_of(config), accept=text.accept)


def _warn_of_shown_passwords(sources: list[str]) -> None:
    """Log a warning about passwords in the command line, which every user of the machine can read."""
    from stream.credentials import has_plain_password

    if any(map(has_plain_password, sources)):
        log.warning(
            "--source: a password on the command line can be read by every user of this machine (ps); write "
            "'rtsp://${USER_NAME}:${PASSWORD}@HOST/PATH' with variables of the environment, or name a "
            "credentials_file in a configuration"
        )


def _run_folder() -> Path:
    folder = Path("runs") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(
            f"runs/: cannot be written here ({reason.strerror}); start from a folder that you may write to"
        ) from None
    return folder
