"""Selects the fastest of several backends on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.errors import BackendError

log = logging.getLogger(__name__)

Built = TypeVar("Built")


def fastest(
    backends: Sequence[str], build: Callable[[str], Built], seconds: Callable[[Built], float], unit: str
) -> Built:
    """Build with all backends that work; return the result of the fastest backend.

    Args:
        backends: names of the backends.
        build: builds with a backend; raises ``BackendError``.
        seconds: measures the seconds of a result of ``build``; not called if only one backend works.
        unit: the measured work, for the log.

    Raises:
        BackendError: no backend works.
    """
    found: dict[str, Built] = {}
    refused: list[str] = []
    for name in backends:
        try:
            found[name] = build(name)
        except BackendError as reason:
            refused.append(str(reason))
            log.info("skipped: %s", reason)
    if not found:
        raise BackendError("; ".join(refused))
    if len(found) == 1:
        ((name, built),) = found.items()
        log.info("backend %s", name)
        return built
    timed = {name: seconds(built) for name, built in found.items()}
    best = min(timed, key=timed.__getitem__)
    others = ", ".join(f"{name} {1e3 * time:.1f} ms" for name, time in timed.items() if name != best)
    log.info("backend %s: %.1f ms per %s (%s)", best, 1e3 * timed[best], unit, others)
    return found[best]
