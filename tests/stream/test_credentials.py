"""Tests of credentials from environment and files: exact, escaped, and in no message."""

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from stream.credentials import expand_env, has_plain_password, with_credentials

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=30)


@given(user=TEXT.filter(lambda text: ":" not in text), password=TEXT)
def test_with_credentials_round_trips_any_password(user, password):
    if (user + password).splitlines() != [user + password]:
        return
    actual = urlsplit(with_credentials("rtsp://camera:554/door?x=1", f"{user}:{password}", "secret.txt"))
    assert (unquote(actual.username), unquote(actual.password)) == (user, password)
    assert (actual.hostname, actual.port, actual.path, actual.query) == ("camera", 554, "/door", "x=1")


@given(password=TEXT)
def test_expand_env_escapes_value_before_host(password):
    uri = expand_env("rtsp://${CAM_USER}:${CAM_PASSWORD}@camera/door", {"CAM_USER": "ada", "CAM_PASSWORD": password})
    assert unquote(urlsplit(uri).password) == password
    assert urlsplit(uri).hostname == "camera"


def test_expand_env_keeps_value_after_host():
    assert expand_env("http://camera/${PATH_TO}?a=b", {"PATH_TO": "x/y.m3u8"}) == "http://camera/x/y.m3u8?a=b"


def test_expand_env_keeps_other_text():
    assert expand_env("videos/$HOME{1}.mp4", {}) == "videos/$HOME{1}.mp4"


def test_expand_env_names_missing_variable_without_secret():
    with pytest.raises(ConfigError, match="no variable CAM_PASSWORD") as caught:
        expand_env("rtsp://ada:s3cret${CAM_PASSWORD}@camera/door", {})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "ada", ":word", "ada:one\nbob:two"])
def test_with_credentials_refuses_bad_file_without_content(text):
    with pytest.raises(ConfigError, match="one line, user:password") as caught:
        with_credentials("rtsp://camera/door", text, "secret.txt")
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("uri", ["rtsp://ada:word@camera/door", "camera:0", "video.mp4"])
def test_with_credentials_refuses_bad_address(uri):
    with pytest.raises(ConfigError, match="credentials") as caught:
        with_credentials(uri, "bob:s3cret", "secret.txt")
    assert "s3cret" not in str(caught.value)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://ada:secret@door/live", True),
        ("rtsp://ada:se:c@ret@door/live", True),
        ("rtsp://door/live?user=ada&password=secret", True),
        ("rtsp://ada@door/live", False),
        ("rtsp://${USER}:${PASSWORD}@door/live", False),
        ("rtsp://ada:${PASSWORD}@door/live", False),
        ("rtsp://ada:pre${PASSWORD}@door/live", True),
        ("rtsp://door:8554/live", False),
        ("camera:0", False),
        ("a@b:c.mp4", False),
    ],
)
def test_has_plain_password_ignores_variables(uri, shown):
    assert has_plain_password(uri) is shown


@pytest.mark.parametrize("path", ["192.0.2.1/live/ch0@main", "door:554/live/ch0@main", "door/a@b?c=d@e"])
def test_credentials_are_put_before_the_host_where_the_path_holds_an_at_sign(path):
    uri = with_credentials(f"rtsp://{path}", "ada:p@ss/#1", "secret.txt")
    assert urlsplit(uri).hostname == urlsplit(f"rtsp://{path}").hostname
    assert unquote(urlsplit(uri).password) == "p@ss/#1"
    assert uri.endswith(path)


def test_expand_env_keeps_value_in_path_with_at_sign():
    assert expand_env("rtsp://192.0.2.1/${PATH_TO}@main", {"PATH_TO": "a/b"}) == "rtsp://192.0.2.1/a/b@main"
