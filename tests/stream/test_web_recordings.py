"""Recordings on web servers, with and without ranges."""

import pytest

from pipeline.errors import CorruptMediaError, SourceError
from stream.http_file import ends_with_its_index
from tests.support.web_camera import greys, jpeg, read, send


def test_recording_by_ranges_is_whole_though_the_server_breaks_off(web_server, make_clip):
    content = make_clip(frame_count=30, options={"movflags": "faststart"}).read_bytes()

    def answer(request):
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if "Range" in request.headers else 200)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + len(content) // 3])

    frames, source = read(f"{web_server(answer)}/film")
    assert greys(frames) == [k % 25 for k in range(30)]
    assert (source.live, source.health.state) == (False, "ended")


def test_recording_without_ranges_is_read_once_and_cut_off_it_is_damaged(web_server, make_clip):
    content = make_clip(frame_count=30, options={"movflags": "faststart"}).read_bytes()
    frames, _ = read(f"{web_server(lambda request: send(request, content))}/film.mp4")
    assert len(frames) == 30

    def cut(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: len(content) * 2 // 3])

    with pytest.raises(CorruptMediaError):
        read(f"{web_server(cut)}/film.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_recording_whose_index_stands_at_its_end_is_read_without_ranges(web_server, make_clip, suffix):
    content = make_clip(f"film{suffix}", frame_count=30).read_bytes()
    assert ends_with_its_index(content[:4096])
    frames, source = read(f"{web_server(lambda request: send(request, content))}/film{suffix}")
    assert greys(frames) == [k % 25 for k in range(30)]
    assert source.health.state == "ended"


def test_recording_too_large_to_be_kept_names_what_to_do(web_server, make_clip, monkeypatch):
    content = make_clip(frame_count=5).read_bytes()
    monkeypatch.setattr("stream.http_file._MAX_SPOOLED_BYTES", 100)
    with pytest.raises(SourceError, match="its index is at the end of the file, and the server does not support range"):
        read(f"{web_server(lambda request: send(request, content))}/film.mp4")


@pytest.mark.parametrize("form", ["mpjpeg", "mjpeg", "yuv4mpegpipe"])
def test_file_of_many_pictures_ends_with_its_end(web_server, form):
    if form == "yuv4mpegpipe":
        content = b"YUV4MPEG2 W64 H48 F10:1 Ip A1:1 C420jpeg\n" + 3 * (b"FRAME\n" + bytes(64 * 48 * 3 // 2))
    else:
        head = b"--f\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
        parts = [jpeg(50 * k) for k in range(3)]
        content = b"".join(head % (len(part), part) if form == "mpjpeg" else part for part in parts)
    frames, source = read(f"{web_server(lambda request: send(request, content, 'video/mp4'))}/film")
    assert (len(frames), source.live, source.health.state) == (3, False, "ended")
