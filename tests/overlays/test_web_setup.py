"""The set-up of cameras over HTTP: who may change it, and what the page answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from overlays.sinks.events import EventsSink
from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web.auth import AccessPolicy, Credentials, PageAddress
from overlays.web.setup import IN_CLEAR, MAX_BODY_BYTES, NOT_HERE, VIEWER, refusal_of
from pipeline.camera_setup import CameraSetup
from pipeline.errors import ConfigError, SetupConflictError, SinkError
from pipeline.result import RunResult
from pipeline.settings import Secret, SinkContext
from pipeline.stats import RunStats
from tests.support.page import ANY, TOKEN, connect_viewer, fetch

EDIT_TOKEN = "another-horse-battery"  # noqa: S105 - of no page
PATH = "/api/cameras/line/setup"
SECRETS = {"token_file": Secret(TOKEN), "edit_token_file": Secret(EDIT_TOKEN)}


class Recorded(CameraSetup):
    """Answers with what it was asked, or raises."""

    error = None

    def read(self, camera):
        return {"camera": camera}

    def change(self, camera, wanted):
        if self.error is not None:
            raise self.error
        return {"camera": camera, "wanted": wanted}

    def undo(self, camera, revision):
        return {"camera": camera, "undone": revision}

    def apply_file(self, camera, file_revision):
        return {"camera": camera, "applied": file_revision}

    def check(self, camera, rule, regions):
        return {"error": None, "rule": rule, "regions": regions}


def served(secrets=None, setup=None, **options):
    return WebSink(
        WebSettings(uri=ANY, **options), SinkContext(("line", "a/b"), secrets or {}, setup=setup or Recorded())
    )


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def hello(sink, **headers):
    with connect_viewer(sink, **headers) as viewer:
        return json.loads(viewer.recv())


def test_page_without_the_option_changes_nothing():
    with served() as sink:
        for path, method in ((PATH, "GET"), (PATH, "PUT"), (f"{PATH}/undo", "POST"), ("/api/rules/check", "POST")):
            status, _, text = fetch(sink, path, method, b"{}")
            assert (status, text.decode()) == (403, NOT_HERE)
        assert hello(sink)["edit"] is False


def test_only_the_edit_token_changes_cameras_where_there_is_one():
    with served(SECRETS, edit=True) as sink:
        assert fetch(sink, PATH)[0] == 401
        status, _, text = fetch(sink, PATH, **bearer(TOKEN))
        assert (status, text.decode()) == (403, VIEWER)
        assert fetch(sink, "/api/cameras", **bearer(EDIT_TOKEN))[0] == 200, "it opens the page, too"
        assert json.loads(fetch(sink, PATH, **bearer(EDIT_TOKEN))[2]) == {"camera": "line"}
        for token, may_edit in ((TOKEN, False), (EDIT_TOKEN, True)):
            cookie = fetch(sink, "/login", "POST", f"token={token}")[1]["set-cookie"].partition(";")[0]
            assert fetch(sink, PATH, Cookie=cookie)[0] == (200 if may_edit else 403)
            assert hello(sink, Cookie=cookie)["edit"] is may_edit


def test_token_of_the_page_changes_cameras_without_an_edit_token():
    with served({"token_file": Secret(TOKEN)}, edit=True) as sink:
        assert fetch(sink, PATH)[0] == 401
        assert fetch(sink, PATH, **bearer(TOKEN))[0] == 200


def test_change_from_another_machine_needs_a_private_connection():
    page = SimpleNamespace(setup=Recorded(), edits_in_clear=False)
    assert refusal_of(page, {"may_edit": True, "is_private": True}) is None
    assert refusal_of(page, {"may_edit": True, "is_private": False}) == IN_CLEAR
    page.edits_in_clear = True
    assert refusal_of(page, {"may_edit": True, "is_private": False}) is None


@pytest.mark.parametrize(
    ("options", "secrets", "remedy"),
    [
        ({"uri": "http://0.0.0.0:0", "insecure": True}, {}, "give a token"),
        ({"uri": ANY}, {"edit_token_file": Secret(EDIT_TOKEN)}, "needs token_file, too"),
        ({"uri": ANY}, SECRETS | {"edit_token_file": Secret(TOKEN)}, "has the same token as another file"),
        ({"uri": ANY}, SECRETS | {"view_token_file": Secret(EDIT_TOKEN)}, "has the same token as another file"),
        ({"uri": ANY}, {"view_token_file": Secret(EDIT_TOKEN)}, "needs token_file, too"),
    ],
)
def test_page_that_any_machine_could_change_does_not_open(options, secrets, remedy):
    sink = WebSink(WebSettings(edit=True, **options), SinkContext(("line",), secrets))
    with pytest.raises(SinkError, match=remedy), sink:
        pass


def test_answers_carry_the_values_and_the_reasons():
    setup = Recorded()
    with served(setup=setup, edit=True) as sink:
        status, _, text = fetch(sink, "/api/cameras/a%2Fb/setup", "PUT", b'{"revision": "1"}')
        assert (status, json.loads(text)) == (200, {"camera": "a/b", "wanted": {"revision": "1"}})
        assert json.loads(fetch(sink, f"{PATH}/undo", "POST", b'{"revision": "2"}')[2])["undone"] == "2"
        body = {"camera": "line", "rule": {"rule": "score > 0.5"}, "regions": [{"name": "r"}]}
        assert json.loads(fetch(sink, "/api/rules/check", "POST", json.dumps(body))[2])["regions"] == [{"name": "r"}]
        assert json.loads(fetch(sink, f"{PATH}/file", "POST", b'{"file_revision": "3"}')[2])["applied"] == "3"
        setup.error = SetupConflictError("changed meanwhile", "-a\n+b", "4")
        status, _, text = fetch(sink, PATH, "PUT", b"{}")
        conflict = {"error": "changed meanwhile", "difference": "-a\n+b", "file_revision": "4"}
        assert (status, json.loads(text)) == (409, conflict)
        setup.error = ConfigError("the rule is wrong")
        status, _, text = fetch(sink, PATH, "PUT", b"{}")
        assert (status, json.loads(text)) == (422, {"error": "the rule is wrong"})
        for path, method, body, expected in (
            ("/api/cameras/other/setup", "GET", None, 404),
            (PATH, "PUT", b"[1]", 400),
            (PATH, "PUT", b"{", 400),
            (PATH, "PUT", b" " * (MAX_BODY_BYTES + 1), 413),
            ("/api/rules/check", "POST", b'{"camera": "line", "rule": "score > 0.5"}', 400),
        ):
            assert fetch(sink, path, method, body)[0] == expected
        assert fetch(sink, PATH, "PUT", b"{}", Origin="http://evil.example")[0] == 403


def test_viewer_with_the_view_token_changes_neither_cameras_nor_events(tmp_path):
    secrets = {"token_file": Secret(TOKEN), "view_token_file": Secret("a-token-of-viewers")}
    with served(secrets, edit=True) as sink, EventsSink(f"{tmp_path}/events.sqlite") as events:
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink)))
        cookie = fetch(sink, "/login", "POST", "token=a-token-of-viewers")[1]["set-cookie"].partition(";")[0]
        for headers in ({"Cookie": cookie}, bearer("a-token-of-viewers")):
            assert fetch(sink, "/api/events", **headers)[0] == 200
            assert fetch(sink, "/api/events/1/note", "POST", b'{"note": "x"}', **headers)[0] == 403
            assert fetch(sink, PATH, **headers)[0] == 403
        assert fetch(sink, "/api/events/1/snooze", "POST", b"{}", **bearer(TOKEN))[0] == 400, "it may, with minutes"
        assert fetch(sink, PATH, **bearer(TOKEN))[0] == 200
        assert (hello(sink, Cookie=cookie)["act"], hello(sink, **bearer(TOKEN))["act"]) == (False, True)


def test_token_that_viewers_hold_too_permits_nothing():
    policy = AccessPolicy(PageAddress("127.0.0.1", 1), TOKEN, EDIT_TOKEN, view_token=TOKEN)
    assert not policy.may_act(Credentials(f"Bearer {TOKEN}"))
    assert policy.may_act(Credentials(f"Bearer {EDIT_TOKEN}"))
    assert not AccessPolicy(policy.address, TOKEN, EDIT_TOKEN, EDIT_TOKEN).may_edit(Credentials(f"Bearer {EDIT_TOKEN}"))
