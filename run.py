"""The command line: argv to configuration, rooms joined, frames carried. The only file that meets the world.

``python run.py`` runs the demo, the simulated inspection line; ``python run.py --help`` lists every command.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Nothing has begun yet that would have to be ended in order.
    for early in (signal.SIGINT, signal.SIGTERM):
        signal.signal(early, lambda *_: os._exit(0))

import ctypes
import json
import logging
import shlex
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.config import (
    Config,
    CurveConfig,
    OverlayConfig,
    SinkConfig,
    SourceConfig,
    make_config,
    read_yaml,
    to_yaml,
)
from pipeline.errors import ConfigError, ConnectionLostError, ReciproStreamError
from pipeline.logs import formatter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.evaluation.examiner import Examiner
    from engine.evaluation.journal import Journal
    from engine.frame_explainer import FrameExplainer
    from engine.networks import Network
    from engine.training import Progress
    from overlays.sinks.options import SinkOptions
    from pipeline.frames import Truth
    from pipeline.loop import Outcome
    from pipeline.ports import Overflow, Sink, Source

    TruthsOf = Callable[[Path, tuple[int, int]], tuple[Truth, ...]]

ROOT = Path(__file__).resolve().parent
KEPT_BYTES = 1 << 30
EXIT_INPUT, EXIT_CAMERA, EXIT_SINK = 2, 3, 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
SHIPPED = ROOT / "configs" / "models" / "line.safetensors"
log = logging.getLogger("recipro-stream")

app = typer.Typer(
    name="recipro-stream",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Live video, explained: every frame with its class scores and an exact Recipro-CAM heat map.\n\n"
    "Without a command the demo runs: a simulated inspection line, 30 seconds, no camera and no GPU needed.",
)

CAMERA, NETWORK, PICTURE, ACCESS, RUN = "Cameras", "Network", "Picture", "Who may look in", "Run"
TRUTH = "Where objects lie"
keys_app = typer.Typer(no_args_is_help=True, help="Make keys, so that only those may look in who are on the list.")
app.add_typer(keys_app, name="keys")


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:  # noqa: ANN401 - typer's own type
    return typer.Option(*names, rich_help_panel=panel, help=text, show_default=False, **more)


@app.callback(invoke_without_command=True)
def main_callback(context: typer.Context) -> None:
    """Run the demo when no command is given."""
    if context.invoked_subcommand is None:
        demo(seconds=30.0)


@app.command()
def demo(
    seconds: Annotated[float, _option(RUN, "How long. [default: 30]", "--seconds", min=0.5)] = 30.0,
    seed: Annotated[int, _option(RUN, "Which line: the same seed draws the same parts. [default: 7]", min=0)] = 7,
) -> None:
    """Explain the simulated inspection line with the shipped network; leaves a video and a log in runs/."""
    folder = _run_folder()
    video, record = folder / "demo.mp4", folder / "demo.jsonl"
    knobs = {
        "sources": [f"line:?fps=30&size=640x480&seed={seed}"],
        "sinks": [str(video), str(record)],
        "seconds": seconds,
        "engine": {"model": "line_net"},
    }
    _say(f"The inspection line, {seconds:g} s, explained: parts pass a camera, some carry a defect.")
    try:
        outcome = _carry(make_config(knobs, "demo"))
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing was written into it
    _say(f"\nSee it:   {_near(video)}\nRead it:  {_near(record)}  (one explanation a line, heat included)")
    _say(
        "\nWhat next:\n"
        "  a webcam        uv run run.py stream --source camera:0 --model resnet50 --sink window\n"
        "  an RTSP camera  uv run run.py stream --source rtsp://USER@HOST/PATH --model resnet50 --sink out.mp4\n"
        "  a file          uv run run.py stream --source VIDEO.mp4 --model resnet50 --sink out.mp4\n"
        "  over a network  uv run run.py stream --source line: --sink tcp://127.0.0.1:5555\n"
        "                  uv run run.py view tcp://127.0.0.1:5555"
    )
    _finish(outcome)


@app.command()
def stream(  # noqa: PLR0917 - one parameter per option
    config: Annotated[Path | None, typer.Argument(help="A YAML file; see configs/. The command line wins.")] = None,
    source: Annotated[
        list[str] | None,
        _option(CAMERA, "camera:0, rtsp://..., http(s)://..., a video, a folder or glob of images, line:. Repeatable."),
    ] = None,
    overflow: Annotated[
        str | None,
        _option(CAMERA, "A full queue: drop-oldest (default for live sources) or wait (default for files)."),
    ] = None,
    model: Annotated[
        str | None, _option(NETWORK, "A name of `run.py models`, any torchvision or timm CNN, or an exported file.")
    ] = None,
    weights: Annotated[str | None, _option(NETWORK, "A state dict (.pth, .safetensors). 'random': untrained.")] = None,
    labels: Annotated[str | None, _option(NETWORK, "Class names: a text file, one a line, or a JSON list.")] = None,
    layer: Annotated[str | None, _option(NETWORK, "The explained layer. Default: the last grid.")] = None,
    target: Annotated[
        str | None, _option(NETWORK, "The explained classes: top1 (default), top5, or names or indices, by commas.")
    ] = None,
    kernel: Annotated[str | None, _option(NETWORK, "Recipro-CAM's masks: point (default) or gaussian.")] = None,
    backend: Annotated[
        str | None, _option(NETWORK, "auto (default), eager, openvino, inductor; an .onnx file: onnxruntime, too.")
    ] = None,
    precision: Annotated[str | None, _option(NETWORK, "fp32 (default), bf16 or fp16.")] = None,
    device: Annotated[str | None, _option(NETWORK, "auto (default), cpu or cuda.")] = None,
    input_size: Annotated[str | None, _option(NETWORK, "HEIGHTxWIDTH. Default: what the weights want.")] = None,
    fit: Annotated[str | None, _option(NETWORK, "Frame to input: stretch (default), letterbox or crop.")] = None,
    mean: Annotated[str | None, _option(NETWORK, "R,G,B subtracted from RGB in [0, 1].")] = None,
    std: Annotated[str | None, _option(NETWORK, "R,G,B divided by.")] = None,
    threads: Annotated[int | None, _option(NETWORK, "CPU threads for the network.")] = None,
    cache: Annotated[str | None, _option(NETWORK, "A folder for compiled networks, or off. Default: yours.")] = None,
    sink: Annotated[
        list[str] | None,
        _option(
            PICTURE, "window, tcp://HOST:PORT, ipc://PATH, http://HOST:PORT, FILE.mp4, FOLDER/, FILE.jsonl. Repeatable."
        ),
    ] = None,
    record_when: Annotated[
        str | None, _option(PICTURE, "FOLDER/ records only events, such as: label=scratch and score>0.8")
    ] = None,
    seconds_before: Annotated[float | None, _option(PICTURE, "... and what came before them. [default: 5]")] = None,
    seconds_after: Annotated[float | None, _option(PICTURE, "... and after them. [default: 5]")] = None,
    rotate_seconds: Annotated[float | None, _option(PICTURE, "FOLDER/ begins a new clip. [default: 300]")] = None,
    disk_budget_mib: Annotated[
        float | None, _option(PICTURE, "What clips may take in FOLDER/; the oldest make room. Default: no limit.")
    ] = None,
    page_token_file: Annotated[Path | None, _option(PICTURE, "What the http:// page asks for stands in it.")] = None,
    curve_keys: Annotated[
        Path | None, _option(ACCESS, "A folder made by `run.py keys new`: tcp:// admits the keys in its allowed/.")
    ] = None,
    allow: Annotated[
        Path | None, _option(ACCESS, "Another list: a file or folder of public keys, read again when it changes.")
    ] = None,
    insecure: Annotated[
        bool, _option(ACCESS, "Let everybody who reaches the address look in, unasked.", "--insecure")
    ] = False,
    colormap: Annotated[str | None, _option(PICTURE, "The heat's colours. [default: inferno]")] = None,
    opacity: Annotated[float | None, _option(PICTURE, "How much the hottest spot covers, 0 to 1.")] = None,
    smoothing: Annotated[float | None, _option(PICTURE, "Time constant in seconds. [default: 0, off]")] = None,
    max_age: Annotated[
        float | None, _option(CAMERA, "Drop live frames older than so many seconds. Default: the newest always counts.")
    ] = None,
    frames: Annotated[int | None, _option(RUN, "Stop after so many explained frames.")] = None,
    seconds: Annotated[float | None, _option(RUN, "Stop after so long.")] = None,
    log_format: Annotated[str, _option(RUN, "How log lines look: text (default) or json.", "--log")] = "text",
    print_config: Annotated[bool, _option(RUN, "Show what would run, and stop.", "--print-config")] = False,
) -> None:
    """Explain cameras, streams and files, and send the overlays wherever you want them."""
    if log_format not in {"text", "json"}:
        raise ConfigError(f"--log {log_format!r}: choose text or json")
    for handler in logging.getLogger().handlers:
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setFormatter(formatter(log_format))
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "target": target, "kernel": kernel,
        "backend": backend, "precision": precision, "device": device, "input_size": input_size, "fit": fit,
        "mean": mean, "std": std, "threads": threads, "cache": cache,
    }  # fmt: skip
    overlay = {"colormap": colormap, "opacity": opacity, "smoothing_seconds": smoothing}
    given = {
        "sources": source, "sinks": sink, "overflow": overflow, "frames": frames, "seconds": seconds,
        "max_age_seconds": max_age, "engine": _given(engine), "overlay": _given(overlay),
    }  # fmt: skip
    overrides = {key: value for key, value in _given(given).items() if value != {}}
    knobs: dict[str, Any] = {} if config is None else read_yaml(_read(config), config.name)
    if not knobs.get("sources") and not source:
        raise ConfigError("no source: give --source URI (camera:0, rtsp://..., a file, line:) or a YAML config")
    made = make_config(knobs, config.name if config else "command line", overrides)
    sinks = _with_keys(_with_page_token(made.sinks, page_token_file), curve_keys, allow, insecure=insecure)
    clips = {
        "record_when": record_when, "seconds_before": seconds_before, "seconds_after": seconds_after,
        "rotate_seconds": rotate_seconds, "disk_budget_mib": disk_budget_mib,
    }  # fmt: skip
    made = made.model_copy(update={"sinks": _with_clips(sinks, _given(clips))})
    if print_config:
        typer.echo(to_yaml(_redacted(made)), nl=False)
        return
    _finish(_carry(made, tell=log.info if log_format == "json" else None))


@app.command()
def export(  # noqa: PLR0917 - one parameter per option
    model: Annotated[str, _option(NETWORK, "A name of `run.py models`, or any torchvision or timm CNN.")],
    output: Annotated[Path, _option(RUN, "The file to write: NAME.onnx or NAME.pt2.")],
    file_format: Annotated[
        str | None, _option(RUN, "onnx or torch. Default: the file's ending says.", "--format")
    ] = None,
    weights: Annotated[str | None, _option(NETWORK, "A state dict (.pth, .safetensors). 'random': untrained.")] = None,
    labels: Annotated[str | None, _option(NETWORK, "Class names: a text file, one a line, or a JSON list.")] = None,
    layer: Annotated[str | None, _option(NETWORK, "The explained layer. Default: the last grid.")] = None,
    target: Annotated[
        str | None, _option(NETWORK, "The explained classes: top1 (default), top5, or names or indices, by commas.")
    ] = None,
    kernel: Annotated[str | None, _option(NETWORK, "Recipro-CAM's masks: point (default) or gaussian.")] = None,
    input_size: Annotated[str | None, _option(NETWORK, "HEIGHTxWIDTH. Default: what the weights want.")] = None,
    fit: Annotated[str | None, _option(NETWORK, "Frame to input: stretch (default), letterbox or crop.")] = None,
    mean: Annotated[str | None, _option(NETWORK, "R,G,B subtracted from RGB in [0, 1].")] = None,
    std: Annotated[str | None, _option(NETWORK, "R,G,B divided by.")] = None,
    memory_budget_mib: Annotated[
        int | None, _option(NETWORK, "MiB for masked maps, where they cannot be avoided.", "--memory-budget-mib")
    ] = None,
) -> None:
    """Write a network and its explanation as one file, which `stream --model FILE` and other programs run."""
    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "target": target, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "memory_budget_mib": memory_budget_mib,
    }  # fmt: skip
    from overlays.sinks.files import same_place

    config = make_config({}, "command line", {"engine": _given(engine)})
    if any(given and same_place(output, Path(given)) for given in (weights, labels)):
        raise ConfigError(f"output {str(output)!r} would overwrite what this command reads; choose another file")
    from engine.export import check_format, export_network
    from engine.whole_file import whole_file

    check_format(file_format, output)
    with whole_file(output) as place:
        told = export_network(_network(config), config.engine, place)
    _say(
        f"written: {_near(output)} ({told.bytes / 1e6:.1f} MB, {told.passport.plan} plan; the same answers as the "
        f"engine's in {' and '.join(told.runtimes)})\n"
        f"run it:  uv run run.py stream --model {shlex.quote(_near(output))} --source camera:0"
    )


@app.command()
def evaluate(  # noqa: PLR0917 - one parameter per option
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder or glob of pictures.")],
    output: Annotated[Path, _option(RUN, "A folder for the results. One begun before is gone on with.")],
    model: Annotated[str, _option(NETWORK, "A name of `run.py models`, or any torchvision or timm CNN.")],
    weights: Annotated[str | None, _option(NETWORK, "A state dict (.pth, .safetensors). 'random': untrained.")] = None,
    labels: Annotated[str | None, _option(NETWORK, "Class names: a text file, one a line, or a JSON list.")] = None,
    layer: Annotated[str | None, _option(NETWORK, "The explained layer. Default: the last grid.")] = None,
    kernel: Annotated[str | None, _option(NETWORK, "Recipro-CAM's masks: point (default) or gaussian.")] = None,
    input_size: Annotated[str | None, _option(NETWORK, "HEIGHTxWIDTH. Default: what the weights want.")] = None,
    fit: Annotated[str | None, _option(NETWORK, "Frame to input: stretch (default), letterbox or crop.")] = None,
    mean: Annotated[str | None, _option(NETWORK, "R,G,B subtracted from RGB in [0, 1].")] = None,
    std: Annotated[str | None, _option(NETWORK, "R,G,B divided by.")] = None,
    threads: Annotated[int | None, _option(NETWORK, "CPU threads for the network.")] = None,
    boxes: Annotated[
        Path | None, _option(TRUTH, "COCO JSON, or a folder of YOLO .txt or VOC .xml named like the pictures.")
    ] = None,
    box_names: Annotated[
        Path | None, _option(TRUTH, "YOLO's class names: its YAML, or a text file, one a line.")
    ] = None,
    class_map: Annotated[
        Path | None, _option(TRUTH, 'JSON: {"car": [817, 511]}, the classes of the network a box class stands for.')
    ] = None,
    any_box: Annotated[bool, _option(TRUTH, "Count every box, whatever its class.", "--any-box")] = False,
    limit: Annotated[int | None, _option(RUN, "So many pictures, evenly chosen. Default: all.", min=1)] = None,
    steps: Annotated[
        int, _option(RUN, "Parts in which Deletion and Insertion move the pixels; 0: neither. [default: 28]", min=0)
    ] = 28,
) -> None:
    """Measure on your pictures whether the heat tells the truth; leaves result.json, result.csv and report.html."""
    from engine.evaluation.build import Wanted, build_examiner
    from engine.evaluation.journal import RECORDS, Journal, write_result
    from engine.evaluation.summary import summarise
    from overlays.evaluation_page import ROWS, evaluation_page
    from stream.images import found_images, read_image
    from stream.sources import IMAGE_SUFFIXES

    engine = {
        "model": model, "weights": weights, "labels": labels, "layer": layer, "kernel": kernel,
        "input_size": input_size, "fit": fit, "mean": mean, "std": std, "threads": threads,
    }  # fmt: skip
    config = make_config({}, "command line", {"engine": _given(engine)})
    paths = {path.name if Path(folder).is_dir() else str(path): path for path in found_images(folder, IMAGE_SUFFIXES)}
    chosen = list(paths) if limit is None or limit >= len(paths) else _evenly(list(paths), limit)
    truths_of = _truths(boxes, box_names)
    examiner = build_examiner(
        _network(config), config.engine, Wanted(steps, any_box=any_box, meaning=_meaning(class_map))
    )
    settings = {
        "pictures": folder, **engine, "kernel": config.engine.kernel, "fit": config.engine.fit, "steps": steps,
        "layer": examiner.split.layer, "grid": "{}x{}".format(*examiner.split.grid), "boxes": boxes and str(boxes),
        "box_names": box_names and str(box_names), "class_map": class_map and str(class_map), "any_box": any_box,
        "input_size": "{}x{}".format(*examiner.split.image_size),
    }  # fmt: skip
    del settings["threads"]
    begun = threading.Event()
    begun.set()
    with _until_interrupted(begun) as stop, Journal(output, settings) as journal:
        _examine(examiner, [(name, paths[name]) for name in chosen], journal, truths_of, stop)
        records = [journal.records[name] for name in chosen if name in journal.records]
    if not records:
        _fail(f"{folder}: no picture was measured; none decodes, or the run was ended before the first")
    summary = summarise(records)
    write_result(output, settings, summary, records)
    title = f"{config.engine.model}, Recipro-CAM ({config.engine.kernel})"
    page = evaluation_page(title, settings, summary, records, lambda name: read_image(paths[name]))
    (output / "report.html").write_text(page, encoding="utf-8")
    for key, name, _, factor in ROWS:
        if summary.get(key) is not None:
            _say(f"{name:28} {factor * float(summary[key] or 0):8.2f}")
    _say(f"\n{len(records)} of {len(chosen)} pictures; read {_near(output / 'report.html')} ({RECORDS} holds each one)")


def _evenly(names: list[str], count: int) -> list[str]:
    return [names[place * len(names) // count] for place in range(count)]


def _examine(
    examiner: Examiner, pictures: list[tuple[str, Path]], journal: Journal, truths_of: TruthsOf | None,
    stop: threading.Event,
) -> None:  # fmt: skip
    """Measure the pictures that the journal does not hold yet, and tell how far it is."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.errors import SourceError
    from pipeline.frames import Frame
    from stream.images import read_image

    waiting = [(name, path) for name, path in pictures if name not in journal.records]
    if len(waiting) < len(pictures):
        _say(f"{len(pictures) - len(waiting)} of {len(pictures)} pictures were measured before; going on.")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for index, (name, path) in enumerate(progress.track(waiting, description="measuring")):
            if stop.is_set():
                return
            try:
                image = read_image(path)
            except SourceError as reason:
                log.warning("left out: %s", reason)
                continue
            truths = None if truths_of is None else truths_of(path, image.shape[:2])
            journal.add({"image": name, **examiner.examine(Frame(image, "evaluate", index, 0.0), truths)})


def _truths(boxes: Path | None, names: Path | None) -> TruthsOf | None:
    """Return how to find what a picture holds, by its path and (height, width); None where nobody knows."""
    from engine.evaluation.boxes import coco_boxes, voc_boxes, yolo_boxes
    from engine.networks import read_labels

    if boxes is None:
        return None
    if boxes.is_file():
        known = {Path(name).name: found for name, found in coco_boxes(_text_of(boxes), str(boxes)).items()}
        return lambda path, _size: known.get(path.name, ())
    if not any(any(boxes.rglob(f"*{suffix}")) for suffix in (".txt", ".xml")):
        raise ConfigError(f"--boxes {str(boxes)!r}: holds no .txt or .xml; give a COCO JSON file or a folder of those")
    labels: tuple[str, ...] = ()
    if names is not None:
        listed = read_yaml(_text_of(names), names.name).get("names") if names.suffix in {".yaml", ".yml"} else None
        ordered = [listed[key] for key in sorted(listed)] if isinstance(listed, dict) else listed
        labels = read_labels(names) if ordered is None else tuple(map(str, ordered))

    def find(path: Path, size: tuple[int, int]) -> tuple[Truth, ...]:
        folders = [path.parent, boxes] if path.resolve().is_relative_to(boxes.resolve()) else [boxes]
        for place in (folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".xml", ".txt")):
            if place.is_file():
                text = _text_of(place)
                return (
                    voc_boxes(text, str(place))
                    if place.suffix == ".xml"
                    else yolo_boxes(text, labels, size, str(place))
                )
        return ()

    return find


def _meaning(class_map: Path | None) -> dict[str, list[int]]:
    """Read which classes of the network a box class stands for; of a file that holds several maps, the first."""
    if class_map is None:
        return {}
    try:
        told = json.loads(_text_of(class_map))
        if all(isinstance(one, dict) for one in told.values()):
            told = next(iter(told.values()), {})
        return {str(name): [int(index) for index in indices] for name, indices in told.items()}
    except (ValueError, TypeError, AttributeError) as reason:
        raise ConfigError(f'--class-map {str(class_map)!r}: not of the form {{"car": [817]}} ({reason})') from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(
            f"{str(path)!r}: cannot be read ({getattr(reason, 'strerror', None) or 'not text'})"
        ) from None


@app.command()
def view(  # noqa: PLR0917 - one parameter per option
    address: Annotated[str, typer.Argument(help="tcp://HOST:PORT or ipc://PATH of a running stream.")],
    sink: Annotated[
        list[str] | None, _option(PICTURE, "window (default), http://HOST:PORT, FILE.mp4, FILE.jsonl. Repeatable.")
    ] = None,
    page_token_file: Annotated[Path | None, _option(PICTURE, "What the http:// page asks for stands in it.")] = None,
    key: Annotated[
        Path | None, _option(ACCESS, "This viewer's secret key file, where the stream asks for one.")
    ] = None,
    server_key: Annotated[
        str | None, _option(ACCESS, "The stream's public key: its server.key file, or the 40 letters.")
    ] = None,
    camera: Annotated[list[str] | None, _option(CAMERA, "Only this camera. Repeatable. Default: all.")] = None,
    frames: Annotated[int | None, _option(RUN, "Stop after so many frames.", min=1)] = None,
    seconds: Annotated[float | None, _option(RUN, "Stop after so long.", min=0)] = None,
) -> None:
    """Watch a stream from afar: in a window, or into a file where there is no screen."""
    from overlays.sinks.files import check_outputs
    from overlays.sinks.table import build_sink
    from overlays.viewer import Viewer
    from overlays.watch import watch

    check_outputs(sink or [], camera or [], [])
    doors = _with_page_token([SinkConfig(uri=uri) for uri in sink or ["window"]], page_token_file)
    sinks = [build_sink(one.uri, options=_sink_options(one, OverlayConfig(), painted=True)) for one in doors]
    begun = threading.Event()
    begun.set()
    with _until_interrupted(begun) as stop, ExitStack() as stack:
        viewer = stack.enter_context(Viewer(address, tuple(camera or ("",)), key=key, server_key=server_key))
        for door in sinks:
            stack.enter_context(door)
        _say(f"Watching {address}; q, Esc or Ctrl-C ends.")
        told = watch(viewer, sinks, stop=stop, frames=frames, seconds=seconds, say=_say)
        why = viewer.trouble or f"is a stream with --sink {address} running?"
    _say("\n".join(told.lines))
    if told.errors:
        _fail("\n".join(told.errors))
    if not told.frames and not stop.is_set():
        _fail(f"{address}: no frame came; {why}")


@app.command()
def replay(  # noqa: PLR0917 - one parameter per option
    record: Annotated[Path, typer.Argument(metavar="LOG", help="What --sink FILE.jsonl wrote.")],
    video: Annotated[
        Path | None, typer.Argument(metavar="[VIDEO]", help="What was explained then. Default: heat on black.")
    ] = None,
    sink: Annotated[
        list[str] | None, _option(PICTURE, "window (default), http://HOST:PORT, FILE.mp4. Repeatable.")
    ] = None,
    page_token_file: Annotated[Path | None, _option(PICTURE, "What the http:// page asks for stands in it.")] = None,
    colormap: Annotated[str | None, _option(PICTURE, "The heat's colours. [default: inferno]")] = None,
    opacity: Annotated[float | None, _option(PICTURE, "How much the hottest spot covers, 0 to 1.")] = None,
    camera: Annotated[str | None, _option(CAMERA, "Whose lines, where the log holds several cameras.")] = None,
    frames: Annotated[int | None, _option(RUN, "Stop after so many frames.", min=1)] = None,
    seconds: Annotated[float | None, _option(RUN, "Stop after so long.", min=0)] = None,
) -> None:
    """Lay logged heat over the original video again, each line on its own frame."""
    from overlays.renderer import HeatRenderer
    from overlays.replay import LoggedExplainer, LoggedFrames, Paced
    from overlays.sinks.files import check_outputs
    from overlays.sinks.table import build_sink
    from pipeline.loop import Limits, carry
    from stream.sources import build_source

    knobs = {"overlay": _given({"colormap": colormap, "opacity": opacity}), "sinks": sink or ["window"]}
    made = make_config({}, "command line", knobs)
    doors = _with_page_token(made.sinks, page_token_file)
    begun = threading.Event()
    with _until_interrupted(begun) as stop, ExitStack() as stack:
        logged = stack.enter_context(LoggedExplainer(record, camera))
        source = LoggedFrames(logged) if video is None else build_source(str(video), camera=logged.camera)
        if source.live:
            raise ConfigError(f"{str(video)!r}: is live; a log is laid over the recording that it was written for")
        check_outputs([one.uri for one in doors], [logged.camera], [str(one) for one in (record, video) if one])
        sinks = [
            build_sink(one.uri, cameras=[logged.camera], options=_sink_options(one, made.overlay)) for one in doors
        ]
        if any(not one.lossless for one in sinks):
            source = Paced(source)
        stack.enter_context(source)
        for door in sinks:
            stack.enter_context(door)
        begun.set()
        renderer = HeatRenderer(**made.overlay.model_dump())
        outcome = carry([(source, "wait")], logged, renderer, sinks, limits=Limits(frames, seconds, 1), stop=stop)
    _say(
        f"{logged.matched + logged.unmatched} frames, {logged.matched} with their heat, {logged.unmatched} without a "
        f"line in the log; the log has {logged.line_count} lines of {logged.camera!r}"
    )
    _finish(outcome)
    if logged.unmatched and not logged.matched:
        _fail(f"{record}: no line of it belongs to a frame of {video}; is it another video?")


@keys_app.command("new")
def keys_new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go. Nothing is ever overwritten.")],
) -> None:
    """Make a stream's keys and a first viewer's."""
    from overlays.curve.keys import make_ring

    make_ring(folder)
    near = _near(folder)
    _say(
        f"{near}/server.key_secret  stays here, readable by you alone\n"
        f"{near}/server.key         for every viewer, it is no secret\n"
        f"{near}/viewer.key_secret  for the viewer: move it there by a safe way, such as scp\n"
        f"{near}/allowed/           whose public key lies here may look in; add and remove while the stream runs\n\n"
        f"here:   uv run run.py stream --source camera:0 --sink tcp://0.0.0.0:5555 --curve-keys {near}\n"
        "there:  uv run run.py view tcp://HOST:5555 --key viewer.key_secret --server-key server.key\n"
        f"one more viewer:  uv run run.py keys add {near} NAME"
    )


@keys_app.command("add")
def keys_add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `keys new`.")],
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
) -> None:
    """Make one more viewer's keys and put them on the list."""
    from overlays.curve.keys import ALLOWED, make_pair

    if not (folder / ALLOWED).is_dir():
        raise ConfigError(f"{str(folder)!r}: holds no list of viewers; make it first: run.py keys new {_near(folder)}")
    public, secret = make_pair(folder, name, public_folder=folder / ALLOWED)
    _say(f"{_near(secret)}  for the viewer: move it there by a safe way\n{_near(public)}  lets it in")


@app.command()
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


@app.command()
def doctor() -> None:
    """Tell what this machine has (devices, backends, codecs, display, versions), what is missing, and the cure."""
    import platform

    import engine.checks
    import overlays.checks
    import stream.checks

    found = [*engine.checks.checks(), *stream.checks.checks(), *overlays.checks.checks(_display())]
    _say(f"Python {platform.python_version()} on {platform.platform()}")
    for check in found:
        mark = "ok " if check.present else "-- "
        cure = f"\n{'':26}{check.cure}" if check.cure and not check.present else ""
        _say(f"{mark} {check.name:22} {check.says}{cure}")


@app.command(name="train-line")
def train_line(
    output: Annotated[Path, _option(RUN, "Where to write it. [default: configs/models/line.safetensors]")] = SHIPPED,
    seed: Annotated[int, _option(RUN, "Another seed, another network. [default: 0]", min=0)] = 0,
    effort: Annotated[float, _option(RUN, "Share of the full training. [default: 1]", min=0.001, max=10)] = 1.0,
) -> None:
    """Train the small network of the inspection line, examine it on belts it has not seen, and write it."""
    from engine.lessons import Lessons, examined, packed, teach
    from engine.model_file import save_model
    from stream.line_samples import EXAMINATION_SEEDS, TRAINING_SEEDS, TrainingFrames, examination_frames
    from stream.line_schedule import LABELS

    if output.is_dir() or not os.access(next(p for p in output.absolute().parents if p.exists()), os.W_OK):
        raise ConfigError(f"--output {str(output)!r}: cannot be written; name a file in a folder of yours")

    def tell(at: Progress) -> None:
        if at.step % 50 == 0 or at.step == at.steps:
            how = f"loss {at.loss:.3f}, right {at.accuracy:.1%}, {at.seconds:.0f} s"
            _say(f"step {at.step} of {at.steps}, {at.stage}: {how}")

    # What is rare on the line and easily mistaken for a defect is common in the last lessons.
    cluttered = TrainingFrames(seed=seed, clutter=3.0, skip=TRAINING_SEEDS // 2)
    net, training = teach(Lessons(TrainingFrames(seed=seed), cluttered, LABELS), seed=seed, effort=effort, tell=tell)
    belts = {
        (640, 480): max(1, round(100 * min(effort, 1.0))),
        (1280, 720): max(1, round(30 * min(effort, 1.0))),
    }
    exams = {f"{size[0]}x{size[1]}": examination_frames(belts=count, size=size) for size, count in belts.items()}
    told = {}
    for (name, found), count in zip(examined(net, LABELS, exams).items(), belts.values(), strict=True):
        _say(
            f"{name}, {found.pictures} frames of belts it has not seen: accuracy {found.accuracy:.1%}, pointing game "
            f"{found.pointing:.1%} of {found.pointed_pictures}"
        )
        told[name] = {
            "frames": found.pictures, "accuracy": round(found.accuracy, 4),
            "pointing": round(found.pointing, 4) if found.pointed_pictures else None,
            "pointed_frames": found.pointed_pictures, "seeds": [EXAMINATION_SEEDS, EXAMINATION_SEEDS + count - 1],
        }  # fmt: skip
    provenance = {
        "trained_on": "the simulated inspection line: labels, and boxes to choose close-ups", "examination": told,
        "training_seeds_from": TRAINING_SEEDS * (1 + seed), "command": "uv run run.py train-line",
        "date": datetime.now().astimezone().date().isoformat(), **training,
    }  # fmt: skip
    save_model(output, packed(net, LABELS, provenance))
    _say(f"written: {_near(output)}")


def _carry(config: Config, tell: Callable[[str], None] | None = None) -> Outcome:
    """Join the rooms as the configuration says and carry frames until the end; ``tell`` takes the progress as lines."""
    from rich.console import Console

    from overlays.progress import Progress
    from overlays.renderer import HeatRenderer
    from overlays.sinks.files import OWN_FILES, claimed
    from pipeline.loop import Limits, carry
    from pipeline.supervisor import Supervisor

    begun = threading.Event()
    with _until_interrupted(begun) as stop, ExitStack() as stack:
        sources = _sources(config)
        cameras = [source.camera for source, _ in sources]
        sinks = _sinks(config, cameras)
        renderer = HeatRenderer(**config.overlay.model_dump())
        for source, _ in sources:
            stack.enter_context(source)
        stack.enter_context(claimed(Path(one.uri) for one in config.sinks if Path(one.uri).suffix in OWN_FILES))
        for sink in sinks:
            stack.enter_context(sink)
        explainer = _explainer(config)
        log.info("%s", explainer.facts)
        window = config.engine.batch_window_ms / 1e3 if len(sources) > 1 else 0.0
        batch = config.engine.batch or max(len(sources), 1 if explainer.facts.device == "cpu" else 8)
        limits = Limits(config.frames, config.seconds, batch, window, max_age_seconds=config.max_age_seconds)
        begun.set()
        with Progress(Console(stderr=True), tell) as progress, Supervisor(os.environ) as supervisor:
            outcome = carry(
                sources, explainer, renderer, sinks,
                limits=limits, stop=stop, watch=progress.watch, alive=supervisor.alive,
            )  # fmt: skip
    _report(outcome)
    if not outcome.taken and not outcome.errors and not stop.is_set():
        waited = (f"{pump.camera}: {pump.health.reason or pump.health.state}" for pump in outcome.pumps)
        outcome.errors.append("no frame came from any camera; " + "; ".join(waited))
    return outcome


def _sources(config: Config) -> list[tuple[Source, Overflow]]:
    from stream.sources import SourceOptions, build_source, unique_names

    built = [
        build_source(
            _address(one),
            camera=one.name,
            options=SourceOptions(one.read_timeout_seconds, one.open_timeout_seconds, one.transport),
        )
        for one in config.sources
    ]
    for source, name in zip(built, unique_names([s.camera for s in built]), strict=True):
        source.camera = name
    return [
        (source, one.overflow or config.overflow or ("drop-oldest" if source.live else "wait"))
        for source, one in zip(built, config.sources, strict=True)
    ]


def _address(source: SourceConfig) -> str:
    """Return where a source reads from, with the credentials that stand outside its configuration."""
    from stream.credentials import expanded, signed

    uri = expanded(source.uri, os.environ)
    if source.credentials_file is None:
        return uri
    return signed(uri, _read(Path(source.credentials_file)).strip("\r\n"), source.credentials_file)


def _sinks(config: Config, cameras: list[str]) -> list[Sink]:
    from overlays.sinks.files import check_outputs
    from overlays.sinks.table import build_sink

    if not config.sinks:
        log.warning(
            "no sink: frames are explained and counted only; add --sink window, http://127.0.0.1:8000, tcp://..., "
            "out.mp4 or out.jsonl"
        )
    engine = config.engine
    inputs = [*(one.uri for one in config.sources), engine.model, engine.weights, engine.labels]
    check_outputs([one.uri for one in config.sinks], cameras, [one for one in inputs if one])
    return [build_sink(one.uri, cameras=cameras, options=_sink_options(one, config.overlay)) for one in config.sinks]


def _sink_options(sink: SinkConfig, overlay: OverlayConfig, *, painted: bool = False) -> SinkOptions:
    from overlays.sinks.options import ClipOptions, SinkOptions

    mib = 1 << 20
    return SinkOptions(
        clips=ClipOptions(
            rotate_seconds=sink.rotate_seconds,
            rotate_bytes=None if sink.rotate_mib is None else round(sink.rotate_mib * mib),
            budget_bytes=None if sink.disk_budget_mib is None else round(sink.disk_budget_mib * mib),
            when=sink.record_when,
            seconds_before=sink.seconds_before,
            seconds_after=sink.seconds_after,
        ),
        jpeg_quality=sink.quality,
        display=_display(),
        token=None if sink.token_file is None else _token(Path(sink.token_file)),
        insecure=sink.insecure,
        scale=sink.scale,
        max_rate=sink.max_rate,
        curve_secret_key_file=None if sink.curve is None else sink.curve.secret_key_file,
        curve_allow=None if sink.curve is None else sink.curve.allow,
        hosts=tuple(sink.hosts),
        colormap=overlay.colormap,
        opacity=overlay.opacity,
        painted=painted,
    )


def _token(path: Path) -> str:
    """Read the token of the page, and say so where others on this machine can read it too."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        said = getattr(reason, "strerror", None) or "not a text file"
        raise ConfigError(
            f"token file {str(path)!r}: cannot be read ({said}); make one: openssl rand -hex 24 > {path}"
        ) from None
    if os.name == "posix" and mode & 0o077:
        log.warning("%s: others on this machine may read the token: chmod 600 %s", path, path)
    return text


def _with_page_token(sinks: list[SinkConfig], token_file: Path | None) -> list[SinkConfig]:
    """Give the token file to every page that has none of its own."""
    if token_file is None:
        return sinks
    pages = [one for one in sinks if one.uri.lower().startswith("http://")]
    if not pages:
        raise ConfigError("--page-token-file: there is no page to ask for it; add --sink http://HOST:PORT")
    return [
        one.model_copy(update={"token_file": str(token_file)}) if one in pages and one.token_file is None else one
        for one in sinks
    ]


def _with_keys(sinks: list[SinkConfig], folder: Path | None, allow: Path | None, *, insecure: bool) -> list[SinkConfig]:
    """Say on every network sink that does not say so itself who may look in."""
    from overlays.curve.keys import ALLOWED

    wanted = [one for one in sinks if one.uri.startswith("tcp://") and one.curve is None]
    if (folder or allow) and not any(one.uri.startswith("tcp://") for one in sinks):
        raise ConfigError("--curve-keys, --allow: there is nothing to look into; add --sink tcp://HOST:PORT")
    if allow and not folder and wanted:
        raise ConfigError(
            "--allow: the stream needs keys of its own too; make them (run.py keys new DIR), then --curve-keys DIR"
        )
    made = []
    for one in sinks:
        change: dict[str, Any] = {"insecure": True} if insecure else {}
        if folder and one in wanted:
            curve = {"secret_key_file": str(folder / "server.key_secret"), "allow": str(allow or folder / ALLOWED)}
            change["curve"] = CurveConfig(**curve)
        elif allow and one.curve is not None:
            change["curve"] = one.curve.model_copy(update={"allow": str(allow)})
        made.append(one.model_copy(update=change))
    return made


def _with_clips(sinks: list[SinkConfig], knobs: dict[str, Any]) -> list[SinkConfig]:
    """Give what the command line says of clips to every folder of them."""
    if not knobs:
        return sinks
    named = "--" + next(iter(knobs)).replace("_", "-")
    if not any(one.uri.endswith("/") and "://" not in one.uri for one in sinks):
        raise ConfigError(f"{named}: there is no folder of clips; add --sink FOLDER/, with the slash")
    given = [
        one.model_dump(exclude_unset=True) | (knobs if one.uri.endswith("/") and "://" not in one.uri else {})
        for one in sinks
    ]
    return make_config({}, "command line", {"sinks": given}).sinks


def _explainer(config: Config) -> FrameExplainer:
    from engine.passport import is_exported

    if is_exported(config.engine.model):
        from engine.exported import ExportedExplainer

        return ExportedExplainer(Path(config.engine.model), config.engine)
    from platformdirs import user_cache_dir

    from engine.explainer import NetworkExplainer

    kept = config.engine.cache or user_cache_dir("recipro-stream", appauthor=False)
    settings = config.engine.model_copy(update={"cache": kept})
    return NetworkExplainer(_network(config), settings, together=len(config.sources))


def _network(config: Config) -> Network:
    from engine.models import lookup
    from engine.networks import load_network

    entry = lookup(config.engine.model)
    weights: str | Path | None = config.engine.weights
    if weights is None and entry is not None and entry.file:
        weights = ROOT / entry.file
    labels = None if config.engine.labels is None else Path(config.engine.labels)
    return load_network(config.engine.model, weights=weights, labels=labels)


def _redacted(config: Config) -> Config:
    """Return the configuration with credentials taken out of its URIs."""
    from stream.redact import redact

    sources = [one.model_copy(update={"uri": redact(one.uri)}) for one in config.sources]
    return config.model_copy(update={"sources": sources})


def _given(knobs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in knobs.items() if value is not None}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config {str(path)!r}: there is no such file; see configs/ for examples") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"config {str(path)!r}: not a text file; a YAML config goes here, a video after --source"
        ) from None
    except OSError as reason:
        raise ConfigError(f"config {str(path)!r}: cannot be read ({reason.strerror})") from None


def _run_folder() -> Path:
    folder = Path("runs") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"runs/: cannot be written here ({reason.strerror}); start from a folder of yours") from None
    return folder


def _near(path: Path) -> str:
    return os.path.relpath(path)


def _display() -> str | None:
    if sys.platform in {"darwin", "win32"}:
        return "the system's screen"
    return os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or None


@contextmanager
def _until_interrupted(begun: threading.Event) -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second one ends the process at once.

    Until ``begun`` is set there is nothing to be ended in order, and the first one ends the process at once, too: an
    exception out of a handler would go through compilers that do not expect it, and abort.
    """
    stop = threading.Event()

    def end(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        if not begun.is_set():
            os.write(2, b"\nStopped before the first frame; nothing was written.\n")
            os._exit(0)
        # No print: the signal may have come within one.
        os.write(2, b"\nEnding in order; once more ends at once.\n")

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(outcome: Outcome) -> None:
    from overlays.progress import summary

    _say("\n".join(summary(outcome)))


def _finish(outcome: Outcome) -> None:
    """Tell what went wrong; the exit code says what kind, for whoever supervises us (docs/operations.md)."""
    if not outcome.errors:
        return
    lost = [pump for pump in outcome.pumps if isinstance(pump.error, ConnectionLostError) or not pump.taken]
    broken = [outlet for outlet in outcome.outlets if outlet.error]
    _fail("\n".join(outcome.errors), EXIT_SINK if broken else EXIT_CAMERA if lost else EXIT_INPUT)


def _say(text: str) -> None:
    print(text, flush=True)


def _fail(text: str, code: int = 2) -> NoReturn:
    print(_told(text), file=sys.stderr, flush=True)
    raise typer.Exit(code)


def _told(text: str) -> str:
    return "\n".join(f"error: {line}" for line in text.splitlines())


def settle() -> None:
    """Set the process up for work that comes again with every frame; before torch is loaded.

    A waiting thread of the network must not keep a core busy that decodes, draws or encodes. And memory that a frame
    frees is kept for the next one (glibc only): giving it back costs thousands of page faults a frame. ONNX Runtime,
    where it is used, keeps no diary of it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)


def main() -> None:
    """Run the command line; what the user can mend is told in one line and exit code 2."""
    settle()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("text"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    logging.getLogger("torch").setLevel(logging.WARNING)
    try:
        with _until_interrupted(threading.Event()):
            app()
    except ReciproStreamError as error:
        print(_told(str(error)), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
