"""The pool of workers: each task has one result, whatever happens to its worker. Ray's calls are replaced.

That Ray replaces a killed worker and tries its task again is tested with the command: see
``test_workers_share_the_files_and_a_killed_worker_is_replaced``.
"""

import os
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import actor_pool
from commands.actor_pool import ActorPool
from pipeline.errors import EngineError


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__("task")
        self.cause = cause


class Ray:
    """Answers ``wait`` and ``get``; the order in which tasks end is given. A task is its own reference."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, order=(), failures=None):
        self.order, self.failures = list(order), failures or {}

    def wait(self, references, timeout):
        assert references
        assert timeout > 0
        position = self.order.pop() % len(references) if self.order else 0
        return [references[position]], []

    def get(self, reference):
        if reference in self.failures:
            raise self.failures[reference]
        return reference * 10


def results(ray, workers, waiting, stop=None):
    busy = []
    pool = ActorPool(ray, range(workers))
    submitted = lambda worker, task: busy.append((worker, task)) or task  # noqa: E731
    lost = lambda task, reason: (task, reason)  # noqa: E731
    return list(pool.run(submitted, waiting, stop or threading.Event(), lost)), busy


@given(st.integers(1, 5), st.integers(0, 12), st.lists(st.integers(0, 99)))
def test_pool_gives_each_task_to_one_worker_and_yields_each_result_once(workers, count, order):
    found, submitted = results(Ray(order), workers, deque(range(count)))
    assert sorted(found) == [10 * task for task in range(count)]
    assert [task for _, task in submitted] == list(range(count))
    assert {worker for worker, _ in submitted} <= set(range(workers))


def test_pool_takes_tasks_that_are_added_meanwhile():
    waiting = deque([1])
    pool = ActorPool(Ray(), ["worker"])
    found = []
    for result in pool.run(lambda _worker, task: task, waiting, threading.Event(), lambda *lost: lost):
        found.append(result)
        if result == 10:
            waiting.extend([2, 3])
    assert found == [10, 20, 30]


def test_task_whose_workers_end_again_and_again_is_lost_and_the_others_are_done():
    found, _ = results(Ray(failures={1: RayError("actor died\nat a line")}), 2, deque(range(3)))
    assert found == [0, (1, "its worker ended 3 times (actor died)"), 20]


def test_error_of_a_task_is_raised_as_in_one_process():
    with pytest.raises(EngineError, match="no memory"):
        results(Ray(failures={0: RayTaskError(EngineError("no memory"))}), 1, deque(range(3)))


def test_stopped_pool_submits_nothing():
    stop = threading.Event()
    stop.set()
    assert results(Ray(), 2, deque(range(3)), stop) == ([], [])


def test_pool_starts_ray_on_the_loopback_with_a_token_and_without_reports(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is an extra: uv sync --extra fleet")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    given = []
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(ray, "init", lambda **options: given.append((options, dict(environment))))
    actor_pool._started_ray(2)
    [(options, at_start)] = given
    assert options["address"] == "local"
    assert not options["include_dashboard"]
    assert len(at_start["RAY_AUTH_TOKEN"]) == 64
    assert at_start["RAY_enable_metrics_collection"] == at_start["RAY_task_events_report_interval_ms"] == "0"
    assert at_start["OMP_NUM_THREADS"] == ""  # Ray sets 1 if there is no value
    assert "OMP_NUM_THREADS" not in environment
