"""Verdicts for controllers over Modbus, read by mbpoll and by frames of the specification."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import struct
import subprocess
from dataclasses import replace

import pytest

pytest.importorskip("pymodbus")

from overlays.sinks.plc.modbus import ModbusSink
from overlays.sinks.plc.modbus_server import MAX_CONNECTIONS
from overlays.sinks.plc.verdicts import PartVerdicts, VerdictRules
from overlays.sinks.settings import ModbusSettings
from pipeline.errors import ConfigError, SinkError
from pipeline.frames import Overlay, SignalLoss
from pipeline.guards.state import GuardState
from pipeline.settings import SinkContext
from tests.overlays.conftest import explain
from tests.support.boxes import box, explained_boxes
from tests.support.detections import detection_frame, detections
from tests.support.limits import LIMIT_SECONDS, PROGRAM_SECONDS
from tests.support.passages import part, with_passages

ANY_PORT = "modbus://127.0.0.1:0"
TWO = SinkContext(cameras=("line", "north"))
FIELDS = (
    *("good", "ok", "alarms", "label", "score", "age", "index_high", "index_low", "left", "top", "right", "bottom"),
    *("boxes", "part_high", "part_low", "part_ok", "part_label", "part_share", "part_frames", "latency"),
)


def ask(sink, function, first, second, unit=1):
    """Return the function code and the data of the answer (Modbus Application Protocol V1.1b3, section 6)."""
    with socket.create_connection(("127.0.0.1", sink.port), timeout=LIMIT_SECONDS) as link:
        link.sendall(struct.pack(">HHHBBHH", 7, 0, 6, unit, function, first, second))
        header = link.recv(7, socket.MSG_WAITALL)
        body = link.recv(struct.unpack_from(">H", header, 4)[0] - 1, socket.MSG_WAITALL)
    return body[0], body[1:]


def registers(sink, start, count, *, function=3, unit=1):
    code, body = ask(sink, function, start, count, unit)
    assert (code, body[0]) == (function, 2 * count)
    return struct.unpack(f">{count}H", body[1:])


def block(sink, number=0):
    return dict(zip(FIELDS, registers(sink, 10 + 20 * number, 20), strict=True))


def put(sink, explanation, **fields):
    sink.put(Overlay(explanation.frame.image, explanation, **fields))


def test_registers_hold_the_last_frame_of_each_camera():
    now = [100.0]
    with ModbusSink(ANY_PORT, TWO, clock=lambda: now[0]) as sink:
        assert registers(sink, 0, 3) == (1, 0, 2)
        assert block(sink) == dict.fromkeys(FIELDS, 0), "no frame yet: bad"
        put(sink, explain(index=70_000, taken_at=99.0, score=0.875))
        put(sink, explained_boxes(box(64, 36, score=0.4), box(9, 9), captured_at=99.5))
        now[0] = 100.5
        line, north = block(sink), block(sink, 1)
    assert {name: line[name] for name in FIELDS[:8]} == {
        "good": 1, "ok": 1, "alarms": 0, "label": 3, "score": 8750, "age": 150, "index_high": 1, "index_low": 4464,
    }  # fmt: skip
    assert [north[name] for name in FIELDS[8:13]] == [9, 9, 69, 49, 2]
    assert (north["label"], north["score"], north["age"]) == (2, 8000, 100)


@pytest.mark.parametrize("function", [3, 4])
@pytest.mark.parametrize("unit", [0, 1, 255])
def test_holding_and_input_registers_are_the_same_for_every_unit(function, unit):
    with ModbusSink(ANY_PORT, TWO) as sink:
        assert registers(sink, 0, 3, function=function, unit=unit)[::2] == (1, 2)


def test_heartbeat_counts_seconds():
    now = [5.0]
    with ModbusSink(ANY_PORT, TWO, clock=lambda: now[0]) as sink:
        beats = []
        for now[0] in (5.0, 6.5, 5.0 + 65536 + 3):
            beats += registers(sink, 1, 1)
    assert beats == [0, 1, 3]


def test_camera_without_frames_is_bad_and_not_ok():
    now = [0.0]
    with ModbusSink(ANY_PORT, TWO, clock=lambda: now[0]) as sink:
        put(sink, explain(taken_at=0.0))
        now[0] = 2.5
        stale = block(sink)
        put(sink, explain(taken_at=2.5))
        fresh = block(sink)
        put(sink, explain(taken_at=2.5), signal_loss=SignalLoss(1.0))
        lost = block(sink)
    assert [(each["good"], each["ok"]) for each in (stale, fresh, lost)] == [(0, 0), (1, 1), (0, 0)]


def test_camera_that_left_is_bad_until_it_comes_again():
    now = [0.0]
    with ModbusSink(ANY_PORT, TWO, clock=lambda: now[0]) as sink:
        for camera in ("line", "north"):
            put(sink, explain(camera=camera, taken_at=0.0))
        sink.forget_camera("north")
        sink.forget_camera("unknown")
        assert [block(sink, number)["good"] for number in (0, 1)] == [1, 0]
        put(sink, explain(camera="north", index=1, taken_at=0.0))
        assert block(sink, 1)["good"] == 1


def test_ok_follows_guards_or_its_own_condition():
    firing = replace(explain(label="dent"), guards=(GuardState("g", True, 1.0, "why", 1),))
    with ModbusSink(ANY_PORT, TWO) as sink:
        put(sink, firing)
        by_guard = block(sink)
    settings = ModbusSettings(uri=ANY_PORT, ok_when="label=ok and score>0.8")
    with ModbusSink(settings, TWO) as sink:
        put(sink, explain(label="dent"))
        dent = block(sink)
        put(sink, explain(label="ok", score=0.9))
        good = block(sink)
    assert (by_guard["ok"], by_guard["alarms"]) == (0, 1)
    assert (dent["ok"], good["ok"]) == (0, 1)


@pytest.mark.parametrize(("function", "second"), [(6, 1), (5, 0xFF00)])
def test_write_is_refused_and_changes_nothing(function, second):
    with ModbusSink(ANY_PORT, TWO) as sink:
        code, body = ask(sink, function, 2, second)
        assert (code, body) == (function | 0x80, b"\x01"), "illegal function"
        assert registers(sink, 2, 1) == (2,)


def test_address_beyond_the_map_is_refused():
    with ModbusSink(ANY_PORT, TWO) as sink:
        assert ask(sink, 3, 10 + 64 * (20 + 16), 1) == (0x83, b"\x02")


def test_mbpoll_reads_the_registers():
    if shutil.which("mbpoll") is None:
        pytest.skip("needs mbpoll (tests/system-packages.txt)")
    with ModbusSink(ANY_PORT, TWO, clock=lambda: 100.0) as sink:
        put(sink, explain(index=7, taken_at=99.0, score=0.5))
        command = ["mbpoll", "-0", "-1", "-r", "10", "-c", "8", "-p", str(sink.port), "127.0.0.1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS)
    values = [int(value) for value in re.findall(r"^\[\d+\]:\s+(\d+)", done.stdout, re.MULTILINE)]
    assert values == [1, 1, 0, 3, 5000, 100, 0, 7]


def parts_of(rules, frames):
    """Return the verdicts of parts for frames given as (seconds, label, score)."""
    vote, verdicts = PartVerdicts(rules), []
    for index, (seconds, label, score) in enumerate(frames):
        explanation = explain(label=label, score=score, index=index, taken_at=seconds, pts_seconds=seconds)
        verdicts.append(vote.add(explanation, rules.frame_verdict(explanation), seconds + 0.05))
    return [verdict for verdict in verdicts if verdict is not None]


def rules_of(**options):
    return VerdictRules.of(ModbusSettings(uri=ANY_PORT, ok_when="label=ok", **options))


RULES = rules_of(part_when="label!=empty")


def test_each_passage_has_one_verdict_by_the_vote_of_its_frames():
    frames = [(0.0, "empty", 1.0)]
    frames += [(1.0 + i / 10, label, 0.9) for i, label in enumerate(["ok", "dent", "ok", "ok"])]
    frames += [(1.5, "empty", 1.0), (2.0, "empty", 1.0)]
    frames += [
        (3.0 + i / 10, label, score) for i, (label, score) in enumerate([("dent", 0.9), ("dent", 0.8), ("ok", 0.5)])
    ]
    frames += [(4.0, "empty", 1.0)]
    first, second = parts_of(RULES, frames)
    assert (first.number, first.is_ok, first.label, first.share, first.frames) == (1, True, "ok", 0.75, 4)
    assert (second.number, second.is_ok, second.label, second.frames) == (2, False, "dent", 3)
    assert second.share == pytest.approx(2 / 3)
    assert first.latency_seconds == pytest.approx(2.0 + 0.05 - 1.0)


@pytest.mark.parametrize(("vote", "is_ok"), [("mean", True), ("best", False), ("worst", False), ("2 of 3", True)])
def test_frames_of_a_part_vote_by_the_rules_of_zones(vote, is_ok):
    labels = [("ok", 0.7), ("dent", 0.95), ("ok", 0.7), ("empty", 0.9)]
    frames = [(float(k) / 10 + (k == 3), *each) for k, each in enumerate(labels)]
    [part] = parts_of(rules_of(part_when="label!=empty", part_vote=vote), frames)
    assert (part.is_ok, part.label) == (is_ok, "ok")


def test_vote_that_is_none_is_refused():
    with pytest.raises(ValueError, match="should be mean, best, worst, or N of M"):
        rules_of(part_vote="most")


def test_parts_of_zones_have_the_verdict_of_their_vote():
    verdicts, rules = PartVerdicts(rules_of()), rules_of()
    crossing, dent, unjudged = part(2, kind="crossing"), part(3, label="dent", is_ok=False), part(4, is_ok=None)

    def verdict(*passages):
        explained = with_passages(detections(detection_frame(0)), *passages)
        return verdicts.add(explained, rules.frame_verdict(explained), 9.0)

    first, last = verdict(part(1)), verdict(crossing, dent)
    assert (first.number, first.is_ok, first.zone, first.share, first.frames) == (1, True, "station", 0.75, 12)
    assert first.latency_seconds == pytest.approx(0.54)
    assert (last.number, last.is_ok, last.label) == (2, False, "dent")
    assert verdict(crossing) is None
    assert verdict(unjudged).is_ok is False


def test_gap_shorter_than_the_option_does_not_divide_a_part():
    frames = [(0.0, "ok", 0.9), (0.1, "empty", 0.9), (0.2, "ok", 0.9), (1.0, "empty", 0.9)]
    [part] = parts_of(RULES, frames)
    assert part.frames == 2


def test_next_part_after_a_gap_without_frames_is_another_part():
    frames = [(0.0, "ok", 0.9), (5.0, "dent", 0.9), (9.0, "empty", 0.9)]
    assert [part.label for part in parts_of(RULES, frames)] == ["ok", "dent"]


def test_clock_that_goes_back_ends_the_part():
    frames = [(50.0, "ok", 0.9), (0.0, "dent", 0.9), (9.0, "empty", 0.9)]
    assert [part.label for part in parts_of(RULES, frames)] == ["ok", "dent"]


def test_registers_hold_the_last_part():
    settings = ModbusSettings(uri=ANY_PORT, ok_when="label=ok", part_when="label!=empty")
    with ModbusSink(settings, TWO, clock=lambda: 2.0) as sink:
        for seconds, label in [(0.0, "dent"), (0.1, "ok"), (0.2, "dent"), (1.0, "empty")]:
            put(sink, explain(label=label, taken_at=seconds, pts_seconds=seconds))
        read = block(sink)
    assert [read[name] for name in FIELDS[13:]] == [0, 1, 0, 3, 6667, 3, 2000]


@pytest.mark.parametrize(("name", "read"), [("station", "station"), ("x" * 31 + "ü", "x" * 31), ("ü" * 16, "ü" * 16)])
def test_registers_hold_the_zone_of_the_last_part_cut_at_a_character(name, read):
    with ModbusSink(ANY_PORT, SinkContext(cameras=("line", "road"))) as sink:
        assert registers(sink, 1290, 32) == (0,) * 32
        put(sink, with_passages(explain(camera="road"), part(place=name)))
        words = registers(sink, 1290, 32)
    assert words[:16] == (0,) * 16
    assert struct.pack(">16H", *words[16:]).rstrip(b"\0").decode() == read


def test_further_cameras_follow_and_those_beyond_the_map_are_named_once(caplog):
    with ModbusSink(ANY_PORT, SinkContext(cameras=("line",))) as sink:
        for number in [*range(65), 63, 64]:
            put(sink, explain(camera=f"c{number}"))
        assert re.findall(r"(c\d+) has no registers", caplog.text) == ["c63", "c64"]
        assert registers(sink, 2, 1) == (64,)
        assert block(sink, 63)["good"] == 1


@pytest.mark.parametrize("address", ["0.0.0.0:5020", "192.168.1.4:5020", "[::]:5020"])
def test_address_for_other_machines_needs_consent(address):
    with pytest.raises(SinkError, match=r"no passwords.*'insecure: true'"):
        ModbusSink(f"modbus://{address}")
    assert ModbusSink(ModbusSettings(uri=f"modbus://{address}", insecure=True)).uri


@pytest.mark.parametrize("address", ["127.0.0.1", "", "127.0.0.1:99999"])
def test_malformed_address_is_refused_with_an_example(address):
    with pytest.raises(SinkError, match=r"modbus://127\.0\.0\.1:5020"):
        ModbusSink(f"modbus://{address}")


def test_port_in_use_is_refused_with_the_remedy():
    with ModbusSink(ANY_PORT) as first:
        uri = f"modbus://127.0.0.1:{first.port}"
        with pytest.raises(SinkError, match=r"choose another port"), ModbusSink(uri):
            pass


@pytest.mark.parametrize("option", ["ok_when", "part_when"])
def test_wrong_condition_names_its_option(option):
    with pytest.raises(ConfigError, match=f"{option}: 'scoree<1'"):
        ModbusSink(ModbusSettings(uri=ANY_PORT, **{option: "scoree<1"}))


READ_THREE_REGISTERS = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, 0, 3)


def is_answered(link):
    """Send a request for three registers; return whether the whole answer arrives."""
    link.sendall(READ_THREE_REGISTERS)
    return len(link.recv(15, socket.MSG_WAITALL)) == 15


def test_connection_beyond_the_limit_takes_the_place_of_the_silent_one():
    with ModbusSink(ANY_PORT, TWO) as sink, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", sink.port)
        links = [
            stack.enter_context(socket.create_connection(address, timeout=LIMIT_SECONDS))
            for _ in range(MAX_CONNECTIONS)
        ]
        assert all(is_answered(link) for link in links)
        assert is_answered(links[0]), "the first is now the one that was used last"
        further = stack.enter_context(socket.create_connection(address, timeout=LIMIT_SECONDS))
        assert is_answered(further)
        assert links[1].recv(1) == b"", "the silent one is closed"
        assert is_answered(links[0])
        assert is_answered(links[2])


def test_connection_that_sends_no_requests_is_closed_before_controllers():
    with ModbusSink(ANY_PORT, TWO) as sink, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", sink.port)
        controller, *others = (
            stack.enter_context(socket.create_connection(address, timeout=LIMIT_SECONDS))
            for _ in range(MAX_CONNECTIONS)
        )
        trickling, *others = others
        trickling.sendall(READ_THREE_REGISTERS[:1])
        assert all(is_answered(link) for link in [*others, controller])
        trickling.sendall(READ_THREE_REGISTERS[1:2])
        further = stack.enter_context(socket.create_connection(address, timeout=LIMIT_SECONDS))
        assert is_answered(further)
        assert trickling.recv(1) == b""
        assert is_answered(controller)


@pytest.mark.parametrize("count", [3, 40])
def test_requests_in_one_segment_are_all_answered_in_order(count):
    request = struct.pack(">HHBBHH", 0, 6, 1, 3, 0, 3)
    with (
        ModbusSink(ANY_PORT, TWO) as sink,
        socket.create_connection(("127.0.0.1", sink.port), timeout=LIMIT_SECONDS) as link,
    ):
        link.sendall(b"".join(struct.pack(">H", number) + request for number in range(count)) + b"\0\0")
        answers = [link.recv(15, socket.MSG_WAITALL) for _ in range(count)]
        link.sendall(request)
        assert link.recv(15, socket.MSG_WAITALL)[:2] == b"\0\0", "its first half came with the others"
    assert [struct.unpack_from(">H", answer)[0] for answer in answers] == list(range(count))


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\0\1\0\0\xff\xff\1\3", b"\0\1\0\0\0\1\1"])
def test_client_of_another_protocol_is_disconnected_in_words(sent, caplog):
    with (
        ModbusSink(ANY_PORT, TWO) as sink,
        socket.create_connection(("127.0.0.1", sink.port), timeout=LIMIT_SECONDS) as link,
    ):
        link.sendall(sent)
        assert link.recv(1) == b""
    assert "a client does not speak Modbus TCP" in caplog.text


def test_client_that_never_reads_is_disconnected_and_delays_no_other_client(caplog):
    request = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, 0, 125)
    with ModbusSink(ANY_PORT, TWO) as sink, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deaf.connect(("127.0.0.1", sink.port))
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                deaf.sendall(8 * request)
                assert ask(sink, 3, 0, 1)[0] == 3
    assert "a client does not read its answers" in caplog.text


def test_client_with_too_many_requests_at_once_is_disconnected(caplog):
    request = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, 0, 125)
    with (
        ModbusSink(ANY_PORT, TWO) as sink,
        socket.create_connection(("127.0.0.1", sink.port), timeout=LIMIT_SECONDS) as link,
    ):
        with contextlib.suppress(ConnectionError):
            link.sendall(5000 * request)
            while link.recv(1 << 16):
                pass
        assert ask(sink, 3, 0, 1)[0] == 3
    assert "more than 64 requests" in caplog.text


def test_client_that_sends_half_a_request_delays_no_other_client():
    request = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, 0, 125)
    with ModbusSink(ANY_PORT, TWO) as sink, contextlib.ExitStack() as stack:
        half, other = (
            stack.enter_context(socket.create_connection(("127.0.0.1", sink.port), timeout=LIMIT_SECONDS))
            for _ in range(2)
        )
        half.sendall(request[:5])
        other.sendall(request)
        assert len(other.recv(259, socket.MSG_WAITALL)) == 259
        half.sendall(request[5:])
        assert len(half.recv(259, socket.MSG_WAITALL)) == 259
        put(sink, explain(camera="line", index=7, taken_at=0.0))
