"""CURVE over real sockets: viewers with a listed key are admitted; both sides log why others are not."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import pytest
import zmq
import zmq.auth

from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve import connection_limit
from overlays.wire.curve.authenticator import CurveAuthenticator
from overlays.wire.curve.connection_limit import ConnectionTable
from overlays.wire.curve.handshake_errors import RateLimitedLog, refusal, refused_because
from overlays.wire.curve.keys import read_public
from overlays.wire.curve.subscriptions import MAX_TOPICS, MAX_TOPICS_PER_CONNECTION, Subscriptions
from overlays.wire.viewer import Viewer
from tests.support.limits import LIMIT_SECONDS

ANY = "tcp://127.0.0.1:0"


def locked(keyring, uri=ANY) -> ZeroMqSettings:
    secret = str(keyring / "server.key_secret")
    curve = CurveSettings(secret_key_file=secret, authorized_keys=str(keyring / "allowed"))
    return ZeroMqSettings(uri=uri, curve=curve)


def keys(keyring, who="viewer", server="server"):
    folders = {"viewer": keyring, "server": keyring, "stranger": keyring.parent / "abroad"}
    return {"key": folders[who] / f"{who}.key_secret", "server_key": folders[server] / f"{server}.key"}


class Scene:
    """A sink and a viewer without threads of the test: the sink puts a frame each time the viewer is read."""

    def __init__(self, sink, overlaid, wait_until):
        self.sink, self.overlaid, self.until, self.index = sink, overlaid, wait_until, 0

    def pulse(self, viewer):
        self.index += 1
        self.sink.put(self.overlaid(index=self.index))
        return [seen for _, seen in zip(range(1), viewer.messages_or_none(), strict=False) if seen is not None]

    def sees(self, viewer):
        self.until(lambda: bool(self.pulse(viewer)))

    def refuses(self, viewer, kinds, message):
        """No frame is received until both ends report the reason, and none after it."""
        seen = []

        def result():
            seen.extend(self.pulse(viewer))
            return any(kind in self.sink.refused for kind in kinds) and message in viewer.problem

        self.until(result)
        seen.extend(each for _ in range(5) for each in self.pulse(viewer))
        assert seen == []
        assert viewer.refused > 0


@pytest.fixture
def scene(overlaid, wait_until):
    with ExitStack() as stack:
        yield lambda settings: Scene(stack.enter_context(ZeroMqSink(settings)), overlaid, wait_until)


def test_viewer_with_the_right_key_receives_over_tcp_and_ipc(keyring, tmp_path, scene, overlaid, wait_until):
    at = scene(locked(keyring))
    with Viewer(at.sink.endpoint, **keys(keyring)) as viewer:
        at.sees(viewer)
        assert (viewer.problem, viewer.refused, at.sink.viewers) == ("", 0, 1)
    with ZeroMqSink(locked(keyring, f"ipc://{tmp_path}/door")) as sink, Viewer(sink.uri, **keys(keyring)) as viewer:
        Scene(sink, overlaid, wait_until).sees(viewer)


def test_viewer_with_an_unknown_key_receives_nothing_and_both_sides_log_why(keyring, scene, caplog):
    at = scene(locked(keyring))
    with Viewer(at.sink.endpoint, **keys(keyring, "stranger")) as viewer:
        at.refuses(viewer, {"unknown key"}, "the server does not know this viewer's key")
    stranger = read_public(keyring.parent / "abroad" / "stranger.key").decode()
    assert f"{stranger} from 127.0.0.1" in caplog.text


def test_viewer_with_a_wrong_server_key_receives_nothing_and_both_sides_log_why(keyring, scene, caplog):
    at = scene(locked(keyring))
    with Viewer(at.sink.endpoint, **keys(keyring, "viewer", "stranger")) as viewer:
        at.refuses(viewer, {"wrong server key"}, "most likely the server key given here is not this server's")
    assert "its --server-key is the key of another server" in caplog.text


def test_viewer_without_keys_receives_nothing_and_both_sides_log_why(keyring, scene, caplog):
    at = scene(locked(keyring))
    with Viewer(at.sink.endpoint) as viewer:
        at.refuses(viewer, {"no keys", "hung up"}, "admits only viewers with keys")
    assert "viewer without keys was refused" in caplog.text or "with other or no keys, or a port scan" in caplog.text


def test_viewer_with_keys_reports_a_server_without_keys(keyring, scene, caplog):
    at = scene(ANY)
    with Viewer(at.sink.endpoint, **keys(keyring)) as viewer:
        at.refuses(viewer, {"keys not asked for", "hung up"}, "the server uses no keys")
    assert "this stream has no keys" in caplog.text or "a viewer with other or no keys" in caplog.text


def test_allowlist_changes_admit_and_disconnect_viewers(keyring, scene, wait_until):
    """The other viewers stay connected or reconnect within seconds, without a restart."""
    at = scene(locked(keyring))
    entry = keyring / "allowed" / "stranger.key"
    with (
        Viewer(at.sink.endpoint, **keys(keyring)) as friend,
        Viewer(at.sink.endpoint, **keys(keyring, "stranger")) as stranger,
    ):
        at.refuses(stranger, {"unknown key"}, "does not know")
        at.sees(friend)
        entry.write_bytes((keyring.parent / "abroad" / "stranger.key").read_bytes())
        at.sees(stranger)
        wait_until(lambda: not stranger.problem)  # events come by another way than messages, and may come after them
        entry.unlink()

        def put_out():
            at.pulse(stranger)
            return "does not know" in stranger.problem

        wait_until(put_out)
        at.refuses(stranger, {"unknown key"}, "does not know")
        at.sees(friend)
        assert friend.refused == 0


def test_many_refusals_are_logged_as_one_line_with_a_count(caplog):
    import logging

    seldom = RateLimitedLog(logging.getLogger("gate"), "tcp://x:1")
    for k in range(100):
        seldom.record("no keys", k / 10)
    seldom.record("unknown key", 9.95, "KEY from 10.0.0.1")
    seldom.flush(10.0)
    assert [r.getMessage().count("without keys") for r in caplog.records] == [1, 0, 1]
    assert "(99 times" in caplog.text
    assert "KEY from 10.0.0.1" in caplog.text
    assert seldom.counts == {"no keys": 100, "unknown key": 1}


def test_handshake_failures_have_a_message_on_both_sides():
    mismatch, sealed = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
    protocol, hung_up = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    assert refusal(zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400, keys=True) == "unknown key"
    assert refusal(protocol, mismatch, keys=False) == "keys not asked for"
    assert refusal(protocol, sealed, keys=True) == "wrong server key"
    assert refusal(protocol, 1, keys=False) == "not ZeroMQ"
    assert refusal(hung_up, 32, keys=True) == "hung up"
    assert "wants" not in refused_because(hung_up, 110, keys=True)
    assert "--key and --server-key" in refused_because(protocol, mismatch, keys=False)


def test_browser_connection_is_harmless(keyring, scene):
    at = scene(locked(keyring))
    host, port = at.sink.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 200)
        with Viewer(at.sink.endpoint, **keys(keyring)) as viewer:
            at.sees(viewer)


def test_connection_limit_drops_the_oldest_handshake_and_no_viewer():
    now = [0.0]
    held = ConnectionTable(limit=3, clock=lambda: now[0])
    assert [held.accept(descriptor, "127.0.0.1") for descriptor in (11, 12, 13)] == [None] * 3
    held.mark_as_viewer(11)
    assert held.accept(14, "127.0.0.1") == 12, "the oldest that is no viewer yet"
    held.remove(12)
    now[0] = 60.0
    assert held.accept(15, "127.0.0.1") == 15, "all others have passed their handshake"
    assert len(held) == 3
    assert held.refused == 2


def test_connection_limit_applies_per_address_except_this_machines():
    held = ConnectionTable(limit=8, clock=lambda: 0.0)
    assert [held.accept(descriptor, "192.0.2.1") for descriptor in range(5)][-1] == 0
    assert held.accept(10, "198.51.100.7") is None
    assert [held.accept(20 + k, "2001:db8::" + str(k)) for k in range(4)] == [None, None, None, 1]
    first = held.serial(4)
    held.remove(4)
    held.accept(4, "127.0.0.1")
    assert held.serial(4) > first, "a descriptor that is used again is another connection"


@pytest.mark.slow
def test_idle_connections_are_limited_and_an_admitted_viewer_stays(keyring, scene, wait_until, monkeypatch):
    monkeypatch.setattr(connection_limit, "MAX_CONNECTIONS", 24)
    at = scene(locked(keyring))
    host, port = at.sink.endpoint.removeprefix("tcp://").split(":")
    with Viewer(at.sink.endpoint, **keys(keyring)) as friend, ExitStack() as stack:
        at.sees(friend)
        strangers = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(60)]
        wait_until(lambda: at.sink._authenticator.connections.refused > 0)
        assert len(at.sink._authenticator.connections) <= 24
        assert at.sink.viewers == 1, "a stranger is no viewer"
        at.sees(friend)
        wait_until(lambda: len(at.sink._authenticator.connections) == 1)  # an idle handshake ends by itself
        assert friend.refused == 0
        for stranger in strangers:
            stranger.settimeout(LIMIT_SECONDS)
            with suppress(ConnectionError):
                while stranger.recv(4096):  # the greeting, then the end
                    pass


def test_endless_subscriptions_are_cut_off_and_other_viewers_served(overlaid, wait_until, caplog):
    with ZeroMqSink(ANY) as sink, zmq.Context() as context, Viewer(sink.endpoint) as viewer:
        greedy = context.socket(zmq.SUB)
        greedy.setsockopt(zmq.LINGER, 0)
        greedy.setsockopt(zmq.SNDHWM, 0)
        greedy.setsockopt(zmq.RECONNECT_IVL, -1)
        try:
            wait_until(lambda: sink.idle() or sink.topics)
            greedy.connect(sink.endpoint)
            for number in range(5 * MAX_TOPICS_PER_CONNECTION):
                greedy.setsockopt(zmq.SUBSCRIBE, b"%09d" % number)
            wait_until(lambda: sink.idle() or "too many names" in caplog.text)
            wait_until(lambda: sink.idle() or sink.topics == {b""})
            sink.put(overlaid(index=1))
            assert next(viewer.messages()).header.index == 1
        finally:
            greedy.close(0)


def test_subscriptions_are_bounded_in_total_and_small_ones_stay():
    subscriptions = Subscriptions()
    per = 1000
    for descriptor in range(8):
        assert all(subscriptions.add(b"%d-%d" % (descriptor, k), descriptor) for k in range(per))
    full = [subscriptions.add(b"8-%d" % k, 8) for k in range(per)]
    assert full.index(False) == MAX_TOPICS - 8 * per
    assert not any(full[full.index(False) :]), "what is still on its way from it is not heard"
    assert subscriptions.add(b"small", 9)
    subscriptions.publish()
    assert len(subscriptions.topics) == MAX_TOPICS + 1
    assert subscriptions.matches(b"small camera")
    assert not subscriptions.matches(b"smal")
    subscriptions.remove(b"small")
    subscriptions.publish()
    assert not subscriptions.matches(b"small camera")
    assert subscriptions.add(b"0-0", 0), "what is known already costs nothing"


def test_connection_counts_as_viewer_when_its_message_is_read_before_its_acceptance():
    now = [0.0]
    table = ConnectionTable(limit=8, clock=lambda: now[0])
    table.mark_as_viewer(5)
    table.accept(5, "192.0.2.1")
    assert table.viewers == 1
    table.remove(5)
    table.mark_as_viewer(5)  # of the connection that has ended
    now[0] = 2.0
    table.accept(5, "192.0.2.1")
    assert table.viewers == 0


def test_key_removed_during_its_handshake_receives_nothing_afterwards(keyring, scene, monkeypatch):
    at = scene(locked(keyring))
    admits, admitted = CurveAuthenticator._admits, []

    def admit_and_remove(authenticator, *request):
        answer = admits(authenticator, *request)
        if answer:  # the list changes between the decision and the answer
            admitted.append(at.index)
            for path in (keyring / "allowed").glob("viewer*"):
                path.unlink()
        return answer

    monkeypatch.setattr(CurveAuthenticator, "_admits", admit_and_remove)
    with Viewer(at.sink.endpoint, **keys(keyring)) as viewer:
        at.until(lambda: at.pulse(viewer) is not None and bool(admitted))
        at.until(lambda: at.pulse(viewer) is not None and "unknown key" in at.sink.refused)
        assert [seen for _ in range(20) for seen in at.pulse(viewer)] == []
    assert len(admitted) == 1
