"""MCAP sink: ``FILE.mcap``, all cameras in one file, for Foxglove, Rerun and other viewers of MCAP.

Messages are collected in chunks of one second or one mebibyte. A chunk is written completely or not at all, so the file
of a killed run can be read up to its last chunk. The index and the footer are written when the file is completed.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, cast

from mcap.writer import CompressionType, Writer

from overlays.encoding_pool import PreparedImages
from overlays.sinks.clips.fragments import AllOrNothingFile
from overlays.sinks.disk import DiskSink
from overlays.sinks.foxglove.messages import TOPICS, Sample, frame_jpeg, sample_of
from overlays.sinks.paths import check_writable
from overlays.sinks.settings import McapSettings
from pipeline.errors import SinkError, WireError
from pipeline.frames import Overlay
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

CHUNK_SECONDS: Final = 1.0
"""Maximum duration of a chunk: a killed run loses the frames of at most this time."""
_CHUNK_BYTES: Final = 1 << 20
_STAMP: Final = r"\.\d{8}T\d{6}Z(?:-\d+)?"
_SEQUENCE_MASK: Final = 0xFFFFFFFF


class McapSink(DiskSink):
    """Writes ``*.mcap`` with the plain images, heat maps, annotations and records of all cameras.

    A file of an earlier run is kept; the new file has the time in its name, as has each new file after ``rotate_mib``.
    If the disk refuses a write, the run continues: the file ends at its last chunk, frames are counted as lost, and a
    new file is created after one second, later after up to thirty seconds.
    """

    def __init__(
        self,
        settings: McapSettings | Path | str,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the options; ``__enter__`` opens the file.

        Args:
            settings: the file, its maximum size and the disk budget.
            context: not used.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds; with ``wall_clock`` it converts ``captured_at`` to Unix time.
        """
        self._settings = McapSettings.of(settings)
        self._path = Path(self._settings.uri)
        super().__init__(self._settings.uri, self._path.parent, wall_clock, clock)
        self._replaces = self._settings.mode == "replace"
        self._recording: _Recording | None = None
        self._has_begun = False
        self._jpegs = PreparedImages[bytes]()

    def __enter__(self) -> Self:
        check_writable(self._path)
        self._reserve.fill()
        return self

    def prepare(self, overlay: Overlay) -> None:
        """Compress the frame without drawings, in the thread of its camera."""
        with suppress(WireError):  # ``put`` raises it again
            jpeg = frame_jpeg(overlay.explanation, self._settings.quality)
            self._jpegs.add(overlay, "frame", jpeg)

    def put(self, overlay: Overlay) -> None:
        """Write the messages of one frame.

        Raises:
            WireError: the frame cannot be encoded as JPEG, or its explanation as JSON; the sink continues.
            SinkError: another run writes the same file.
        """
        if overlay.signal_loss is not None:
            return
        self._disk.refresh()
        if self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        jpeg = self._jpegs.of(overlay, "frame")
        quality = self._settings.quality
        sample = sample_of(overlay, self._wall_clock(), self._clock(), jpeg=jpeg, quality=quality)
        messages = [(number, data) for number, topic in enumerate(TOPICS) for data in topic.messages(sample)]
        recording = self._recording or self._begin()
        self._recording = recording
        recording.add(sample, messages)
        self._flush_if_due(recording)
        if self._recording is not None and recording.bytes >= self._settings.rotate_bytes:
            self._end()

    def idle(self) -> None:
        """Write the chunk if it is due."""
        if self._recording is not None:
            self._flush_if_due(self._recording)

    def _begin(self) -> _Recording:
        began = None if self._replaces else self._wall_clock()
        file = AllOrNothingFile(self._path, self._reserve, began, is_further=self._has_begun)
        self._replaces, self._has_begun = False, True
        return _Recording(file, self._clock)

    def _flush_if_due(self, recording: _Recording) -> None:
        if not recording.is_due:
            return
        try:
            recording.flush()
            self._enforce_budget(recording)
        except OSError as error:
            self._abandon(recording, error)
        else:
            self._disk.record_success()

    def _end(self) -> None:
        """Complete the open file."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        try:
            recording.finish()
        except OSError as error:
            self._abandon(recording, error)
            return
        self._disk.record_success()

    def _abandon(self, recording: _Recording, error: OSError) -> None:
        """Close a file that cannot be written, and preserve its complete chunks."""
        self._recording = None
        self._disk.count_lost(recording.pending_frames)
        recording.discard()
        if error.errno == errno.EBUSY:  # another run has locked it
            raise SinkError(f"{recording.path}: {error.strerror}") from error
        self._disk.record_failure(error)

    def _enforce_budget(self, recording: _Recording) -> None:
        budget = self._settings.budget_bytes
        if budget is None:
            return
        closed = [(path.stat(), path) for path in family_of(self._path) if path != recording.path]
        closed.sort(key=lambda each: each[0].st_mtime_ns)
        total = recording.bytes + sum(stat.st_size for stat, _ in closed)
        for stat, path in closed:
            if total <= budget:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size
            log.info("%s: removed to keep the disk budget", path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._end()
        self._reserve.close()
        self._report_losses(self._path, "frames", kind)


class _Recording:
    """One file that is being written."""

    def __init__(self, file: AllOrNothingFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._output = _ChunkBuffer()
        self._writer = Writer(cast("IO[bytes]", self._output), chunk_size=1 << 62, compression=CompressionType.NONE)
        self._writer.start(library="recipro-stream")
        self._schemas: dict[int, int] = {}
        self._channels: dict[tuple[str, int], int] = {}
        self._chunk_bytes = 0
        self._chunk_began_at = 0.0
        self.pending_frames = 0
        """Number of frames that are not written to the file yet."""
        self.bytes = 0
        """Size of the file in bytes."""

    @property
    def path(self) -> Path:
        """Path of the file; it does not change any more after the file was opened."""
        return self._file.path

    @property
    def is_due(self) -> bool:
        """True if the chunk must be written now."""
        age = self._clock() - self._chunk_began_at
        return self.pending_frames > 0 and (self._chunk_bytes >= _CHUNK_BYTES or age >= CHUNK_SECONDS)

    def add(self, sample: Sample, messages: list[tuple[int, bytes]]) -> None:
        """Add the messages of a frame to the chunk, as pairs of the number of a topic and the message."""
        if not self.pending_frames:
            self._chunk_began_at = self._clock()
        frame = sample.explanation.frame
        for number, data in messages:
            self._writer.add_message(
                self._channel(frame.camera, number),
                log_time=sample.captured_ns,
                publish_time=sample.captured_ns,
                sequence=frame.index & _SEQUENCE_MASK,
                data=data,
            )
            self._chunk_bytes += len(data)
        self.pending_frames += 1

    def _channel(self, camera: str, number: int) -> int:
        topic = TOPICS[number]
        if (camera, number) not in self._channels:
            if number not in self._schemas:
                self._schemas[number] = self._writer.register_schema(
                    topic.schema_name, topic.schema_encoding, topic.schema()
                )
            self._channels[camera, number] = self._writer.register_channel(
                topic.name(camera), topic.encoding, self._schemas[number]
            )
        return self._channels[camera, number]

    def flush(self) -> None:
        """Write the chunk. Raises ``OSError``; call ``discard`` then."""
        self._writer.flush()  # type: ignore[no-untyped-call]
        self._write_buffer()

    def finish(self) -> None:
        """Write the last chunk, the index and the footer, and close. Raises ``OSError``; call ``discard`` then."""
        self.flush()
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._write_buffer()
        self._close()

    def discard(self) -> None:
        """Close a file that cannot be written, after its last complete chunk; a file without one is deleted."""
        with suppress(OSError):
            if self._file.is_open and self._file.stands_at(self.path) and self.path.is_file():
                if self.bytes:
                    self._file.truncate(self.bytes)
                else:
                    self.path.unlink()
                    self._file.close()
                    return
        self._close()

    def _write_buffer(self) -> None:
        data = self._output.taken()
        self._file.write(data)
        self.bytes += len(data)
        self._chunk_bytes, self.pending_frames = 0, 0

    def _close(self) -> None:
        if self._file.is_open and not self._file.stands_at(self.path):
            log.warning("%s: was moved or deleted during the recording; the recording is not at this path", self.path)
        self._file.close()


class _ChunkBuffer:
    """Collects the bytes of the MCAP writer until a chunk is complete."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._taken = 0

    def write(self, data: bytes) -> int:
        """Append ``data``."""
        self._held += data
        return len(data)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._taken + len(self._held)

    def flush(self) -> None:
        """Do nothing; ``taken`` returns the collected bytes."""

    def taken(self) -> bytes:
        """Return the collected bytes and remove them."""
        data = bytes(self._held)
        self._held.clear()
        self._taken += len(data)
        return data


def family_of(path: Path) -> list[Path]:
    """Return the existing files that recorders of ``path`` have written: ``out.mcap``, ``out.<time>.mcap``."""
    name = re.compile(f"{re.escape(path.stem)}(?:{_STAMP})?{re.escape(path.suffix)}")
    return [each for each in path.parent.iterdir() if name.fullmatch(each.name) and each.is_file()]
