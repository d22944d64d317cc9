"""What an evaluation looks at: pictures, or a video, of which frames and their successors are sampled."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from commands.annotations import Annotations, read_paths
from commands.console import print_line, progress_bar
from commands.images import ReadImage, open_images, writable_names
from commands.trained_images import Learned
from pipeline.errors import ConfigError, CorruptMediaError, SourceError
from pipeline.frames import Frame, Image

if TYPE_CHECKING:
    from engine.evaluation.evaluator import Evaluator
    from engine.evaluation.results import ResultsLog
    from pipeline.ports import Source

log = logging.getLogger("recipro-stream")

VIDEO_LIMIT: Final = 100
"""How many frames of a video are measured when nobody says."""


class EvaluationInput(Protocol):
    """Pictures with names, to be measured and to be seen again."""

    @property
    def names(self) -> Sequence[str]:
        """The chosen ones, in their order."""

    @property
    def recording(self) -> str | None:
        """The one file they all come from, if there is one."""

    def examine(self, evaluator: Evaluator, results: ResultsLog, stop: threading.Event) -> None:
        """Measure those that the journal does not hold yet, until there are none or ``stop`` is set."""

    def images(self, names: Sequence[str]) -> dict[str, Image]:
        """Return pictures by name."""


def open_input(place: str, limit: int | None, known: Annotations, learned: Learned) -> EvaluationInput:
    """Return what a path names: one video file, or a folder, glob or list of pictures.

    Args:
        place: the path.
        limit: at most so many pictures.
        known: where objects lie.
        learned: what the network has learned from.

    Raises:
        ConfigError: boxes or masks for a video.
        SourceError: there is nothing of the kind.
    """
    from stream.file import FileSource
    from stream.images import found_images
    from stream.sources import IMAGE_SUFFIXES, build_source

    place, read, _ = open_images(place)
    if place.endswith(".txt"):
        paths = read_paths(Path(place))
        named = {str(path): path for path in paths}
        if len(named) < len(paths):
            log.warning(
                "%s: %d of its lines name a picture once more; each is measured once", place, len(paths) - len(named)
            )
        return ImageInput(named, limit, known, learned, read)
    if Path(place).is_file() and isinstance(source := build_source(place), FileSource):
        if known.truths_of or known.mask_of:
            raise ConfigError(f"--boxes, --masks: {place} is a video; they go with pictures, give a folder of those")
        return VideoInput(source, place, VIDEO_LIMIT if limit is None else limit, learned)
    in_folder = Path(place).is_dir()
    paths = writable_names(found_images(place, IMAGE_SUFFIXES))
    named = {path.name if in_folder else str(path): path for path in paths}
    if not named:
        raise ConfigError(f"{place}: none of its pictures has a name that a list can hold; give them others")
    return ImageInput(named, limit, known, learned, read)


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of ``count`` places, evenly chosen."""
    return list(range(count)) if limit is None or limit >= count else [k * count // limit for k in range(limit)]


class ImageInput:
    """Pictures in files."""

    recording = None

    def __init__(
        self, paths: dict[str, Path], limit: int | None, known: Annotations, learned: Learned, read: ReadImage
    ) -> None:
        every = list(paths)
        self.names = [every[place] for place in evenly_spaced(len(every), limit)]
        self._paths = paths
        self._known, self._learned, self._read = known, learned, read
        known.check("--boxes" if known.mask_of is None else "--masks", list(paths.values()))

    def examine(self, evaluator: Evaluator, results: ResultsLog, stop: threading.Event) -> None:
        """Measure one after the other; one that does not decode is left out."""
        for name in self.names:
            if name in results.records:
                results.check(name, self._digest(name))
        waiting = _waiting(self.names, results)
        with progress_bar() as progress:
            for index, name in enumerate(progress.track(waiting, description="measuring")):
                if stop.is_set():
                    return
                try:
                    image = self._read(self._paths[name])
                except SourceError as reason:
                    log.warning("left out: %s", reason)
                    continue
                frame = Frame(image, "evaluate", index, 0.0, source_name=name)
                told = _measured(evaluator, frame, self._paths[name], self._known) | self._learned.mark(image)
                digest = {"digest": file_digest(self._paths[name]), "of": self._digest(name)}
                results.add({"image": name, "source": frame.source_name, **told, **digest})

    def images(self, names: Sequence[str]) -> dict[str, Image]:
        """Read the files again."""
        return {name: self._read(self._paths[name]) for name in names}

    def _digest(self, name: str) -> str:
        """Return what only the same picture with the same truth has; one that is gone has its own."""
        path = self._paths[name]
        found = hashlib.sha256()
        for one in (path, self._known.file_of(path)):
            with suppress(OSError):
                found.update(hashlib.sha256(one.read_bytes() if one else b"").digest())
        return found.hexdigest()[:16]


class VideoInput:
    """Frames of a recording, evenly chosen, each with the one that follows it."""

    def __init__(self, source: Source, place: str, limit: int, learned: Learned) -> None:
        self._source, self._learned = source, learned
        self.recording: str | None = place
        total = sum(1 for _ in self._frames(threading.Event()))
        self._places = {f"frame {index:06d}": index for index in evenly_spaced(max(1, total - 1), limit)}
        self.names = list(self._places)

    def examine(self, evaluator: Evaluator, results: ResultsLog, stop: threading.Event) -> None:
        """Decode everything, measure what was chosen, and compare it with its successor."""
        waiting = {self._places[name]: name for name in _waiting(self.names, results)}
        before: Frame | None = None
        with progress_bar() as progress:
            task = progress.add_task("measuring", total=len(waiting))
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
        """Decode them again."""
        wanted = {self._places[name]: name for name in names}
        found = {}
        for frame in self._frames(threading.Event()) if wanted else ():
            if frame.index in wanted:
                found[wanted[frame.index]] = frame.image
            if len(found) == len(wanted):
                break
        return found

    def _add(self, results: ResultsLog, name: str, evaluator: Evaluator, pair: tuple[Frame, Frame | None]) -> None:
        """Measure a frame, and compare it with the one that follows it."""
        frame, following = pair
        told = evaluator.evaluate(frame) | self._learned.mark(frame.image)
        if following is not None:
            told |= evaluator.compare_frames(frame, following, told["class"])
        source = frame.source_name or Path(self.recording or "").name
        at_seconds = round(frame.pts_seconds or 0.0, 3)
        results.add({"image": name, "source": source, "at_seconds": at_seconds, **told})

    def _frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Give every good frame; one broken part-way gives what came before."""
        try:
            with self._source as source:
                yield from source.frames(stop)
        except CorruptMediaError as reason:
            log.warning("%s", reason)


def _measured(evaluator: Evaluator, frame: Frame, path: Path, known: Annotations) -> dict[str, Any]:
    """Return what is measured on one picture; where its folder is called like a class, whether it is named right."""
    size = frame.height, frame.width
    truths = None if known.truths_of is None else known.truths_of(path, size)
    mask = None if known.mask_of is None else known.mask_of(path, size)
    told = evaluator.evaluate(frame, truths, mask)
    folder = path.resolve().parent.name
    return told | {"right": told["label"] == folder} if folder in evaluator.labels else told


def file_digest(place: Path) -> str:
    """Return what only a file of the same content has: the first 16 digits of its SHA-256."""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _waiting(names: Sequence[str], results: ResultsLog) -> list[str]:
    waiting = [name for name in names if name not in results.records]
    if len(waiting) < len(names):
        print_line(f"{len(names) - len(waiting)} of {len(names)} pictures were measured before; going on.")
    return waiting
