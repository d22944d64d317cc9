"""Events are posted to a real HTTP receiver: signed, in order, again after a failure, and never with the secret."""

from __future__ import annotations

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from overlays.events import webhook
from overlays.events.feed import MAX_NOTICES, EventFeed, Notice
from overlays.events.query import EventFilter
from overlays.events.store import Action
from overlays.events.webhook import Webhook, make_message, read_webhook, sign
from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings
from pipeline.errors import ConfigError, SinkError
from pipeline.settings import Secret, SinkContext
from tests.support.certificates import make_certificate
from tests.support.events import WALL, Clock, shown
from tests.support.limits import LIMIT_SECONDS

KEY = bytes(range(32))
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # noqa: S105


class Receiver:
    """A receiver that answers with the given statuses, then 204; ``messages`` has what it got."""

    def __init__(self, *statuses, tls=None):
        self.statuses = list(statuses)
        self.messages = []
        self.came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                with receiver.came:
                    receiver.messages.append((self.path, dict(self.headers), body, status))
                    receiver.came.notify_all()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self):
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}/hook/s3cret?key=s3cret"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def wait(self, count):
        with self.came:
            assert self.came.wait_for(lambda: len(self.messages) >= count, LIMIT_SECONDS)
        return self.messages

    def types(self):
        return [json.loads(body)["type"] for _, _, body, _ in self.messages]


def record(name="a", **facts):
    return {"id": name, "start": WALL, "end": None, "seen": WALL, "acted": None, "version": 0} | facts


def secret(*lines):
    return Secret("\n".join(lines), "hook.webhook")


@contextmanager
def posting(receiver, feed=None, **options):
    feed = EventFeed() if feed is None else feed
    with Webhook(read_webhook(secret(receiver.address, SECRET)), feed, "events.sqlite", **options) as posted:
        posted.feed = feed
        yield posted


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(webhook, "_RETRY_SECONDS", (0.01, 0.02))


def test_signature_is_that_of_the_specification():
    # The example of the specification's reference implementations.
    key = read_webhook(secret("https://host/", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).key
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_message_of_an_occasion_is_the_same_each_time():
    changed = record(acted=WALL + 5, version=2)
    assert make_message(Notice(1, "started", record()))[0] == "a-started"
    assert (
        make_message(Notice(7, "changed", changed))[0]
        == make_message(Notice(9, "changed", changed))[0]
        == "a-changed-2"
    )
    body = json.loads(make_message(Notice(1, "ended", record(end=WALL + 1)))[1])
    assert (body["type"], body["timestamp"]) == ("event.ended", "2026-09-21T14:13:21.000+00:00")
    assert body["data"] == record(end=WALL + 1)


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ((), "should have two lines, the address and the secret"),
        (("https://host/", SECRET, "more"), "should have two lines, the address and the secret"),
        (("ftp://host/s3cret",), "line 1: is not an address"),
        (("https:///s3cret",), "line 1: is not an address"),
        (("https://host:99999/s3cret",), "line 1: is not an address"),
        (("https://host/s3 cret",), "line 1: is not an address"),
        ((f"https://{'s3cret' * 20}.example/",), "line 1: is not an address"),
        (("https://me:s3cret@host/",), "user and password are not supported"),
        (("https://host/", "s3cret"), "line 2: should be whsec_"),
        (("https://host/", "whsec_s3cret=="), "openssl rand -base64 32"),
    ],
)
def test_wrong_webhook_file_is_refused_with_the_remedy_and_without_the_secret(lines, rule):
    with pytest.raises(ConfigError, match=rule) as refused:
        read_webhook(secret(*lines))
    assert "s3cret" not in str(refused.value)


def test_events_of_a_sink_are_posted_signed_and_in_order(tmp_path, caplog):
    clock = Clock()
    settings = EventSettings(uri=str(tmp_path / "events.sqlite"), gap_seconds=0.0)
    with Receiver() as receiver:
        context = SinkContext(secrets={"webhook_file": secret(receiver.address, SECRET)})
        with EventsSink(settings, context, wall_clock=clock.wall, clock=clock) as sink:
            sink.put(shown(0.0, label="ok", inside=0.25))
            [event] = sink.reader.page(EventFilter()).events
            sink.submit(Action(event["id"], "acknowledge", "Ada"))
            sink.idle()
            clock.now = 1.0
            sink.put(shown(1.0, label="ok"))
            sink.put(shown(2.0, label="ok", inside=0.1))
        assert receiver.types() == [
            "event.started", "event.changed", "event.ended", "event.started", "event.ended",
        ]  # fmt: skip
        assert sink.problem == ""
        assert {sample.name: sample.value for sample in sink.metrics()}["webhook_delivered"] == 5
    for path, headers, body, _ in receiver.messages:
        assert path == "/hook/s3cret?key=s3cret"
        assert headers["webhook-timestamp"] in {str(int(WALL)), str(int(WALL) + 1)}
        signed = sign(KEY, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == signed
    assert json.loads(receiver.messages[1][2])["data"]["by"] == "Ada"
    assert len({headers["webhook-id"] for _, headers, _, _ in receiver.messages}) == 5
    assert not {"s3cret", SECRET} & set(caplog.text.split())
    assert "s3cret" not in caplog.text


def test_failed_message_is_posted_again_before_the_next_one(caplog):
    with Receiver(503, 429, 500, 302) as receiver, posting(receiver) as posted:
        posted.feed.publish([], [("started", record("a")), ("started", record("b"))])
        posted.wake()
        receiver.wait(6)
    assert [headers["webhook-id"] for _, headers, _, _ in receiver.messages] == ["a-started"] * 5 + ["b-started"]
    assert (posted.delivered, posted.refused, posted.lost, posted.problem) == (2, 0, 0, "")
    assert "it answers 503 Service Unavailable" in caplog.text
    assert "s3cret" not in caplog.text


def test_message_that_is_refused_again_and_again_is_given_up():
    with Receiver(*[401] * 5) as receiver, posting(receiver) as posted:
        posted.feed.publish([], [("started", record("a")), ("started", record("b"))])
        posted.wake()
        receiver.wait(6)
    assert [status for *_, status in receiver.messages] == [401] * 5 + [204]
    assert (posted.delivered, posted.refused, posted.problem) == (1, 1, "")


def test_receiver_that_is_gone_gets_nothing_more():
    with Receiver(410) as receiver, posting(receiver) as posted:
        posted.feed.publish([], [("started", record(str(k))) for k in range(5)])
        posted.wake()
    assert len(receiver.messages) == 1
    assert posted.refused == 5
    assert "410 Gone" in posted.problem


def test_what_is_too_old_to_be_kept_is_counted(monkeypatch):
    monkeypatch.setattr(webhook, "_DRAIN_SECONDS", 0.0)
    feed = EventFeed()
    feed.publish([], [("started", record(str(k))) for k in range(MAX_NOTICES + 7)])
    lost, kept = feed.notices(0, 1)
    assert (lost, kept[0].number) == (7, 8)
    assert feed.notices(feed.noticed) == (0, [])
    with Receiver() as receiver:
        address = receiver.address
    refusing = read_webhook(secret(address, SECRET))
    with Webhook(refusing, feed, "events.sqlite") as posted:
        pass
    assert posted.lost == MAX_NOTICES + 7
    assert posted.waiting == 0


def test_certificate_of_the_receiver_is_checked(tmp_path, wait_until, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate, alternative="IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Receiver(tls=context) as receiver:
        with posting(receiver, ca_file=str(certificate)) as posted:
            posted.feed.publish([], [("started", record())])
            posted.wake()
            receiver.wait(1)
        assert posted.delivered == 1
        monkeypatch.setattr(webhook, "_DRAIN_SECONDS", 0.1)
        feed = EventFeed()
        feed.publish([], [("started", record())])
        with posting(receiver, feed) as unknown:
            wait_until(lambda: unknown.problem)
            assert "self-signed certificate" in unknown.problem
        assert len(receiver.messages) == 1


def test_certificates_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(SinkError, match="is for https"):
        Webhook(read_webhook(secret("http://127.0.0.1/")), EventFeed(), "e.sqlite", ca_file="ca.pem")
    with pytest.raises(SinkError, match="cannot be read"):
        Webhook(read_webhook(secret("https://host/")), EventFeed(), "e.sqlite", ca_file=str(tmp_path / "none.pem"))
