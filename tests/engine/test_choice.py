"""Of several backends the fastest is chosen, and one that fails is skipped."""

from __future__ import annotations

import logging

import pytest

from engine.runtime.choice import fastest
from pipeline.errors import BackendError

SECONDS = {"slow": 0.2, "fast": 0.1, "middle": 0.15}


def build(name: str) -> str:
    if name not in SECONDS:
        raise BackendError(f"backend {name!r}: not here")
    return name


def test_fastest_returns_the_backend_of_least_time(caplog):
    caplog.set_level(logging.INFO)
    assert fastest(("slow", "absent", "fast", "middle"), build, SECONDS.__getitem__, "image") == "fast"
    assert "skipped: backend 'absent': not here" in caplog.text
    assert "backend fast: 100.0 ms per image (slow 200.0 ms, middle 150.0 ms)" in caplog.text


def test_fastest_does_not_measure_a_single_backend():
    assert fastest(("absent", "slow"), build, {}.__getitem__, "image") == "slow"


def test_fastest_raises_all_reasons_when_no_backend_runs():
    with pytest.raises(BackendError, match=r"'a': not here; backend 'b': not here"):
        fastest(("a", "b"), build, SECONDS.__getitem__, "image")
