"""The gateway of a fleet without Ray: the program that reaches Ray is replaced by one that prints lines."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.fleet.gateway import FleetExplainer, GatewayOptions, StatusReader, status_command
from commands.fleet.tables import status_lines
from commands.fleet.watch import watch_json, watch_text
from overlays.wire.followed import FollowedStreams
from overlays.wire.remote import RemoteRenderer
from pipeline.errors import ReciproStreamError
from pipeline.fleet.places import places
from pipeline.loop import Pipeline
from pipeline.result import RunLimits
from tests.support.fleet_state import PAGE, STREAM, state
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import LOCKED, TOKEN, fetch, page

STATE = state(STREAM, PAGE, cameras=("north", "a/b", "hall"), capacity=26.0)
STATE |= {"is_on_head": False, "standby": "b", "process": 1, "node": "a"}


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("last", ["import sys; sys.exit('error: no Ray answers on this machine')", "pass"])
def test_reader_gives_each_state_and_starts_its_program_again(monkeypatch, last):
    monkeypatch.setattr("commands.fleet.gateway._RESTART_SECONDS", 0.01)
    lines = ["no JSON", json.dumps({"term": 1}), json.dumps({"problem": "neither director is active"})]
    program = f"print({chr(10).join(lines)!r}, flush=True); {last}"
    states, problems = [], []
    with StatusReader([sys.executable, "-c", program], states.append, problems.append):
        wait_until(lambda: len(states) > 1 and len(problems) > 2)
    assert states[0] == {"term": 1}
    assert problems[0] == "neither director is active"
    assert problems[1] == ("its status ended" if last == "pass" else "no Ray answers on this machine")


def test_reader_ends_its_program():
    program = "import time; print('{}', flush=True); time.sleep(600)"
    states = []
    with StatusReader([sys.executable, "-c", program], states.append, lambda _: None):
        wait_until(lambda: states)


def test_command_that_reaches_ray_has_the_token_by_its_path_alone():
    command = status_command(GatewayOptions([], "10.0.0.5:6379", "hall", Path("x/token")))
    assert command[2:] == ["fleet", "status", "--watch", "--json", "--address", "10.0.0.5:6379", "--fleet", "hall",
                           "--token-file", "x/token"]  # fmt: skip


def test_page_names_the_age_of_the_fleet_s_state_and_the_reason():
    now = [0.0]
    explainer = FleetExplainer(lambda: now[0])
    assert "has not answered for 0 s: it has not answered yet" in explainer.problem
    explainer.accept_state(STATE)
    assert explainer.problem == ""
    now[0] = 9.0
    explainer.accept_problem("neither director is active")
    assert "9 s: neither director is active; cameras are shown where they were last" in explainer.problem
    samples = {sample.name: sample.value for sample in explainer.metrics()}
    assert samples["fleet_state_age_seconds"] == 9.0


def test_page_of_a_fleet_shows_cameras_without_frames_and_answers_where_and_targets():
    explainer, stop = FleetExplainer(), threading.Event()
    with page(LOCKED, cameras=()) as sink, FollowedStreams(lambda _: None) as streams:
        pipeline = Pipeline(
            [], explainer, RemoteRenderer(), [sink], limits=RunLimits(), stop=stop, discovery=streams
        )  # fmt: skip
        run = threading.Thread(target=pipeline.run)
        run.start()
        headers = {"Authorization": f"Bearer {TOKEN}"}

        def get(path):
            status, _, body = fetch(sink, path, **headers)
            return status, json.loads(body) if body.startswith((b"{", b"[")) else body

        try:
            assert get("/api/where")[0] == get("/api/targets")[0] == 503
            assert fetch(sink, "/api/targets")[0] == 401
            explainer.accept_state(STATE)
            streams.follow(places(STATE), [])
            wait_until(lambda: len(get("/api/cameras")[1]["cameras"]) == 3)
            states = {each["camera"]: each for each in get("/api/cameras")[1]["cameras"]}
            wait_until(lambda: all(each["reason"] for each in get("/api/cameras")[1]["cameras"]))
            assert states["north"]["frames"] == 0
            code, found = get("/api/where/a/b")
            assert (code, found["camera"], found["node"]) == (200, "a/b", "a")
            assert get("/api/where/none")[0] == 404
            [waiting] = [each for each in get("/api/where")[1]["cameras"] if each["worker"] is None]
            assert "beyond capacity" in waiting["reason"]
            assert get("/api/targets")[1][0]["targets"] == ["10.0.0.5:8000"]
            metrics = get("/metrics")[1].decode()
            assert 'recipro_fleet_cameras{state="waiting"} 1.0' in metrics
        finally:
            stop.set()
            run.join()


def test_page_of_no_fleet_says_so():
    with page() as sink:
        status, _, body = fetch(sink, "/api/where")
    assert status == 404
    assert b"belongs to no fleet" in body


class Answers:
    """Directors whose answers are given; the last one sets ``stop``."""

    def __init__(self, stop, *answers):
        self.stop, self.answers = stop, list(answers)

    def call(self, _method, seconds):
        answer = self.answers.pop(0)
        if not self.answers:
            self.stop.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_watch_prints_lines_of_json_and_the_reason_for_none(capsys):
    stop = threading.Event()
    watch_json(Answers(stop, STATE, ReciproStreamError("no answer")), stop)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["cameras"] == STATE["cameras"]
    assert second == {"problem": "no answer"}


def test_watch_without_a_terminal_prints_plain_text_when_the_fleet_changes(capsys):
    stop = threading.Event()
    heard = [STATE["workers"][0] | {"heard_seconds": seconds} for seconds in (0.1, 0.4, 9.0)]
    watch_text(Answers(stop, *(STATE | {"workers": [each]} for each in heard)), stop)
    text = capsys.readouterr().out
    assert text.count("director: term 1") == 2
    assert "not heard for 9 s" in text
    assert text.isascii()


def test_lines_of_the_status_name_each_worker_and_camera():
    lines = "\n".join(status_lines(STATE))
    assert f"worker a/cuda:0-0#1: 2 cameras, 96% of 20.8 frames/s; {STREAM}, {PAGE}" in lines
    assert "camera hall: a/cuda:0-0, epoch" in lines
    assert "camera north: no worker, beyond capacity" in lines
