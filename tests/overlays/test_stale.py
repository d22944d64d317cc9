"""The image of a silent camera: grey, dark, labelled, and marked as old in every sink."""

import json

import numpy as np
import pytest

from overlays.render.stale import format_duration, stale_overlay
from overlays.sinks.jsonl import JsonlSink
from overlays.sinks.video import VideoSink
from overlays.wire.message import as_overlay, decode_message, encode
from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss
from pipeline.settings import SinkContext
from tests.support.logs import log_lines

SILENCE = SignalLoss(3.5, "waiting", "connection refused")


def explanation(size=(120, 160), index=7, pts=1.0):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*size, 3), np.uint8)
    return Explanation(
        Frame(image, "door", index, 10.0, pts), (Finding("hole", 0.9, np.eye(2, dtype=np.float32), 1),), "m", "l"
    )


def test_stale_image_is_grey_and_dark_outside_the_band():
    shown = explanation()
    overlay = stale_overlay(shown, SILENCE)
    top = overlay.image[:20]
    assert np.ptp(top.astype(int), axis=2).max() == 0
    assert top.mean() < 0.5 * shown.frame.image[:20].mean()
    assert overlay.signal_loss == SILENCE
    assert not overlay.image.flags.writeable


def test_stale_image_does_not_modify_its_frame():
    shown = explanation()
    before = shown.frame.image.copy()
    stale_overlay(shown, SILENCE)
    np.testing.assert_array_equal(shown.frame.image, before)


@pytest.mark.parametrize("size", [(8, 8), (33, 700), (700, 33), (1, 1)])
def test_stale_image_of_any_size_is_drawn(size):
    assert stale_overlay(explanation(size), SILENCE).image.shape == (*size, 3)


def test_stale_image_age_increases():
    first, later = (stale_overlay(explanation(), SignalLoss(s)).image for s in (3.0, 4.0))
    assert (first != later).any()


def test_durations_are_formatted_with_units():
    assert [format_duration(s) for s in (0.4, 59.9, 60, 250, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "4 min 10 s",
        "2 h 5 min",
    ]


def test_viewer_reports_a_stale_frame_with_its_reason():
    header, payload = decode_message(
        encode(stale_overlay(explanation(), SILENCE), sent_at_unix=50.0, now_monotonic=13.5)
    )
    assert header.silence.signal_loss() == SILENCE
    assert header.index == 7
    from overlays.render.jpeg import decode_image

    assert as_overlay(header, decode_image(payload), now_unix=50.0, now_monotonic=13.5).signal_loss == SILENCE


def test_live_frame_has_no_stale_key():
    plain = Overlay(explanation().frame.image, explanation())
    parts = encode(plain, sent_at_unix=50.0, now_monotonic=10.1)
    assert "silence" not in json.loads(parts[1])
    assert decode_message(parts)[0].silence is None


def test_log_has_a_record_per_frame_and_none_for_signal_loss(tmp_path):
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        sink.put(Overlay(explanation().frame.image, explanation()))
        sink.put(stale_overlay(explanation(), SILENCE))
    assert len(log_lines(path)) == 1


def test_recording_shows_signal_loss_at_its_own_time(tmp_path):
    import av

    path = tmp_path / "out.mp4"
    with VideoSink(path, SinkContext(cameras=("door",))) as sink:
        for k in range(3):
            shown = explanation(index=k, pts=1.0 + 0.1 * k)
            sink.put(Overlay(shown.frame.image, shown))
        for seconds in (1.0, 2.0):
            sink.put(stale_overlay(shown, SignalLoss(seconds)))
        back = explanation(index=3, pts=4.0)
        sink.put(Overlay(back.frame.image, back))
    with av.open(str(path)) as held:
        times = [frame.time for frame in held.decode(video=0)]
    assert times == pytest.approx([0.0, 0.1, 0.2, 1.2, 2.2, 3.0], abs=0.01)
