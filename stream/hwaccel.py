"""Selects the decoder of a stream: the CPU, or an NVIDIA GPU (NVDEC).

FFmpeg copies each frame from the GPU to host memory at once, as nv12 or p010, unless frames stay on the GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import av
import av.error
from av.codec import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from pipeline.device_image import CopyPlanes
from pipeline.errors import SourceError
from stream.cuda_context import primary_context
from stream.failures import Failure

log = logging.getLogger(__name__)

_CPU: Final = "set decoder: cpu, or auto, which uses the GPU only for streams that it can decode"
_VIDEO_PART: Final = "in a Docker container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
# First choice: the primary CUDA context, shared by all cameras of a GPU and by the network, current in this thread.
# Second: the primary context, opened by FFmpeg, which fails if another library has opened it. Last: one context per
# stream, which takes about 400 MB of GPU memory.
_CURRENT: Final[dict[str, object]] = {"current_ctx": "1"}
_CONTEXTS: Final[tuple[dict[str, object], ...]] = (_CURRENT, {"primary_ctx": "1"}, {})
# Frames that stay on the GPU must be in the network's context. PyAV adds primary_ctx=1 unless it is given, and FFmpeg
# refuses both.
_CURRENT_OF_FRAMES: Final[dict[str, object]] = {**_CURRENT, "primary_ctx": "0"}
_CONTEXTS_OF_FRAMES: Final[tuple[dict[str, object], ...]] = (_CURRENT_OF_FRAMES, {"primary_ctx": "1"})
# FFmpeg's errors for failures of the GPU while a stream is opened; they are never caused by networks or files.
_GPU_ERRORS: Final = (av.error.ExternalError, av.error.UnknownError)


class Readable(Protocol):
    """A file open for reading."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end."""
        ...


class HardwareDecoderUnavailableError(Exception):
    """No GPU is available for decoding; the message states the reason."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A GPU that has been opened."""

    request: HWAccel
    """Passed to FFmpeg with each stream."""
    context: HWAccel
    """Keeps the GPU's context until the process ends, so that the next camera shares it."""


_OPENED: Final[dict[tuple[int, bool], _Opened]] = {}  # by GPU, and whether frames stay on it
_LOCK: Final = threading.Lock()  # cameras that connect at the same time open the GPU once


def cuda_hwaccel(gpu: int, *, keep_frames: bool = False) -> HWAccel:
    """Return ``av.open``'s ``hwaccel`` for ``cuda:gpu``; opens the GPU once.

    Call ``av.open`` within ``primary_context(gpu)``: FFmpeg opens the GPU again for each stream, with the same options.

    Args:
        gpu: the GPU's number.
        keep_frames: True: decoded frames stay in the GPU's memory; False: FFmpeg downloads them.

    Raises:
        HardwareDecoderUnavailableError: there is no driver or no such GPU, or FFmpeg was built without CUDA.
    """
    if "cuda" not in hwdevices_available():
        raise HardwareDecoderUnavailableError("this build of FFmpeg does not support NVIDIA GPUs")
    with _LOCK:
        key = (gpu, keep_frames)
        if key not in _OPENED:
            _OPENED[key] = _open(gpu, keep_frames=keep_frames)
        return _OPENED[key].request


def available_hwaccels() -> str:
    """Return the hardware decoders that this FFmpeg supports, as text."""
    return ", ".join(hwdevices_available()) or "none"


def _open(gpu: int, *, keep_frames: bool) -> _Opened:
    choices = _CONTEXTS_OF_FRAMES if keep_frames else _CONTEXTS
    with primary_context(gpu) as is_current:
        usable = [options for options in choices if is_current or "current_ctx" not in options]
        return _open_by(gpu, usable, keep_frames=keep_frames)


def _open_by(gpu: int, choices: Sequence[Mapping[str, object]], *, keep_frames: bool = False) -> _Opened:
    """Open a GPU with the first of ``choices`` (FFmpeg's options) that works."""
    last_error: Exception | None = None
    for options in choices:
        request = HWAccel(
            "cuda",
            device=str(gpu),
            allow_software_fallback=True,
            options=dict(options),
            is_hw_owned=keep_frames,
        )
        try:
            return _Opened(request, request.create(Codec("h264", "r")))
        except av.error.PermissionError:  # FFmpeg raises it for a library that cannot be loaded
            raise HardwareDecoderUnavailableError("no NVIDIA driver is installed") from None
        except (av.error.FFmpegError, OSError, NotImplementedError) as error:
            last_error = error
    raise HardwareDecoderUnavailableError(f"its driver reports {type(last_error).__name__}: {last_error}")


class DecoderSelector:
    """Selects the decoder of one camera or file; logs each change."""

    def __init__(
        self,
        choice: str = "cpu",
        *,
        gpu: int = 0,
        reason_against_gpu: str = "",
        max_pixels: int | None = None,
        copy_planes: CopyPlanes | None = None,
    ) -> None:
        """Create a selector; nothing is opened yet.

        Args:
            choice: ``cpu``; ``cuda`` or ``cuda:N`` (an error if that GPU cannot decode); ``auto`` (the GPU if it can
                decode, else the CPU).
            gpu: the number of the GPU for ``cuda`` and ``auto``.
            reason_against_gpu: why the GPU is unsuitable for this stream; if set, ``auto`` uses the CPU.
            max_pixels: maximum pixels of a frame; None: no limit.
            copy_planes: copies a frame within the GPU's memory, where it then stays; None: frames are downloaded.
        """
        self.max_pixels = max_pixels
        self.copy_planes = copy_planes
        """Copies a frame within the GPU's memory, where it then stays; None: frames are downloaded."""
        self._choice = choice
        self._gpu = int(choice[5:]) if choice.startswith("cuda:") else gpu
        self._reason_against_gpu = reason_against_gpu
        self._rejected = (
            reason_against_gpu if choice == "auto" else ""
        )  # why the CPU decodes although ``choice`` allows a GPU
        self._has_decoded = False  # whether the GPU has decoded this stream before
        self._reported = ""
        self.opened_on_gpu = False
        """True if the last stream was opened on the GPU."""

    @property
    def wants_gpu(self) -> bool:
        """True if the next stream will be opened on the GPU."""
        return self._choice != "cpu" and not self._rejected

    @property
    def _requires_gpu(self) -> bool:
        return self._choice.startswith("cuda")

    def check(self) -> None:
        """Raise ``SourceError`` if a GPU is required and none is available."""
        self._hwaccel()

    def open(
        self,
        uri: str | Readable,
        *,
        options: dict[str, str],
        timeout: tuple[float | None, float | None] | None = None,
        form: str | None = None,
    ) -> InputContainer:
        """Open ``uri`` with FFmpeg.

        Args:
            uri: an address, a path, or an open file.
            options: FFmpeg's options of protocol and container.
            timeout: time limits in seconds for opening and for each read.
            form: FFmpeg's name of the demuxer; None: FFmpeg detects it.

        Raises:
            SourceError: a GPU is required and none is available.
            av.error.FFmpegError: FFmpeg cannot open the input.
        """
        if self.max_pixels is not None:  # FFmpeg decodes the first frames while it opens
            options = {**options, "max_pixels": str(self.max_pixels * 5 // 4 + (1 << 16))}
        hwaccel = self._hwaccel()
        self.opened_on_gpu, reason = hwaccel is not None, ""
        try:
            # Camera names and old titles may be in any encoding, or invalid bytes.
            with primary_context(self._gpu) if self.opened_on_gpu else nullcontext():
                return av.open(
                    uri, "r", format=form, options=options, timeout=timeout, metadata_errors="replace", hwaccel=hwaccel
                )
        except av.error.ArgumentError:
            if "format_whitelist" not in options:
                raise
            raise av.error.InvalidDataError(0, "the container format is not allowed") from None
        except _GPU_ERRORS as error:
            if not self.opened_on_gpu or self._requires_gpu:
                raise
            reason = f"cuda:{self._gpu} fails ({type(error).__name__})"
            if not isinstance(uri, str):  # the file was read in part already and cannot be opened again here
                self._rejected = reason
                raise
        container = av.open(uri, "r", format=form, options=options, timeout=timeout, metadata_errors="replace")
        self.opened_on_gpu, self._rejected = False, reason
        return container

    def verify_first_frame(self, context: VideoCodecContext, camera: str, *, has_frame: bool = True) -> Failure | None:
        """Check after the first frame whether the CPU or the GPU decodes, and log it.

        Args:
            context: the decoder's context after the first frame.
            camera: the camera's name, for the log.
            has_frame: False: the stream ended without a frame.

        Returns:
            The failure if a GPU is required and does not decode; else None. If ``auto`` falls back to the CPU,
            ``wants_gpu`` is False afterwards.
        """
        if self.opened_on_gpu and has_frame and context.is_hwaccel and context.pix_fmt == "cuda":
            self._has_decoded = True
            self._report(
                camera,
                f"decoded on cuda:{self._gpu}"
                + (f", although {self._reason_against_gpu}" if self._reason_against_gpu else ""),
            )
            return None
        if self.opened_on_gpu:
            reason = _refusal(context, self._gpu) if has_frame else f"cuda:{self._gpu} decodes no frame"
            if self._requires_gpu:
                message = f"decoder: {self._choice}: {reason}; {_CPU}"
                return Failure(message, "slow" if self._has_decoded else "never", "codec", hint="")
            self._rejected = reason
        if self._rejected:
            self._report(camera, f"decoded on the CPU: {self._rejected}")
        return None

    def _hwaccel(self) -> HWAccel | None:
        """Return the argument ``hwaccel`` of ``av.open`` for the next stream; None: CPU."""
        if not self.wants_gpu:
            return None
        try:
            return cuda_hwaccel(self._gpu, keep_frames=self.copy_planes is not None)
        except HardwareDecoderUnavailableError as error:
            reason = f"cuda:{self._gpu} cannot decode: {error}"
            if self._requires_gpu:
                message = f"decoder: {self._choice}: {reason}; nvidia-smi should list the GPU; {_CPU}"
                raise SourceError(message) from None
            self._rejected = reason
            return None

    def _report(self, camera: str, message: str) -> None:
        if message != self._reported:
            log.info("%s: %s", camera, message)
            self._reported = message


def _refusal(context: VideoCodecContext, gpu: int) -> str:
    if not context.is_hwaccel:
        return f"FFmpeg decodes {context.name} on the CPU only"
    kind = f"{context.name}, {context.pix_fmt}, {context.width}x{context.height}"
    return f"cuda:{gpu} does not decode this stream ({kind}; {_VIDEO_PART})"
