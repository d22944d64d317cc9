"""Replays a log over its video: each record is shown on its own frame.

A record belongs to the frame with the same index, if both times are equal. If the times differ, for instance because
the video was cut, the record belongs to the frame with the same time, within 2 ms. The log is indexed once and records
are read one by one, so that an hour of log needs a few megabytes of memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from overlays.records.index import CameraLines
from overlays.records.reader import LogReader, open_log
from overlays.render.jpeg import MAX_IMAGE_PIXELS, MAX_SIDE_PIXELS
from overlays.wire.header import Header
from overlays.wire.message import as_overlay
from pipeline.errors import SourceError, WireError
from pipeline.frames import Explanation, Frame
from pipeline.ports import Explainer, Health, Source, SourceWrapper

log = logging.getLogger(__name__)

_REDUCED_SIDE_PIXELS: Final = 4096
"""Longer side in pixels of a black frame whose recorded size exceeds the limits."""


class LoggedExplainer(Explainer):
    """Explainer that returns the explanations in a log. A context manager, which keeps the log open.

    Args:
        path: path of the log.
        camera: the camera whose records are shown; None if the log has only one camera.
        run: number of the run in the log, from 1; None for the last run with records of the camera.
        video: the shown video file, if any. If it has the log's name, a clip's records are matched by time in the clip.

    Raises:
        SourceError: on entering, if the log cannot be read or has no explanation, if ``camera`` is None and the log
            has several cameras, or if the log lacks ``camera`` or ``run``.
        WireVersionError: on entering, if a newer version wrote the log.
    """

    def __init__(
        self, path: Path, camera: str | None = None, *, run: int | None = None, video: Path | None = None
    ) -> None:
        self.camera = camera or ""
        self.run = run
        """Number of the shown run; None until the context is entered, if no number was passed."""
        self.matched = 0
        """Number of frames with a record."""
        self.unmatched = 0
        """Number of frames without a record, which are shown unchanged."""
        self.damaged = 0
        """Number of records that cannot be read."""
        self.path = path
        self._log: LogReader | None = None
        self._lines = CameraLines()
        self._beside_clip = video is not None and video.stem == path.stem

    @property
    def line_count(self) -> int:
        """Number of the camera's records."""
        return len(self._lines.offsets)

    def __enter__(self) -> Self:
        self._log = open_log(self.path).__enter__()
        try:
            self._choose(self._scan(self._log))
        except BaseException:
            self._log.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._log is not None:
            self._log.__exit__(kind, error, trace)

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Return the logged explanation of each frame; without findings if the log has no record of the frame."""
        return [self._explain(frame) for frame in frames]

    def headers(self) -> Iterator[Header]:
        """Yield the headers of all readable records of the camera, in the order of the file."""
        for index in self._lines.offsets:
            header = self._read(index)
            if header is not None:
                yield header

    def _explain(self, frame: Frame) -> Explanation:
        index = self._lines.index_of(frame)
        header = None if index is None else self._read(index)
        if header is None:
            self.unmatched += 1
            return Explanation(frame, (), "no line in the log", "")
        self.matched += 1
        if self.matched == 1 and abs(header.width * frame.height / (header.height * frame.width) - 1.0) > 0.03:
            logged_size, size = f"{header.width}x{header.height}", f"{frame.width}x{frame.height}"
            log.warning(
                "%s: the log has frames of %s, but the video has %s; check that the log belongs to the video",
                self.path,
                logged_size,
                size,
            )
        frame_size = {"frame_width": header.width, "frame_height": header.height}
        scaled = header.model_copy(update={"width": frame.width, "height": frame.height} | frame_size)
        logged = as_overlay(scaled, frame.image, now_unix=0.0, now_monotonic=0.0).explanation
        return replace(logged, frame=replace(frame, truth=logged.frame.truth, area=logged.frame.area))

    def _read(self, index: int) -> Header | None:
        assert self._log is not None  # noqa: S101 - entered
        try:
            return self._log.read_header(self._lines.offsets[index])
        except WireError as error:
            self._count_damaged(f"frame {index}", error)
            return None

    def _scan(self, opened: LogReader) -> dict[str, dict[int, CameraLines]]:
        """Return the indexes of the log by camera and run."""
        cameras: dict[str, dict[int, CameraLines]] = {}
        for number, key in enumerate(opened.iter_keys(), 1):
            if isinstance(key, WireError):
                self._count_damaged(f"line {number}", key)
            else:
                cameras.setdefault(key.camera, {}).setdefault(key.run, CameraLines()).add(key)
        return cameras

    def _choose(self, cameras: dict[str, dict[int, CameraLines]]) -> None:
        if not cameras:
            raise SourceError(
                f"{self.path}: holds no explanation; name a log written by --sink FILE.jsonl or FILE.parquet"
            )
        names = ", ".join(map(repr, cameras))
        if not self.camera and len(cameras) > 1:
            raise SourceError(f"{self.path}: holds several cameras; choose one: --camera with one of {names}")
        self.camera = self.camera or next(iter(cameras))
        if self.camera not in cameras:
            raise SourceError(f"{self.path}: holds no camera {self.camera!r}; its cameras are {names}")
        runs = cameras[self.camera]
        numbers = ", ".join(map(str, runs))
        if self.run is not None and self.run not in runs:
            raise SourceError(
                f"{self.path}: run {self.run} has no record of {self.camera!r}; choose a run with --run: {numbers}"
            )
        if self.run is None and len(runs) > 1:
            log.warning(
                "%s: %d runs have records of %r; the last one is shown, choose another with --run: %s",
                self.path, len(runs), self.camera, numbers,
            )  # fmt: skip
        self.run = max(runs) if self.run is None else self.run
        self._lines = runs[self.run]
        if self._beside_clip and self._lines.clip_seconds:
            self._lines = self._lines.as_clip()
        self._lines.sort()
        if self._lines.repeated:
            log.warning(
                "%s: %d records repeat a frame; the first record of each frame is used",
                self.path, self._lines.repeated,
            )  # fmt: skip

    def _count_damaged(self, position: str, error: WireError) -> None:
        self.damaged += 1
        if self.damaged == 1:
            log.warning("%s: %s cannot be read and is left out: %s", self.path, position, error)


class BlankFrameSource(Source):
    """Source of black frames, one per record of a log, for a replay without the video."""

    def __init__(self, logged: LoggedExplainer) -> None:
        self.camera = logged.camera
        self.uri = "log:"
        self.frames_total = logged.line_count
        self.health = Health("live")
        self._path = logged.path
        self._run = logged.run

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield one frame per record, in the order of the log."""
        # The explainer reads the same file in another thread, so the source opens its own reader.
        with LoggedExplainer(self._path, self.camera, run=self._run) as reader:
            for header in reader.headers():
                if stop.is_set():
                    return
                black = np.zeros((*_frame_size(header), 3), np.uint8)
                yield Frame(
                    black, self.camera, header.index, time.monotonic(), header.pts_seconds, source_name=header.source
                )


def _frame_size(header: Header) -> tuple[int, int]:
    """Return the (height, width) of a record's black frame in pixels, reduced if it exceeds the limits."""
    height, width = header.height, header.width
    if max(height, width) <= MAX_SIDE_PIXELS and height * width <= MAX_IMAGE_PIXELS:
        return height, width
    scale = _REDUCED_SIDE_PIXELS / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class RealTimeSource(SourceWrapper):
    """Yields the frames of another source in real time, at their presentation times."""

    live = False

    def __init__(self, source: Source, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.camera, self.uri = source.camera, source.uri
        self.inner, self._clock = source, clock

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield each frame at its presentation time, relative to the first frame."""
        started_at: float | None = None
        for frame in self.inner.frames(stop):
            now, due = self._clock(), frame.pts_seconds or 0.0
            started_at = now - due if started_at is None else started_at
            if stop.wait(max(0.0, started_at + due - now)):
                return
            yield replace(frame, captured_at=self._clock())

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.inner.__exit__(kind, error, trace)
