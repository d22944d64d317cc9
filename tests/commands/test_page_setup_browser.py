"""A region that is drawn on the page of a real run raises an alarm; the YAML keeps its comments."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request

import pytest
import yaml

from tests.support.broker import free_port
from tests.support.browser import CHROMIUM, browsing, console_checked_tabs
from tests.support.limits import LIMIT_SECONDS

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
        path = self.folder / "run.yaml"
        path.write_text(self.text + "# by an editor\n")
        rule.locator(".hold_seconds").fill("0.1")
        page.locator(".setup-add").click()
        page.locator(".setup-apply").click()
        page.locator(".setup-text", has_text="+# by an editor").wait_for()
        page.locator(".setup-take", has_text="Apply the file").click()
        page.locator(".setup-state", has_text="run.yaml is applied; what you added is not applied yet").wait_for()
        page.locator(".setup-rules li:nth-child(3)[data-state=right]").wait_for()
        page.locator(".setup-rules li:nth-child(3) .rule-remove").click()
        page.locator(".setup-close").click()
        page.wait_for_selector(".card.alarmed .alarm-title")
        page.locator(".recent a", has_text="rule-1").first.wait_for()

    def _view(self, tab):
        page = self._signed_in(tab, "view-token-of-the-test")
        page.locator(".area-open", has_text="Region").wait_for()
        status, text = page.evaluate("async () => { const r = await fetch('api/cameras/line/setup'); "
                                     "return [r.status, await r.text()]; }")  # fmt: skip
        assert (status, "for viewing only" in text) == (403, True)
        tab.errors[:] = [error for error in tab.errors if not re.search("40[39]", error)]


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
