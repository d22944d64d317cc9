"""Stores terms, members, cameras and drained nodes in the key-value store of Ray's head.

The state outlives a director. It contains only names and numbers, because everyone with the token can read it, and its
files may be backed up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import ReciproStreamError


class FleetStore:
    """The store of one fleet. Each call waits until the head answers."""

    def __init__(self, fleet: str) -> None:
        """Create the store of a fleet; nothing is read yet."""
        from ray.experimental import internal_kv

        self._kv: Any = internal_kv
        self._namespace = f"recipro-stream/{fleet}".encode()

    def claim_term(self, *, above: int = 0) -> int:
        """Claim and return a term above all earlier terms, also if the store has lost them.

        The time of day is above all earlier terms if no clock was changed.

        Args:
            above: the highest term that a worker has stated, which shows the earlier terms if the clock is behind.
        """
        while True:
            term = max(self.latest_term() + 1, above + 1, int(time.time()))
            # The call returns whether the key existed, so only one of two claims of the same number succeeds.
            if not self._kv._internal_kv_put(self._term_key(term), b"", overwrite=False, namespace=self._namespace):  # noqa: SLF001
                for old in self._names("term/"):
                    if int(old) < term:
                        self._delete(f"term/{old}")
                return term

    def latest_term(self) -> int:
        """Return the highest claimed term; 0 if there is none."""
        return max(map(int, self._names("term/")), default=0)

    def write_pulse(self, term: int, number: int) -> None:
        """Write a sign that the director of a term is active; ``number`` must differ at each call."""
        self._put("pulse", f"{term}/{number}".encode())

    def pulse(self) -> bytes | None:
        """Return the last value of ``write_pulse``, as ``TERM/NUMBER``; None if there is none."""
        value: bytes | None = self._kv._internal_kv_get(b"pulse", namespace=self._namespace)  # noqa: SLF001
        return value

    def members(self) -> frozenset[str]:
        """Return the slots of all workers that may have leases."""
        return frozenset(self._names("member/"))

    def add_members(self, slots: Iterable[str]) -> None:
        """Add slots of workers; the caller must read the latest term afterwards, before it grants them a lease."""
        for slot in slots:
            self._put(f"member/{slot}", b"")

    def remove_members(self, slots: Iterable[str]) -> None:
        """Remove the slots of workers that have ended permanently."""
        for slot in slots:
            self._delete(f"member/{slot}")

    def cameras(self) -> dict[str, float] | None:
        """Return the frame rate of each camera by name; None before the first ``write_cameras``."""
        text = self._kv._internal_kv_get(b"cameras", namespace=self._namespace)  # noqa: SLF001
        return None if text is None else json.loads(text)

    def write_cameras(self, cameras: Mapping[str, float]) -> None:
        """Replace the cameras and their frame rates."""
        self._put("cameras", json.dumps(dict(cameras)).encode())

    def drained(self) -> frozenset[str]:
        """Return the names of the drained nodes, which get no cameras."""
        return frozenset(self._names("drained/"))

    def write_drained(self, node: str, *, is_drained: bool) -> None:
        """Add a node to the drained nodes, or remove it."""
        if is_drained:
            self._put(f"drained/{node}", b"")
        else:
            self._delete(f"drained/{node}")

    @staticmethod
    def _term_key(term: int) -> bytes:
        return f"term/{term}".encode()

    def _names(self, prefix: str) -> list[str]:
        keys = self._kv._internal_kv_list(prefix.encode(), namespace=self._namespace)  # noqa: SLF001
        if keys is None:
            raise ReciproStreamError("fleet: the store of the head does not answer")
        return [key.decode().removeprefix(prefix) for key in keys]

    def _put(self, key: str, value: bytes) -> None:
        self._kv._internal_kv_put(key.encode(), value, namespace=self._namespace)  # noqa: SLF001

    def _delete(self, key: str) -> None:
        self._kv._internal_kv_del(key.encode(), namespace=self._namespace)  # noqa: SLF001
