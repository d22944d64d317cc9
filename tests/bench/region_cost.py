"""Measures the cost of a region of interest: a region of large frames against frames of the region's size, interleaved.

    OMP_NUM_THREADS=1 uv run --no-sync python -m tests.bench.region_cost --model resnet18 --rounds 40

Two clips show the same: one of 1920x1080 with a region of 448x448, and one of 448x448. ``engine`` times the explanation
of a decoded frame, resize included; both cases explain the same pixels, which is checked. ``masked`` adds a mask to the
region. ``whole`` explains the large frame without a region. ``end to end`` times decoding, explanation and drawing,
where the larger clip costs more. Prints one JSON line; ratios are to the frames of the region's size.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from engine.explainers.network import NetworkExplainer
from engine.models.loader import load_network
from overlays.render.renderer import HeatRenderer
from pipeline.config import EngineConfig
from pipeline.frames import Explanation, Frame, Image
from pipeline.input_area import InputAreaOptions
from stream.sources import build_source
from tests.bench.figures import environment, interleaved, paired_ratio, print_line, quantiles

RATE = 30


@dataclass(frozen=True, slots=True)
class Sizes:
    """Width and height of the large frames, and side and position of the region."""

    frame: tuple[int, int] = (1920, 1080)
    side: int = 448
    corner: tuple[int, int] = (700, 300)

    @property
    def area(self) -> InputAreaOptions:
        """The region."""
        return InputAreaOptions((*self.corner, self.side, self.side))

    @property
    def masked(self) -> InputAreaOptions:
        """The region with a triangle masked."""
        (x, y), side = self.corner, self.side
        return replace(self.area, masks=(((x, y), (x + side // 2, y), (x, y + side // 2)),))

    def cut(self, image: Image) -> Image:
        """Return the region of a large image."""
        x, y = self.corner
        return np.ascontiguousarray(image[y : y + self.side, x : x + self.side])


def scene(width: int, height: int, index: int) -> Image:
    """Return an image of blurred blocks that move to the right."""
    coarse = np.random.default_rng(1).integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.roll(image, 3 * index, axis=1)


def write_clips(folder: Path, sizes: Sizes, count: int) -> tuple[Path, Path]:
    """Write the large and the small clip, H.264, and return their paths."""
    paths = folder / "large.mp4", folder / "small.mp4"
    with ExitStack() as stack:
        containers = [stack.enter_context(av.open(str(path), "w")) for path in paths]
        streams = []
        for container, (width, height) in zip(containers, (sizes.frame, (sizes.side, sizes.side)), strict=True):
            stream = container.add_stream("libx264", rate=Fraction(RATE), options={"preset": "veryfast", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for index in range(count):
            image = scene(*sizes.frame, index)
            for container, stream, shown in zip(containers, streams, (image, sizes.cut(image)), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown)))
        for container, stream in zip(containers, streams, strict=True):
            container.mux(stream.encode())
    return paths


def frames_of(path: Path, area: InputAreaOptions | None, stop: threading.Event) -> Iterator[Frame]:
    """Yield the frames of a clip again and again, with an area."""
    with build_source(f"{path}?loop=1") as source:
        for frame in source.frames(stop):
            yield with_area(frame, area)


def with_area(frame: Frame, area: InputAreaOptions | None) -> Frame:
    """Return a frame with its area, as its source's worker gives it."""
    return frame if area is None else replace(frame, area=area.placed(frame.width, frame.height))


def check(regions: Sequence[Explanation], small: Sequence[Explanation]) -> None:
    """Raise unless regions have the results of the same pixels as frames of their own."""
    for region, alone in zip(regions, small, strict=True):
        if region.first.score != alone.first.score or not np.array_equal(region.first.heat, alone.first.heat):
            message = f"a region has score {region.first.score:.6f}, the same pixels {alone.first.score:.6f}"
            raise RuntimeError(message)


def measure(
    explainer: NetworkExplainer, folder: Path, sizes: Sizes, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Return the times of all cases by a clock, and their ratios."""
    stop, renderer = threading.Event(), HeatRenderer()
    large_clip, small_clip = write_clips(folder, sizes, 12)
    clip = frames_of(large_clip, None, stop)
    large = [next(clip) for _ in range(8)]
    clip.close()
    decoded = {
        "small": [replace(frame, pixels=sizes.cut(frame.image)) for frame in large],
        "region": [with_area(frame, sizes.area) for frame in large],
        "masked": [with_area(frame, sizes.masked) for frame in large],
        "whole": large,
    }
    check(*([explainer.explain([frame])[0] for frame in decoded[name][:2]] for name in ("region", "small")))
    calls = {name: lambda k, own=own: explainer.explain([own[k % len(own)]]) for name, own in decoded.items()}
    engine = interleaved(calls, rounds, clock=clock)
    with ExitStack() as stack:
        clips = {"small": frames_of(small_clip, None, stop), "region": frames_of(large_clip, sizes.area, stop)}
        for frames in clips.values():
            stack.callback(frames.close)
        whole = interleaved(
            {
                name: lambda _, own=own: renderer.render(explainer.explain([next(own)])[0])
                for name, own in clips.items()
            },
            rounds,
            clock=clock,
        )
    return {"engine": _figures(engine), "end_to_end": _figures(whole)}


def _figures(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: quantiles(own) | ({} if name == "small" else {"by_small": paired_ratio(own, seconds["small"])})
        for name, own in seconds.items()
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--input-size", type=int, default=448)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--processor-time", action="store_true", help="of all threads, instead of elapsed time")
    arguments = parser.parse_args()
    sizes, size = Sizes(), arguments.input_size
    config = EngineConfig(
        model=arguments.model, backend=arguments.backend, input_size=f"{size}x{size}", cache="off", device="cpu"
    )
    explainer = NetworkExplainer(load_network(arguments.model, weights="random"), config)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(explainer, Path(folder), sizes, arguments.rounds, clock)
    options = {
        "model": arguments.model,
        "backend": arguments.backend,
        "input": size,
        "region": sizes.side,
        "clock": clock.__name__,
    }
    print_line(bench="region_cost", frame=sizes.frame, **options, **figures, **environment())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
