"""Tests of the HLS playlist parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.failures import FailureError
from stream.playlist import Key, Resource, best_variant, parse_playlist

URL = "http://camera/hls/live.m3u8?token=1"


def test_segments_are_numbered_and_their_addresses_resolved():
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:41\n#EXTINF:5.5,\na.ts\n#EXTINF:6,x\n/b.ts?c=d\n"
    playlist = parse_playlist(text, URL)
    assert [(segment.number, segment.resource.url, segment.seconds) for segment in playlist.segments] == [
        (41, "http://camera/hls/a.ts", 5.5),
        (42, "http://camera/b.ts?c=d", 6.0),
    ]
    assert (playlist.target_seconds, playlist.ended) == (6.0, False)


def test_end_and_discontinuities_are_recognised():
    text = "#EXTM3U\r\n#EXTINF:1,\r\na.ts\r\n#EXT-X-DISCONTINUITY\r\n#EXTINF:1,\r\nb.ts\r\n#EXT-X-ENDLIST\r\n"
    playlist = parse_playlist(text, URL)
    assert [segment.is_discontinuous for segment in playlist.segments] == [False, True]
    assert playlist.ended


def test_playlist_marks_new_header_and_continues_ranges():
    result = (
        '#EXTM3U\n#EXT-X-MAP:URI="v.mp4",BYTERANGE="100@0"\n#EXT-X-BYTERANGE:50@100\n#EXTINF:1,\nv.mp4\n'
        '#EXT-X-BYTERANGE:60\n#EXTINF:1,\nv.mp4\n#EXT-X-MAP:URI="w.mp4"\n#EXTINF:1,\nw1.mp4\n'
    )
    first, second, third = parse_playlist(result, URL).segments
    assert first.header == Resource("http://camera/hls/v.mp4", 0, 100)
    assert first.resource.headers == {"Range": "bytes=100-149"}
    assert second.resource.headers == {"Range": "bytes=150-209"}
    assert (first.is_discontinuous, second.is_discontinuous, third.is_discontinuous) == (False, False, True)


def test_keys_hold_until_the_next_one():
    result = (
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="k",IV=0x0A\n#EXTINF:1,\na\n#EXTINF:1,\nb\n#EXT-X-KEY:METHOD=NONE\nc\n'
    )
    segments = parse_playlist(result, URL).segments
    assert [segment.key for segment in segments] == [Key("AES-128", "http://camera/hls/k", f"{10:032x}")] * 2 + [None]


def test_variant_of_the_highest_bandwidth_is_taken():
    text = '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow\n#EXT-X-STREAM-INF:CODECS="a,b",BANDWIDTH=99\nhigh.m3u8\n'
    assert best_variant(text, URL) == "http://camera/hls/high.m3u8"
    assert best_variant("#EXTM3U\n#EXTINF:1,\na.ts\n", URL) is None


DAMAGED = [
    "#EXT-X-KEY:METHOD=X,IV=0xZZ",
    "#EXTINF:nan,",
    "#EXT-X-BYTERANGE:x@y",
    "#EXT-X-MEDIA-SEQUENCE:-",
    "#EXT-X-TARGETDURATION:inf",
    "a.ts",
    "http://[",
]


@given(text=st.text(max_size=200), lines=st.lists(st.sampled_from(DAMAGED)))
def test_damaged_playlist_is_read_or_refused(text, lines):
    best_variant("#EXT-X-STREAM-INF:BANDWIDTH=9\n".join(["#EXTM3U\n", *lines, text]), URL)
    try:
        playlist = parse_playlist("\n".join(["#EXTM3U", *lines, text]), URL)
    except FailureError:
        return
    assert 0.2 <= playlist.target_seconds <= 60


@pytest.mark.parametrize("text", ["", "<html>", "EXTM3U"])
def test_playlist_invalid_is_refused(text):
    with pytest.raises(FailureError, match="not an HLS playlist"):
        parse_playlist(text, URL)
