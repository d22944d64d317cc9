"""Stills sink: saves uncertain frames as images to be labelled, in the folders that ``train`` reads.

For ``FOLDER/?when=CONDITION`` a frame is saved as ``FOLDER/LABEL/CAMERA-INDEX.jpg``; to relabel it, move the file to
another folder. ``FOLDER/tasks.json`` is an import file for Label Studio with the network's predictions.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import cv2
import numpy as np

from overlays.render.jpeg import bounded_image, encode_image
from overlays.sinks.disk import DiskSink
from overlays.sinks.paths import no_folder, path_errors, safe_file_name
from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import STILLS, StillsSettings
from overlays.wire.text import replace_undecodable
from pipeline.atomic import atomic_write, remove_unfinished, write_atomically
from pipeline.errors import FrameError, SinkError, WireError
from pipeline.frames import Box, Explanation, Finding, Image, Overlay
from pipeline.guards.parser import parse_condition
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

TASKS: Final = "tasks.json"
_REMEMBERED: Final = 64
"""Number of saved images of each camera with which a new image is compared."""
_HASH_SIZE: Final = (9, 8)
_MAX_NAME_BYTES: Final = 100
_NO_LABEL: Final = "none"
_END: Final = b"\n]\n"
_TASK_LINES: Final = 2
"""Number of lines of a task file that was cut off in its first task."""
_DOCUMENTS: Final = "/data/local-files/?d="
"""Prefix of local files in Label Studio, relative to LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


class StillsSink(DiskSink):
    """Saves frames without drawings that meet a condition or whose label changes, at a limited rate.

    Similar frames are saved once. If the disk refuses a write, the run continues: an image is saved completely or not
    at all, missing images are counted, and saving is tried again after one second, later after up to thirty seconds.
    """

    def __init__(
        self,
        settings: StillsSettings,
        context: SinkContext | None = None,  # noqa: ARG002 - the same for every sink
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` opens the folder.

        Args:
            settings: the folder, and the condition on the saved frames.
            context: not used.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: the condition cannot be parsed.
        """
        self._settings = settings
        self._folder = Path(settings.uri.removeprefix(STILLS))
        super().__init__(f"{self._folder}/", self._folder, wall_clock, clock)
        self._is_doubtful = parse_condition(settings.when, option="when")
        self._rate = RateLimiter(settings.max_rate)
        self._saved = 0
        self._labels: dict[str, str] = {}
        """The label of each camera's last frame."""
        self._hashes: dict[str, deque[int]] = {}

    def __enter__(self) -> Self:
        with path_errors(self.uri):
            if self._folder.exists() and not self._folder.is_dir():
                raise SinkError(f"{self.uri}: is a file; name a folder")
            try:
                self._folder.mkdir(exist_ok=True)
            except (FileNotFoundError, NotADirectoryError):
                raise no_folder(self.uri, self._folder.parent) from None
            mend_tasks(self._folder / TASKS)
            for folder in (path for path in self._folder.iterdir() if path.is_dir()):
                remove_unfinished(folder)
        self._reserve.fill()
        return self

    def put(self, overlay: Overlay) -> None:
        """Save the frame if it meets the condition, is due, and differs from the saved frames.

        Raises:
            FrameError: the frame cannot be encoded as JPEG; the sink continues.
        """
        explanation = overlay.explanation
        if overlay.signal_loss is not None or not self._is_wanted(explanation):
            return
        frame = explanation.frame
        now = frame.captured_at if frame.pts_seconds is None else frame.pts_seconds
        if self._saved >= self._settings.max_images or not self._is_due(frame.camera, now):
            return
        fingerprint = difference_hash(frame.image)
        seen = self._hashes.setdefault(frame.camera, deque(maxlen=_REMEMBERED))
        if any((fingerprint ^ other).bit_count() < self._settings.min_difference for other in seen):
            return
        self._disk.refresh()
        if self._disk.in_backoff:
            self._disk.count_lost(1)
            return
        try:
            self._save(explanation)
        except WireError as error:
            raise FrameError(f"{self.uri}: {error}") from None
        except OSError as error:
            self._disk.record_failure(error)
            self._disk.count_lost(1)
            return
        self._disk.record_success()
        self._rate.record(frame.camera, now)
        seen.append(fingerprint)
        self._saved += 1
        if self._saved == self._settings.max_images:
            log.warning("%s: %d images are saved, which is max_images; this run saves no more", self.uri, self._saved)

    def _is_wanted(self, explanation: Explanation) -> bool:
        camera, label = explanation.frame.camera, _label_of(explanation.top_scoring)
        before = self._labels.get(camera, label)
        self._labels[camera] = label
        return (self._settings.label_changes and label != before) or self._is_doubtful(explanation)

    def _is_due(self, camera: str, now: float) -> bool:
        """Return whether a frame is due; True if the clock went back (another file, a loop)."""
        due = self._rate.due_at(camera)
        return now >= due or now < due - 2.0 / self._settings.max_rate

    def _save(self, explanation: Explanation) -> None:
        """Write an image and its task. Raises ``OSError``."""
        payload = encode_image(bounded_image(explanation.frame.image), self._settings.quality)
        folder = self._folder / folder_name(_label_of(explanation.top_scoring))
        is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        try:
            self._write(explanation, folder, payload)
        except OSError:
            if is_new:  # a training refuses a class without images
                with suppress(OSError):
                    folder.rmdir()
            raise

    def _write(self, explanation: Explanation, folder: Path, payload: bytes) -> None:
        path = self._reserve.opened(lambda: _written(folder, _stems(explanation), payload))
        task = {
            "data": {
                "image": _DOCUMENTS + path.relative_to(self._folder).as_posix(),
                "camera": replace_undecodable(explanation.frame.camera),
                "index": explanation.frame.index,
                "taken_at_unix": round(self._wall_clock() - explanation.frame.age_seconds(self._clock()), 3),
            },
            "predictions": [prediction(explanation)],
        }
        try:
            self._reserve.opened(lambda: append_task(self._folder / TASKS, task))
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reserve.close()
        self._report_losses(self.uri, "images", kind)


def folder_name(label: str) -> str:
    """Return the folder name of a label; characters that folder names cannot have are replaced."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", replace_undecodable(label))
    name = re.sub(r"^[.\s]+", "", name).encode()[:_MAX_NAME_BYTES].decode(errors="ignore").rstrip()
    return name or _NO_LABEL


def difference_hash(image: Image) -> int:
    """Return the difference hash of an image: the signs of the horizontal differences of a 9x8 thumbnail.

    Args:
        image: RGB, uint8, (height, width, 3).

    Returns:
        64 bits; the hashes of similar images differ in few bits.
    """
    grey = cv2.cvtColor(cv2.resize(image, _HASH_SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    signs = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(signs.tobytes(), "big")


def prediction(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as a prediction for Label Studio: label, score, and boxes or the peak of the heat."""
    results = [
        {
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [_label_of(explanation.top_scoring)]},
        }
    ]
    results += [_rectangle(explanation, finding, finding.box) for finding in explanation.findings if finding.box]
    top = explanation.top_scoring
    if top is not None and top.box is None and (peak := top.peak(explanation.region)) is not None:
        results.append(_keypoint(explanation, top, peak))
    return {
        "model_version": replace_undecodable(explanation.model) or "recipro-stream",
        "score": 0.0 if top is None else round(float(top.score), 5),
        "result": results,
    }


def _rectangle(explanation: Explanation, finding: Finding, box: Box) -> dict[str, Any]:
    frame = explanation.frame
    value = {
        "x": 100 * box.left / frame.width,
        "y": 100 * box.top / frame.height,
        "width": 100 * box.width / frame.width,
        "height": 100 * box.height / frame.height,
        "rotation": 0,
        "rectanglelabels": [_label_of(finding)],
    }
    return _shape(explanation, "box", "rectanglelabels", value) | {"score": round(float(finding.score), 5)}


def _keypoint(explanation: Explanation, finding: Finding, peak: tuple[float, float]) -> dict[str, Any]:
    frame = explanation.frame
    value = {
        "x": 100 * peak[0] / frame.width,
        "y": 100 * peak[1] / frame.height,
        "width": 1.0,
        "keypointlabels": [_label_of(finding)],
    }
    return _shape(explanation, "peak", "keypointlabels", value)


def _shape(explanation: Explanation, name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    frame = explanation.frame
    return {
        "from_name": name,
        "to_name": "image",
        "type": kind,
        "original_width": frame.width,
        "original_height": frame.height,
        "image_rotation": 0,
        "value": value,
    }


def append_task(path: Path, task: dict[str, Any]) -> None:
    """Append a task to a JSON array with one task per line. Raises ``OSError``, without a change of the file."""
    line = json.dumps(task, ensure_ascii=False, allow_nan=False).encode()
    with FileIO(path, "r+" if path.exists() else "x+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END)))
        end = size - len(_END) if file.read(len(_END)) == _END else size
        file.seek(end)
        content = (b",\n" if end else b"[\n") + line + _END
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError:
            with suppress(OSError):
                file.seek(end)
                file.truncate(end)
                file.write(_END if end else b"")
            raise


def mend_tasks(path: Path) -> None:
    """Repair a task file that a killed run left incomplete: only complete lines are kept.

    A list that another program has formatted is written again with one task per line.

    Raises:
        SinkError: the file has no tasks, because another program wrote it.
        OSError: the file cannot be read or written.
    """
    if not path.exists():
        return
    text = path.read_bytes()
    if text.startswith(b"[\n") and text.endswith(b"}\n]\n"):
        return
    tasks = _formatted_tasks(text)
    if tasks is None:
        if text.strip() and not text.startswith(b"[\n"):
            raise SinkError(f"{path}: is not a task file of this program; move it away")
        tasks = [line.rstrip(b",") for line in text.split(b"\n")[1:] if _is_task(line.rstrip(b","))]
        if not tasks and len(text.splitlines()) > _TASK_LINES:
            raise SinkError(f"{path}: is damaged, or was changed by another program; repair it or move it away")
    if not tasks:
        path.unlink()
        return
    write_atomically(path, b"[\n" + b",\n".join(tasks) + _END)
    log.warning("%s: was incomplete; its %d complete tasks are kept", path, len(tasks))


def _formatted_tasks(text: bytes) -> list[bytes] | None:
    """Return the tasks of a complete list as lines, in any formatting; None if the text is not a list of tasks."""
    try:
        tasks = json.loads(text)
    except ValueError:
        return None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        return None
    return [json.dumps(task, ensure_ascii=False).encode() for task in tasks]


def _is_task(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _written(folder: Path, stems: Iterator[str], payload: bytes) -> Path:
    """Write an image under the first unused name, completely or not at all. Raises ``OSError``."""
    for stem in stems:
        path = folder / f"{stem}.jpg"
        with suppress(FileExistsError), atomic_write(path, replace=False) as temporary:
            temporary.write_bytes(payload)
            return path
    raise AssertionError  # stems are endless


def _stems(explanation: Explanation) -> Iterator[str]:
    """Yield candidate file names for the image of an explanation, without suffix."""
    stem = f"{safe_file_name(explanation.frame.camera)}-{explanation.frame.index}"
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _label_of(finding: Finding | None) -> str:
    return _NO_LABEL if finding is None else replace_undecodable(finding.label)
