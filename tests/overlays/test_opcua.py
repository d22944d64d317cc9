"""Verdicts for controllers over OPC UA, read by asyncua's client and by node-opcua."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("asyncua")

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.ua.uaerrors import UaStatusCodeError

from overlays.sinks.plc.opcua import MAX_CONNECTIONS, OpcUaSink
from overlays.sinks.settings import OpcUaSettings
from pipeline.frames import Overlay, SignalLoss
from pipeline.guards.state import GuardState
from pipeline.settings import Secret, SinkContext
from tests.overlays.conftest import explain
from tests.support.boxes import box, explained_boxes
from tests.support.certificates import make_certificate
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
ANY_PORT = "opc.tcp://127.0.0.1:0/line"
START_UNIX = 1_800_000_000.0
CAMERAS = SinkContext(cameras=("door", "north", "dark"))
NOW = [100.0]


@pytest.fixture(scope="module")
def sink():
    """One server for the tests that read: building its address space takes seconds."""
    settings = OpcUaSettings(uri=ANY_PORT, ok_when="label=ok", part_when="label!=empty", stale_seconds=5)
    with OpcUaSink(settings, CAMERAS, clock=lambda: NOW[0], wall_clock=lambda: START_UNIX) as opened:
        yield opened


@pytest.fixture(autouse=True)
def start_of_time():
    NOW[0] = 100.0


def put(sink, explanation, **fields):
    sink.put(Overlay(explanation.frame.image, explanation, **fields))


def client(sink, user=""):
    made = Client(sink.endpoint, timeout=PROGRAM_SECONDS)
    if user:
        made.set_user(user)
        made.set_password(f"{user}'s password")
    return made


async def when_serving(sink):
    """Wait until clients can connect."""
    while not sink.is_serving:
        assert not sink.problem
        await asyncio.sleep(0.02)


async def read(connection, camera, name):
    """Return the data value of a variable, whatever its quality."""
    namespace = await connection.get_namespace_index("urn:recipro-stream:line")
    node = connection.get_node(ua.NodeId(f"{camera}.{name}", namespace))
    return await node.read_data_value(raise_on_bad_status=False)


async def read_until(connection, camera, name, value):
    """Read a variable until it has a value."""
    while True:
        data = await read(connection, camera, name)
        if data.Value.Value == value:
            return data
        await asyncio.sleep(0.02)


async def status_until(connection, name, status):
    """Read a variable of the camera "door" until it has a status; a bad one has no value."""
    while True:
        data = await read(connection, "door", name)
        if data.StatusCode.value == status:
            return data.Value.Value is None
        await asyncio.sleep(0.02)


def run(coroutine):
    """Run a test's coroutine; fail after a time limit."""
    return asyncio.run(asyncio.wait_for(coroutine, PROGRAM_SECONDS))


@pytest.mark.slow
def test_cameras_called_like_the_server_or_like_a_variable_are_served():
    cameras = ("line", "door", "door.Ok", "line/")
    with OpcUaSink(OpcUaSettings(uri=ANY_PORT), SinkContext(cameras=cameras), clock=lambda: NOW[0]) as named:
        for index, camera in enumerate(cameras):
            put(named, explain(camera=camera, index=index + 7, taken_at=99.9))

        async def check():
            await when_serving(named)
            async with client(named) as connection:
                for index, camera in enumerate(cameras):
                    await read_until(connection, camera, "Index", index + 7)

        run(check())
        assert not named.problem


@pytest.mark.slow
@pytest.mark.leaves_things  # the module's server stays open for the next test
def test_variables_hold_the_last_frame_and_part(sink):
    for index, (seconds, label) in enumerate([(96.0, "dent"), (96.1, "ok"), (96.2, "dent"), (97.5, "ok")]):
        put(sink, explain(label=label, camera="door", index=index, taken_at=seconds, pts_seconds=seconds))
    put(sink, explained_boxes(box(64, 36, score=0.4), box(9, 9), captured_at=99.0))

    async def check():
        await when_serving(sink)
        async with client(sink) as connection:
            index = await read_until(connection, "door", "Index", 3)
            assert index.StatusCode.is_good()
            assert index.SourceTimestamp == datetime.fromtimestamp(START_UNIX - 2.5, UTC)
            values = {name: (await read(connection, "door", name)).Value.Value for name in NAMES}
            assert values == {
                "Ok": True, "Alarm": False, "Label": "ok", "Score": 0.875, "Boxes": 0, "Age": 2.5, "PartNumber": 1,
                "PartOk": False, "PartLabel": "dent", "PartShare": pytest.approx(2 / 3), "PartFrames": 3,
                "PartLatency": 4.0, "PartZone": "",
            }  # fmt: skip
            north = await read_until(connection, "north", "Boxes", 2)
            assert north.StatusCode.is_good()
            assert (await read(connection, "north", "Box")).Value.Value == [9.0, 9.0, 69.0, 49.0]

    run(check())


NAMES = ("Ok", "Alarm", "Label", "Score", "Boxes", "Age", "PartNumber", "PartOk", "PartLabel", "PartShare",
         "PartFrames", "PartLatency", "PartZone")  # fmt: skip


@pytest.mark.slow
@pytest.mark.leaves_things
def test_dead_camera_is_bad_and_a_camera_without_a_frame_waits(sink):
    async def check():
        await when_serving(sink)
        async with client(sink) as connection:
            put(sink, explain(label="ok", camera="door", index=10, taken_at=100.0))
            await read_until(connection, "door", "Ok", value=True)
            put(sink, explain(camera="door", taken_at=100.0), signal_loss=SignalLoss(1.0))
            for name in ("Ok", "Label", "Index"):
                assert await status_until(connection, name, ua.StatusCodes.BadNoCommunication)
            put(sink, explain(label="ok", camera="door", index=11, taken_at=100.0))
            await read_until(connection, "door", "Ok", value=True)
            sink.forget_camera("door")
            sink.forget_camera("unknown")
            assert await status_until(connection, "Ok", ua.StatusCodes.BadNoCommunication)
            put(sink, explain(label="ok", camera="door", index=12, taken_at=100.0))
            await read_until(connection, "door", "Ok", value=True)
            NOW[0] = 106.0  # older than stale_seconds, without any further frame
            assert await status_until(connection, "Ok", ua.StatusCodes.BadNoCommunication)
            waiting = await read(connection, "dark", "Ok")
            assert waiting.StatusCode.value == ua.StatusCodes.BadWaitingForInitialData

    run(check())


@pytest.mark.leaves_things
def test_subscriber_gets_each_change_and_nothing_can_be_written(sink):
    changes = []

    class Handler:
        def datachange_notification(self, node, value, data):
            changes.append(value)

    async def check():
        await when_serving(sink)
        async with client(sink) as connection:
            put(sink, explain(label="ok", camera="door", index=20, taken_at=100.0))
            await read_until(connection, "door", "Index", 20)
            namespace = await connection.get_namespace_index("urn:recipro-stream:line")
            node = connection.get_node(ua.NodeId("door.Label", namespace))
            subscription = await connection.create_subscription(20, Handler())
            await subscription.subscribe_data_change(node)
            for index, label in enumerate(["ok", "dent", "ok"], start=21):
                put(sink, explain(label=label, camera="door", index=index, taken_at=100.0))
                await read_until(connection, "door", "Index", index)
                while changes[-1:] != [label]:  # noqa: ASYNC110 - the handler is called in the client's task
                    await asyncio.sleep(0.02)
            await subscription.delete()
            assert changes == ["ok", "dent", "ok"]
            with pytest.raises(UaStatusCodeError):
                await node.write_value("mine")

    run(check())


SUBSCRIBER = """
import asyncio, sys
from asyncua import Client, ua
class Handler:
    def datachange_notification(self, node, value, data):
        print(value, flush=True)
async def main():
    async with Client(sys.argv[1], timeout=600) as client:
        namespace = await client.get_namespace_index("urn:recipro-stream:line")
        subscription = await client.create_subscription(20, Handler())
        await subscription.subscribe_data_change(client.get_node(ua.NodeId("door.Index", namespace)))
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.leaves_things
def test_subscriber_that_is_stopped_and_killed_delays_no_frame(sink):
    async def put_until_read(first, last):
        for index in range(first, last + 1):
            put(sink, explain(camera="door", index=index, taken_at=100.0))
        async with client(sink) as connection:
            await read_until(connection, "door", "Index", last)

    run(when_serving(sink))
    run(put_until_read(60, 60))
    command = [sys.executable, "-c", SUBSCRIBER, sink.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as subscriber:
        try:
            assert subscriber.stdout.readline() == "60\n"
            subscriber.send_signal(signal.SIGSTOP)
            run(put_until_read(61, 160))
        finally:
            subscriber.kill()
    run(put_until_read(161, 162))
    assert sink.problem == ""


@pytest.mark.leaves_things
def test_alarm_follows_the_guards(sink):
    firing = explain(camera="north", index=30, taken_at=100.0)
    object.__setattr__(firing, "guards", (GuardState("g", True, 1.0, "why", 1),))

    async def check():
        await when_serving(sink)
        put(sink, firing)
        async with client(sink) as connection:
            await read_until(connection, "north", "Alarm", value=True)

    run(check())


NODE_CLIENT = """
const {OPCUAClient, AttributeIds} = require('node-opcua-client');
(async () => {
  const client = OPCUAClient.create({endpointMustExist: false});
  await client.connect(process.argv[2]);
  const session = await client.createSession();
  const names = (await session.readNamespaceArray());
  const namespace = names.indexOf('urn:recipro-stream:line');
  const read = async (name) => {
    const data = await session.read({nodeId: `ns=${namespace};s=door.${name}`, attributeId: AttributeIds.Value});
    return [data.value.value, data.statusCode.name];
  };
  console.log(JSON.stringify([await read('Label'), await read('Score'), await read('Ok')]));
  await session.close();
  await client.disconnect();
})();
"""


@pytest.mark.leaves_things
def test_node_opcua_reads_the_variables(sink, tmp_path):
    modules = os.environ.get("OPCUA_NODE_MODULES", str(ROOT / "node_modules"))
    if shutil.which("node") is None or not (Path(modules) / "node-opcua-client").is_dir():
        pytest.skip("needs node, and the folder of `npm install node-opcua-client` in OPCUA_NODE_MODULES")

    async def prepare():
        await when_serving(sink)
        put(sink, explain(label="ok", camera="door", index=40, taken_at=100.0, score=0.5))
        async with client(sink) as connection:
            await read_until(connection, "door", "Index", 40)

    run(prepare())
    (tmp_path / "read.js").write_text(NODE_CLIENT)
    done = subprocess.run(
        ["node", "read.js", sink.endpoint], cwd=tmp_path, env={**os.environ, "NODE_PATH": modules},
        capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS,
    )  # fmt: skip
    [line] = [line for line in done.stdout.splitlines() if line.startswith("[[")]  # it also prints advice
    assert json.loads(line) == [["ok", "Good"], [0.5, "Good"], [True, "Good"]]


@pytest.mark.slow
@pytest.mark.leaves_things  # asyncua's client leaves its socket to the garbage collector after a refused session
def test_trusted_clients_with_passwords_are_admitted_over_encrypted_connections_only(tmp_path, caplog):
    for name in ("server", "client"):
        files = tmp_path / f"{name}-key.pem", tmp_path / f"{name}.pem"
        make_certificate(*files, subject=name, alternative="URI:urn:freeopcua:python:server")
    trusted = tmp_path / "clients"
    trusted.mkdir()
    settings = OpcUaSettings(
        uri=ANY_PORT,
        certificate_file=str(tmp_path / "server.pem"),
        private_key_file=str(tmp_path / "server-key.pem"),
        client_certificates_folder=str(trusted),
    )
    context = SinkContext(("door",), {"users_file": Secret("plc:plc's password\nscada:other\n", "users")})

    async def connect(sink, user, *, encrypted=True):
        connection = client(sink, user)
        if encrypted:
            files = [tmp_path / "client.pem", tmp_path / "client-key.pem"]
            await connection.set_security(
                SecurityPolicyBasic256Sha256, *files, mode=ua.MessageSecurityMode.SignAndEncrypt
            )
        async with connection:
            return (await read(connection, "door", "Ok")).StatusCode.value

    async def check(sink):
        await when_serving(sink)
        with pytest.raises(Exception, match=r"(?i)certificate.*trusted"):
            await connect(sink, "plc")
        [kept] = (trusted / "rejected").iterdir()
        kept.rename(trusted / kept.name)
        assert await connect(sink, "plc") == ua.StatusCodes.BadWaitingForInitialData
        for user in ("scada", "nobody", ""):
            with pytest.raises(Exception, match=r"(?i)identity|denied|rejected|token|refused"):
                await connect(sink, user)
        with pytest.raises(Exception):  # noqa: B017, PT011 - no such endpoint
            await connect(sink, "plc", encrypted=False)

    with OpcUaSink(settings, context) as sink:
        run(check(sink))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2, "the certificate, and the user"


def test_sink_that_is_left_before_it_serves_ends_without_error(caplog):
    caplog.set_level("INFO")
    with OpcUaSink(ANY_PORT, CAMERAS) as sink:
        put(sink, explain(camera="door"))
    assert sink.problem == ""
    assert caplog.records == [], "the library's log of its address space is not the user's"


def test_connections_beyond_the_limit_are_refused(sink):
    asyncio.run(when_serving(sink))
    host, port = sink.endpoint.removeprefix("opc.tcp://").partition("/")[0].split(":")
    with contextlib.ExitStack() as stack:
        links = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=PROGRAM_SECONDS))
            for _ in range(MAX_CONNECTIONS + 1)
        ]
        assert links[-1].recv(1) == b""
