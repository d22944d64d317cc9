"""What went wrong, in words a person can act on, and whether it is worth trying again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import av.error

from pipeline.ports import Cause
from stream.reconnect import RetryClass


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stream cannot be had right now. Holds no credentials: nothing of the URI is in it."""

    message: str
    retry_class: RetryClass = "quick"
    cause: Cause = "unreachable"
    hint: str = "check that it is on, and the address"
    """What to do once it is given up; "" where the words say it."""


class FailureError(OSError):
    """A stream cannot be had, for a reason that is known already."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class StreamEndedError(FailureError):
    """A finite stream has come to its end."""

    def __init__(self) -> None:
        super().__init__(Failure("the stream ended", cause="ended"))


_UNAUTHORISED: Final = Failure(
    "wrong or missing user name or password (401 unauthorised)", "slow", cause="unauthorised"
)
_FORBIDDEN: Final = Failure("this user may not see it (403 forbidden)", "slow", cause="unauthorised")
_NOT_FOUND: Final = Failure("no such stream there: check the path (404 not found)", "slow", cause="not found")
_TOO_MANY: Final = Failure("the server asks for fewer attempts (429)", "slow", cause="refused")
_REFUSED: Final = Failure("the server refuses the request (4xx): check the address", "slow", cause="refused")
_FAULT: Final = Failure("the server itself has a fault (5xx)", cause="server")

_BY_STATUS: Final = {401: _UNAUTHORISED, 403: _FORBIDDEN, 404: _NOT_FOUND, 429: _TOO_MANY}

# The first match counts, so the special stand above the general. FFmpeg's errors are also Python's of the same meaning.
_BY_ERROR: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    (av.error.HTTPUnauthorizedError, _UNAUTHORISED),
    (av.error.HTTPForbiddenError, _FORBIDDEN),
    (av.error.HTTPNotFoundError, _NOT_FOUND),
    (av.error.HTTPTooManyRequestsError, _TOO_MANY),
    (av.error.HTTPClientError, _REFUSED),
    (av.error.HTTPServerError, _FAULT),
    (
        ConnectionRefusedError,
        Failure("connection refused: nothing listens at this host and port", cause="refused"),
    ),
    (ConnectionResetError, Failure("the connection was reset by the other side", cause="ended")),
    (BrokenPipeError, Failure("the connection was closed by the other side", cause="ended")),
    (EOFError, Failure("the stream ended", cause="ended")),
    # Also what FFmpeg says when the other side hangs up before it has answered, as one that still starts does.
    (av.error.InvalidDataError, Failure("what comes from there is no video that can be read", cause="corrupt")),
    (
        av.error.ProtocolNotFoundError,
        Failure("this build of FFmpeg does not speak the protocol", "never", cause="codec"),
    ),
    (av.error.DecoderNotFoundError, Failure("this build of FFmpeg cannot decode its codec", "never", cause="codec")),
    (av.error.DemuxerNotFoundError, Failure("this build of FFmpeg cannot read its format", "never", cause="codec")),
    (
        av.error.ExternalError,
        Failure("a library that FFmpeg calls failed, such as the driver of the card that decodes", cause="codec"),
    ),
    (FileNotFoundError, Failure("it is not there", cause="not found")),
    (PermissionError, Failure("permission denied", "slow", cause="unauthorised")),
    # FFmpeg has one error, EIO, for all of these.
    (OSError, Failure("cannot be read: unknown host name, no network, or what comes is no video")),
)


def classify_error(error: Exception, *, waited_for: str, seconds: float) -> Failure:
    """Return what ``error`` of FFmpeg means; ``waited_for`` and ``seconds`` tell what a timeout cut short."""
    if isinstance(error, FailureError):
        return error.failure
    if isinstance(error, (av.error.ExitError, TimeoutError)):
        return Failure(f"no {waited_for} for {seconds:g} s", cause="stalled" if waited_for == "picture" else "timeout")
    for kind, failure in _BY_ERROR:
        if isinstance(error, kind):
            return failure
    return Failure(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no more is known'}")


def failure_of_status(status: int) -> Failure:
    """Return what an HTTP status other than success means."""
    return _BY_STATUS.get(status, _FAULT if status >= 500 else _REFUSED)
