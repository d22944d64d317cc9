"""The gateway of a fleet without Ray: the program that reaches Ray is replaced by one that prints lines."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

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

ROOT = Path(__file__).resolve().parents[2]
STATE = state(STREAM, PAGE, cameras=("north", "a/b", "hall"), capacity=26.0)
STATE |= {"is_on_head": False, "standby": "b", "process": 1, "node": "a"}


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("last", ["import sys; sys.exit('error: Ray does not answer on this machine')", "pass"])
def test_reader_gives_each_state_and_starts_its_program_again(monkeypatch, last):
    monkeypatch.setattr("commands.fleet.gateway._RESTART_SECONDS", 0.01)
    lines = ["no JSON", json.dumps({"term": 1}), json.dumps({"problem": "neither director is active"})]
    program = f"print({chr(10).join(lines)!r}, flush=True); {last}"
    states, problems = [], []
    with StatusReader([sys.executable, "-c", program], states.append, problems.append):
        wait_until(lambda: len(states) > 1 and len(problems) > 2)
    assert states[0] == {"term": 1}
    assert problems[0] == "neither director is active"
    assert problems[1] == ("its status ended" if last == "pass" else "Ray does not answer on this machine")


@pytest.mark.parametrize("line", ["", json.dumps({"problem": "no answer"})])
def test_reader_starts_a_program_again_that_gives_no_state_for_long(monkeypatch, tmp_path, line):
    monkeypatch.setattr("commands.fleet.gateway._RESTART_SECONDS", 0.01)
    monkeypatch.setattr("commands.fleet.gateway._MAX_SILENT_SECONDS", 0.1)
    runs = tmp_path / "runs"
    program = f"""
import time
with open({str(runs)!r}, "a") as file: file.write(".")
while True: print({line!r}, flush=True); time.sleep(0.02)
"""
    problems = []
    with StatusReader([sys.executable, "-c", program], lambda _: None, problems.append):
        wait_until(lambda: runs.exists() and len(runs.read_text()) > 2)
    assert set(problems) <= {"no answer"}  # a restart hides no reason


def test_reader_ends_its_program():
    program = "import time; print('{}', flush=True); time.sleep(600)"
    states = []
    with StatusReader([sys.executable, "-c", program], states.append, lambda _: None):
        wait_until(lambda: states)


def test_command_that_reaches_ray_has_the_token_by_its_path_alone():
    command = status_command(GatewayOptions([], "10.0.0.5:6379", "hall", Path("x/token")))
    assert command[2:] == ["fleet", "status", "--watch", "--json", "--address", "10.0.0.5:6379", "--fleet", "hall",
                           "--token-file", "x/token"]  # fmt: skip


def test_page_shows_the_age_of_the_fleet_state_and_the_reason():
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


def asked_by_dashboard():
    """Return the metrics that the fleet's dashboard asks for."""
    dashboard = json.loads((ROOT / "docs" / "grafana-fleet.json").read_text())
    asks = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asks += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    return {name for call in asks for name in re.findall(r"\b(?:recipro|process)_\w+", call)}


def names_in(text):
    """Return the names of the samples that a page can have, those of its empty families, too."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    families = [(family.name, family.type) for family in text_string_to_metric_families(text)]
    return {name + suffix for name, kind in families for suffix in suffixes.get(kind, ("",))}


def test_prometheus_finds_the_nodes_by_the_gateway():
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "fleet.yml").read_text())["scrape_configs"]
    [search] = [each for job in jobs for each in job.get("http_sd_configs", [])]
    assert search["url"].endswith("/api/targets")
    assert all("credentials_file" in each["authorization"] for each in (*jobs, search))


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
            explainer.accept_problem("no Ray answers at 10.0.0.5:6379")
            for path in ("/api/where", "/api/where/north", "/api/targets"):
                code, body = get(path)
                assert code == 503
                assert b"has not answered for " in body
                assert body.endswith(b" s: no Ray answers at 10.0.0.5:6379")
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
            assert asked_by_dashboard() <= names_in(metrics)
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
