"""Answers the questions of one viewer to the network: frames to hold, places to explain, and heat maps of classes.

A viewer can have one open question at a time, and a limited number per second. Every question gets a reply: the answer,
or an error text.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from overlays.render.jpeg import encode_image, scale_image
from overlays.wire.message import finding_record
from overlays.wire.text import replace_undecodable
from pipeline.errors import FrameGoneError, ReciproStreamError, WireError
from pipeline.frames import Box
from pipeline.queries import (
    Answer,
    ClassAnswer,
    ClassQuery,
    Influence,
    MapMode,
    PlaceAnswer,
    PlaceQueries,
    PlaceQuery,
    Query,
)

ANSWER_SECONDS: Final = 15.0
"""Time limit of an answer in seconds."""
MIN_INTERVAL_SECONDS: Final = 0.2
"""Minimum time between two questions in seconds."""
NO_DETECTOR: Final = "this page cannot ask the network: its frames come from another run, or questions are off"
QUESTIONS: Final = frozenset({"hold", "release", "why", "classes", "heat"})
"""Message keys that mark a question."""
MAX_PIXELS: Final = 1e6
MAX_IMAGE_PIXELS: Final = 1280
"""Maximum longer side of the image in an answer."""
JPEG_QUALITY: Final = 80
_CHOICES: Final = (["keep"], ["drop"], ["drop", "keep"])

Reply = dict[str, Any]


class ViewerQueries:
    """Answers the questions of one viewer. Only the event loop may use it."""

    def __init__(
        self,
        queries: PlaceQueries | None,
        cameras: Callable[[], Mapping[str, object]],
        send: Callable[[Reply], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the state of a viewer without a question.

        Args:
            queries: queue of questions to the network; None: every question is refused.
            cameras: returns the known cameras by their names on the page.
            send: sends a reply to the viewer.
            clock: returns monotonic seconds.
        """
        self._queries, self._cameras, self._send, self._clock = queries, cameras, send, clock
        self._task: asyncio.Task[None] | None = None
        self._asked_at = -math.inf

    async def handle(self, message: dict[str, Any]) -> None:
        """Start to answer a message that contains a key of ``QUESTIONS``; does not wait for the network."""
        number, queries = message.get("id"), self._queries
        if queries is None:
            await self._send(_failure(number, WireError(NO_DETECTOR)))
            return
        try:
            if "hold" in message:
                await self._send(_reply(number, self._hold(queries, message["hold"])))
            elif "release" in message:
                queries.frames.release(self)
            elif "classes" in message:
                labels = queries.labels if queries.kind == "classes" else ()
                await self._send(_reply(number, {"labels": [replace_undecodable(label) for label in labels]}))
            else:
                is_class, cameras = "heat" in message, self._cameras()
                query = read_class_query(message["heat"], cameras) if is_class else read_query(message["why"], cameras)
                self._check_rate()
                future = asyncio.wrap_future(queries.ask(query))
                self._task = asyncio.create_task(self._answer(number, query, future))
        except ReciproStreamError as error:
            await self._send(_failure(number, error))

    def close(self) -> None:
        """Cancel the open question and release the held frame."""
        if self._task is not None:
            self._task.cancel()
        if self._queries is not None:
            self._queries.frames.release(self)

    def _hold(self, queries: PlaceQueries, value: object) -> Reply:
        camera, index = _frame_of(value, self._cameras())
        queries.frames.hold(self, camera, index)
        return {"labels": [replace_undecodable(label) for label in queries.labels]}

    def _check_rate(self) -> None:
        now = self._clock()
        if self._task is not None and not self._task.done():
            raise WireError("your last question is being answered; ask again after it")
        if now - self._asked_at < MIN_INTERVAL_SECONDS:
            raise WireError(f"a viewer may ask one question every {MIN_INTERVAL_SECONDS:g} s; ask again later")
        self._asked_at = now

    async def _answer(self, number: object, query: Query, future: asyncio.Future[Answer]) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await future
            # In a thread, because it compresses an image.
            reply = _reply(number, await asyncio.to_thread(_record, query, answer))
        except TimeoutError:
            reply = _failure(number, WireError(f"the network did not answer within {ANSWER_SECONDS:g} s; ask again"))
        except ReciproStreamError as error:
            reply = _failure(number, error)
        with contextlib.suppress(RuntimeError):  # the viewer has disconnected
            await self._send(reply)


def _record(query: Query, answer: Answer) -> Reply:
    if isinstance(answer, ClassAnswer):
        return class_record(answer)
    return answer_record(cast("PlaceQuery", query), answer)


def class_record(answer: ClassAnswer) -> Reply:
    """Return the heat map of a class and the explained image as JSON values."""
    finding, frame = answer.finding, answer.frame
    image = scale_image(frame.image, min(1.0, MAX_IMAGE_PIXELS / max(frame.image.shape[:2])))
    return finding_record(finding) | {
        "grid": list(finding.heat.shape),
        "index": frame.index,
        "age_seconds": round(frame.age_seconds(time.monotonic()), 3),
        "jpeg": base64.b64encode(encode_image(image, JPEG_QUALITY)).decode(),
    }


def read_class_query(value: object, cameras: Mapping[str, object]) -> ClassQuery:
    """Return a question for the heat map of a class, parsed from its JSON value.

    Raises:
        WireError: a key is missing or its value is wrong.
    """
    label = value.get("label") if isinstance(value, Mapping) else None
    if not (isinstance(label, str) and label):
        raise WireError("heat.label: give the name of a class")
    return ClassQuery(_camera_of(value, cameras), label)


def read_query(value: object, cameras: Mapping[str, object]) -> PlaceQuery:
    """Return a question about a place in a frame, parsed from its JSON value.

    Raises:
        WireError: a key is missing or its value is wrong.
    """
    camera, index = _frame_of(value, cameras)
    fields = cast("Mapping[str, Any]", value)
    box, label, modes = fields.get("box"), fields.get("label"), fields.get("modes", ["keep", "drop"])
    if not (
        isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) and abs(v) < MAX_PIXELS for v in box)
    ):
        raise WireError("why.box: give [left, top, right, bottom] in pixels of the frame")
    if not (isinstance(label, str) and label):
        raise WireError("why.label: give the name of a class")
    if not (isinstance(modes, list) and modes and sorted(map(str, modes)) in _CHOICES):
        raise WireError('why.modes: give ["keep"], ["drop"], or ["keep", "drop"]')
    return PlaceQuery(camera, index, Box(*map(float, box)), label, tuple(cast("list[MapMode]", modes)))


def _frame_of(value: object, cameras: Mapping[str, object]) -> tuple[str, int]:
    """Return the camera and the frame index of a question; raises ``WireError`` for an invalid value."""
    camera = _camera_of(value, cameras)
    index = cast("Mapping[str, Any]", value).get("index")
    if not isinstance(index, int) or isinstance(index, bool):
        raise WireError("index: give the index of the frame")
    return camera, index


def _camera_of(value: object, cameras: Mapping[str, object]) -> str:
    if not isinstance(value, Mapping):
        raise WireError("question: give an object with camera and index")
    camera = value.get("camera")
    if not isinstance(camera, str) or camera not in cameras:
        raise WireError(f"camera {str(camera)[:80]!r}: is not a camera of this run; give one of {', '.join(cameras)}")
    return camera


def answer_record(query: PlaceQuery, answer: PlaceAnswer) -> Reply:
    """Return the answer about a place as JSON values."""
    return {
        "index": query.index,
        "label": replace_undecodable(query.label),
        "box": [float(edge) for edge in query.box],
        "score": answer.score,
        "threshold": answer.threshold,
        "overlap": answer.overlap,
        "stride": answer.stride,
        "maps": [finding_record(finding) for finding in answer.maps],
        "supporting": [_influence_record(place) for place in answer.supporting],
        "suppressing": [_influence_record(place) for place in answer.suppressing],
    }


def _influence_record(place: Influence) -> Reply:
    return {"box": [float(edge) for edge in place.box], "score_without": place.score_without}


def _reply(number: object, content: Reply) -> Reply:
    return {"kind": "answer", "id": number if isinstance(number, int) else None, **content}


def _failure(number: object, error: Exception) -> Reply:
    return _reply(number, {"error": str(error), "gone": isinstance(error, FrameGoneError)})
