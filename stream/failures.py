"""What went wrong, in words a person can act on, and whether it is worth trying again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import av.error

from stream.reconnect import Pace


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stream cannot be had right now. Holds no credentials: nothing of the URI is in it."""

    words: str
    pace: Pace = "quick"


# The first match counts, so the special stand above the general.
_BY_ERROR: Final[tuple[tuple[type[Exception], Failure], ...]] = (
    (av.error.HTTPUnauthorizedError, Failure("wrong or missing user name or password (401 unauthorised)", "slow")),
    (av.error.HTTPForbiddenError, Failure("this user may not see it (403 forbidden)", "slow")),
    (av.error.HTTPNotFoundError, Failure("no such stream there: check the path (404 not found)", "slow")),
    (av.error.HTTPTooManyRequestsError, Failure("the server asks for fewer attempts (429)", "slow")),
    (av.error.HTTPClientError, Failure("the server refuses the request (4xx): check the address", "slow")),
    (av.error.HTTPServerError, Failure("the server itself has a fault (5xx)")),
    (av.error.ConnectionRefusedError, Failure("connection refused: nothing listens at this host and port")),
    (av.error.ConnectionResetError, Failure("the connection was reset by the other side")),
    (av.error.BrokenPipeError, Failure("the connection was closed by the other side")),
    (av.error.EOFError, Failure("the stream ended")),
    # Also what FFmpeg says when the other side hangs up before it has answered, as one that still starts does.
    (av.error.InvalidDataError, Failure("what comes from there is no video that can be read")),
    (av.error.ProtocolNotFoundError, Failure("this build of FFmpeg does not speak the protocol", "never")),
    (av.error.DecoderNotFoundError, Failure("this build of FFmpeg cannot decode its codec", "never")),
    (av.error.DemuxerNotFoundError, Failure("this build of FFmpeg cannot read its format", "never")),
    (av.error.FileNotFoundError, Failure("it is not there")),
    (av.error.PermissionError, Failure("permission denied", "slow")),
    # FFmpeg has one error, EIO, for all of these.
    (OSError, Failure("cannot be read: unknown host name, no network, or what comes is no video")),
)


def failure_of(error: Exception, *, waited_for: str, seconds: float) -> Failure:
    """Return what ``error`` of FFmpeg means; ``waited_for`` and ``seconds`` tell what a timeout cut short."""
    if isinstance(error, (av.error.ExitError, av.error.TimeoutError)):
        return Failure(f"no {waited_for} for {seconds:g} s")
    for kind, failure in _BY_ERROR:
        if isinstance(error, kind):
            return failure
    return Failure(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no more is known'}")
