"""The page behind a real nginx that is configured as the documents say."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from overlays.sinks.web import WebSink
from pipeline.settings import Secret, SinkContext
from tests.support.broker import free_port
from tests.support.limits import LIMIT_SECONDS

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx: apt install nginx-light")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "page.md"
TOKEN = "correct-horse-battery"  # noqa: S105 - of no page


@contextmanager
def proxy(folder, page_port, blocks):
    """Run nginx with these blocks of the document, on a port of its own."""
    port = free_port()
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("fastcgi", "uwsgi", "scgi", "proxy"))
    locations = "\n".join(blocks).replace("127.0.0.1:8000", f"127.0.0.1:{page_port}")
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 64; }}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; {locations} }} }}\n"
    )
    server = subprocess.Popen([NGINX, "-c", str(configuration), "-e", str(folder / "error.log")])
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                link = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)
                link.connect()
                link.close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(LIMIT_SECONDS)


def fetch(address, method="GET", body=None, **headers):
    parts = urlsplit(address)
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LIMIT_SECONDS)
    try:
        link.request(method, parts.path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = link.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        link.close()


def test_documented_proxies_serve_the_page_on_another_port_and_path(tmp_path, overlaid):
    blocks = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    dropping = blocks[0].replace("location /", "location /drops/").replace("8000;", "8000/;", 1)
    blocks.append(dropping.replace("$http_host", "$host"))  # as many have it
    context = SinkContext(("line",), {"token_file": Secret(TOKEN)})
    with WebSink("http://127.0.0.1:0", context) as sink:
        sink.put(overlaid())
        with proxy(tmp_path, urlsplit(sink.endpoint).port, blocks) as port:
            site = f"http://127.0.0.1:{port}"
            for below in ("/", "/cams/", "/drops/"):
                start = site + below
                code, headers, _ = fetch(start, Accept="text/html")
                assert code == 303
                form = urljoin(start, headers["location"])
                assert form == f"{start}login"
                text = fetch(form)[2].decode()
                for link in re.findall(r'(?:href|src)="([^"]+)"', text):
                    assert fetch(urljoin(form, link))[0] == 200, link
                action = urljoin(form, re.search(r'action="([^"]+)"', text)[1])
                code, headers, _ = fetch(action, "POST", f"token={TOKEN}", Origin=site)
                assert (code, urljoin(form, headers["location"])) == (303, start)
                cookie, _, unchanged = headers["set-cookie"].partition(";")
                assert ("Path=/cams/" in unchanged) == (below == "/cams/")
                text = fetch(start, Cookie=cookie)[2].decode()
                for link in re.findall(r'(?:href|src)="([^"]+)"', text):
                    assert fetch(urljoin(start, link), Cookie=cookie)[0] == 200, link
                record = {"Cookie": cookie}
                with connect(f"{start}frames".replace("http", "ws"), additional_headers=record, origin=site) as link:
                    assert '"hello"' in link.recv(timeout=LIMIT_SECONDS)
                for foreign in ("http://evil.example", f"http://evil.example:{port}"):
                    with (
                        pytest.raises(InvalidStatus, match="403"),
                        connect(f"{start}frames".replace("http", "ws"), additional_headers=record, origin=foreign),
                    ):
                        pass
