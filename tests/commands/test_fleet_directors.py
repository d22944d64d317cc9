"""Calls to the two directors, without a cluster."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from commands.fleet import client
from commands.fleet.director import NOT_ACTIVE, NotActiveError
from commands.fleet.directors import Directors
from pipeline.errors import ConfigError, ReciproStreamError
from pipeline.fleet.messages import Beat, Grant

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra: uv sync --inexact --extra fleet")
BEAT = Beat("a#1", "a", 7, 10.0)


class Remote:
    """A handle whose methods give an answer, or raise it."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *_: self)


@pytest.fixture
def ray_get(monkeypatch):
    import ray

    def get(remote, timeout):
        remote.calls += 1
        if isinstance(remote.answer, Exception):
            raise remote.answer
        return remote.answer

    monkeypatch.setattr(ray, "get", get)
    return ray


def task_error(ray, cause):
    return ray.exceptions.RayTaskError("call", "", cause)


def grant(term):
    return Grant(7, term, None)


def test_beats_go_to_the_active_director_and_stay_with_it(ray_get):
    standby, active = Remote(grant(NOT_ACTIVE)), Remote(grant(5))
    directors = Directors("fleet", [standby, active])
    assert [directors.beat(BEAT) for _ in range(4)] == [None, grant(5), grant(5), grant(5)]
    assert standby.calls == 1


def test_beats_stay_with_the_standby_after_the_active_director_was_silent(ray_get):
    silent, standby = Remote(ray_get.exceptions.GetTimeoutError("no answer")), Remote(grant(NOT_ACTIVE))
    directors = Directors("fleet", [silent, standby])
    for _ in range(5):
        assert directors.beat(BEAT) is None
    standby.answer = grant(6)
    assert directors.beat(BEAT) == grant(6)
    assert silent.calls == 1  # each costs a second


def test_calls_go_to_the_active_director(ray_get):
    standby, active = Remote(task_error(ray_get, NotActiveError("standby"))), Remote({"term": 5})
    directors = Directors("fleet", [standby, active])
    assert directors.call("status") == {"term": 5}


def test_errors_of_the_active_director_reach_the_caller(ray_get):
    directors = Directors("fleet", [Remote(task_error(ray_get, ConfigError("bad rate")))] * 2)
    with pytest.raises(ConfigError, match="bad rate"):
        directors.call("apply", {})


def test_call_without_an_active_director_says_so(ray_get):
    directors = Directors("fleet", [Remote(task_error(ray_get, NotActiveError("standby")))] * 2)
    with pytest.raises(ReciproStreamError, match="neither director is active"):
        directors.call("status", seconds=0.3)


class Statuses:
    """Directors that give the seconds since the last beat of the worker ``a/cpu-0#1``, one after the other."""

    def __init__(self, *heard_seconds):
        self.heard_seconds = list(heard_seconds)

    def call(self, method):
        assert method == "status"
        heard = self.heard_seconds.pop(0)
        return {"workers": [] if heard is None else [{"worker": "a/cpu-0#1", "heard_seconds": heard}]}


@pytest.mark.parametrize("heard", [(None,), (0.1, None), (0.1, 2.9, 3.4)])
def test_node_starts_where_no_worker_has_its_slot_or_an_earlier_one_is_lost(monkeypatch, heard):
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.0)
    directors = Statuses(*heard)
    client.require_free_slots(directors, "a", ["a/cpu-0"])
    assert directors.heard_seconds == []


def test_node_whose_name_a_running_node_has_is_refused_with_the_remedy():
    client.require_free_slots(Statuses(0.1), "b", ["b/cpu-0"], seconds=0.0)
    with pytest.raises(ReciproStreamError, match=r"node a: the fleet has a running node of this name .*--node NAME"):
        client.require_free_slots(Statuses(0.1), "a", ["a/cpu-0"], seconds=0.0)
