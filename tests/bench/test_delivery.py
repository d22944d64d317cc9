"""The benchmark of delivery times what it says."""

import json

import numpy as np
import pytest

from tests.bench import delivery


@pytest.mark.parametrize("number", [0, 1, 77, 65535])
def test_the_number_in_a_picture_is_read_back_through_jpeg(number):
    from overlays.jpeg import decode_picture, encode_picture

    image = delivery.numbered(delivery.picture(96, 320, 8.0), number)
    assert delivery.number_of(decode_picture(encode_picture(image))) == number


def test_noise_makes_a_jpeg_larger():
    from overlays.jpeg import encode_picture

    sizes = [len(encode_picture(delivery.picture(180, 320, noise))) for noise in delivery.NOISE.values()]
    assert sizes[1] > 2 * sizes[0]
    assert delivery.picture(18, 32, 1.0).dtype == np.uint8


@pytest.mark.slow
def test_one_line_a_case_and_every_frame_is_accounted_for(capsys):
    (plain, locked) = delivery.main(["--viewers", "1", "--seconds", "1.5"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"] for line in lines] == [plain["case"], locked["case"]] == [
        "1 viewers, CURVE off", "1 viewers, CURVE on",
    ]  # fmt: skip
    for told in (plain, locked):
        publisher = told["publisher"]
        assert publisher["encoded"] == publisher["frames"] > 20
        assert publisher["viewers"] == 1
        assert 0 < told["fast"]["p50_ms"] <= told["fast"]["p99_ms"] < 2000
