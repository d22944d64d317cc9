"""The whole of what a GPU does here, measured: one command, one JSON, under 8 minutes; a table at the end.

    python -m tests.bench.gpu --out gpu.json --photos photos.npz --weights FOLDER      # on the GPU machine
    python -m tests.bench.gpu --only smoke                                             # there, first: what is broken?
    python -m tests.bench.gpu --device cpu --small                                     # here: does it all run?

What is missing (TensorRT, a peer, photos) is skipped and said so; what fails is one record with its error. The file is
written anew after each record, so that a run that is cut short still tells what it had. How it is sent to a machine
without internet: tests/bench/gpu_pack.py; how it is run there: tests/bench/gpu_run.sh.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine.gpu.nvml import list_gpus
from engine.runtime.devices import set_product_precision
from tests.bench import gpu_agreement, gpu_cost, gpu_frames, gpu_peers, gpu_smoke
from tests.bench.figures import environment
from tests.bench.gpu_clock import Settings

Records = Iterator[dict[str, object]]


LIMITS = {
    "smoke": 0.12, "cost": 0.42, "frame_to_jpeg": 0.52, "inner_layer": 0.60, "agreement": 0.67, "cameras": 0.84,
    "peers": 0.90, "cost_late": 0.98,
}  # fmt: skip
"""By which share of the whole time each section is over, in order: the goals first, what compiles for long last.
One that takes longer is ended there, so that it cannot starve the next; one that takes less leaves it to all."""


def sections(settings: Settings, *, alone: bool = False) -> dict[str, Callable[[], Records]]:
    """Return the sections in order; ``alone``: the requested sections share the whole time."""

    def deadline(name: str) -> float:
        return settings.begun + (1.0 if alone else LIMITS[name]) * settings.seconds - 5.0

    return {
        "smoke": lambda: gpu_smoke.measure(settings, whole=alone),
        "cost": lambda: gpu_cost.measure(settings, deadline("cost")),
        "frame_to_jpeg": lambda: gpu_frames.measure(settings),
        "inner_layer": lambda: gpu_cost.inner_layer(settings),
        "agreement": lambda: gpu_agreement.measure(settings),
        "cameras": lambda: gpu_frames.cameras(settings, deadline("cameras") - 5.0),
        "peers": lambda: gpu_peers.measure(settings),
        "cost_late": lambda: gpu_cost.measure(settings, deadline("cost_late"), late=True),
    }


SLOW_IMPORTS = ("sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")
"""Imported before the clock runs: a section that ends during an import would leave it broken for all others."""


class OutOfTime(BaseException):
    """The time of a section is over. Sections must not handle this exception as a failure of their own."""


def stop_after(seconds: float) -> None:
    """Set the time after which a section ends, with its records so far, even during a compilation; 0 = no limit."""

    def ring(_number: int, _frame: object) -> None:
        raise OutOfTime

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.0))


def measured(
    settings: Settings, keep: Callable[[dict[str, Any]], None], only: list[str] | None = None
) -> dict[str, Any]:
    """Measure section by section; ``keep`` is handed all there is after each record."""
    result: dict[str, Any] = {
        "bench": "gpu",
        "device": device_told(settings.device),
        "small": settings.small,
        **placed(),
    }
    for name, measure in sections(settings, alone=bool(only)).items():
        if only and name not in only:
            continue
        records: list[dict[str, object]] = []
        result[name] = records
        started_at = time.monotonic()
        try:
            if settings.left < 5:
                records.append({"skipped": "out of time"})
                continue
            fraction = 1.0 if only else LIMITS.get(name, 1.0)
            stop_after(max(fraction * settings.seconds - (settings.seconds - settings.left), 1.0))
            for record in measure():
                records.append(record)
                print(
                    f"{settings.seconds - settings.left:6.1f} s  {name}: {brief(record)}", file=sys.stderr, flush=True
                )
                keep(result)
        except OutOfTime:
            records.append({"skipped": "out of time, in the middle"})
        except Exception as reason:  # noqa: BLE001 - one section must not cost the others
            traceback.print_exc()
            records.append({"error": f"{type(reason).__name__}: {reason}"[:300]})
        finally:
            stop_after(0)
        result.setdefault("section_seconds", {})[name] = round(time.monotonic() - started_at, 1)
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()
    result["cards_after"] = [str(card) for card in list_gpus()]
    result["goals"] = goals(result)
    result["seconds"] = round(time.monotonic() - settings.begun, 1)
    keep(result)
    return result


def placed() -> dict[str, Any]:
    """Return where and when; a machine without git still measures."""
    try:
        return environment()
    except FileNotFoundError:
        return {"commit": "unknown: no git there", "python": sys.version.split()[0], "torch": torch.__version__}


def device_told(device: torch.device) -> dict[str, object]:
    """Name the device, its driver and its libraries."""
    if device.type != "cuda":
        return {"kind": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda", "name": properties.name, "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda, "torch": torch.__version__,
        "cards": [str(card) for card in list_gpus()],
    }  # fmt: skip


def brief(record: dict[str, object]) -> str:
    """Return a record as one line for the terminal."""
    if "piece" in record:
        return " ".join(str(record[key]) for key in ("state", "piece", "told", "error", "skipped") if record.get(key))
    text = json.dumps(record, default=str)
    return text if len(text) < 220 else f"{text[:217]}..."


GOALS = (
    ("explained / plain, pooled tail, same backend", "<= 1.05"),
    ("ResNet-50 explained, best batch", ">= 20,000 images/s"),
    ("ResNet-50 explained, batch 1", "<= 0.6 ms"),
    ("frame to JPEG 720p, p50", "<= 2 ms"),
    ("frame to JPEG 720p, full load", ">= 2,000 frames/s"),
    ("ResNet-50 layer3, a frame", "<= 2 ms"),
    ("half precision: same first class", ">= 99 %"),
    ("half precision: heat rank correlation", ">= 0.99"),
    ("720p30 cameras, age p99 < 100 ms, decode excluded", "as many as it carries"),
    ("720p30 cameras, age p99 < 100 ms, decode included", "64"),
    ("the same, decoded by the GPU", "64"),
    ("the same, frames stay on the GPU", "64"),
)


def goals(result: dict[str, Any]) -> list[dict[str, str]]:
    """Return each goal beside what was measured of it, or "not measured"."""
    values = list(_values(result))
    on_gpu = result["device"]["kind"] == "cuda"
    return [
        {
            "what": what,
            "goal": goal,
            "measured": value if on_gpu else f"not measured (a smaller network on a CPU: {value})",
        }
        for (what, goal), value in zip(GOALS, values, strict=True)
    ]


def _values(result: dict[str, Any]) -> Iterator[str]:
    cost = [record for record in (*result.get("cost", []), *result.get("cost_late", [])) if "explained" in record]
    fifty = [record for record in cost if record["model"] in {"resnet50", "squeezenet1_1"}]
    ratios = [record["ratio_of_medians"] for record in cost]
    yield f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "not measured"
    best = max(fifty, key=lambda record: record["explained"]["images_per_second"], default=None)
    yield _told(
        best,
        lambda record: f"{record['explained']['images_per_second']:,.0f} images/s ({record['way']}, {record['batch']})",
    )
    single = min(
        (record for record in fifty if record["batch"] == 1),
        key=lambda record: record["explained"]["p50_ms"],
        default=None,
    )
    yield _told(single, lambda record: f"{record['explained']['p50_ms']:.3f} ms ({record['way']})")
    frames = [record for record in result.get("frame_to_jpeg", []) if record.get("frames") in {"720p", "tiny"}]
    yield _told(_first(frames, "p50_ms"), lambda record: f"{record['p50_ms']:.2f} ms")
    yield _told(_first(frames, "full_load"), lambda record: f"{record['full_load']['frames_per_second']:,.0f} frames/s")
    inner = [record for record in result.get("inner_layer", []) if "explained" in record]
    quickest = min(inner, key=lambda record: record["explained"]["p50_ms"] / record["batch"], default=None)
    yield _told(
        quickest,
        lambda record: f"{record['explained']['p50_ms'] / record['batch']:.2f} ms ({record['way']}, {record['batch']})",
    )
    alike = [record for record in result.get("agreement", []) if "same_top_class" in record]
    yield f"{min(record['same_top_class'] for record in alike):.1%}" if alike else "not measured"
    yield f"{min(record['heat_rank_correlation']['mean'] for record in alike):.4f}" if alike else "not measured"
    for decoded in gpu_frames.DECODES:
        cameras = [
            record
            for record in result.get("cameras", [])
            if record.get("decode", "") == decoded and "cameras" in record
        ]
        yield _told(cameras[0] if cameras else None, lambda record: str(record["cameras"]))


def _first(records: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    return next((record for record in records if key in record), None)


def _told(record: dict[str, Any] | None, say: Callable[[dict[str, Any]], str]) -> str:
    return "not measured" if record is None else say(record)


def table(result: dict[str, Any]) -> str:
    """Return the goals and the measured values as a table."""
    rows = [
        ("what", "goal", "measured"),
        *((record["what"], record["goal"], record["measured"]) for record in result["goals"]),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    skipped = [
        f"{name} {record.get('model', record.get('piece', ''))} {record.get('backend', record.get('way', ''))}: {why}"
        for name in sections(Settings(torch.device("cpu")))
        for record in result.get(name, [])
        if (why := record.get("skipped") or record.get("error"))
    ]
    return "\n".join([*lines, *(["", "not measured, and why:", *skipped] if skipped else [])])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the least of everything: does it run?")
    parser.add_argument("--out", type=Path, help="the JSON; default: one line on the standard output")
    parser.add_argument("--photos", help="an .npz of uint8 arrays, made by gpu_pack.py")
    parser.add_argument("--weights", help="a folder with squeezenet1_1.pt and mobilenet_v2.pt")
    parser.add_argument("--seconds", type=float, default=460.0)
    parser.add_argument("--only", nargs="+", help="sections")
    settings_given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if settings_given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --small only shows that the benchmark runs")
    device = (
        torch.device(settings_given.device)
        if settings_given.device == "cpu"
        else torch.device("cuda", torch.cuda.current_device())
    )
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    settings = Settings(
        device, settings_given.small, settings_given.seconds, settings_given.photos, settings_given.weights
    )
    torch.backends.cudnn.benchmark = True
    set_product_precision(settings.precision, device)

    def keep(result: dict[str, Any]) -> None:
        if settings_given.out is not None:
            settings_given.out.write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")

    result = measured(settings, keep, settings_given.only)
    if settings_given.out is None:
        print(json.dumps(result, default=str))
    print(table(result), file=sys.stderr if settings_given.out is None else sys.stdout)
    return result


if __name__ == "__main__":
    main()
