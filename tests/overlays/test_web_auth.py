"""The page's access control: token, cookie, hosts, origins and proxies."""

from __future__ import annotations

import base64
import errno
import json
import re
import socket
import sys
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from itsdangerous import TimestampSigner
from websockets.exceptions import ConnectionClosed, InvalidStatus

from commands.wiring.sinks import ChangingFile
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from overlays.web.auth import (
    COOKIE_SECONDS,
    AccessPolicy,
    Credentials,
    PageAddress,
    check_origin,
    check_prefix,
    check_token,
    is_loopback,
    parse_page_address,
)
from overlays.web.listener import listen
from pipeline.errors import SinkError
from pipeline.settings import Secret, SinkContext
from tests.overlays.conftest import figures
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import ANY, LOCKED, TOKEN, connect_viewer, fetch, page


def test_only_login_and_health_are_served_without_the_token(overlaid):
    with page(LOCKED) as sink:
        sink.put(overlaid())
        for path in ("/", "/frames", "/metrics", "/stream/line.mjpg", "/clip/line.mp4", "/static/page.js"):
            assert fetch(sink, path)[0] == 401, path
            assert fetch(sink, path, Authorization=f"Bearer {TOKEN}x")[0] == 401, path
        assert fetch(sink, "/metrics?token=" + TOKEN)[0] == 401, "not in URLs"
        code, headers, _ = fetch(sink, "/", Accept="text/html")
        assert (code, headers["location"]) == (303, "login")
        assert fetch(sink, "/login")[0] == fetch(sink, "/static/page.css")[0] == fetch(sink, "/healthz")[0] == 200
        code, _, body = fetch(sink, "/readyz")
        assert (code, json.loads(body)) == (200, {"ready": True, "within_seconds": 5.0}), "no camera is named"
        with pytest.raises(InvalidStatus, match="401"), connect_viewer(sink):
            pass
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert fetch(sink, "/metrics", **good)[0] == 200
        assert json.loads(fetch(sink, "/readyz", **good)[2])["cameras"] == {"line": "fresh"}
        with connect_viewer(sink, **good) as link:
            assert json.loads(link.recv(timeout=LIMIT_SECONDS))["token"]


def test_login_cookie_is_not_readable_by_scripts_and_other_sites(caplog):
    caplog.set_level("DEBUG")
    with page(LOCKED) as sink:
        code, headers, body = fetch(sink, "/login", "POST", "token=wrong-but-long-enough")
        assert (code, "set-cookie" in headers) == (401, False)
        assert b"The token is wrong" in body
        code, headers, _ = fetch(sink, "/login", "POST", f"token={TOKEN}")
        assert (code, headers["location"]) == (303, "./")
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
        assert TOKEN not in cookie
        assert fetch(sink, "/", Cookie=cookie)[0] == 200
        assert fetch(sink, "/", Cookie=cookie[:-1] + "0")[0] in {200, 401}
        with connect_viewer(sink, Cookie=cookie):
            pass
        assert fetch(sink, "/login", "POST", "token=" + "x" * 5000)[0] == 413
        code, headers, _ = fetch(sink, "/logout", "POST", Cookie=cookie)
        assert "Max-Age=0" in headers["set-cookie"]
        secure = fetch(sink, "/login", "POST", f"token={TOKEN}", X_Forwarded_Proto="https")[1]["set-cookie"]
        assert "Secure" in secure, "behind a proxy that speaks TLS"
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(LOCKED)


def test_unknown_host_and_origin_are_refused(overlaid):
    with page() as sink:
        port = sink.endpoint.rpartition(":")[2]
        sink.put(overlaid())
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.5", ""):
            assert fetch(sink, "/", Host=host)[0] == 421, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
            assert fetch(sink, "/", Host=host)[0] == 200, host
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}", "file://"):
            with pytest.raises(InvalidStatus, match="403"), connect_viewer(sink, Origin=origin):
                pass
            assert fetch(sink, "/login", "POST", "token=x", Origin=origin)[0] == 403
        with connect_viewer(sink, Origin=sink.endpoint):
            pass
        refused = dict(figures(sink))["recipro_page_refused_total"]
        assert refused >= 10


def test_allowed_hosts_are_accepted_for_a_proxy():
    with page(allowed_hosts=("cams.example.com",)) as sink:
        assert fetch(sink, "/", Host="cams.example.com")[0] == 200
        assert fetch(sink, "/", Host="other.example.com")[0] == 421


def test_responses_forbid_unused_browser_features():
    with page() as sink:
        for path in ("/", "/static/page.js", "/nothing", "/metrics", "/static/../guard.py", "/static/guard.py"):
            code, headers, _ = fetch(sink, path)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in headers
            assert code == (404 if "guard" in path or "nothing" in path else 200)


@pytest.mark.parametrize("uri", ["http://0.0.0.0:0", "http://[::]:0", "http://192.0.2.1:8000"])
def test_public_address_requires_a_token_or_insecure(uri):
    with pytest.raises(SinkError, match=r"--page-token-file page.token.*http://127.0.0.1:.*insecure: true"):
        WebSink(uri).__enter__()


def test_public_address_serves_with_token_or_insecure():
    for secrets, insecure in ((LOCKED, False), ({}, True)):
        settings = WebSettings(uri="http://0.0.0.0:0", insecure=insecure)
        with WebSink(settings, SinkContext(secrets=secrets)) as sink:
            at = WebSink.__new__(WebSink)
            at.endpoint = sink.endpoint.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            assert fetch(at, "/healthz")[0] == 200
            assert fetch(at, "/healthz", Host="192.168.1.7:8000")[0] == 200
            assert fetch(at, "/healthz", Host="evil.example")[0] == (200 if secrets else 421)


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "ünïcödé-ünïcödé-ünïcödé"])
def test_weak_or_unsendable_token_is_refused(token):
    with pytest.raises(SinkError, match="openssl rand"):
        WebSink(ANY, SinkContext(secrets={"token_file": Secret(token)}))
    assert check_token(f" {TOKEN}\n") == TOKEN


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1", "http://:80", "http://h:99999", "http://u:p@h:1", "http://h:1/path", "http://h:1?x"]
)
def test_misspelled_address_is_refused(uri):
    with pytest.raises(SinkError, match=r"http://127\.0\.0\.1:8000"):
        WebSink(uri)


def test_port_in_use_is_refused_with_the_remedy():
    with page() as sink, pytest.raises(SinkError, match="is in use; choose another port"):
        WebSink(sink.endpoint).__enter__()


def test_unresolved_host_and_refused_socket_have_different_messages(monkeypatch):
    with pytest.raises(SinkError, match=r"cannot resolve host 'no-such-host\.invalid' .*; use an address such as"):
        listen("http://no-such-host.invalid:80", PageAddress("no-such-host.invalid", 80))

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(SinkError, match=r"cannot be served \(Too many open files\)"):
        listen("http://127.0.0.1:80", PageAddress("127.0.0.1", 80))


def test_cookie_is_invalid_after_expiry_and_with_another_token(monkeypatch):
    clock = SimpleNamespace(now=1000)
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: clock.now)
    policy = AccessPolicy(PageAddress("127.0.0.1", 1), TOKEN)
    cookie = policy.issue_cookie(TOKEN)
    assert policy.is_authenticated(Credentials(cookie=cookie))
    clock.now += COOKIE_SECONDS
    assert policy.is_authenticated(Credentials(cookie=cookie))
    clock.now += 1
    assert not policy.is_authenticated(Credentials(cookie=cookie))
    later = policy.issue_cookie(TOKEN)
    session, issued, signature = cookie.split(".")
    altered = (f"{session}.{later.split('.')[1]}.{signature}", f"{'0' * len(session)}.{issued}.{signature}")
    clock.now = 1000
    for changed in altered:
        assert not policy.is_authenticated(Credentials(cookie=changed)), "the signature covers session and time"
    assert not AccessPolicy(policy.address, TOKEN + "x").is_authenticated(Credentials(cookie=cookie))
    for junk in ("", ".", "..", "9" * 30 + ".x", "²³.x", "1.ü", "x\udce9.y.z", f"a.{'_' * 4000}.b"):
        assert not policy.is_authenticated(Credentials("Bearer ü", junk, junk))


def test_signature_of_another_purpose_is_no_cookie():
    policy = AccessPolicy(PageAddress("127.0.0.1", 1), TOKEN)
    assert not policy.is_authenticated(Credentials(cookie=TimestampSigner(TOKEN).sign("session").decode()))


def test_loopback_addresses_are_recognised():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "no-such.invalid"))  # noqa: S104
    assert parse_page_address("http://[::1]:80/") == PageAddress("::1", 80)


def test_credentials_in_the_sink_address_are_not_repeated():
    for address in ("http://ada:canary@127.0.0.1:8000", "tcp://ada:canary@127.0.0.1:5555"):
        with pytest.raises(SinkError, match="write the address as") as refused:
            build_sink(address)
        assert "canary" not in str(refused.value)


def test_token_in_the_address_is_accepted_for_mjpeg_only(overlaid):
    with page(LOCKED) as sink:
        sink.put(overlaid())
        own = sink._page.access.stream_token("line")
        assert fetch(sink, f"/stream/line.mjpg?token={TOKEN}", "HEAD")[0] == 200
        assert fetch(sink, f"/stream/line.mjpg?token={own}", "HEAD")[0] == 200
        for path in (f"/stream/door.mjpg?token={own}", "/stream/line.mjpg?token=x", f"/clip/line.mp4?token={TOKEN}"):
            assert fetch(sink, path)[0] == 401, path
        assert "Basic" in fetch(sink, "/stream/line.mjpg")[1]["www-authenticate"]
        assert "Basic" not in fetch(sink, "/metrics")[1]["www-authenticate"], "browsers would ask for a password"
        for user in (f"vlc:{TOKEN}", f":{TOKEN}", f"{TOKEN}:"):
            basic = "Basic " + base64.b64encode(user.encode()).decode()
            assert fetch(sink, "/stream/line.mjpg", "HEAD", Authorization=basic)[0] == 200
        assert fetch(sink, "/stream/line.mjpg", Authorization="Basic !")[0] == 401


def test_other_sites_cannot_act_and_embed_streams_only_if_allowed(overlaid):
    dashboard = "https://dashboard.example"
    with page(embed_origins=(dashboard + "/",)) as sink:
        sink.put(overlaid())
        cross = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
        for path in ("/clip/line.mp4", "/metrics", "/static/page.js", "/stream/line.mjpg"):
            for site in ("cross-site", "same-site"):
                assert fetch(sink, path, "HEAD", **cross | {"Sec_Fetch_Site": site})[0] == 403, path
            assert fetch(sink, path, "HEAD", Sec_Fetch_Site="same-origin")[0] in {200, 404}, path
        assert fetch(sink, "/clip/line.mp4", Referer="http://evil.example/")[0] == 403
        assert fetch(sink, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200, "a link to it"
        code, headers, _ = fetch(sink, "/stream/line.mjpg", "HEAD", Referer=f"{dashboard}/wall", **cross)
        assert (code, headers["cross-origin-resource-policy"]) == (200, "cross-origin")
        assert fetch(sink, "/stream/line.mjpg", "HEAD", Referer="https://other.example/", **cross)[0] == 403
        code, headers, _ = fetch(
            sink, "/stream/line.mjpg", "HEAD", Origin=dashboard, **cross | {"Sec_Fetch_Mode": "cors"}
        )
        assert (code, headers["access-control-allow-origin"], headers["vary"]) == (200, dashboard, "Origin")
        headers = fetch(sink, "/")[1]
        assert headers["content-security-policy"].endswith(f"; frame-ancestors 'self' {dashboard}")
        assert "x-frame-options" not in headers, "it cannot name origins"
        assert fetch(sink, "/clip/line.mp4", "HEAD", Referer=f"{dashboard}/wall", **cross)[0] == 403


def test_basic_authentication_is_accepted_by_tls_and_on_this_machine_only(overlaid):
    """The addresses of players have the token as a password."""
    basic = {"Authorization": "Basic " + base64.b64encode(f"vlc:{TOKEN}".encode()).decode()}
    beyond = {"X_Forwarded_For": "192.0.2.7"}
    with page(LOCKED) as sink:
        sink.put(overlaid())
        assert fetch(sink, "/snapshot/line.jpg", **basic)[0] == 200
        code, headers, text = fetch(sink, "/snapshot/line.jpg", **basic, **beyond)
        assert (code, "Basic" in headers["www-authenticate"]) == (401, False)
        assert b"accepted by HTTPS or on this machine only" in text
        assert fetch(sink, "/snapshot/line.jpg", **basic, **beyond, X_Forwarded_Proto="https")[0] == 200
        assert fetch(sink, "/snapshot/line.jpg", Authorization=f"Bearer {TOKEN}", **beyond)[0] == 200
        assert "Basic" in fetch(sink, "/snapshot/line.jpg")[1]["www-authenticate"]
        assert "Basic" not in fetch(sink, "/snapshot/line.jpg", Sec_Fetch_Mode="cors")[1]["www-authenticate"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux answers at all addresses of 127.0.0.0/8")
def test_headers_of_a_proxy_elsewhere_are_believed_if_its_network_is_named():
    for proxies, is_believed in (((), False), (("127.0.0.8/30", "192.0.2.1"), True)):
        with page(LOCKED, trusted_proxies=proxies) as sink:
            host, port = urlsplit(sink.endpoint).hostname, urlsplit(sink.endpoint).port
            link = HTTPConnection(host, port, LIMIT_SECONDS, source_address=("127.0.0.9", 0))
            link.request("POST", "/login", f"token={TOKEN}", {"X-Forwarded-Proto": "https"})
            assert ("Secure" in link.getresponse().headers["set-cookie"]) == is_believed
            link.close()


@pytest.mark.parametrize(
    "arguments",
    [{"embed_origins": ("dashboard.example",)}, {"root_path": "cams"}, {"trusted_proxies": ("10.0.0.7/24",)}],
)
def test_invalid_origin_or_path_is_refused_with_an_example(arguments):
    with pytest.raises(SinkError, match=r"write (SCHEME|for instance)"):
        WebSink(WebSettings(uri=ANY, **arguments))
    assert check_origin("HTTPS://Dash.example:443/") == "https://dash.example"
    assert check_prefix("/cams/") == "/cams"


def test_page_below_a_path_links_only_below_it(overlaid):
    """Whatever a proxy puts before the path: links and redirects are relative."""
    with page(LOCKED) as sink:
        assert fetch(sink, "/", Accept="text/html")[1]["location"] == "login"
        assert fetch(sink, "/stream/line.mjpg", Accept="text/html")[1]["location"] == "../login"
        code, headers, _ = fetch(sink, "/cams/", Accept="text/html", X_Forwarded_Prefix="/cams")
        assert (code, headers["location"]) == (303, "login"), "a proxy that leaves it there"
        signed = fetch(sink, "/login", "POST", f"token={TOKEN}", X_Forwarded_Prefix="/cams")[1]
        assert signed["location"] == "./"
        assert "Path=/cams/" in signed["set-cookie"]
        assert fetch(sink, "/login", X_Forwarded_Prefix="/x\u00ff;Path=/")[0] == 200
        for name, content in sink._page.files.items():
            if name.endswith((".html", ".js")):
                match = re.findall(
                    rb"""(?:href|src|action)="/|["'`]/(?:static|stream|clip|frames|login|metrics)""", content
                )
                assert match == [], name
    with page(root_path="/cams") as sink:
        assert fetch(sink, "/cams/healthz")[0] == fetch(sink, "/healthz")[0] == 200
        code, headers, _ = fetch(sink, "/cams")
        assert (code, headers["location"]) == (307, "cams/")


def test_own_origin_is_accepted_behind_a_proxy_that_drops_the_port():
    guard = AccessPolicy(PageAddress("127.0.0.1", 8000), TOKEN)
    origin = "http://cams.example:8080"
    assert guard.is_allowed_origin(origin, "cams.example:8080")
    assert not guard.is_allowed_origin(origin, "cams.example"), "no proxy says that it is one"
    assert guard.is_allowed_origin(origin, "cams.example", "")
    assert guard.is_allowed_origin(origin, "127.0.0.1:8000", "cams.example:8080")
    assert not guard.is_allowed_origin(origin, "cams.example:9090", "")
    assert not guard.is_allowed_origin("http://evil.example:8080", "cams.example", "")
    assert not guard.is_allowed_origin("http://cams.example:x", "cams.example", "")


def test_logout_ends_the_session_for_all_copies_of_its_cookie(overlaid):
    with page(LOCKED) as sink:
        cookie = fetch(sink, "/login", "POST", f"token={TOKEN}")[1]["set-cookie"].partition(";")[0]
        other = fetch(sink, "/login", "POST", f"token={TOKEN}")[1]["set-cookie"].partition(";")[0]
        with connect_viewer(sink, Cookie=cookie) as copied:
            assert fetch(sink, "/logout", "POST", Cookie=cookie)[0] == 303
            with pytest.raises(ConnectionClosed):
                _ = [copied.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]
        assert fetch(sink, "/", Cookie=cookie)[0] == 401
        assert fetch(sink, "/", Cookie=other)[0] == 200


@pytest.mark.slow
def test_changed_token_applies_at_once_and_an_unreadable_one_is_ignored(tmp_path, caplog, wait_until):
    file = tmp_path / "page.token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    secrets = {"token_file": Secret(TOKEN, str(file), ChangingFile(file))}
    with page(secrets) as sink:
        old, new = {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"Bearer {TOKEN[::-1]}"}
        with connect_viewer(sink, **old) as link:
            file.write_text("short")
            wait_until(lambda: "the last token stays" in caplog.text)
            file.unlink()
            wait_until(lambda: "No such file" in caplog.text)
            assert fetch(sink, "/metrics", **old)[0] == 200
            file.write_text(TOKEN[::-1])
            with pytest.raises(ConnectionClosed):
                _ = [link.recv(timeout=LIMIT_SECONDS) for _ in range(1000)]
        assert fetch(sink, "/metrics", **old)[0] == 401
        assert fetch(sink, "/metrics", **new)[0] == 200
