"""A log of explanations, laid over its video again: each line on the frame that it was written for, or on none.

A line belongs to the frame with its index, where both have the same time; where the times differ (the video was cut,
or the log is of another reading), to the frame with its time, to two milliseconds. The log is indexed once, and its
heat is read line by line: an hour of it takes a few megabytes of memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from overlays.records.index import CameraLines
from overlays.records.reader import LogReader, open_log
from overlays.render.jpeg import MAX_IMAGE_PIXELS, MAX_SIDE_PIXELS
from overlays.wire.message import Header, as_overlay
from pipeline.errors import SourceError, WireError
from pipeline.frames import Explanation, Frame
from pipeline.ports import Health, Source

log = logging.getLogger(__name__)

_SMALL_SIDE_PIXELS: Final = 4096
"""Of a black picture in place of one that is too large to be made."""


class LoggedExplainer:
    """Explains frames by what a log says of them. A with-block: the log stays open.

    Args:
        path: the log.
        camera: whose lines; None: the only camera's.
        run: which of the log's runs, from 1; None: the last one that has lines of the camera.
        video: what the log is laid over, where that is a file: a clip's own log goes by the clip's time.

    Raises:
        SourceError: on entering: the log cannot be read, holds no explanation, or holds several cameras and none is
            chosen.
        WireVersionError: it was written by a newer version.
    """

    def __init__(
        self, path: Path, camera: str | None = None, *, run: int | None = None, video: Path | None = None
    ) -> None:
        self.camera = camera or ""
        self.run = run
        """Which run's lines are shown; None until it is known."""
        self.matched = 0
        """Frames that had a line."""
        self.unmatched = 0
        """Frames that had none: they are shown as they are."""
        self.damaged = 0
        """Lines that cannot be read."""
        self.path = path
        self._log: LogReader | None = None
        self._lines = CameraLines()
        self._beside_clip = video is not None and video.stem == path.stem

    @property
    def line_count(self) -> int:
        """How many lines the camera has."""
        return len(self._lines.places)

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
        """Return what the log says of each frame; an explanation without findings where it says nothing."""
        return [self._explained(frame) for frame in frames]

    def headers(self) -> Iterator[Header]:
        """Give every line of the camera, in the order of the file."""
        for index in self._lines.places:
            header = self._read(index)
            if header is not None:
                yield header

    def _explained(self, frame: Frame) -> Explanation:
        index = self._lines.index_of(frame)
        header = None if index is None else self._read(index)
        if header is None:
            self.unmatched += 1
            return Explanation(frame, (), "no line in the log", "")
        self.matched += 1
        if self.matched == 1 and abs(header.width * frame.height / (header.height * frame.width) - 1.0) > 0.03:
            was, now = f"{header.width}x{header.height}", f"{frame.width}x{frame.height}"
            log.warning("%s: tells of pictures of %s, these are %s: is it another video?", self.path, was, now)
        shown = replace(
            header, width=frame.width, height=frame.height, frame_width=header.width, frame_height=header.height
        )
        logged = as_overlay(shown, frame.image, now_unix=0.0, now_monotonic=0.0).explanation
        return replace(logged, frame=replace(frame, truth=logged.frame.truth))

    def _read(self, index: int) -> Header | None:
        assert self._log is not None  # noqa: S101 - entered
        try:
            return self._log.read_header(self._lines.places[index])
        except WireError as error:
            self._leave_out(f"frame {index}", error)
            return None

    def _scan(self, opened: LogReader) -> dict[str, dict[int, CameraLines]]:
        """Find every camera's lines, by run."""
        cameras: dict[str, dict[int, CameraLines]] = {}
        for number, gist in enumerate(opened.iter_keys(), 1):
            if isinstance(gist, WireError):
                self._leave_out(f"line {number}", gist)
            else:
                cameras.setdefault(gist.camera, {}).setdefault(gist.run, CameraLines()).note(gist)
        return cameras

    def _choose(self, cameras: dict[str, dict[int, CameraLines]]) -> None:
        if not cameras:
            raise SourceError(
                f"{self.path}: no line of it is an explanation; a log is what --sink FILE.jsonl or FILE.parquet writes"
            )
        names = ", ".join(map(repr, cameras))
        if not self.camera and len(cameras) > 1:
            raise SourceError(f"{self.path}: holds several cameras; choose one: --camera with one of {names}")
        self.camera = self.camera or next(iter(cameras))
        if self.camera not in cameras:
            raise SourceError(f"{self.path}: holds no camera {self.camera!r}; it has {names}")
        runs = cameras[self.camera]
        told = ", ".join(map(str, runs))
        if self.run is not None and self.run not in runs:
            raise SourceError(
                f"{self.path}: its run {self.run} has no line of {self.camera!r}; choose one with --run: {told}"
            )
        if self.run is None and len(runs) > 1:
            log.warning(
                "%s: %d runs have lines of %r; the last one is shown, another with --run: %s",
                self.path, len(runs), self.camera, told,
            )  # fmt: skip
        self.run = max(runs) if self.run is None else self.run
        self._lines = runs[self.run]
        if self._beside_clip and self._lines.clip_seconds:
            self._lines = self._lines.as_clip()
        self._lines.sort()
        if self._lines.repeated:
            log.warning(
                "%s: %d lines tell of a frame that was told of before; the first of each is used",
                self.path, self._lines.repeated,
            )  # fmt: skip

    def _leave_out(self, place: str, error: WireError) -> None:
        self.damaged += 1
        if self.damaged == 1:
            log.warning("%s: %s cannot be read, and is left out: %s", self.path, place, error)


class BlankFrameSource:
    """A source of black frames, one for each line of a log: what is left of a video that is gone."""

    live = False
    rate: float | None = None

    def __init__(self, logged: LoggedExplainer) -> None:
        self.camera = logged.camera
        self.uri = "log:"
        self.frames_total: int | None = logged.line_count
        self.health = Health("live")
        self._path = logged.path
        self._run = logged.run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Hold nothing."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give them in the order of the log."""
        # The headers are read here, not shared: the explainer reads the same file in another thread.
        with LoggedExplainer(self._path, self.camera, run=self._run) as own:
            for header in own.headers():
                if stop.is_set():
                    return
                black = np.zeros((*_shown_size(header), 3), np.uint8)
                yield Frame(
                    black, self.camera, header.index, time.monotonic(), header.pts_seconds, source_name=header.source
                )


def _shown_size(header: Header) -> tuple[int, int]:
    """Return the (height, width) of the black picture for a line: smaller, where no picture may be so large."""
    height, width = header.height, header.width
    if max(height, width) <= MAX_SIDE_PIXELS and height * width <= MAX_IMAGE_PIXELS:
        return height, width
    scale = _SMALL_SIDE_PIXELS / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class RealTimeSource:
    """A source shown at its own speed, for people who look on."""

    live = False

    def __init__(self, source: Source) -> None:
        self.camera, self.uri = source.camera, source.uri
        self._source = source

    @property
    def frames_total(self) -> int | None:
        """How many frames it will give."""
        return self._source.frames_total

    @property
    def rate(self) -> float | None:
        """Frames per second it says it gives."""
        return self._source.rate

    @property
    def health(self) -> Health:
        """How it does right now."""
        return self._source.health

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give each frame when it is due."""
        begun: float | None = None
        for frame in self._source.frames(stop):
            now, due = time.monotonic(), frame.pts_seconds or 0.0
            begun = now - due if begun is None else begun
            if stop.wait(max(0.0, begun + due - now)):
                return
            yield replace(frame, captured_at=time.monotonic())

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._source.__exit__(kind, error, trace)
