"""The benchmark of archives explains what it times."""

import pytest

from tests.bench.archive import loop


@pytest.mark.slow
def test_loop_compares_shards_and_a_plain_loop_of_the_same_photos():
    figures = loop("line_net", 2, 3)
    assert figures["photos"] == 2
    assert figures["shards_cpu_ms_per_photo"] > 0 < figures["plain_cpu_ms_per_photo"]
    low, high = figures["ratio_quartiles"]
    assert low <= figures["ratio_median"] <= high
