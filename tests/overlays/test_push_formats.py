"""The bytes of RTSP and RTMP that a sink sends, and the addresses that it accepts."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlays.h264 import AccessUnit, H264Encoder, Rate, split_nal_units
from overlays.sinks.push.address import parse_server, without_key
from overlays.sinks.push.amf0 import Amf0Error, decode, encode
from overlays.sinks.push.chunks import ChunkError, ChunkReader, RtmpMessage, to_chunks
from overlays.sinks.push.rtp import MAX_PAYLOAD_BYTES, RtpPacketizer
from overlays.sinks.registry import SINKS, build_sink
from overlays.sinks.settings import PushSettings, RtmpPushSettings, RtspPushSettings
from pipeline.errors import SinkError
from stream.sources import SOURCES
from tests.support import footage

PASSWORD, KEY = "canary-5d1f", "canary-key-77aa"


def test_encoder_gives_one_access_unit_for_each_image_and_key_frames_when_asked():
    encoder = H264Encoder((320, 240), Rate())
    units = [
        encoder.encode(footage.paint(np.zeros((240, 320, 3), np.uint8), number, 0), 3000 * number, key=number == 3)
        for number in range(6)
    ]
    assert [unit.is_key for unit in units] == [True, False, False, True, False, False]
    assert [unit.ticks for unit in units] == [3000 * number for number in range(6)]
    assert [unit.parameter_sets() is not None for unit in units] == [unit.is_key for unit in units]
    for first in (0, 3):
        decoder = av.CodecContext.create("h264", "r")
        packets = [av.Packet(unit.payload) for unit in units[first:]]
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
        assert [footage.read(frame.to_ndarray(format="rgb24")).number for frame in frames] == list(range(first, 6))


def nal_units_of(packets):
    """Return the NAL units in RTP packets (RFC 6184, single units and FU-A)."""
    units, fragments = [], b""
    for packet in packets:
        payload = packet[12:]
        if payload[0] & 31 != 28:
            units.append(payload)
            continue
        if payload[1] & 0x80:
            fragments = bytes(((payload[0] & 0xE0) | (payload[1] & 31),))
        fragments += payload[2:]
        if payload[1] & 0x40:
            units.append(fragments)
    return units


@given(sizes=st.lists(st.integers(1, 4 * MAX_PAYLOAD_BYTES), min_size=1, max_size=5), ticks=st.integers(0, 1 << 34))
@settings(max_examples=40, deadline=None)
def test_rtp_packets_join_to_the_nal_units(sizes, ticks):
    units = [b"\x65" + bytes([number + 1]) * size for number, size in enumerate(sizes)]
    unit = AccessUnit(b"".join(b"\0\0\0\1" + each for each in units), ticks, is_key=True)
    packets = list(RtpPacketizer(7, 65_534, 1 << 31).packets(unit))
    assert nal_units_of(packets) == units
    assert all(len(packet) <= 12 + MAX_PAYLOAD_BYTES for packet in packets)
    assert [packet[1] >> 7 for packet in packets] == [0] * (len(packets) - 1) + [1]
    numbers = [int.from_bytes(packet[2:4], "big") for packet in packets]
    assert numbers == [(65_534 + step) % 65_536 for step in range(len(packets))]
    assert {int.from_bytes(packet[4:8], "big") for packet in packets} == {(ticks + (1 << 31)) % (1 << 32)}


def test_sender_report_joins_the_clocks():
    report = RtpPacketizer(7, 0, 90_000).sender_report(180_000, 1_000_000_000.5)
    assert int.from_bytes(report[8:12], "big") == 1_000_000_000 + 2_208_988_800
    assert int.from_bytes(report[12:16], "big") == 1 << 31
    assert int.from_bytes(report[16:20], "big") == 270_000
    assert len(report) == 4 * (1 + int.from_bytes(report[2:4], "big"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.lists(VALUES, max_size=5))
@settings(max_examples=60, deadline=None)
def test_amf0_round_trip(values):
    assert decode(encode(values)) == values


@given(data=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_amf0_damage_raises_only_its_own_error(data):
    try:
        decode(data)
    except Amf0Error:
        return


@given(
    messages=st.lists(
        st.tuples(st.sampled_from([4, 9, 18, 20]), st.binary(max_size=700), st.integers(0, (1 << 32) - 1)), max_size=5
    ),
    chunk_bytes=st.integers(1, 300),
    piece=st.integers(1, 400),
)
@settings(max_examples=60, deadline=None)
def test_chunks_join_to_the_messages_in_pieces_of_any_size(messages, chunk_bytes, piece):
    sent = [RtmpMessage(1, chunk_bytes.to_bytes(4, "big"))]
    sent += [RtmpMessage(kind, payload, 1, milliseconds) for kind, payload, milliseconds in messages]
    data = to_chunks(sent[0], 2, 128) + b"".join(
        to_chunks(message, 3 + index % 3, chunk_bytes) for index, message in enumerate(sent[1:])
    )
    reader, received = ChunkReader(), []
    for offset in range(0, len(data), piece):
        reader.feed(data[offset : offset + piece])
        while (message := reader.next()) is not None:
            received.append((message.kind, message.payload, message.stream))
    assert received == [(message.kind, message.payload, message.stream) for message in sent]


@given(data=st.binary(min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_chunk_reader_refuses_noise_with_its_own_error(data):
    reader = ChunkReader()
    reader.feed(data)
    try:
        for _ in range(1 + len(data)):
            if reader.next() is None:
                return
    except ChunkError:
        return


def test_split_nal_units_reads_both_start_codes():
    assert split_nal_units(b"\0\0\0\1\x67ab\0\0\1\x68c\0\0\1\x65d") == (b"\x67ab", b"\x68c", b"\x65d")


def test_rtsp_scheme_names_a_source_and_a_sink():
    assert isinstance(SINKS.settings("rtsp://127.0.0.1/line"), RtspPushSettings)
    assert not isinstance(SOURCES.settings("rtsp://127.0.0.1/line"), PushSettings)
    assert isinstance(SINKS.settings("rtmp://127.0.0.1/live/line"), RtmpPushSettings)


@pytest.mark.parametrize(
    ("uri", "key", "shown", "path"),
    [
        ("rtsp://10.0.0.8/line", "", "rtsp://10.0.0.8/line", "line"),
        ("rtsp://[::1]:8554/a/{camera}", "", "rtsp://[::1]:8554/a/door_1", "a/door_1"),
        ("rtmp://127.0.0.1/live/line", "", "rtmp://127.0.0.1/live/line", "live/line"),
        ("rtmp://a.example/live/abcd-1234", "", "rtmp://a.example/live/***", "live/abcd-1234"),
        ("rtmp://a.example/live/{camera}", "", "rtmp://a.example/live/door_1", "live/door_1"),
        ("rtmp://a.example/app", "k?u=/x", "rtmp://a.example/app/***", "app/k?u=/x"),
        ("rtsp://a.example/app", "k{camera}", "rtsp://a.example/app/***", "app/kdoor_1"),
    ],
)
def test_address_is_shown_without_stream_key(uri, key, shown, path):
    address = parse_server(uri, key)
    assert address.path_of("door 1") == path
    assert address.shown(address.path_of("door 1")) == shown


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        (f"rtsp://ann:{PASSWORD}@10.0.0.8/line", "credentials_file"),
        (f"rtmp://a.example/live/x?pass={PASSWORD}", "key_file"),
        ("rtsp://10.0.0.8", "should be rtsp://127.0.0.1:8554/line"),
        ("rtsp://10.0.0.8/", "the path is empty"),
        ("rtsp://10.0.0.8/a b", "characters"),
        ("rtsp://10.0.0.8/{cam}", "braces, which are allowed only in {camera}"),
        ("rtmp://10.0.0.8/live", "an application and a key"),
        ("rtmp://10.0.0.8:70000/live/x", "65535"),
    ],
)
def test_bad_address_is_refused_without_repeating_a_secret(uri, rule):
    with pytest.raises(SinkError, match=rule) as refusal:
        build_sink(uri, cameras=("line",))
    assert PASSWORD not in str(refusal.value)


def test_printed_configuration_has_no_stream_key():
    assert without_key("rtmp://a.example/live/abcd-1234") == "rtmp://a.example/live/***"
    assert without_key("rtmp://a.example") == "rtmp://a.example"
    assert without_key("out.mp4") == "out.mp4"


def test_several_cameras_need_a_path_each():
    with pytest.raises(SinkError, match=r"\{camera\}"):
        build_sink("rtsp://127.0.0.1/line", cameras=("a", "b"))
    address = parse_server("rtsp://127.0.0.1/{camera}")
    taken = [address.path_of("a b")]
    assert address.path_of("a_b", taken) == "a_b_2"
