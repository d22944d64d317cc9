"""A password is in no output: all outputs of a run with a known password are searched for it."""

import base64
import http.server
import json
import logging
import signal
import subprocess
import sys
import threading
import traceback
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
import zmq
from websockets.sync.client import connect

from pipeline.errors import ConnectionLostError, SourceError
from stream.sources import build_source
from tests.support.broker import free_port
from tests.support.feed import Feed
from tests.support.limits import LIMIT_SECONDS
from tests.support.rtsp_server import RtspServer

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "ada-31d7b8e2", "p@ss/7f3a9c1e"
SECRETS = [b"7f3a9c1e", b"31d7b8e2", base64.b64encode(f"{USER}:{PASSWORD}".encode()).rstrip(b"=")]
PAGE = ("/", "/login", "/stream/door", "/clip/door", "/metrics", "/healthz", "/readyz", "/static/page.js", "/nowhere")


def leaks(surfaces):
    """Return the outputs that contain a part of the credentials; the parts are unchanged by every kind of escaping."""
    return [name for name, result in surfaces.items() if any(secret in result for secret in SECRETS)]


@pytest.fixture
def cameras():
    """A server that accepts the password, one that refuses it, one without the path, and a closed port."""
    with (
        Feed() as feed,
        RtspServer(feed, user=USER, password=PASSWORD) as door,
        RtspServer(feed, user=USER, password=PASSWORD[::-1]) as locked,
        RtspServer(feed, user=USER, password=PASSWORD) as moved,
    ):
        moved.faults.moved_path = True
        live = dict.fromkeys(("door", "yard", "gate"), door.port)
        yield {**live, "locked": locked.port, "moved": moved.port, "dead": free_port()}


def configuration(cameras, page, wire):
    """Return a configuration with passwords in addresses, in the environment and in a file, in turn."""
    who = ["ada-31d7b8e2:p%40ss%2F7f3a9c1e@", "${WHO}:${PASS}@", ""]
    sources = []
    for number, (name, port) in enumerate(cameras.items()):
        message = who[number % len(who)]
        record = {} if message else {"credentials_file": "secret"}
        sources.append({"uri": f"rtsp://{message}127.0.0.1:{port}/live", "name": name, **record})
    engine = {"model": "line_net", "backend": "eager", "cache": "off"}
    sinks = ["out.mp4", "clips/", "out.jsonl", f"tcp://127.0.0.1:{wire}", f"http://127.0.0.1:{page}"]
    return yaml.safe_dump({"sources": sources, "engine": engine, "sinks": sinks})


def fetched(url):
    """Return headers and first bytes of a response, also of refusals."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as answer:  # noqa: S310 - our own page
            return str(answer.headers).encode() + answer.read(20_000)
    except urllib.error.HTTPError as refusal:
        return str(refusal.headers).encode() + refusal.read()


def watched(page, wire):
    """Return the content of every route of the page, and of the wire."""
    record = {f"page {path}": fetched(f"http://127.0.0.1:{page}{path}") for path in PAGE}
    with connect(f"ws://127.0.0.1:{page}/frames", max_size=None, origin=f"http://127.0.0.1:{page}") as viewer:
        messages = [viewer.recv(20) for _ in range(4)]
    record["page /frames"] = b"".join(line if isinstance(line, bytes) else line.encode() for line in messages)
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.setsockopt(zmq.RCVTIMEO, 20_000)
        reader.subscribe(b"")
        reader.connect(f"tcp://127.0.0.1:{wire}")
        while not {"wire door", "wire yard", "wire gate"} <= record.keys():
            topic, *rest = reader.recv_multipart()
            record[f"wire {topic.decode()}"] = b"".join([topic, *rest])
    return record


@pytest.mark.slow
def test_password_appears_on_no_surface_of_a_run(cameras, command, tmp_path, monkeypatch):
    page, wire = free_port(), free_port()
    monkeypatch.setenv("WHO", USER)
    monkeypatch.setenv("PASS", PASSWORD)
    (tmp_path / "secret").write_text(f"{USER}:{PASSWORD}\n")
    (tmp_path / "run.yaml").write_text(configuration(cameras, page, wire))
    arguments = [sys.executable, str(ROOT / "run.py"), "stream", "run.yaml", "--log", "json"]
    ended, output, errors = command("stream", "run.yaml", "--print-config")
    assert ended == 0, errors
    surfaces = {"--print-config": (output + errors).encode()}
    lines = []
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        expected = {b"401", b"404", b"connection refused", b"door: live", b"yard: live", b"gate: live"}
        heard = threading.Event()

        def listen():
            for line in run.stderr:
                lines.append(line)
                if all(any(want in line for line in lines) for want in expected):
                    heard.set()

        ears = threading.Thread(target=listen)
        ears.start()
        try:
            assert heard.wait(LIMIT_SECONDS), b"".join(lines)
            surfaces |= watched(page, wire)
            for name in ("cmdline", "comm", "status"):
                with suppress(FileNotFoundError):
                    surfaces[f"process {name}"] = Path(f"/proc/{run.pid}/{name}").read_bytes()
        finally:
            run.send_signal(signal.SIGINT)
            surfaces["stdout"] = run.stdout.read()
            ears.join()
    surfaces["stderr"] = b"".join(lines)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in {"run.yaml", "secret"}]
    assert {path.suffix for path in left} >= {".mp4", ".jsonl"}
    surfaces |= {f"file {path.name}": path.name.encode() + path.read_bytes() for path in left}
    assert run.returncode == 0, lines
    assert leaks(surfaces) == []
    assert surfaces["wire door"].startswith(b"door"), "the surfaces are really looked at"
    assert b"401" in surfaces["page /metrics"] + surfaces["page /readyz"] + surfaces["stderr"]
    messages = [json.loads(line)["message"] for line in lines if line.startswith(b"{")]
    assert all(messages)
    assert any("connection refused" in message for message in messages)


@pytest.mark.parametrize("name", ["locked", "moved", "dead"])
def test_traceback_of_a_failed_camera_does_not_contain_the_password(cameras, name):
    address = f"rtsp://ada-31d7b8e2:p%40ss%2F7f3a9c1e@127.0.0.1:{cameras[name]}/live"
    with build_source(address, attempts=1) as source:
        with pytest.raises(ConnectionLostError) as caught:
            next(source.frames(threading.Event()))
        error = caught.value
    text = "".join(traceback.format_exception(error)) + repr(error) + repr(source.health) + source.uri + source.camera
    assert leaks({"error": text.encode()}) == []


WEB_ANSWERS = {
    "unknown challenge": (401, {"WWW-Authenticate": 'Digest realm="x", nonce="y", algorithm=NEW-512'}, b""),
    "wrong password": (401, {"WWW-Authenticate": 'Digest realm="x", nonce="y", algorithm=SHA-256'}, b""),
    "no such path": (404, {}, b""),
    "redirect that repeats it": (302, {"Location": f"http://{USER}:7f3a9c1e@127.0.0.1:9/x?p=7f3a9c1e"}, b""),
    "redirect elsewhere": (302, {"Location": f"ftp://{USER}:7f3a9c1e@127.0.0.1/x"}, b""),
    "playlist that repeats it": (200, {}, f"#EXTM3U\n#EXTINF:1,\nhttp://{USER}:7f3a9c1e@127.0.0.1:9/a.ts\n".encode()),
    "playlist without segments": (200, {}, b"#EXTM3U\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n"),
    "no video": (200, {}, b"<html>" * 99),
}


@pytest.mark.parametrize("name", WEB_ANSWERS)
def test_errors_and_logs_of_a_web_camera_do_not_contain_the_password(name, caplog):
    caplog.set_level(logging.DEBUG)
    code, headers, body = WEB_ANSWERS[name]

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/live":
                return self.send_error(404)
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            return self.wfile.write(body)

        def log_message(self, *_): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = f"http://ada-31d7b8e2:p%40ss%2F7f3a9c1e@127.0.0.1:{server.server_address[1]}/live"
        with build_source(address, attempts=1) as source:
            with pytest.raises(SourceError) as caught:
                next(source.frames(threading.Event()))
            text = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(source.health)
            text += source.uri + source.camera
        server.shutdown()
        thread.join()
    assert leaks({"error": text.encode(), "log": caplog.text.encode()}) == []


def test_password_on_the_command_line_is_warned_of(command, caplog):
    arguments = ("stream", "--print-config", "--source")
    code, *printed = command(*arguments, f"rtsp://{USER}:7f3a9c1e@127.0.0.1/live")
    assert code == 0
    assert "can be read by every user of this machine" in caplog.text
    assert leaks({"printed": "".join(printed).encode(), "log": caplog.text.encode()}) == []
    caplog.clear()
    code, _, errors = command(*arguments, "rtsp://${WHO}:${PASS}@127.0.0.1/live")
    assert (code, errors, caplog.text) == (0, "", "")
