import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.redact import host_and_path, redact


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://me:secret@10.0.0.5:554/live", "rtsp://***@10.0.0.5:554/live"),
        ("rtsp://me@door/live", "rtsp://***@door/live"),
        ("rtsp://me:se@cr/et@door/live", "rtsp://***@door/live"),
        ("http://door/x?token=abc&size=3", "http://door/x?token=***&size=3"),
        ("rtsp://door/user=me&password=secret&channel=1.sdp", "rtsp://door/user=***&password=***&channel=1.sdp"),
        ("http://door/x#access_token=abc", "http://door/x#access_token=***"),
        ("rtsp://door:8554/live?channel=1", "rtsp://door:8554/live?channel=1"),
        ("http://door:80/a@b.jpg", "http://***@b.jpg"),
        ("rtsp://192.0.2.1/live/ch0@main", "rtsp://192.0.2.1/live/ch0@main"),
        ("rtsp://192.0.2.1:554/live/ch0@main", "rtsp://192.0.2.1:554/live/ch0@main"),
        ("rtsp://me:se@cret@192.0.2.1/live/ch0@main", "rtsp://***@192.0.2.1/live/ch0@main"),
        ("rtsp://[fe80::1%eth0]:554/ch0@main", "rtsp://[fe80::1%eth0]:554/ch0@main"),
        ("rtsp://door/live/ch0@main", "rtsp://door/live/ch0@main"),
        ("camera:0", "camera:0"),
        ("rtsp://bob:12/34@cam", "rtsp://***@cam"),
        ("rtsp:bob:s3cr3t@host", "rtsp:***@host"),
        ("/films/me:you@home.mp4", "/films/me:you@home.mp4"),
    ],
)
def test_only_the_secrets_of_an_address_are_hidden(uri, shown):
    assert redact(uri) == shown


@given(
    user=st.text(string.ascii_letters, min_size=1, max_size=8),
    word=st.text(string.ascii_letters + string.digits + ":/@?#&=%!", min_size=1, max_size=12),
)
def test_no_password_however_odd_survives_redaction(user, word):
    password = f"qq{word}zz"
    shown = redact(f"rtsp://{user}:{password}@camera.example/live")
    assert password not in shown
    assert "qq" not in shown
    assert shown.endswith("camera.example/live")


def test_redacting_twice_changes_nothing_more():
    once = redact("rtsp://me:secret@door/live?key=1")
    assert redact(once) == once


def test_host_and_path_contains_no_secret():
    assert host_and_path("rtsp://me:secret@door:554/live/1?token=abc") == "door:554/live/1"
    assert host_and_path("http://door/") == "door"


def test_place_keeps_the_host_where_the_path_holds_an_at_sign():
    assert host_and_path("rtsp://192.0.2.1/live/ch0@main") == "192.0.2.1/live/ch0@main"
    assert host_and_path("rtsp://door/live/ch0@main") == "door/live/ch0@main"
