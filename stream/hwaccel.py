"""Where a stream is decoded: on the CPU, or by the decoder of an NVIDIA card (NVDEC).

What the card decoded comes down to host memory at once, as nv12 or p010: whoever reads the picture sees no difference.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final, Protocol

import av
import av.error
from av.codec import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext

from pipeline.errors import SourceError
from stream.failures import Failure

log = logging.getLogger(__name__)

_CPU: Final = "decoder: cpu needs none of it, auto takes the card only where it can"
_VIDEO_PART: Final = "in a container its driver needs NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
# One context for all cameras of a card, the network's, where FFmpeg may still have it its way; else one for each
# stream, some 400 MB of the card's memory. FFmpeg refuses to share a context that somebody else has begun.
_CONTEXTS: Final[tuple[dict[str, object], ...]] = ({"primary_ctx": "1"}, {})
# How FFmpeg calls what goes wrong at the card while a stream is opened; no network and no file has these names.
_GPU_OPTIONS: Final = (av.error.ExternalError, av.error.UnknownError)


class Readable(Protocol):
    """A file that is open for reading."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end."""
        ...


class HardwareDecoderUnavailableError(Exception):
    """No card can be had to decode on; says why."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A card that has opened once."""

    asked: HWAccel
    """What FFmpeg is asked for with each stream."""
    held: HWAccel
    """Keeps the card's context for the life of the process, so that the next camera shares it."""


_OPENED: Final[dict[int, _Opened]] = {}
_ONE_AT_A_TIME: Final = threading.Lock()  # cameras that connect at the same moment open the card once


def cuda_hwaccel(gpu: int) -> HWAccel:
    """Return what ``av.open`` takes to decode on ``cuda:card``; opens the card at the first call.

    Raises:
        HardwareDecoderUnavailableError: no driver, no such card, or no FFmpeg that knows of cards.
    """
    if "cuda" not in hwdevices_available():
        raise HardwareDecoderUnavailableError("this build of FFmpeg decodes on no NVIDIA card")
    with _ONE_AT_A_TIME:
        if gpu not in _OPENED:
            _OPENED[gpu] = _open(gpu)
        return _OPENED[gpu].asked


def available_hwaccels() -> str:
    """Return the kinds of hardware this FFmpeg was built to decode on, for people to read."""
    return ", ".join(hwdevices_available()) or "none"


def _open(gpu: int) -> _Opened:
    why: Exception | None = None
    for options in _CONTEXTS:
        asked = HWAccel("cuda", device=str(gpu), allow_software_fallback=True, options=dict(options))
        try:
            return _Opened(asked, asked.create(Codec("h264", "r")))
        except av.error.PermissionError:  # FFmpeg's word for a library that cannot be loaded
            raise HardwareDecoderUnavailableError("no NVIDIA driver is here") from None
        except (av.error.FFmpegError, OSError, NotImplementedError) as reason:
            why = reason
    raise HardwareDecoderUnavailableError(f"its driver refuses ({type(why).__name__}: {why})")


class DecoderSelector:
    """What decodes one camera or file, across all its connections; logs where, once and whenever it changes."""

    def __init__(
        self, choice: str = "cpu", *, gpu: int = 0, reason_against_gpu: str = "", max_pixels: int | None = None
    ) -> None:
        """Decide nothing yet.

        Args:
            choice: ``cpu``, ``cuda`` or ``cuda:N`` (the card or an error), ``auto`` (the card where it can).
            gpu: the number that ``cuda`` and ``auto`` mean.
            reason_against_gpu: what is worse about this stream on a card; ``auto`` then keeps to the CPU.
            max_pixels: how many pixels a picture may have; None: any number.
        """
        self.max_pixels = max_pixels
        self._choice = choice
        self._gpu = int(choice[5:]) if choice.startswith("cuda:") else gpu
        self._reason_against_gpu = reason_against_gpu
        self._rejected = reason_against_gpu if choice == "auto" else ""  # why the CPU does it though a card was to
        self._has_decoded = False  # whether the card has decoded this stream before
        self._reported = ""
        self.opened_on_gpu = False
        """Whether the stream opened last was opened for the card."""

    @property
    def wants_gpu(self) -> bool:
        """Whether the next stream is to be opened for the card."""
        return self._choice != "cpu" and not self._rejected

    @property
    def _must(self) -> bool:
        return self._choice.startswith("cuda")

    def check(self) -> None:
        """Raise ``SourceError`` where it must be the card and none can be had."""
        self._accelerator()

    def open(
        self,
        uri: str | Readable,
        *,
        options: dict[str, str],
        timeout: tuple[float | None, float | None] | None = None,
        form: str | None = None,
    ) -> InputContainer:
        """Open ``uri``, an address or a file that is open, as FFmpeg does; ``form`` names FFmpeg's demuxer.

        Raises ``SourceError`` like ``check``, and FFmpeg's own errors.
        """
        if self.max_pixels is not None:  # FFmpeg decodes the first pictures while it opens
            options = {**options, "max_pixels": str(self.max_pixels * 5 // 4 + (1 << 16))}
        accelerated = self._accelerator()
        self.opened_on_gpu, why = accelerated is not None, ""
        try:
            # What a camera calls itself, and old titles, may be in any encoding, or noise.
            return av.open(
                uri, "r", format=form, options=options, timeout=timeout, metadata_errors="replace", hwaccel=accelerated
            )
        except av.error.ArgumentError:
            if "format_whitelist" not in options:
                raise
            raise av.error.InvalidDataError(0, "a format that is not allowed here") from None
        except _GPU_OPTIONS as reason:
            if not self.opened_on_gpu or self._must:
                raise
            why = f"cuda:{self._gpu} fails ({type(reason).__name__})"
            if not isinstance(uri, str):  # some of it has been read
                self._rejected = why
                raise
        container = av.open(uri, "r", format=form, options=options, timeout=timeout, metadata_errors="replace")
        self.opened_on_gpu, self._rejected = False, why
        return container

    def verify_first_frame(
        self, context: VideoCodecContext, camera: str, *, gave_picture: bool = True
    ) -> Failure | None:
        """Judge by the first picture of the stream opened last; log where it is decoded.

        Returns:
            What is wrong where it must be the card and is not. None: all is well; where ``auto`` falls back it no
            longer asks for the card.
        """
        if self.opened_on_gpu and gave_picture and context.is_hwaccel and context.pix_fmt == "cuda":
            self._has_decoded = True
            self._report(
                camera,
                f"decoded on cuda:{self._gpu}"
                + (f", though {self._reason_against_gpu}" if self._reason_against_gpu else ""),
            )
            return None
        if self.opened_on_gpu:
            why = _refusal(context, self._gpu) if gave_picture else f"cuda:{self._gpu} gives no picture"
            if self._must:
                words = f"decoder: {self._choice}: {why}; {_CPU}"
                return Failure(words, "slow" if self._has_decoded else "never", "codec", hint="")
            self._rejected = why
        if self._rejected:
            self._report(camera, f"decoded on the CPU: {self._rejected}")
        return None

    def _accelerator(self) -> HWAccel | None:
        """Return what asks for the card; None for the CPU."""
        if not self.wants_gpu:
            return None
        try:
            return cuda_hwaccel(self._gpu)
        except HardwareDecoderUnavailableError as reason:
            why = f"nothing decodes on cuda:{self._gpu}: {reason}"
            if self._must:
                message = f"decoder: {self._choice}: {why}; nvidia-smi should list it; {_CPU}"
                raise SourceError(message) from None
            self._rejected = why
            return None

    def _report(self, camera: str, words: str) -> None:
        if words != self._reported:
            log.info("%s: %s", camera, words)
            self._reported = words


def _refusal(context: VideoCodecContext, gpu: int) -> str:
    if not context.is_hwaccel:
        return f"FFmpeg's {context.name} decoder works on the CPU only"
    kind = f"{context.name}, {context.pix_fmt}, {context.width}x{context.height}"
    return f"cuda:{gpu} does not take this stream ({kind}; {_VIDEO_PART})"
