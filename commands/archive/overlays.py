"""Writes the overlays (drawn images and videos) of an archive beside its partitions.

The folder ``overlays/NAME/`` belongs to ``NAME.parquet`` and is complete before that partition exists. A folder without
a partition comes from a killed run; the next run removes it.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from commands.archive.folders import OutputFolder
from commands.archive.inputs import Shard
from pipeline.errors import FrameError, WireError

if TYPE_CHECKING:
    from overlays.sinks.video import VideoSink
    from pipeline.config import OverlayConfig
    from pipeline.frames import Explanation, Image

log = logging.getLogger("recipro-stream")

OVERLAYS: Final = "overlays"


class ShardOverlays:
    """Draws the explanations of one shard: a JPEG for each photo, a video for each video or part."""

    def __init__(self, folder: OutputFolder, shard: Shard, config: OverlayConfig) -> None:
        """Store the folder and the style; nothing is written yet."""
        from overlays.render.renderer import HeatRenderer

        self._folder, self._place = folder, f"{OVERLAYS}/{shard.name}"
        self._files = {file.path: (number, file) for number, file in enumerate(shard.files)}
        self._at = 0.0
        # The clock returns the frame's own time: the legend then shows the video's rate and no delay.
        self._renderer = HeatRenderer(**config.model_dump(), clock=lambda: self._at)
        self._stack = ExitStack()
        self._video: VideoSink | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, explanation: Explanation) -> str | None:
        """Draw an explanation; return the path of the file relative to the folder, or None if encoding fails.

        Raises:
            SinkError: the file cannot be written.
        """
        frame = explanation.frame
        number, file = self._files[frame.source_name]
        self._at = frame.pts_seconds or 0.0
        drawn = self._renderer.render(replace(explanation, frame=replace(frame, captured_at=self._at)))
        name = f"{self._place}/{_file_stem(file.path)}.mp4"
        if not file.is_video:
            name = f"{self._place}/{number:05}-{_file_stem(file.path)}.jpg"
        try:
            if file.is_video:
                self._video = self._video or self._begin(name, frame.camera)
                self._video.put(drawn)
            else:
                self._write(name, drawn.image)
        except (FrameError, WireError) as error:
            log.warning("%s: is not drawn: %s", file.path, error)
            return None
        return name

    def _write(self, name: str, image: Image) -> None:
        from overlays.render.jpeg import encode_image

        content = encode_image(image)
        with self._folder.written(name) as temporary:
            temporary.write_bytes(content)

    def _begin(self, name: str, camera: str) -> VideoSink:
        from overlays.sinks.settings import VideoSettings
        from overlays.sinks.video import VideoSink
        from pipeline.settings import SinkContext

        temporary = self._stack.enter_context(self._folder.written(name))
        settings = VideoSettings(uri=str(temporary), mode="replace")
        return self._stack.enter_context(VideoSink(settings, SinkContext(cameras=(camera,))))


def remove_unfinished_overlays(folder: OutputFolder, partitions: set[str]) -> None:
    """Remove the overlays of shards without a partition.

    Args:
        folder: the output folder.
        partitions: names of the partitions, without suffix.
    """
    for name in folder.folders(OVERLAYS):
        if name not in partitions:
            folder.remove_folder(f"{OVERLAYS}/{name}")


def _file_stem(path: str) -> str:
    from overlays.sinks.paths import safe_file_name

    return safe_file_name(PurePath(path).stem)
