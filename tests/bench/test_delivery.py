"""The benchmark of delivery times what it says."""

import json

import numpy as np
import pytest

from tests.bench import delivery, page_video
from tests.bench.crowd import crowd
from tests.bench.page_delivery import measure_page
from tests.support import footage
from tests.support.browser import CHROMIUM, browsing
from tests.support.limits import LIMIT_SECONDS


@pytest.mark.parametrize("number", [0, 1, 77, 65535])
def test_number_in_an_image_is_read_back_through_jpeg(number):
    from overlays.render.jpeg import decode_image, encode_image

    image = delivery.numbered(delivery.noise_image(96, 320, 8.0), number)
    assert delivery.number_of(decode_image(encode_image(image))) == number


def test_noise_makes_a_jpeg_larger():
    from overlays.render.jpeg import encode_image

    sizes = [len(encode_image(delivery.noise_image(180, 320, noise))) for noise in delivery.NOISE.values()]
    assert sizes[1] > 2 * sizes[0]
    assert delivery.noise_image(18, 32, 1.0).dtype == np.uint8


@pytest.mark.slow
def test_delivery_prints_one_line_per_case_and_accounts_for_every_frame(capsys, monkeypatch):
    small = delivery.noise_image(180, 320, 8.0)
    monkeypatch.setattr(delivery, "noise_image", lambda *_: small)
    (plain, locked) = delivery.main(["--viewers", "1", "--seconds", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == [plain["case"], locked["case"]] == [
        "1 viewers, CURVE off", "1 viewers, CURVE on",
    ]  # fmt: skip
    for case in (plain, locked):
        publisher = case["publisher"]
        assert publisher["encoded"] == publisher["frames"] > 0
        assert publisher["viewers"] == 1
        assert 0 < case["fast"]["p50_ms"] <= case["fast"]["p99_ms"]


@pytest.mark.slow
def test_delivery_times_browsers_like_viewers_and_a_slow_one_gets_few_frames():
    image = delivery.noise_image(72, 128, 8.0)
    many, beside = measure_page(3, seconds=2.0, image=image), measure_page(2, seconds=2.0, image=image, slow=1)
    assert many["fast"]["viewers"] == 3
    for line in (many, beside):
        assert 0 < line["publisher"]["encoded"] <= line["publisher"]["frames"]
        assert 0 < line["fast"]["p50_ms"] <= line["fast"]["p99_ms"]
    assert beside["slow"]["frames_per_second_most"] <= 5.5
    assert beside["fast"]["frames_per_second_least"] > beside["slow"]["frames_per_second_most"]


@pytest.mark.slow
def test_crowd_of_failing_viewers_does_not_affect_others_or_the_publisher():
    line = crowd(1.0, viewers=30, size=(72, 128))
    scenes = line["scenes"]
    assert [scenes[name]["viewers"] for name in scenes] == [30, 10, 20, 20]
    for name, scene in scenes.items():
        assert scene["frames_per_second_least"] > 0, name
        assert scene["publisher"]["encoded"] <= scene["publisher"]["frames"]
        assert scene["publisher"]["viewers"] == scene["viewers"], name
    assert line["publisher_grew_mib"] < 30


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_page_video_counts_bytes_and_ages_of_both_encodings(monkeypatch):
    monkeypatch.setattr(page_video, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(page_video, "MAX_EXTENSIONS", int(LIMIT_SECONDS))
    images = [footage.paint(np.zeros((240, 320, 3), np.uint8), number, 0) for number in range(5)]
    with browsing() as browser:
        rows = [
            page_video.measure(browser, images, mode, cameras=2, rate=5, seconds=1) | {"clip": "painted"}
            for mode in ("jpeg", "h264")
        ]
    assert [row["h264"] > 0 for row in rows] == [False, True]
    assert all(row["shown"] > 0 and row["published"] > 0 for row in rows)
    assert "| painted | 2 x 320x240, 5/s | h264 |" in page_video.table(rows)
