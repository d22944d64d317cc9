"""Tests of the detection of missing pictures by their frame numbers."""

import random
from fractions import Fraction

import av
import numpy as np
import pytest

from stream.h264 import FrameNumbers


def encoded(count=40, *, profile="baseline", options=None, pixels="yuv420p"):
    """Return packets with start codes, one picture each, in order of decoding."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pixels, Fraction(1, 25)
    encoder.gop_size = 12
    encoder.options = {"profile": profile, "sc_threshold": "0", **(options or {})}
    chance, packets = np.random.default_rng(0), []
    for number in range(count):
        noise = chance.integers(0, 256, (48, 64, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixels)
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [bytes(packet) for packet in packets], [packet.is_keyframe for packet in packets]


PROFILES = [
    ("baseline", "yuv420p", {"tune": "zerolatency"}),
    ("main", "yuv420p", {"bf": "0", "refs": "3"}),
    ("high", "yuv420p", {"bf": "2"}),
    ("high", "yuv420p", {"bf": "3", "x264-params": "b-pyramid=none:cqm=jvt"}),
    ("high422", "yuv422p", {"tune": "zerolatency"}),
    ("high444", "yuv444p", {"bf": "1"}),
]


@pytest.mark.parametrize(("profile", "pixels", "options"), PROFILES)
def test_frame_numbers_report_no_gap_in_complete_stream(profile, pixels, options):
    packets, _ = encoded(profile=profile, pixels=pixels, options=options)
    numbers = FrameNumbers()
    assert not any(numbers.misses(packet) for packet in packets)


def test_frame_numbers_report_lost_picture_once():
    packets, keys = encoded(options={"tune": "zerolatency"})
    for lost in range(1, 39):
        numbers = FrameNumbers()
        values = [numbers.misses(packet) for index, packet in enumerate(packets) if index != lost]
        expected = [False] * 39
        expected[lost] = not keys[lost + 1]  # a key picture needs none before it
        if keys[lost]:  # numbers count from the key picture: the loss shows at once
            assert values[lost]
        else:
            assert values == expected


def test_parameters_may_come_from_the_container_alone():
    packets, _ = encoded(options={"tune": "zerolatency"})
    head = packets[0][: packets[0].find(b"\x00\x00\x01\x65")]
    bare = [packets[0][len(head) :], *packets[1:]]
    numbers = FrameNumbers(head)
    assert [numbers.misses(packet) for packet in [bare[0], bare[1], bare[3]]] == [False, False, True]
    assert not any(FrameNumbers().misses(packet) for packet in packets[1:])  # nothing known, nothing told


def test_noise_and_cut_packets_are_left_to_the_decoder():
    chance, packets = random.Random(0), encoded(options={"tune": "zerolatency"})[0]
    numbers = FrameNumbers(b"\x01avcC")
    for _ in range(500):
        packet = bytearray(chance.choice(packets))
        for _ in range(chance.randrange(20)):
            packet[chance.randrange(min(60, len(packet)))] = chance.randrange(256)
        numbers.misses(bytes(packet[: chance.randrange(len(packet))]))
    assert not FrameNumbers().misses(b"")
