"""Twenty thousand damaged messages: each is refused in words or read; none crashes, none takes more than its bound."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from overlays.render.jpeg import decode_image, encode_image
from overlays.wire.message import as_overlay, decode_message, encode
from pipeline.errors import ImageError, WireError, WireLimitError, WireVersionError
from pipeline.frames import Box, DeletionCheck, Finding, GroundTruth, HeatmapStats, Overlay, Region, SignalLoss
from pipeline.guards.state import GuardState
from tests.support.boxes import street

BOUND_BYTES = 16 << 20
"""Of what reading one message of ours (some kilobytes, mutated) may take before its picture is decoded."""
VALUES = (0, 1, -1, 1 << 31, 1 << 63, 10**300, 1e308, -1e308, 0.5, True, None, "", "x" * 5000, [], {}, [[[[]]]],
          "AAAA", "\ud800", [4096, 4096], [0, 0], {"seconds": 1},
          {"label": "x", "boxes": [[0, 0, 1, 1]] * 5000})  # fmt: skip


def real_messages(overlaid):
    dice = np.random.default_rng(3)
    noise = dice.integers(0, 256, (40, 56, 3), np.uint8)
    other = Finding("cat", 0.1, np.zeros((3, 4), np.float32), 2, Box(1, 2, 3, 4))
    messages = [
        overlaid(),
        overlaid(noise, truth=GroundTruth("dent", (Box(1, 2, 3, 4),)), others=(other,), pts_seconds=1.5),
        overlaid(np.zeros((1, 1, 3), np.uint8), camera="câméra", region=Box(-5, -5, 10, 10)),
    ]
    messages.append(guarded(overlaid(noise)))
    messages.append(Overlay(noise, street(3, grid=(3, 4), image=noise)))
    silent = overlaid(noise)
    messages.append(type(silent)(silent.image, silent.explanation, SignalLoss(3.0, "stalled", "no packets")))
    return [encode(each, sent_at_unix=1.7e9, now_monotonic=50.0) for each in messages]


def guarded(overlay):
    """The same with all that guards say."""
    plain = overlay.explanation
    finding = replace(plain.first, heatmap_stats=HeatmapStats(0.1, 0.5, (3.0, 4.0), None, {"belt": 0.25}))
    states = (GuardState("on-the-belt", True, 1.0, "heat_inside(belt) >= 0.6, but is 0.25", 1),)
    regions = (Region("belt", ((0.0, 0.0), (40.0, 0.0), (40.0, 30.0))),)
    checked = DeletionCheck("bottle", 0.9, 0.8, 3, 0.5)
    result = replace(plain, findings=(finding,), guards=states, regions=regions, deletion=checked)
    return type(overlay)(overlay.image, result)


def bytes_changed(parts, dice):
    part = dice.choice([each for each in parts if each])
    for _ in range(dice.randint(1, 4)):
        offset = dice.randrange(len(part)) if part else 0
        kind = dice.randrange(5)
        if kind == 0:
            del part[offset:]
        elif kind == 1:
            part[offset:offset] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 20)))
        elif kind == 2:
            part[offset:offset] = part[offset : offset + dice.randint(1, 200)]
        elif part:
            part[offset % len(part)] = dice.choice((0, 0xFF, dice.randrange(256)))


def key_changed(parts, dice):
    header = json.loads(parts[1])
    level = header
    while True:
        key = dice.choice(list(level) if isinstance(level, dict) else range(len(level)))
        if isinstance(level[key], dict | list) and level[key] and dice.random() < 0.6:
            level = level[key]
            continue
        break
    if dice.random() < 0.15:
        del level[key]
    else:
        level[key] = dice.choice(VALUES)
    parts[1][:] = json.dumps(header).encode()


def size_changed(parts, dice):
    offset = parts[2].find(b"\xff\xc0")
    parts[2][offset + 5 : offset + 9] = bytes(dice.choice((0, 1, 0x40, 0xFF)) for _ in range(4))


def parts_changed(parts, dice):
    kind = dice.randrange(3)
    if kind == 0:
        parts.pop(dice.randrange(len(parts)))
    elif kind == 1:
        parts.insert(dice.randrange(4), bytearray(dice.choice(parts)))
    else:
        dice.shuffle(parts)


CHANGES = (bytes_changed, bytes_changed, bytes_changed, key_changed, key_changed, size_changed, parts_changed)


def read(parts):
    header, payload = decode_message([bytes(part) for part in parts])
    return as_overlay(header, decode_image(payload), now_unix=0.0, now_monotonic=0.0)


def fuzz(messages, count, *, traced=False):
    """Return the number of refused messages by kind, the number of read messages, and the largest memory of one before
    its image.

    Watching what is allocated makes reading seven times as slow.
    """
    dice = random.Random(count)
    record: dict[str, int] = {}
    most = 0
    for _ in range(count):
        parts = [bytearray(part) for part in dice.choice(messages)]
        dice.choice(CHANGES)(parts, dice)
        sent = [bytes(part) for part in parts]
        if traced:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        try:
            decode_message(sent)
            kind = "read"
        except WireError as error:
            kind = type(error).__name__
        if traced:
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
        if kind == "read":
            try:
                overlay = read(parts)
                assert overlay.image.nbytes <= 3 * 100_000_000
            except WireError as error:
                kind = type(error).__name__
        record[kind] = record.get(kind, 0) + 1
    return record, most


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def harmless(result, count):
    """Check that each message was read or refused with a known error, and that there were enough of both."""
    assert sum(result.values()) == count
    assert set(result) <= {
        "read",
        *(kind.__name__ for kind in (WireError, WireVersionError, WireLimitError, ImageError)),
    }
    assert result["WireError"] > count / 10
    assert result["read"] > count / 50, "some damage does no harm"


@pytest.mark.slow
def test_fuzzed_messages_never_crash_the_reader(overlaid):
    messages, _ = fuzz(real_messages(overlaid), 20_000)
    harmless(messages, 20_000)


@pytest.mark.slow
def test_fuzzed_messages_stay_within_time_and_memory(overlaid, traced):
    messages, most = fuzz(real_messages(overlaid), 1_500, traced=True)
    harmless(messages, 1_500)
    assert most < BOUND_BYTES


def test_undamaged_message_of_each_kind_is_read(overlaid):
    for parts in real_messages(overlaid):
        assert read(parts).explanation.findings
    assert encode_image(np.zeros((4, 4, 3), np.uint8))
