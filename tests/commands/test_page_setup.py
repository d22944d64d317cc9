"""The page changes regions, rules and areas of a running camera, and the YAML keeps its comments."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from commands.wiring.cameras import CameraDiff
from commands.wiring.kinds import load_config
from commands.wiring.reload import ConfigText
from commands.wiring.rule_check import MAX_REGIONS
from commands.wiring.setup import RunSetup
from commands.wiring.text_difference import difference
from pipeline.config_loader import read_yaml
from pipeline.errors import ConfigError, SetupConflictError
from pipeline.frames import Explanation, Finding, Frame
from pipeline.guards.history import RuleHistory
from tests.support.broker import free_port
from tests.support.browser import CHROMIUM, browsing, console_checked_tabs
from tests.support.limits import LIMIT_SECONDS

TEXT = """\
# two cameras of the hall
sources:
  - uri: line:?fps=5&size=160x120&seed=1 # the left one
    name: left
  - {uri: 'rtsp://user:secret@10.0.0.9/x', name: right}
guards:
  regions:
    - name: belt # where parts pass
      polygon: [[0, 0.1], [1, 0.1], [1, 0.9], [0, 0.9]]
    - name: dock
      polygon: [[0, 0], [9, 0], [9, 9]]
      cameras: [right]
  rules:
    - name: on-the-belt
      rule: heat_inside(belt) >= 0.6 # of the evidence
# the end
sinks: [out.jsonl]
"""
CORNER = [[0, 0], [0.4, 0], [0.4, 0.4]]


def nested(depth):
    return [] if depth == 0 else [nested(depth - 1)]


class Run:
    """Takes configurations as a run would; its network is a classifier."""

    def __init__(self):
        self.applied, self.failed = [], []
        self.places = SimpleNamespace(labels=("ok", "scratch"), has_boxes=False)

    def apply(self, config):
        self.applied.append(config)
        return CameraDiff([], [], [], self.failed)


class Watcher:
    """Makes calls at once."""

    def submit(self, call):
        future = Future()
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        return future


def made(path, text=TEXT, **options):
    """Return the set-up of a run with this configuration, and the run; ``path`` None: without a file."""
    if path is not None:
        path.write_text(text)
    config_text = ConfigText("run.yaml", lambda each: load_config(read_yaml(each, "run.yaml"), "run.yaml"),
                             path=path, text=text, **options)  # fmt: skip
    config_text.read()
    config_text.accept()
    setup, run = RunSetup(config_text), Run()
    setup.bind(run, Watcher(), RuleHistory())
    return setup, run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


def with_corner(shown):
    rule = {"name": "off-the-corner", "rule": "heat_inside(corner) < 0.5", "cameras": ["left"]}
    return {
        "revision": shown["revision"],
        "regions": [*shown["regions"], {"name": "corner", "polygon": CORNER, "cameras": ["left"]}],
        "rules": [{**shown["rules"][0], "rule": "heat_inside(belt) >= 0.7"}, rule],
        "roi": [0.1, 0.1, 0.5, 0.5],
    }


def test_setup_shows_what_concerns_a_camera_and_no_address(path):
    setup, _ = made(path)
    left, right = setup.read("left"), setup.read("right")
    assert [region["name"] for region in left["regions"]] == ["belt"]
    assert [(region["index"], region["name"]) for region in right["regions"]] == [(0, "belt"), (1, "dock")]
    assert (left["file"], left["written"], left["boxes"], left["can_undo"]) == ("run.yaml", True, False, False)
    assert "secret" not in json.dumps([left, right])
    with pytest.raises(ConfigError, match="it has left, right"):
        setup.read("middle")


def test_change_is_applied_and_written_with_comments_and_permissions(path):
    setup, run = made(path)
    path.chmod(0o640)
    after = setup.change("left", with_corner(setup.read("left")))
    text = path.read_text()
    for comment in (
        "# two cameras of the hall",
        "# the left one",
        "# where parts pass",
        "# of the evidence",
        "# the end",
    ):
        assert comment in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert run.applied == [load_config(yaml.safe_load(text), "run.yaml")]
    assert run.applied[0].sources[0].roi == [0.1, 0.1, 0.5, 0.5]
    assert run.applied[0].guards.rules[0].rule == "heat_inside(belt) >= 0.7"
    assert [region["name"] for region in after["regions"]] == ["belt", "corner"]
    assert after["can_undo"]
    before = setup.undo("left", after["revision"])
    assert path.read_text() == TEXT
    assert before["revision"] == setup.read("right")["revision"]
    with pytest.raises(SetupConflictError, match="no change to take back"):
        setup.undo("left", before["revision"])


def test_wrong_change_is_neither_applied_nor_written(path):
    setup, run = made(path)
    shown = setup.read("left")
    for wrong, why in (
        ({"rules": [{"name": "x", "rule": "heat_inside(bolt) > 0.5"}]}, "Did you mean 'belt'"),
        ({"regions": []}, "unknown region"),
        ({"roi": [0.5, 0.5, 0.9, 0.9]}, "ends outside the frame"),
        ({"rules": [{"name": "x", "rule": "score > 0.5", "index": 7}]}, "not one of the camera's entries"),
        ({"rules": "x"}, "give a list"),
        ({"regions": [{"index": [], "name": "x"}]}, "not one of the camera's entries"),
        ({"regions": [{"index": 0.0, "name": "x"}]}, "not one of the camera's entries"),
        ({"roi": nested(900)}, "levels deep"),
        ({"mask": [CORNER] * 5000}, "more than 20000 values"),
    ):
        with pytest.raises(ConfigError, match=why):
            setup.change("left", {"revision": shown["revision"], **wrong})
    assert run.applied == []
    run.failed = ["left"]
    with pytest.raises(ConfigError, match="cannot be opened"):
        setup.change("left", with_corner(shown))
    assert run.applied[-1].guards.rules[0].rule == "heat_inside(belt) >= 0.6", "the former configuration runs again"
    assert path.read_text() == TEXT


def test_change_of_a_file_that_somebody_else_changed_is_refused_with_the_difference(path):
    setup, run = made(path)
    wanted = with_corner(setup.read("left"))
    path.write_text(TEXT.replace("user:secret", "user:other"))
    with pytest.raises(SetupConflictError, match=r"run.yaml: was changed meanwhile") as refused:
        setup.change("left", wanted)
    assert "+  - {uri: 'rtsp://***@10.0.0.9/x', name: right}" in refused.value.difference
    assert "other" not in refused.value.difference
    with pytest.raises(SetupConflictError, match="somebody else"):
        setup.change("left", {**wanted, "revision": "0"})
    assert run.applied == []


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://user:pa'SECRET@10.0.0.9/x",
        "rtsp://user:pa SECRET@10.0.0.9/x",
        '"rtsp\\x3a//user:SECRET@10.0.0.9/x"',
        "'rtsp://us''er:SECRET@10.0.0.9/x'",
        '"rtsp://user:\\\n   SECRET\\\n   @10.0.0.9/x"',
        "# once rtsp://user:SECRET@10.0.0.9/x",
        "}\n- rtsp://user:pa SECRET@10.0.0.9/x",
    ],
)
def test_difference_of_a_configuration_never_holds_a_password(address):
    text = f"sources: [line]\nname: {address}\nend: 1\n"
    for shown in (difference("end: 1\n", text, "x"), difference(text, "end: 1\n", "x")):
        assert "SECRET" not in shown
        assert "line" in shown


def test_file_written_while_a_change_is_applied_is_kept(path):
    setup, run = made(path)
    foreign = TEXT.replace("# the end", "# somebody else")
    apply = run.apply

    def apply_slowly(config):
        path.write_text(foreign)
        return apply(config)

    run.apply = apply_slowly
    with pytest.raises(SetupConflictError, match="meanwhile") as refused:
        setup.change("left", with_corner(setup.read("left")))
    assert "+# somebody else" in refused.value.difference
    assert path.read_text() == foreign
    assert run.applied[-1].guards.rules[0].rule == "heat_inside(belt) >= 0.6", "the former configuration runs again"


def test_part_that_an_alias_shares_is_left_to_its_author(path):
    text = "sources:\n  - &a {uri: 'line:'}\n  - <<: *a\n    name: b\n"
    setup, run = made(path, text)
    camera = "line"
    with pytest.raises(ConfigError, match="alias"):
        setup.change(camera, {"revision": setup.read(camera)["revision"], "roi": [0, 0, 0.5, 0.5]})
    assert (run.applied, path.read_text()) == ([], text)


def test_change_without_a_file_is_applied_and_shown():
    setup, run = made(None, "sources: ['line:']\nsinks: [out.jsonl]\n")
    shown = setup.read("line")
    assert (shown["file"], shown["written"], shown["yaml"]) == (None, False, "")
    after = setup.change("line", {"revision": shown["revision"], "mask": [CORNER],
                                  "rules": [{"name": "sure", "rule": "score >= 0.5"}]})  # fmt: skip
    assert yaml.safe_load(after["yaml"]) == {
        "sources": [{"name": "line", "mask": [CORNER]}],
        "guards": {"rules": [{"name": "sure", "rule": "score >= 0.5"}]},
    }
    assert len(run.applied) == 1
    again = {"revision": after["revision"], "rules": after["rules"], "mask": []}
    assert setup.change("line", again)["mask"] == []


def test_cameras_of_the_command_line_keep_their_areas(path):
    setup, run = made(path, has_sources=False)
    shown = setup.read("left")
    assert "--source" in shown["editable"]["places"]
    with pytest.raises(ConfigError, match="--source"):
        setup.change("left", {"revision": shown["revision"], "roi": [0, 0, 0.5, 0.5]})
    setup.change("left", {"revision": shown["revision"], "rules": []})
    assert run.applied[0].guards.rules == []


def test_rule_is_checked_with_the_position_of_a_mistake_and_tried_on_the_past(path):
    setup, _ = made(path)
    history, began_at = setup._bound.history, time.monotonic() - 4.0
    for index in range(40):
        heat = np.zeros((4, 4), np.float32)
        heat[0, 0 if 10 <= index < 20 else 3] = 1.0
        frame = Frame(np.zeros((40, 40, 3), np.uint8), "left", index, began_at + index / 10)
        history.record(Explanation(frame, (Finding("scratch", 0.9, heat, 1),), "m", "l"))
    regions = [{"name": "corner", "polygon": CORNER}]
    for rule, position, why in (
        ("heat_insid(corner) > 0.5", 0, "Did you mean 'heat_inside'"),
        ("heat_inside(cornr) > 0.5", 12, "Did you mean 'corner'"),
        ("score > 0.5 when label=scrach", 23, "Did you mean 'scratch'"),
        ("boxes > 1", 0, "detector only"),
        ("score > 0.5 and", 15, "the end"),
        ("score > 1", None, "can never be true"),
    ):
        found = setup.check("left", {"rule": rule}, regions)
        assert (found["position"], why in found["error"]) == (position, True), found
    assert setup.check("left", {"rule": "score > 0.5", "hold_seconds": -1}, regions)["error"].startswith("hold_seconds")
    assert "at most" in setup.check("left", {"rule": "score > 0.5"}, regions * (MAX_REGIONS + 1))["error"]
    past = setup.check(
        "left", {"rule": "heat_inside(corner) < 0.3", "hold_seconds": 0.2, "clear_seconds": 0.2}, regions
    )
    assert (past["error"], past["count"], past["frames"]) == (None, 1, 40)
    [[start, end, text]] = past["spans"]
    assert end - start == pytest.approx(1.0, abs=0.02)
    assert text == "heat_inside(corner) < 0.3, but is 0.50"


# ---------------------------------------------------------------------------------------------------------------------


RUN = """\
# the simulated line
sources:
  - uri: line:?fps=8&size=320x240&seed=7 # one camera
    name: line
engine: {model: line_net, backend: eager, cache: "off"}
guards:
  rules:
    - name: sure # never fires
      rule: score >= 0.0001
# who sees it
sinks:
  - uri: http://127.0.0.1:PORT
    edit: true
    token_file: view.token
    edit_token_file: edit.token
  - events.sqlite
"""


class Operator:
    """Draws a region, writes a rule that it breaks, applies it, and waits for the alarm; then looks as a viewer."""

    def __init__(self, folder, port):
        self.folder, self.address = folder, f"http://127.0.0.1:{port}"
        self.error = self.past = self.text = None

    def run(self):
        try:
            self._wait_for_page()
            with browsing() as browser, console_checked_tabs(browser) as tab:
                self._edit(tab)
                self._view(tab)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self.error = error
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def _wait_for_page(self):
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/healthz", timeout=LIMIT_SECONDS).close()  # noqa: S310
            except OSError:
                assert time.monotonic() < deadline, "the page did not open"
                time.sleep(0.1)
            else:
                return

    def _signed_in(self, tab, token):
        page = tab(f"{self.address}/login")
        page.locator("input[name=token]").fill(token)
        page.locator("button").click()
        page.wait_for_selector(".card[data-index]")
        page.locator(".view").click()
        return page

    def _edit(self, tab):
        page = self._signed_in(tab, "edit-token-of-the-test")
        page.locator(".area-open", has_text="Set up").click()
        page.wait_for_selector(".setup-rules li[data-state=right]")
        page.locator("[data-kind=region][aria-pressed=true]").wait_for()
        box = page.locator(".view canvas").bounding_box()
        for share in ((0.02, 0.25), (0.06, 0.3), (0.1, 0.35)):
            page.mouse.move(box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"])
            page.mouse.down()
        page.mouse.up()
        page.locator(".setup-shapes input:not([hidden])").fill("edge")
        page.locator(".setup-add").click()
        rule = page.locator(".setup-rules li").last
        rule.locator(".rule-text").fill("heat_inside(egde) >= 0.99")
        rule.locator(".rule-why", has_text="Did you mean 'edge'").wait_for()
        assert rule.locator("mark").inner_text() == "egde"
        rule.locator(".rule-text").fill("heat_inside(edge) >= 0.99")
        rule.locator(".hold_seconds").fill("0")
        page.wait_for_selector(".setup-rules li:last-child[data-state=right]:not([data-count='0'])")
        self.past = rule.locator(".rule-words").inner_text()
        page.locator(".setup-apply").click()
        page.locator(".setup-state", has_text="applied, written to run.yaml").wait_for()
        self.text = (self.folder / "run.yaml").read_text()
        page.locator(".setup-close").click()
        page.wait_for_selector(".card.alarmed .alarm-title")
        page.locator(".recent a", has_text="rule-1").first.wait_for()

    def _view(self, tab):
        page = self._signed_in(tab, "view-token-of-the-test")
        page.locator(".area-open", has_text="Region").wait_for()
        status, text = page.evaluate("async () => { const r = await fetch('api/cameras/line/setup'); "
                                     "return [r.status, await r.text()]; }")  # fmt: skip
        assert (status, "for viewing only" in text) == (403, True)
        tab.errors[:] = [error for error in tab.errors if "403" not in error]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_region_and_rule_of_the_page_fire_and_are_written(command, tmp_path):
    pytest.importorskip("playwright.sync_api")
    port = free_port()
    (tmp_path / "run.yaml").write_text(RUN.replace("PORT", str(port)))
    for name in ("view", "edit"):
        (tmp_path / f"{name}.token").write_text(f"{name}-token-of-the-test")
        (tmp_path / f"{name}.token").chmod(0o600)
    operator = Operator(tmp_path, port)
    thread = threading.Thread(target=operator.run)
    thread.start()
    code, output, errors = command("stream", tmp_path / "run.yaml")
    thread.join()
    if operator.error is not None:
        raise operator.error
    assert code == 0, errors
    assert operator.past.startswith("would have fired")
    written = yaml.safe_load(operator.text)
    [region], [_, rule] = written["guards"]["regions"], written["guards"]["rules"]
    assert (region["name"], len(region["polygon"])) == ("edge", 4)
    assert rule == {"name": "rule-1", "rule": "heat_inside(edge) >= 0.99", "hold_seconds": 0}
    for comment in ("# the simulated line", "# one camera", "# never fires", "# who sees it"):
        assert comment in operator.text
    assert "guard rule-1 on line: fired" in output
