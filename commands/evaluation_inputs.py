"""Inputs of an evaluation: image files, or sampled frames of a video with the next frame of each."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from commands.annotations import Annotations, read_paths
from commands.console import print_line, progress_bar
from commands.images import ReadImage, open_images, writable_names
from commands.trained_images import TrainedImages
from pipeline.errors import ConfigError, CorruptMediaError, EngineError, SourceError
from pipeline.frames import Frame, Image

if TYPE_CHECKING:
    from engine.evaluation.evaluator import Evaluator
    from engine.evaluation.masks import Mask
    from engine.evaluation.results import ResultsLog
    from pipeline.frames import GroundTruth
    from pipeline.ports import Source

log = logging.getLogger("recipro-stream")

VIDEO_LIMIT: Final = 100
"""Default maximum number of evaluated frames of a video."""


class ImageEvaluator(Protocol):
    """Evaluates single images, for a classifier or for the boxes of a detector."""

    @property
    def labels(self) -> Sequence[str]:
        """Class names that an image's folder can have. If there are any, each record has a ``label``."""

    def evaluate(
        self, frame: Frame, truths: Sequence[GroundTruth] | None = None, mask: Mask | None = None
    ) -> dict[str, Any]:
        """Evaluate an image and return its record.

        Args:
            frame: the image, with the name of its file.
            truths: annotated objects; None: not annotated.
            mask: boolean array of shape (height, width), True inside the object; None: no mask.
        """


class EvaluationInput(Protocol):
    """Named images that can be evaluated, and loaded again for the report."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the sampled images, in order."""

    @property
    def recording(self) -> str | None:
        """The path of the video; None for image files."""

    def evaluate(self, evaluator: Any, results: ResultsLog, stop: threading.Event) -> None:  # noqa: ANN401 - videos need an Evaluator
        """Evaluate the images without a record in ``results``, until all are done or ``stop`` is set."""

    def images(self, names: Sequence[str]) -> dict[str, Image]:
        """Return the named images: uint8 RGB, shape (height, width, 3)."""


def open_input(location: str, limit: int | None, annotations: Annotations, trained: TrainedImages) -> EvaluationInput:
    """Open a video file, or a folder, glob or list of images.

    Args:
        location: path of a video, folder or ``.txt`` list, or a glob.
        limit: maximum number of images or frames; None: all images, or ``VIDEO_LIMIT`` frames.
        annotations: boxes or masks of the images.
        trained: hashes of the network's training images.

    Raises:
        ConfigError: boxes or masks are given for a video, or no file name is valid UTF-8 on one line.
        SourceError: there are no images.
    """
    from stream.file import FileSource
    from stream.images import found_images
    from stream.sources import IMAGE_SUFFIXES, build_source

    location, read, _ = open_images(location)
    if location.endswith(".txt"):
        paths = read_paths(Path(location))
        by_name = {str(path): path for path in paths}
        if len(by_name) < len(paths):
            log.warning(
                "%s: %d lines repeat an image; each image is evaluated once", location, len(paths) - len(by_name)
            )
        return ImageInput(by_name, limit, annotations, trained, read)
    if Path(location).is_file() and isinstance(source := build_source(location), FileSource):
        if annotations.truths_of or annotations.mask_of:
            raise ConfigError(
                f"--boxes, --masks: {location} is a video; boxes and masks belong to images; give a folder of images"
            )
        return VideoInput(source, location, VIDEO_LIMIT if limit is None else limit, trained)
    in_folder = Path(location).is_dir()
    paths = writable_names(found_images(location, IMAGE_SUFFIXES))
    by_name = {path.name if in_folder else str(path): path for path in paths}
    if not by_name:
        raise ConfigError(f"{location}: no image has a name of one line of valid UTF-8; rename the images")
    return ImageInput(by_name, limit, annotations, trained, read)


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` evenly spaced indices from 0 to ``count`` - 1."""
    return list(range(count)) if limit is None or limit >= count else [k * count // limit for k in range(limit)]


@dataclass(frozen=True, slots=True)
class ImageTask:
    """An image to evaluate."""

    number: int
    """Position among the images of this run, from 0."""
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """The result of one image."""

    task: ImageTask
    record: Mapping[str, Any] | None
    """The record; None if the image cannot be decoded."""
    reason: str = ""
    """The reason why there is no record."""


class ImageRecorder:
    """Creates the records of image files. It is serializable by pickle, and its results are the same in any process."""

    def __init__(self, annotations: Annotations, trained: TrainedImages, read: ReadImage) -> None:
        """Store the ground truth, the hashes of the network's training images, and the image reader."""
        self._annotations, self._trained, self._read = annotations, trained, read

    def evaluate(self, evaluator: ImageEvaluator, task: ImageTask) -> EvaluatedImage:
        """Return the record of an image, or the reason why the image cannot be decoded."""
        try:
            image = self._read(task.path)
        except SourceError as error:
            return EvaluatedImage(task, None, str(error))
        frame = Frame(image, "evaluate", task.number, 0.0, source_name=task.name)
        record = self._record(evaluator, frame, task.path) | self._trained.mark(image)
        digest = {"digest": file_digest(task.path), "of": self.digest(task.path)}
        return EvaluatedImage(task, {"image": task.name, "source": frame.source_name, **record, **digest})

    def digest(self, path: Path) -> str:
        """Return a digest of an image and its annotation file (16 hexadecimal digits); missing files count as empty."""
        digest = hashlib.sha256()
        for file in (path, self._annotations.file_of(path)):
            with suppress(OSError):
                digest.update(hashlib.sha256(file.read_bytes() if file else b"").digest())
        return digest.hexdigest()[:16]

    def _record(self, evaluator: ImageEvaluator, frame: Frame, path: Path) -> dict[str, Any]:
        """Return the record of an image.

        If the image's folder has the name of a class, ``right`` states whether that class is the top-1 class.
        """
        size, annotations = (frame.height, frame.width), self._annotations
        truths = None if annotations.truths_of is None else annotations.truths_of(path, size)
        mask = None if annotations.mask_of is None else annotations.mask_of(path, size)
        try:
            record = evaluator.evaluate(frame, truths, mask)
        except (RuntimeError, MemoryError) as error:  # PyTorch's message does not contain the file name
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(f"{path}: cannot be evaluated ({reason}); remove it from the images") from error
        folder = path.resolve().parent.name
        return record | {"right": record["label"] == folder} if folder in evaluator.labels else record


def add_records(results: ResultsLog, evaluated: Iterable[EvaluatedImage], total: int) -> None:
    """Add each record to ``results``, with a progress bar; log a warning for each undecodable image.

    Args:
        results: receives the records.
        evaluated: the results of the images.
        total: number of images, for the progress bar.
    """
    with progress_bar() as progress:
        for image in progress.track(evaluated, total=total, description="evaluating"):
            if image.record is None:
                log.warning("left out: %s", image.reason)
            else:
                results.add(dict(image.record))


class ImageInput:
    """Image files as the input of an evaluation."""

    recording = None

    def __init__(
        self,
        paths: dict[str, Path],
        limit: int | None,
        annotations: Annotations,
        trained: TrainedImages,
        read: ReadImage,
    ) -> None:
        paths_in_order = list(paths)
        self.names = [paths_in_order[index] for index in evenly_spaced(len(paths_in_order), limit)]
        self._paths = paths
        self._read, self.recorder = read, ImageRecorder(annotations, trained, read)
        annotations.check("--boxes" if annotations.mask_of is None else "--masks", list(paths.values()))

    def evaluate(self, evaluator: ImageEvaluator, results: ResultsLog, stop: threading.Event) -> None:
        """Evaluate the images without a record in order; skip images that cannot be decoded."""
        tasks = self.waiting(results)
        add_records(results, (self.recorder.evaluate(evaluator, task) for task in _until(stop, tasks)), len(tasks))

    def waiting(self, results: ResultsLog) -> list[ImageTask]:
        """Return the images without a record in ``results``, in order.

        Raises:
            ConfigError: an image with a record has changed.
        """
        for name in self.names:
            if name in results.records:
                results.check(name, self.recorder.digest(self._paths[name]))
        return [ImageTask(number, name, self._paths[name]) for number, name in enumerate(_waiting(self.names, results))]

    def images(self, names: Sequence[str]) -> dict[str, Image]:
        """Read the named images again and return them by name."""
        return {name: self._read(self._paths[name]) for name in names}


class VideoInput:
    """Evenly spaced frames of a video as the input of an evaluation, each with the next frame."""

    def __init__(self, source: Source, index: str, limit: int, trained: TrainedImages) -> None:
        self._source, self._trained = source, trained
        self.recording: str | None = index
        total = sum(1 for _ in self._frames(threading.Event()))
        self._index_of = {f"frame {index:06d}": index for index in evenly_spaced(max(1, total - 1), limit)}
        self.names = list(self._index_of)

    def evaluate(self, evaluator: Evaluator, results: ResultsLog, stop: threading.Event) -> None:
        """Decode the video, evaluate the sampled frames, and compare each with the next frame."""
        waiting = {self._index_of[name]: name for name in _waiting(self.names, results)}
        before: Frame | None = None
        with progress_bar() as progress:
            task = progress.add_task("evaluating", total=len(waiting))
            for frame in self._frames(stop) if waiting else ():
                if before is not None:
                    self._add(results, waiting.pop(before.index), evaluator, (before, frame))
                    progress.advance(task)
                before = frame if frame.index in waiting else None
                if before is None and not waiting:
                    return
            if before is not None and not stop.is_set():
                self._add(results, waiting.pop(before.index), evaluator, (before, None))

    def images(self, names: Sequence[str]) -> dict[str, Image]:
        """Decode the video again and return the named frames."""
        name_of = {self._index_of[name]: name for name in names}
        images = {}
        for frame in self._frames(threading.Event()) if name_of else ():
            if frame.index in name_of:
                images[name_of[frame.index]] = frame.image
            if len(images) == len(name_of):
                break
        return images

    def _add(self, results: ResultsLog, name: str, evaluator: Evaluator, pair: tuple[Frame, Frame | None]) -> None:
        """Evaluate a frame, compare it with the next frame, and add the record to ``results``."""
        frame, following = pair
        record = evaluator.evaluate(frame) | self._trained.mark(frame.image)
        if following is not None:
            record |= evaluator.compare_frames(frame, following, record["class"])
        source = frame.source_name or Path(self.recording or "").name
        at_seconds = round(frame.pts_seconds or 0.0, 3)
        results.add({"image": name, "source": source, "at_seconds": at_seconds, **record})

    def _frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frames of the video; for a damaged video, yield the frames before the damage."""
        try:
            with self._source as source:
                yield from source.frames(stop)
        except CorruptMediaError as reason:
            log.warning("%s", reason)


def _until(stop: threading.Event, tasks: Iterable[ImageTask]) -> Iterator[ImageTask]:
    for task in tasks:
        if stop.is_set():
            return
        yield task


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def file_digests(*places: str | Path | None) -> dict[str, str]:
    """Return the digests of all existing files among ``places``, by file name."""
    files = [Path(path) for path in places if path is not None and Path(path).is_file()]
    names = [file.name for file in files]
    return {file.name if names.count(file.name) == 1 else str(file): file_digest(file) for file in files}


def _waiting(names: Sequence[str], results: ResultsLog) -> list[str]:
    waiting = [name for name in names if name not in results.records]
    if len(waiting) < len(names):
        print_line(f"{len(names) - len(waiting)} of {len(names)} images were evaluated before; continuing.")
    return waiting
