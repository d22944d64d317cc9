"""The configuration of zones and lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config_loader import to_yaml, validate_config
from pipeline.errors import ConfigError
from pipeline.passages.config import LineConfig, ZoneConfig

SQUARE = [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]


def _source(**keys):
    return validate_config({"sources": [{"uri": "line:", **keys}]}, "run.yaml").sources[0]


def test_zones_and_lines_are_keys_of_a_source():
    source = _source(
        zones=[{"name": "station", "polygon": SQUARE, "vote": "3 of 5", "ok": ["ok", "good"]}],
        lines=[{"name": "gate", "points": [[0.5, 0], [0.5, 1]], "direction": "forward"}],
    )
    assert (source.zones[0].parsed_vote.least, source.zones[0].parsed_vote.window) == (3, 5)
    assert (source.lines[0].direction, source.lines[0].anchor) == ("forward", "centre")


def test_zones_survive_printing():
    config = validate_config({"sources": [{"uri": "line:", "zones": [{"name": "a", "polygon": SQUARE}]}]}, "run.yaml")
    import yaml

    assert validate_config(yaml.safe_load(to_yaml(config)), "run.yaml") == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"zones": [{"polygon": SQUARE}]}, r"sources\[0\]\.zones\[0\]\.name: is missing"),
        ({"zones": [{"name": "a b", "polygon": SQUARE}]}, r"zones\[0\]\.name: 'a b'"),
        ({"zones": [{"name": "a", "polygon": SQUARE[:2]}]}, r"zones\[0\]\.polygon: should have at least 3"),
        ({"zones": [{"name": "a", "polygon": [SQUARE[i] for i in (0, 2, 1, 3)]}]}, "its sides cross each other"),
        ({"zones": [{"name": "a", "polygon": [[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]}]}, "has no area"),
        ({"zones": [{"name": "a", "polygon": [[0, 0], [-1, 0], [1, 1]]}]}, "greater than or equal to 0"),
        ({"zones": [{"name": "a", "polygon": SQUARE, "vote": "median"}]}, r"vote: 'median': should be mean, best"),
        ({"zones": [{"name": "a", "polygon": SQUARE, "vote": "6 of 5"}]}, "N of M with N from 1 to M"),
        ({"zones": [{"name": "a", "polygon": SQUARE, "gap_seconds": 0}]}, "greater than 0"),
        ({"zones": [{"name": "a", "polygon": SQUARE, "min_frame": 2}]}, r"min_frame: unknown key"),
        ({"zones": [{"name": "a", "polygon": SQUARE}] * 2}, "'a' is given twice"),
        ({"zones": [{"name": "a", "polygon": SQUARE, "classes": []}]}, r"classes: should not be empty"),
        ({"lines": [{"name": "a", "points": [[0, 0]]}]}, r"lines\[0\]\.points: should have at least 2"),
        ({"lines": [{"name": "a", "points": [[0, 0], [0, 1], [1, 1]]}]}, "at most 2"),
        ({"lines": [{"name": "a", "points": [[0.5, 0.5], [0.5, 0.5]]}]}, "both end points are equal"),
        ({"lines": [{"name": "a", "points": [[0, 0], [1, 1]], "direction": "left"}]}, r"direction: 'left'"),
        ({"lines": [{"name": "a", "points": [[0, 0], [0, float("nan")]]}]}, "finite number"),
    ],
)
def test_wrong_zone_or_line_is_refused_with_its_place_and_the_rule(keys, message):
    with pytest.raises(ConfigError, match=message):
        _source(**keys)


@given(st.integers(8, 4000), st.integers(8, 4000))
def test_places_are_in_pixels_where_a_number_is_above_1(width, height):
    fractions = ZoneConfig(name="a", polygon=[(0.0, 0.0), (1.0, 0.0), (1.0, 0.5)])
    pixels = LineConfig(name="b", points=[(0.0, 0.5), (8.0, 0.5)])
    assert fractions.placed(width, height).polygon == ((0, 0), (width, 0), (width, 0.5 * height))
    assert pixels.placed(width, height) == ((0.0, 0.5), (8.0, 0.5))
