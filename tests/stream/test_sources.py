import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.kinds import Kind
from pipeline.ports import Source
from pipeline.settings import SourceSettings
from stream import sources
from stream.sources import SOURCES, build_source, plain_name, unique_names


@pytest.mark.parametrize(
    ("uri", "camera", "live"),
    [
        ("0", "camera0", True),
        ("camera:2", "camera2", True),
        ("rtsp://me:secret@door:554/live", "door:554/live", True),
        ("rtsps://door/live?token=abc", "door/live", True),
        ("http://door/stream", "door/stream", True),
        ("https://door/live.m3u8", "door/live.m3u8", True),
        ("https://me:secret@door/film.mp4?x=1", "door/film.mp4", False),
    ],
)
def test_source_name_and_live_follow_from_address(uri, camera, live):
    source = build_source(uri)
    assert isinstance(source, Source)
    assert source.camera == camera
    assert source.live is live
    assert "secret" not in source.uri
    assert "abc" not in source.uri


def test_files_and_folders_are_named_after_themselves(make_clip):
    clip = make_clip("bottles.mp4")
    assert build_source(str(clip)).camera == "bottles"
    assert build_source(f"file://{clip}").camera == "bottles"
    assert build_source(str(clip.parent)).camera == clip.parent.name
    assert not build_source(str(clip)).live
    assert not build_source(f"file://{clip}").live


def test_source_name_of_user_wins():
    assert build_source("rtsp://door/live", camera="front").camera == "front"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("rstp://door/live", "unknown scheme 'rstp'. Did you mean 'rtsp'?"),
        ("rstp://me:secret@door/live", "rstp://***@door/live: unknown scheme"),
        ("cam:0", "Did you mean 'camera'?"),
        ("camera:front", "a webcam is chosen by its number"),
        ("", "the source is empty"),
        ("/nowhere/film.mp4", "no such file"),
        ("rtsp://", "has no host"),
        ("http://door:99999/x", "a port outside 1 to 65535"),
    ],
)
def test_source_bad_address_is_refused_with_hint_without_secrets(uri, message):
    with pytest.raises(SourceError) as caught:
        build_source(uri)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_source_misspelt_file_names_nearest(make_clip):
    clip = make_clip("bottles.mp4")
    with pytest.raises(SourceError, match=r"Did you mean 'bottles\.mp4'"):
        build_source(str(clip.with_name("botles.mp4")))


def test_source_file_named_like_address_is_file(make_clip, monkeypatch):
    clip = make_clip("take:1.mp4")
    monkeypatch.chdir(clip.parent)
    assert build_source("take:1.mp4").camera == "take:1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_timeout_seconds": 0}, "read_timeout_seconds=0: .*greater than 0"),
        ({"decoder": "gpu"}, "decoder='gpu': should be auto, cpu, cuda or cuda:N"),
        ({"images_per_second": float("nan")}, "finite"),
        ({"attempts": 0}, "attempts=0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    uri = "/nowhere/" if "images_per_second" in options else "rtsp://door/live"
    with pytest.raises(SourceError, match=message):
        SOURCES.settings(uri, **options)


@given(st.lists(st.sampled_from(["door", "door-2", "door-3", "yard"]), max_size=8))
def test_names_become_unique_and_keep_their_order(names):
    unique = unique_names(names)
    assert len(set(unique)) == len(unique) == len(names)
    assert all(new.startswith(old) for new, old in zip(unique, names, strict=True))
    assert unique_names(unique) == unique


def test_source_unique_name_is_kept():
    assert unique_names(["door", "door", "door-2", "yard"]) == ["door", "door-3", "door-2", "yard"]


@given(st.text(st.characters(), max_size=80))
def test_source_name_from_address_is_valid(name):
    result = plain_name(name)
    assert result.encode()
    assert SourceSettings(uri="line:", name=result).name == result == plain_name(result)


def test_sources_imports_no_decoder():
    program = "import sys, stream.sources as s; s.SOURCES.settings('rtsp://x/y'); s.SOURCES.settings('http://x/y.mp4')"
    program += "; s.redact('a')"
    program += "; sys.exit(bool({'av', 'cv2', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(("sign", "escape"), [("#", "%23"), ("?", "%3F"), ("/", "%2F")])
@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https", "rtmp"])
def test_password_with_a_sign_that_ends_the_host_is_refused_with_its_escape(scheme, sign, escape):
    with pytest.raises(SourceError, match=f"write {escape} instead") as caught:
        build_source(f"{scheme}://admin:canary{sign}7f3a@192.0.2.10:554/x")
    assert "canary" not in str(caught.value)
    assert "7f3a" not in str(caught.value)
    assert build_source(f"{scheme}://admin:canary{escape}7f3a@192.0.2.10:554/x").camera == "192.0.2.10:554/x"


@pytest.mark.parametrize(("sign", "escape"), [("#", "%23"), ("?", "%3F"), ("/", "%2F")])
def test_password_that_begins_like_a_port_is_refused_where_the_text_before_it_may_be_a_user(sign, escape):
    with pytest.raises(SourceError, match=f"write {escape} instead.*write %40") as caught:
        build_source(f"rtsp://admin:12{sign}7f3a@cam/x")
    assert "7f3a" not in str(caught.value)


@pytest.mark.parametrize("uri", ["rtsp://192.0.2.10:554/a@b", "rtsp://nvr.local:554/a@b", "rtsp://nvr/a@b"])
def test_address_with_a_sure_host_may_have_an_at_sign_in_its_path(uri):
    build_source(uri)


@pytest.mark.parametrize("uri", ["srt://127.0.0.1:900", "rtp://239.0.0.1:5004", "mms://door/x", "onvif://door/x"])
def test_scheme_that_cannot_be_read_names_what_to_give_instead(uri):
    with pytest.raises(SourceError, match="rtsp:// address"):
        build_source(uri)


def test_udp_address_without_a_port_is_refused():
    with pytest.raises(SourceError, match="udp://@GROUP:PORT"):
        build_source("udp://239.0.0.1")


def test_source_of_a_new_word_needs_its_registry_line_only(monkeypatch):
    line = Kind("noise", ("noise:",), SourceSettings, "stream.sources:open_line")
    monkeypatch.setattr("stream.sources.SOURCES", dataclasses.replace(SOURCES, kinds=(*SOURCES.kinds, line)))
    assert sources.SOURCES.find("noise:").name == "noise"
    with pytest.raises(SourceError, match="unknown scheme 'static'"):
        sources.SOURCES.find("static:")
