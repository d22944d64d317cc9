"""Classification of stream errors: message, cause, and whether to retry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import av.error

from pipeline.ports import Cause
from pipeline.rtsp_messages import RtspMessageError
from stream.reconnect import RetryClass


@dataclass(frozen=True, slots=True)
class Failure:
    """The description of a failure to read a stream; contains no part of the URI."""

    message: str
    retry_class: RetryClass = "quick"
    cause: Cause = "unreachable"
    hint: str = "check the address, and that the camera is on"
    """Remedy, shown after the last attempt; "" if the message already contains it."""


class FailureError(OSError):
    """A stream cannot be read; the attribute ``failure`` describes why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class StreamEndedError(FailureError):
    """A finite stream has ended."""

    def __init__(self) -> None:
        super().__init__(Failure("the stream ended", cause="ended"))


_UNAUTHORISED: Final = Failure(
    "wrong or missing user name or password (401 unauthorised)", "slow", cause="unauthorised"
)
_FORBIDDEN: Final = Failure("this user has no permission (403 forbidden)", "slow", cause="unauthorised")
_NOT_FOUND: Final = Failure("no such stream: check the path (404 not found)", "slow", cause="not found")
_TOO_MANY: Final = Failure("the server receives too many requests (429)", "slow", cause="refused")
_REFUSED: Final = Failure("the server refuses the request (4xx): check the address", "slow", cause="refused")
_SERVER_ERROR: Final = Failure("the server has an internal error (5xx)", cause="server")

_BY_STATUS: Final = {401: _UNAUTHORISED, 403: _FORBIDDEN, 404: _NOT_FOUND, 429: _TOO_MANY}

# The first match counts, so subclasses come first. FFmpeg's errors are subclasses of Python's of the same meaning.
_BY_ERROR: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    (av.error.HTTPUnauthorizedError, _UNAUTHORISED),
    (av.error.HTTPForbiddenError, _FORBIDDEN),
    (av.error.HTTPNotFoundError, _NOT_FOUND),
    (av.error.HTTPTooManyRequestsError, _TOO_MANY),
    (av.error.HTTPClientError, _REFUSED),
    (av.error.HTTPServerError, _SERVER_ERROR),
    (
        ConnectionRefusedError,
        Failure("connection refused: no server listens at this host and port", cause="refused"),
    ),
    (ConnectionResetError, Failure("the connection was reset by the other side", cause="ended")),
    (BrokenPipeError, Failure("the connection was closed by the other side", cause="ended")),
    (EOFError, Failure("the stream ended", cause="ended")),
    # FFmpeg also raises this error if the server closes the connection before it answers, as cameras do while they
    # start.
    (av.error.InvalidDataError, Failure("the data received is not a video that can be read", cause="corrupt")),
    (
        av.error.ProtocolNotFoundError,
        Failure("this build of FFmpeg does not support the protocol", "never", cause="codec"),
    ),
    (
        av.error.DecoderNotFoundError,
        Failure("this build of FFmpeg cannot decode the codec of the stream", "never", cause="codec"),
    ),
    (
        av.error.DemuxerNotFoundError,
        Failure("this build of FFmpeg cannot read the format of the stream", "never", cause="codec"),
    ),
    (
        av.error.ExternalError,
        Failure("a library that FFmpeg calls failed, such as the driver of the decoding GPU", cause="codec"),
    ),
    (RtspMessageError, Failure("the camera sends an RTSP message that is too large", "slow", cause="corrupt")),
    (FileNotFoundError, Failure("the file or device does not exist", cause="not found")),
    (PermissionError, Failure("permission denied", "slow", cause="unauthorised")),
    # FFmpeg has one error, EIO, for all of these causes.
    (OSError, Failure("cannot be read: unknown host name, no network, or the data is not a video")),
)


def classify_error(error: Exception, *, waited_for: str, seconds: float) -> Failure:
    """Return the failure that describes ``error``.

    Args:
        error: an error of FFmpeg or the system, or a ``FailureError``.
        waited_for: what a timeout interrupted: ``answer`` or ``frame``.
        seconds: the time limit that was exceeded.
    """
    if isinstance(error, FailureError):
        return error.failure
    if isinstance(error, (av.error.ExitError, TimeoutError)):
        return Failure(f"no {waited_for} for {seconds:g} s", cause="stalled" if waited_for == "frame" else "timeout")
    for kind, failure in _BY_ERROR:
        if isinstance(error, kind):
            return failure
    return Failure(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no further information'}")


def failure_of_status(status: int) -> Failure:
    """Return the failure that describes an HTTP status of 400 or above."""
    return _BY_STATUS.get(status, _SERVER_ERROR if status >= 500 else _REFUSED)
