"""Builds the cameras of a run from its configuration; adds, removes and replaces cameras during the run."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from commands.wiring.sinks import read_secrets
from pipeline.config import Config
from pipeline.device_image import CopyPlanes
from pipeline.errors import ConfigError, ReciproStreamError
from pipeline.ports import Discovery, Source, overflow_of
from pipeline.settings import Secret, SourceContext, SourceSettings

log = logging.getLogger("recipro-stream")


@dataclass(frozen=True, slots=True)
class Camera:
    """A configured video source; ``source.camera`` is its name, unique in the run."""

    source: Source
    settings: SourceSettings
    """The options of the source; its URI has environment variables expanded and credentials inserted."""
    context: SourceContext
    """Name, decoder, GPU index and secrets for the source."""

    @property
    def name(self) -> str:
        """The camera's name."""
        return self.source.camera

    def equals(self, other: Camera) -> bool:
        """Return whether both cameras have the same URI and options."""
        compared = (self.settings, self.context, self.source.overflow)
        return compared == (other.settings, other.context, other.source.overflow)


def with_all_cameras(config: Config) -> Config:
    """Return the configuration with one source entry per camera; a bag, for example, has several cameras."""
    from stream.cameras import cameras_of
    from stream.credentials import expand_env

    sources = [each for entry in config.sources for each in cameras_of(entry, expand_env(entry.uri, os.environ))]
    return config.model_copy(update={"sources": sources})


def make_cameras(config: Config) -> list[Camera]:
    """Return the cameras of a configuration, unopened.

    Raises:
        ReciproStreamError: a source, its address or its secret file is invalid.
    """
    from stream.redact import host_and_path
    from stream.settings import GenicamSettings
    from stream.sources import build_source, plain_name, unique_names

    gpu = int(config.engine.device.partition(":")[2] or 0)  # images are decoded on the device that explains them
    cameras = []
    for entry in config.sources:
        secrets = read_secrets(entry)
        # The name comes from the URI without credentials: an @ in the path would be ambiguous.
        name = entry.name or (host_and_path(entry.uri) if "credentials_file" in secrets else None)
        settings = entry.model_copy(update={"uri": _address(entry, secrets)})
        if isinstance(settings, GenicamSettings) and settings.producer is None:
            settings = settings.model_copy(update={"producer": os.environ.get("GENICAM_GENTL64_PATH")})
        copy_planes = _plane_copier(config, entry) if getattr(entry, "device_frames", False) else None
        context = SourceContext(name, config.decoder, gpu, secrets, copy_planes)
        source = build_source(settings, context=context)
        source.overflow = entry.overflow or config.overflow or source.overflow
        source.input_area = entry.input_area
        cameras.append(Camera(source, settings, context))
    names = [camera.settings.name or plain_name(camera.name) for camera in cameras]
    for camera, unique in zip(cameras, unique_names(names), strict=True):
        camera.source.camera = unique
    return cameras


def _plane_copier(config: Config, entry: SourceSettings) -> CopyPlanes:
    """Return the function that keeps a source's frames on the engine's GPU. Raises ``ConfigError`` without one."""
    from engine.gpu.decoded import plane_copier
    from engine.runtime.devices import choose_device
    from stream.redact import redact

    device = choose_device(config.engine.device)
    decoder = getattr(entry, "decoder", None) or config.decoder
    if device.type != "cuda":
        remedy = "set engine.device: cuda, or remove device_frames"
        raise ConfigError(f"{redact(entry.uri)}: device_frames needs a GPU, but the engine runs on {device}; {remedy}")
    if decoder == "cpu" or (decoder.startswith("cuda:") and decoder != str(device)):
        remedy = f"set decoder: {device}, or auto, or remove device_frames"
        raise ConfigError(f"{redact(entry.uri)}: device_frames needs a decoder on {device}, not {decoder}; {remedy}")
    return plane_copier(device)


def _address(source: SourceSettings, secrets: Mapping[str, Secret]) -> str:
    """Return the URI of a source, with variables expanded and the credentials of its ``credentials_file`` inserted."""
    from stream.credentials import expand_env, with_credentials

    uri = expand_env(source.uri, os.environ)
    secret = secrets.get("credentials_file")
    return uri if secret is None else with_credentials(uri, secret.text.strip("\r\n"), secret.path)


@dataclass(frozen=True, slots=True)
class CameraDiff:
    """Names of the cameras that differ between a run and a new configuration."""

    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]
    failed: Sequence[str]
    """Cameras among ``added`` and ``changed`` that could not be opened."""


class RunningCameras(Discovery):
    """Opens the cameras of a run; closes a camera when no thread reads it.

    A changed camera is removed first. After its last frame is delivered, a successor with the same name is added.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        claim: Callable[[str], None],
        release: Callable[[str], None] = lambda _camera: None,
    ) -> None:
        """Store the initial cameras of a run; entering opens them.

        Args:
            cameras: the cameras, unopened.
            claim: locks the output files of a camera that is added later; raises ``SinkError``. Called from any thread.
            release: unlocks the output files when the camera is removed. Called from any thread.
        """
        self._claim, self._release = claim, release
        # Protects the attributes below: ``apply`` runs in another thread.
        self._lock = threading.Lock()
        self._running = {camera.name: camera for camera in cameras}
        """Cameras in the run, and cameras in ``_added`` that join it next."""
        self._leaving: dict[str, Camera] = {}
        self._successors: dict[str, Camera] = {}
        """Open cameras that wait until the removed camera of the same name is closed."""
        self._added: deque[Camera] = deque()
        self._removed: deque[str] = deque()

    def __enter__(self) -> Self:
        entered: list[Camera] = []
        try:
            for camera in self._running.values():
                camera.source.__enter__()
                entered.append(camera)
        except BaseException:
            for camera in reversed(entered):
                _close(camera)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close all cameras, after the threads of the run have ended."""
        for camera in (*self._successors.values(), *self._leaving.values(), *self._running.values()):
            _close(camera)

    @property
    def present(self) -> frozenset[str]:
        """Names of all open cameras, including cameras that are being added or removed."""
        with self._lock:
            return frozenset({*self._running, *self._leaving, *self._successors})

    def drops_frames(self, camera: str) -> bool:
        """Return whether a camera's queue drops its oldest frames when the networks are too slow."""
        with self._lock:
            found = self._leaving.get(camera) or self._running.get(camera)
        return found is None or overflow_of(found.source, found.source.overflow) == "drop-oldest"

    def apply(self, wanted: Sequence[Camera]) -> CameraDiff:
        """Change the run's cameras to ``wanted`` (unopened).

        If a changed camera cannot be opened, the old camera stays. A new camera that cannot be opened is not added.
        """
        with self._lock:
            expected = {**self._running, **self._successors}
        names = {camera.name for camera in wanted}
        removed = [name for name in expected if name not in names]
        added = [camera for camera in wanted if camera.name not in expected]
        changed = [camera for camera in wanted if camera.name in expected and not camera.equals(expected[camera.name])]
        opened = {camera.name: camera for camera in (*added, *changed) if self._open(camera)}
        with self._lock:
            for name in (*removed, *(camera.name for camera in changed if camera.name in opened)):
                self._withdraw(name)
            for name, camera in opened.items():
                self._admit(name, camera)
        self.notify()
        failed = [camera.name for camera in (*added, *changed) if camera.name not in opened]
        return CameraDiff([c.name for c in added], [c.name for c in changed], removed, failed)

    def take(self) -> list[Source]:
        """Return the open sources that were added since the last call."""
        with self._lock:
            return [self._added.popleft().source for _ in range(len(self._added))]

    def take_removed(self) -> list[str]:
        """Return the names of the cameras to remove since the last call."""
        with self._lock:
            return [self._removed.popleft() for _ in range(len(self._removed))]

    def on_removed(self, source: Source) -> None:
        """Close a removed source and add its successor, if it has one."""
        with self._lock:
            _close(self._leaving.pop(source.camera))
            if successor := self._successors.pop(source.camera, None):
                self._running[source.camera] = successor
                self._added.append(successor)
            else:
                self._release(source.camera)
        log.info("camera %s: %s", source.camera, "reopened" if successor else "removed")
        self.notify()

    def _open(self, camera: Camera) -> bool:
        try:
            self._claim(camera.name)
            camera.source.__enter__()
        except (ReciproStreamError, OSError) as error:
            log.error("camera %s: cannot be opened: %s", camera.name, error)  # noqa: TRY400 - an expected error
            return False
        except Exception:
            log.exception("camera %s: cannot be opened", camera.name)  # a plug-in may raise any exception
            return False
        return True

    def _withdraw(self, name: str) -> None:
        """Remove a camera; close it at once if it has not joined the run yet."""
        if successor := self._successors.pop(name, None):
            _close(successor)
            return
        camera = self._running.pop(name)
        if camera in self._added:
            self._added.remove(camera)
            _close(camera)
            self._release(name)
            return
        self._leaving[name] = camera
        self._removed.append(name)

    def _admit(self, name: str, camera: Camera) -> None:
        if name in self._leaving:
            self._successors[name] = camera
        else:
            self._running[name] = camera
            self._added.append(camera)


def _close(camera: Camera) -> None:
    try:
        camera.source.__exit__(None, None, None)
    except Exception as error:  # noqa: BLE001 - the other cameras continue
        log.warning("camera %s: cannot be closed: %s", camera.name, error)
