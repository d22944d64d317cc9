"""What went wrong, in words a person can act on, and whether it is worth trying again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import av.error

from pipeline.ports import Cause
from stream.reconnect import Pace


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stream cannot be had right now. Holds no credentials: nothing of the URI is in it."""

    words: str
    pace: Pace = "quick"
    cause: Cause = "unreachable"
    cure: str = "check that it is on, and the address"
    """What to do once it is given up; "" where the words say it."""


# The first match counts, so the special stand above the general.
_BY_ERROR: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    (
        av.error.HTTPUnauthorizedError,
        Failure("wrong or missing user name or password (401 unauthorised)", "slow", cause="unauthorised"),
    ),
    (av.error.HTTPForbiddenError, Failure("this user may not see it (403 forbidden)", "slow", cause="unauthorised")),
    (
        av.error.HTTPNotFoundError,
        Failure("no such stream there: check the path (404 not found)", "slow", cause="not found"),
    ),
    (av.error.HTTPTooManyRequestsError, Failure("the server asks for fewer attempts (429)", "slow", cause="refused")),
    (
        av.error.HTTPClientError,
        Failure("the server refuses the request (4xx): check the address", "slow", cause="refused"),
    ),
    (av.error.HTTPServerError, Failure("the server itself has a fault (5xx)", cause="server")),
    (
        av.error.ConnectionRefusedError,
        Failure("connection refused: nothing listens at this host and port", cause="refused"),
    ),
    (av.error.ConnectionResetError, Failure("the connection was reset by the other side", cause="ended")),
    (av.error.BrokenPipeError, Failure("the connection was closed by the other side", cause="ended")),
    (av.error.EOFError, Failure("the stream ended", cause="ended")),
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
    (av.error.FileNotFoundError, Failure("it is not there", cause="not found")),
    (av.error.PermissionError, Failure("permission denied", "slow", cause="unauthorised")),
    # FFmpeg has one error, EIO, for all of these.
    (OSError, Failure("cannot be read: unknown host name, no network, or what comes is no video")),
)


def failure_of(error: Exception, *, waited_for: str, seconds: float) -> Failure:
    """Return what ``error`` of FFmpeg means; ``waited_for`` and ``seconds`` tell what a timeout cut short."""
    if isinstance(error, (av.error.ExitError, av.error.TimeoutError)):
        return Failure(f"no {waited_for} for {seconds:g} s", cause="stalled" if waited_for == "picture" else "timeout")
    for kind, failure in _BY_ERROR:
        if isinstance(error, kind):
            return failure
    return Failure(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no more is known'}")
