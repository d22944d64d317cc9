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
from engine.runtime.devices import disable_tf32
from tests.bench import gpu_agreement, gpu_cost, gpu_frames, gpu_peers, gpu_smoke
from tests.bench.figures import place
from tests.bench.gpu_clock import Settings

Records = Iterator[dict[str, object]]


LIMITS = {
    "smoke": 0.12, "cost": 0.42, "frame_to_jpeg": 0.52, "inner_layer": 0.60, "agreement": 0.67, "cameras": 0.84,
    "peers": 0.90, "cost_late": 0.98,
}  # fmt: skip
"""By which share of the whole time each section is over, in order: the goals first, what compiles for long last.
One that takes longer is ended there, so that it cannot starve the next; one that takes less leaves it to all."""


def sections(told: Settings, *, alone: bool = False) -> dict[str, Callable[[], Records]]:
    """Return what is measured, in order; ``alone``: whoever was asked for has the whole time."""

    def until(name: str) -> float:
        return told.begun + (1.0 if alone else LIMITS[name]) * told.seconds - 5.0

    return {
        "smoke": lambda: gpu_smoke.measure(told, whole=alone),
        "cost": lambda: gpu_cost.measure(told, until("cost")),
        "frame_to_jpeg": lambda: gpu_frames.measure(told),
        "inner_layer": lambda: gpu_cost.inner_layer(told),
        "agreement": lambda: gpu_agreement.measure(told),
        "cameras": lambda: gpu_frames.cameras(told, until("cameras") - 5.0),
        "peers": lambda: gpu_peers.measure(told),
        "cost_late": lambda: gpu_cost.measure(told, until("cost_late"), late=True),
    }


class OutOfTime(BaseException):
    """A section's time is over, wherever it is: none may take this for a failure of its own."""


def stop_after(seconds: float) -> None:
    """Make a section end by itself, with all it has, however long a compiler takes; 0 = no more."""

    def ring(_number: int, _frame: object) -> None:
        raise OutOfTime

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.0))


def measured(told: Settings, keep: Callable[[dict[str, Any]], None], only: list[str] | None = None) -> dict[str, Any]:
    """Measure section by section; ``keep`` is handed all there is after each record."""
    result: dict[str, Any] = {"bench": "gpu", "device": device_told(told.device), "small": told.small, **placed()}
    for name, measure in sections(told, alone=bool(only)).items():
        if only and name not in only:
            continue
        records: list[dict[str, object]] = []
        result[name] = records
        begun = time.monotonic()
        try:
            if told.left < 5:
                records.append({"skipped": "out of time"})
                continue
            share = 1.0 if only else LIMITS.get(name, 1.0)
            stop_after(max(share * told.seconds - (told.seconds - told.left), 1.0))
            for record in measure():
                records.append(record)
                print(f"{told.seconds - told.left:6.1f} s  {name}: {brief(record)}", file=sys.stderr, flush=True)
                keep(result)
        except OutOfTime:
            records.append({"skipped": "out of time, in the middle"})
        except Exception as reason:  # noqa: BLE001 - one section must not cost the others
            traceback.print_exc()
            records.append({"error": f"{type(reason).__name__}: {reason}"[:300]})
        finally:
            stop_after(0)
        result.setdefault("section_seconds", {})[name] = round(time.monotonic() - begun, 1)
        if told.device.type == "cuda":
            torch.cuda.empty_cache()
    result["cards_after"] = [str(card) for card in list_gpus()]
    result["goals"] = goals(result)
    result["seconds"] = round(time.monotonic() - told.begun, 1)
    keep(result)
    return result


def placed() -> dict[str, Any]:
    """Return where and when; a machine without git still measures."""
    try:
        return place()
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
    """Return one line of a record for whoever watches."""
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
    ("720p30 cameras, age p99 < 100 ms, decode included", "as many as it carries"),
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
    cost = [one for one in (*result.get("cost", []), *result.get("cost_late", [])) if "explained" in one]
    fifty = [one for one in cost if one["model"] in {"resnet50", "squeezenet1_1"}]
    ratios = [one["ratio_of_medians"] for one in cost]
    yield f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "not measured"
    best = max(fifty, key=lambda one: one["explained"]["images_per_second"], default=None)
    yield _told(
        best, lambda one: f"{one['explained']['images_per_second']:,.0f} images/s ({one['way']}, {one['batch']})"
    )
    single = min((one for one in fifty if one["batch"] == 1), key=lambda one: one["explained"]["p50_ms"], default=None)
    yield _told(single, lambda one: f"{one['explained']['p50_ms']:.3f} ms ({one['way']})")
    frames = [one for one in result.get("frame_to_jpeg", []) if one.get("frames") in {"720p", "tiny"}]
    yield _told(_first(frames, "p50_ms"), lambda one: f"{one['p50_ms']:.2f} ms")
    yield _told(_first(frames, "full_load"), lambda one: f"{one['full_load']['frames_per_second']:,.0f} frames/s")
    inner = [one for one in result.get("inner_layer", []) if "explained" in one]
    quickest = min(inner, key=lambda one: one["explained"]["p50_ms"] / one["batch"], default=None)
    yield _told(
        quickest, lambda one: f"{one['explained']['p50_ms'] / one['batch']:.2f} ms ({one['way']}, {one['batch']})"
    )
    alike = [one for one in result.get("agreement", []) if "same_top_class" in one]
    yield f"{min(one['same_top_class'] for one in alike):.1%}" if alike else "not measured"
    yield f"{min(one['heat_rank_correlation']['mean'] for one in alike):.4f}" if alike else "not measured"
    for decoded in (False, True):
        found = [one for one in result.get("cameras", []) if one.get("decode") is decoded and "cameras" in one]
        yield _told(found[0] if found else None, lambda one: str(one["cameras"]))


def _first(records: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    return next((one for one in records if key in one), None)


def _told(record: dict[str, Any] | None, say: Callable[[dict[str, Any]], str]) -> str:
    return "not measured" if record is None else say(record)


def table(result: dict[str, Any]) -> str:
    """Return the goals and what came of them, as a table for people."""
    rows = [("what", "goal", "measured"), *((one["what"], one["goal"], one["measured"]) for one in result["goals"])]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    skipped = [
        f"{name} {one.get('model', one.get('piece', ''))} {one.get('backend', one.get('way', ''))}: {why}"
        for name in sections(Settings(torch.device("cpu")))
        for one in result.get(name, [])
        if (why := one.get("skipped") or one.get("error"))
    ]
    return "\n".join([*lines, *(["", "not measured, and why:", *skipped] if skipped else [])])


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--small", action="store_true", help="the least of everything: does it run?")
    ask.add_argument("--out", type=Path, help="the JSON; default: one line on the standard output")
    ask.add_argument("--photos", help="an .npz of uint8 arrays, made by gpu_pack.py")
    ask.add_argument("--weights", help="a folder with squeezenet1_1.pt and mobilenet_v2.pt")
    ask.add_argument("--seconds", type=float, default=460.0)
    ask.add_argument("--only", nargs="+", help="sections")
    told = ask.parse_args(words)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if told.device.startswith("cuda") and not torch.cuda.is_available():
        ask.error("torch sees no GPU here; --device cpu --small only shows that the benchmark runs")
    device = torch.device(told.device) if told.device == "cpu" else torch.device("cuda", torch.cuda.current_device())
    settings = Settings(device, told.small, told.seconds, told.photos, told.weights)
    torch.backends.cudnn.benchmark = True
    disable_tf32(settings.precision, device)

    def keep(result: dict[str, Any]) -> None:
        if told.out is not None:
            told.out.write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")

    result = measured(settings, keep, told.only)
    if told.out is None:
        print(json.dumps(result, default=str))
    print(table(result), file=sys.stderr if told.out is None else sys.stdout)
    return result


if __name__ == "__main__":
    main()
