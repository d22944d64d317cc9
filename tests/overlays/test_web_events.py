"""The page's HTTP interface to events: filters, pages, images, clips, actions, and who may use it."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from overlays.render.jpeg import decode_image, jpeg_size
from overlays.sinks.clips.sink import ClipSink
from overlays.sinks.clips.store import ClipStore
from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings
from overlays.sinks.web import WebSink
from overlays.web.app import make_app
from overlays.web.event_requests import CSV_FIELDS, as_csv
from pipeline.result import RunResult
from pipeline.stats import RunStats
from tests.support.events import WALL, Clock, shown, silent
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import LOCKED, TOKEN, connect_viewer, fetch, page

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Content_Type": "application/json"}


@dataclass
class Desk:
    """A page with a database of events, and the clock of its frames."""

    sink: WebSink
    events: EventsSink
    clock: Clock

    def alarm(self, start, *, inside=0.25, camera="line", seconds=1.0):
        """Let a guard fire for a time."""
        for at, value in ((start, inside), (start + seconds, None)):
            self.clock.now = at
            overlay = shown(at, label="ok", inside=value, camera=camera)
            self.events.put(overlay)

    def get(self, path, **headers):
        status, _, body = fetch(self.sink, path, **headers)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, body, **headers):
        return fetch(self.sink, path, "POST", json.dumps(body), **(JSON | headers))


@contextmanager
def desk(tmp_path, secrets=None, parts=()):
    """Serve the page beside an events sink whose thread is a loop of ``idle``."""
    clock = Clock()
    settings = EventSettings(uri=str(tmp_path / "events.sqlite"), when="label=scratch", gap_seconds=0.0)
    stop = threading.Event()
    with ExitStack() as stack:
        events = stack.enter_context(EventsSink(settings, wall_clock=clock.wall, clock=clock))
        sink = stack.enter_context(page(secrets, ("line", "a/b")))
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink, *parts)))

        def work():
            while not stop.wait(0.01):
                if events._actions:
                    events.idle()

        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield Desk(sink, events, clock)


@pytest.fixture
def opened(tmp_path):
    with desk(tmp_path) as made:
        yield made


def test_events_are_listed_newest_first_in_pages(opened):
    for k in range(5):
        opened.alarm(10.0 * k, inside=0.1 + k / 100)
    first = opened.get("/api/events?limit=2")
    second = opened.get(f"/api/events?limit=2&before_id={first['next']}")
    last = opened.get(f"/api/events?limit=2&before_id={second['next']}")
    listed = [event for part in (first, second, last) for event in part["events"]]
    assert [round(event["start"] - WALL) for event in listed] == [40, 30, 20, 10, 0]
    assert last["next"] is None
    assert opened.get("/api/summary") == {
        "new": 5, "open": 0, "cameras": ["line"], "kinds": ["guard"], "labels": ["ok"],
    }  # fmt: skip


def test_filters_of_the_query_string_apply(opened):
    opened.alarm(0.0)
    opened.alarm(100.0, camera="a/b")
    opened.events.put(shown(200.0, label="scratch"))

    def starts(query):
        return [round(event["start"] - WALL) for event in opened.get(f"/api/events?{query}")["events"]]

    assert starts("camera=a/b") == [100]
    assert starts("camera=a/b&camera=line&kind=guard") == [100, 0]
    assert starts("label=scratch") == [200]
    assert starts(f"after={WALL + 50}&before={WALL + 150}") == [100]
    assert starts("before=2026-09-21T14:14:00Z") == [0]
    assert starts("state=acknowledged") == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("limit=0", "limit"),
        ("limit=9999999", "limit"),
        ("limit=x", "limit"),
        ("after=tomorrow", "after"),
        ("before=nan", "before"),
        ("kind=alarm", "use one of guard"),
        ("state=old", "use one of new"),
        ("format=xml", "use one of json"),
        ("&".join(["camera=x"] * 101), "at most 100"),
    ],
)
def test_wrong_query_is_refused_with_the_rule(opened, query, reason):
    status, _, body = fetch(opened.sink, f"/api/events?{query}")
    assert (status, reason in body.decode()) == (400, True)


def test_csv_has_iso_times_and_no_formulas(opened):
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    opened.post(f"/api/events/{event['id']}/note", {"by": "Ada", "note": '=cmd|"x"'})
    _, headers, body = fetch(opened.sink, "/api/events?format=csv")
    header, row = csv.reader(io.StringIO(body.decode()))
    read = dict(zip(header, row, strict=True))
    assert tuple(header) == CSV_FIELDS
    assert read["start"] == "2026-09-21T14:13:20.000+00:00"
    assert (read["note"], read["figure_value"], read["by"]) == ('\'=cmd|"x"', "0.25", "Ada")
    assert "events.csv" in headers["content-disposition"]


@pytest.mark.parametrize("note", ["=1+1", "  =1+1", "\n@sum", "\x00-1", "\uff1d1+1", "\t1"])
def test_csv_marks_text_that_spreadsheets_would_run(note):
    event = dict.fromkeys(CSV_FIELDS) | {"figure": None, "note": note}
    (row,) = csv.DictReader(io.StringIO(as_csv([event]), newline=""))
    assert row["note"] == f"'{note}"


def test_event_has_figures_and_images_in_ranges(opened):
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    whole = opened.get(f"/api/events/{event['id']}")
    assert whole["figures"]["guards"][0]["figure"]["bound"] == 0.5
    assert (whole["images"], whole["clip"]) == (["plain", "heat"], None)
    for kind in whole["images"]:
        status, headers, image = fetch(opened.sink, f"/api/events/{event['id']}/{kind}.jpg")
        assert (status, headers["content-type"], jpeg_size(image)) == (200, "image/jpeg", (64, 48))
    status, headers, part = fetch(opened.sink, f"/api/events/{event['id']}/heat.jpg", Range="bytes=10-19")
    assert (status, part, headers["content-range"]) == (206, image[10:20], f"bytes 10-19/{len(image)}")
    for path in ("0", "0/heat.jpg", f"{event['id']}/other.jpg", f"{event['id']}/clip.mp4"):
        assert fetch(opened.sink, f"/api/events/{path}")[0] == 404


def test_actions_change_an_event_and_every_page_is_notified(opened):
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    path = f"/api/events/{event['id']}"
    with connect_viewer(opened.sink) as viewer:
        while json.loads(viewer.recv(timeout=LIMIT_SECONDS))["kind"] != "status":
            pass
        status, _, body = opened.post(f"{path}/acknowledge", {"by": " Ada "})
        assert (status, json.loads(body)["state"], json.loads(body)["by"]) == (200, "acknowledged", "Ada")
        message = {"kind": ""}
        while message["kind"] != "events":
            message = json.loads(viewer.recv(timeout=LIMIT_SECONDS))
            viewer.send('{"heard": true}')
        assert [changed["state"] for changed in message["changed"]] == ["acknowledged"]
    assert json.loads(opened.post(f"{path}/snooze", {"minutes": 5})[2])["state"] == "snoozed"
    assert json.loads(opened.post(f"{path}/note", {"note": "\ud800 glare"})[2])["note"] == "? glare"
    assert json.loads(opened.post(f"{path}/reopen", {})[2])["state"] == "new"


def test_second_viewer_gets_the_event_as_the_first_one_left_it(opened):
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    path = f"/api/events/{event['id']}"
    first = json.loads(opened.post(f"{path}/acknowledge", {"by": "Ada", "version": event["version"]})[2])
    for verb, body in (
        ("acknowledge", {}),
        ("note", {"note": "x", "version": 0}),
        ("snooze", {"minutes": 5, "version": 0}),
    ):
        status, _, answer = opened.post(f"{path}/{verb}", {"by": "Bo"} | body)
        assert (status, json.loads(answer)) == (409, first)
    assert json.loads(opened.post(f"{path}/reopen", {"by": "Bo", "version": 1})[2])["state"] == "new"


@pytest.mark.parametrize(
    ("verb", "body", "status", "reason"),
    [
        ("snooze", {}, 400, "minutes"),
        ("snooze", {"minutes": -1}, 400, "minutes"),
        ("snooze", {"minutes": 1e9}, 400, "minutes"),
        ("snooze", {"minutes": True}, 400, "minutes"),
        ("note", {}, 400, "note"),
        ("note", {"note": "x" * 1001}, 400, "note"),
        ("acknowledge", {"by": "x" * 65}, 400, "by"),
        ("acknowledge", {"by": "a\u202eb"}, 400, "U+202E"),
        ("acknowledge", {"version": True}, 400, "version"),
        ("acknowledge", ["x"], 400, "not an object"),
        ("acknowledge", {"by": "x" * 9000}, 413, "too long"),
        ("delete", {}, 404, "use one of"),
        ("reopen", {}, 404, "no such event"),
    ],
)
def test_wrong_action_is_refused_with_the_rule(opened, verb, body, status, reason):
    got, _, text = opened.post(f"/api/events/0/{verb}", body)
    assert (got, reason in text.decode()) == (status, True)


def test_action_of_another_site_is_refused(opened):
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    path = f"/api/events/{event['id']}/acknowledge"
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert opened.post(path, {}, **headers)[0] == 403
    assert fetch(opened.sink, "/api/events", Sec_Fetch_Site="cross-site")[0] == 403
    assert fetch(opened.sink, "/api/events", Referer="https://evil.example/")[0] == 403
    assert fetch(opened.sink, "/review", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert opened.get("/api/events")["events"][0]["state"] == "new"


def test_events_need_the_token(tmp_path):
    with desk(tmp_path, LOCKED) as locked:
        paths = ("/review", "/api/events", "/api/summary", "/api/cameras", "/api/openapi.json", "/snapshot/line.jpg")
        for path in paths:
            assert fetch(locked.sink, path)[0] == 401
        assert locked.post("/api/events/0/acknowledge", {})[0] == 401
        assert locked.get("/api/events", Authorization=f"Bearer {TOKEN}")["events"] == []


def test_run_without_events_says_how_to_keep_them():
    with page() as sink:
        status, _, body = fetch(sink, "/api/events")
        assert (status, "is starting" in body.decode()) == (503, True)
        sink.on_run_start(RunResult(RunStats([]), [], [], (sink,)))
        status, _, body = fetch(sink, "/api/events")
    assert (status, "--sink events.sqlite" in body.decode()) == (404, True)


def test_page_that_was_opened_before_the_run_began_receives_its_events(tmp_path):
    with page() as sink, EventsSink(str(tmp_path / "events.sqlite")) as events, connect_viewer(sink) as viewer:
        hello = json.loads(viewer.recv(timeout=LIMIT_SECONDS))
        assert (hello["starting"], hello["events"]) == (True, False)
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink)))
        message = {"kind": ""}
        while message["kind"] != "hello":
            message = json.loads(viewer.recv(timeout=LIMIT_SECONDS))
            viewer.send('{"heard": true}')
        assert (message["starting"], message["events"]) == (False, True)


def test_clip_that_shows_an_event_is_found_and_sent_in_ranges(tmp_path):
    (tmp_path / "clips").mkdir()
    clips = ClipSink(f"{tmp_path}/clips/")
    clips._store.add_camera("line")
    with desk(tmp_path, parts=(clips,)) as made:
        made.alarm(100.0)
        path = clips._store.new_path("line", WALL + 90.0)
        path.write_bytes(bytes(range(200)))
        [event] = made.get("/api/events")["events"]
        assert made.get(f"/api/events/{event['id']}")["clip"] == path.name
        status, headers, body = fetch(made.sink, f"/api/events/{event['id']}/clip.mp4", Range="bytes=-5")
        assert (status, body, headers["content-type"]) == (206, bytes(range(195, 200)), "video/mp4")
        assert path.name in headers["content-disposition"]


def test_clip_is_the_last_that_began_before_the_event_and_went_on_into_it(tmp_path):
    store = ClipStore(tmp_path)
    for camera in ("a/b", "other"):
        store.add_camera(camera)
    made = {}
    for name, began, camera in (
        ("old", 0.0, "a/b"),
        ("right", 60.0, "a/b"),
        ("foreign", 70.0, "other"),
        ("late", 120.0, "a/b"),
    ):
        made[name] = store.new_path(camera, WALL + began)
        made[name].write_bytes(b"")
    unfinished = store.new_path("a/b", WALL + 100.0)
    unfinished.with_name(f"{unfinished.stem}.part.mp4").write_bytes(b"")
    assert store.find("a/b", WALL + 110.0, WALL + 111.0) == made["right"]
    assert store.find("a/b", WALL + 60.2, WALL + 61.0) == made["right"]
    assert store.find("a/b", WALL - 50.0, WALL + 5.0) == made["old"]  # it began during the event
    assert store.find("a/b", WALL - 50.0, WALL - 40.0) is None
    assert store.find("unknown", WALL + 110.0, WALL + 111.0) is None


def test_snapshot_is_the_newest_frame_plain_or_with_heat(tmp_path):
    with desk(tmp_path) as made:
        name = quote("a/b", safe="")
        assert fetch(made.sink, f"/snapshot/{name}.jpg")[0] == 503
        made.sink.put(shown(made.sink._clock(), camera="a/b"))
        plain, heat = (decode_image(fetch(made.sink, f"/snapshot/{name}.jpg{q}")[2]) for q in ("", "?heat=1&boxes=1"))
        assert plain.shape == heat.shape == (48, 64, 3)
        assert abs(heat.astype(int) - plain)[:8, :8].mean() > 30
        made.sink.put(silent(made.sink._clock(), 5.0, camera="a/b"))
        assert fetch(made.sink, f"/snapshot/{name}.jpg")[0] == 503
        assert fetch(made.sink, f"/snapshot/{name}.jpg?stale=1")[0] == 200
        assert fetch(made.sink, f"/snapshot/{name}.jpg?heat=2")[0] == 400
        assert fetch(made.sink, "/snapshot/none.jpg")[0] == 404
        states = {camera["camera"]: camera for camera in made.get("/api/cameras")["cameras"]}
        assert states["a/b"]["silent"] is True
        assert states["line"]["alarms"] == []


def test_openapi_document_has_every_path_and_every_key(opened):
    document = opened.get("/api/openapi.json")
    with page() as sink:
        routes = make_app(sink._page)._app.routes
    served = {re.sub(r":path\}", "}", route.path) for route in routes if route.path.startswith("/api/")}
    described = set(document["paths"])
    assert served <= described
    assert {"/snapshot/{camera}.jpg", "/stream/{camera}.mjpg"} <= described
    opened.alarm(0.0)
    [event] = opened.get("/api/events")["events"]
    assert set(event) == set(document["components"]["schemas"]["Event"]["required"])
    assert set(event["figure"]) == set(document["components"]["schemas"]["Figure"]["required"])


def test_page_of_events_takes_no_frames(opened):
    with connect_viewer(opened.sink) as viewer:
        viewer.recv(timeout=LIMIT_SECONDS)
        assert opened.sink._broadcaster.has_viewers("line", "plain")
    address = opened.sink.endpoint.replace("http://", "ws://") + "/frames?only=events"
    from websockets.sync.client import connect

    with connect(address, proxy=None) as viewer:
        viewer.recv(timeout=LIMIT_SECONDS)
        assert not any(client.takes_frames for client in opened.sink._broadcaster.clients if not client.closed)
