"""Zones and lines of a configuration: what is checked before a run, and the parts of the demo."""

import pytest

from commands.wiring.cameras import make_cameras
from commands.wiring.kinds import load_config
from commands.wiring.passages import ConfiguredPlaces
from pipeline.errors import ConfigError

SQUARE = [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]
ZONE = {"name": "station", "polygon": SQUARE}
LABELS = ("ok", "scratch", "dent")


def _cameras(**keys):
    return make_cameras(load_config({"sources": [{"uri": "line:", "name": "belt", **keys}]}, "run.yaml"))


def test_places_of_a_camera_are_those_of_its_source():
    places = ConfiguredPlaces(_cameras(zones=[ZONE], same_object_overlap=0.8), LABELS, has_boxes=True)
    assert [zone.name for zone in places("belt").zones] == ["station"]
    assert places("belt").same_object_overlap == 0.8
    assert not places("other")


def test_changed_cameras_have_their_new_places_and_wrong_ones_change_nothing():
    places = ConfiguredPlaces(_cameras(zones=[ZONE]), LABELS, has_boxes=True)
    places.update(_cameras(zones=[{**ZONE, "name": "other"}]))
    assert places("belt").zones[0].name == "other"
    with pytest.raises(ConfigError):
        places.update(_cameras(zones=[{**ZONE, "classes": ["dnet"]}]))
    assert places("belt").zones[0].name == "other"


@pytest.mark.parametrize(
    ("keys", "labels", "has_boxes", "message"),
    [
        ({"zones": [ZONE]}, LABELS, False, "zones of camera 'belt': only boxes of a detector can be counted"),
        ({"lines": [{"name": "a", "points": [[0, 0], [1, 1]]}]}, LABELS, False, "lines of camera 'belt'"),
        ({"zones": [{**ZONE, "classes": ["dnet"]}]}, LABELS, True, "Did you mean 'dent'"),
        ({"zones": [{**ZONE, "ok": ["okay"]}]}, LABELS, True, r"zones\[0\]\.ok of camera 'belt': 'okay'"),
        ({"zones": [{**ZONE, "vote": "worst"}]}, ("car", "bus"), True, "but no class is; name them"),
        ({"zones": [{**ZONE, "vote": "3 of 5", "ok": []}]}, LABELS, True, "but no class is; name them"),
    ],
)
def test_places_that_do_not_fit_the_network_are_refused(keys, labels, has_boxes, message):
    with pytest.raises(ConfigError, match=message):
        ConfiguredPlaces(_cameras(**keys), labels, has_boxes=has_boxes)
