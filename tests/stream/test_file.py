import re
import shutil
import subprocess
import threading
from itertools import islice

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import CorruptMediaError, SourceError
from stream.convert import RgbConverter
from stream.sources import build_source

# name -> (pictures, width, height) as ffmpeg 5.1 and the files' makers count them; a size change gives the first size.
WHOLE = {
    "bird_cockatoo.mp4": (280, 1280, 720),
    "cat_persian.mp4": (87, 368, 480),
    "conveyor_bolt.gif": (37, 480, 270),
    "conveyor_fruit-veg.gif": (101, 480, 270),
    "dashcam_solidWhiteRight.mp4": (221, 960, 540),
    "dog_playing.mp4": (289, 1280, 720),
    "factory_worker-zone.gif": (71, 480, 270),
    "line_bottle-detection.mp4": (1189, 640, 360),
    "traffic_car-detection.mp4": (377, 768, 432),
    "odd/av1_video.mkv": (125, 640, 360),
    "odd/bt709_full_range.mp4": (30, 1280, 720),
    "odd/fate_10bit_amve.mp4": (24, 640, 360),
    "odd/fate_brokensps.mp4": (79, 192, 144),
    "odd/fate_mpeg2_field.mpg": (31, 768, 576),
    "odd/fate_odd_height_cfhd.mov": (10, 496, 241),
    "odd/fate_resize_midstream_av1.ivf": (20, 352, 288),
    "odd/fate_resize_midstream_h264.mp4": (4, 256, 128),
    "odd/fate_rotated_phone.mp4": (105, 272, 480),
    "odd/fate_tiny_82x144.mp4": (74, 82, 144),
    "odd/h264_10bits.mp4": (30, 200, 200),
    "odd/h264_444_cockatoo.mp4": (280, 1280, 720),
    "odd/h265_video.mp4": (10, 128, 128),
    "odd/multistream_nasa_13013.mp4": (390, 480, 270),
    "odd/rotated_180.mov": (3, 568, 320),
    "odd/rotated_90.mov": (3, 320, 568),
    "odd/vfr_kitten.mp4": (149, 568, 320),
    "odd/webm_no_duration.webm": (74, 1280, 720),
}


def read(path, **options):
    """Return all frames of a source, and its error or None."""
    frames = []
    with build_source(str(path), **options) as source:
        try:
            frames.extend(source.frames(threading.Event()))
        except SourceError as error:
            return frames, error, source
    return frames, None, source


def first_frames(path, count):
    with build_source(str(path)) as source:
        return list(islice(source.frames(threading.Event()), count))


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_file_gives_every_frame_once_in_order_and_upright(shared_data, name):
    frame_count, width, height = WHOLE[name]
    with build_source(str(shared_data / "videos" / name)) as source:
        count, last = 0, -1.0
        for frame in source.frames(threading.Event()):
            if count == 0:
                assert (frame.width, frame.height) == (width, height)
            assert frame.index == count
            assert frame.pts_seconds is not None
            assert frame.pts_seconds > last
            last = frame.pts_seconds
            count += 1
    assert count == frame_count
    assert source.health.state == "ended"
    assert source.health.corrupt == 0


def coarse(image):
    """Means of 4x4 blocks: what is left does not depend on how chroma is interpolated."""
    height, width = image.shape[0] // 4 * 4, image.shape[1] // 4 * 4
    return image[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))


def ffmpeg_pictures(path, frames, *, stream, filters="", exact=True):
    """The first pictures as the ffmpeg program decodes, turns and converts them, with its most exact arithmetic."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the second decoder: apt-get install ffmpeg")
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", f"0:{stream}", "-frames:v", str(len(frames))]
    command += (["-vf", filters] if filters else []) + ["-fps_mode", "passthrough", "-autoscale", "0"]
    command += ["-sws_flags", "bicubic+accurate_rnd+full_chroma_int" if exact else "bicubic"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
    images = []
    for frame in frames:
        image, raw = raw[: frame.image.size], raw[frame.image.size :]
        images.append(np.frombuffer(image, np.uint8).reshape(frame.image.shape))
    assert not raw
    return images


# Small drawn patterns, all saturated edges, where it counts how halved chroma is spread between pixels.
SHARP_CHROMA = {"odd/h264_10bits.mp4": 3.0}  # 2.3 measured
QUICK_ARITHMETIC = {"odd/fate_resize_midstream_h264.mp4"}  # compared with what ffmpeg's quick conversion gives


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_colours_are_those_a_second_decoder_sees(shared_data, name):
    path = shared_data / "videos" / name
    frames = first_frames(path, 3)
    with av.open(str(path)) as container:
        stream = container.streams.best("video").index
    # Its pixels are 16:15; ours come out square.
    filters = "bwdif=mode=send_frame:deint=interlaced,scale=768:576" if "field" in name else ""
    seen = ffmpeg_pictures(path, frames, stream=stream, filters=filters, exact=name not in QUICK_ARITHMETIC)
    for frame, theirs in zip(frames, seen, strict=True):
        difference = np.abs(coarse(frame.image) - coarse(theirs))
        # Fast conversion rounds down: 1.0 to 1.9 measured. A wrong matrix or range gives 4 and more.
        assert difference.mean() < SHARP_CHROMA.get(name, 2.0), f"{difference.mean():.2f}"


OPENCV_AGREES = [n for n in WHOLE if n not in {
    "odd/fate_resize_midstream_h264.mp4",  # OpenCV scales what follows to the first size
    "odd/av1_video.mkv", "odd/fate_resize_midstream_av1.ivf",  # OpenCV's build has no AV1 decoder
    "odd/fate_10bit_amve.mp4",  # OpenCV ignores the BT.2020 matrix
    "odd/fate_mpeg2_field.mpg",  # OpenCV cannot convert interlaced pictures
    "odd/h264_10bits.mp4", "odd/fate_odd_height_cfhd.mov",  # another chroma interpolation above 8 bits
    "odd/multistream_nasa_13013.mp4",  # OpenCV shows the first video stream, we the best
}]  # fmt: skip


@pytest.mark.parametrize("name", OPENCV_AGREES)
def test_eight_bit_pictures_equal_opencvs_to_the_last_bit_or_one(shared_data, name):
    path = shared_data / "videos" / name
    capture = cv2.VideoCapture(str(path))
    try:
        for frame in first_frames(path, 3):
            read_one, theirs = capture.read()
            assert read_one
            difference = np.abs(frame.image.astype(int) - theirs[..., ::-1])
            assert difference.max() <= 1
    finally:
        capture.release()


def test_comparison_detects_wrong_matrix(shared_data):
    path = shared_data / "videos" / "odd" / "bt709_full_range.mp4"
    frame = first_frames(path, 1)[0]
    for wrong in ("in_color_matrix=bt601", "in_range=tv"):
        seen = ffmpeg_pictures(path, [frame], stream=0, filters=f"scale={wrong},format=rgb24")[0]
        assert np.abs(coarse(frame.image) - coarse(seen)).mean() > 4.0


def test_full_range_bars_are_pure(shared_data):
    image = first_frames(shared_data / "videos" / "odd" / "bt709_full_range.mp4", 1)[0].image
    assert image.min() <= 2
    assert image.max() >= 253


def test_size_changes_come_out_at_their_size(shared_data):
    odd = shared_data / "videos" / "odd"
    for name, sizes in {
        "fate_resize_midstream_h264.mp4": {(256, 128), (128, 128)},
        "fate_resize_midstream_av1.ivf": {(352, 288), (1280, 720)},
    }.items():
        frames, error, _ = read(odd / name)
        assert error is None
        assert {(frame.width, frame.height) for frame in frames} == sizes


@pytest.mark.slow
def test_interlaced_pictures_lose_their_combs_and_none_is_lost(shared_data):
    path = shared_data / "videos" / "odd" / "fate_mpeg2_field.mpg"
    frames, error, _ = read(path)
    assert error is None
    with av.open(str(path)) as container:
        woven = [image.to_ndarray(format="rgb24") for image in container.decode(video=0)]
    assert len(frames) == len(woven) == 31

    def combs(image):
        rows = image.astype(int).mean(2)
        return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()

    assert sum(combs(f.image) for f in frames) < 0.8 * sum(combs(w) for w in woven)


@pytest.mark.parametrize("threads", ["auto", "slice"])
def test_file_corrupt_gives_intact_frames_then_error(shared_data, threads):
    frames, error, source = read(shared_data / "videos" / "odd" / "corrupted.mp4", threads=threads)
    assert isinstance(error, CorruptMediaError)
    assert len(frames) == 30
    assert [f.index for f in frames] == list(range(30))
    assert "near frame 28 of 50" in str(error)
    assert "ffmpeg -i" in str(error)
    assert source.health.state == "failed"
    assert source.health.corrupt == 20


def cut(path, part):
    content = path.read_bytes()
    shorter = path.with_name(f"cut_{path.name}")
    shorter.write_bytes(content[: int(len(content) * part)])
    return shorter


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "mpeg4", {"movflags": "faststart"}),
        ("clip.mkv", "mpeg4", {}),
        ("clip.avi", "mpeg4", {}),
        ("clip.mp4", "libx264", {"movflags": "faststart"}),
    ],
)
def test_file_truncated_gives_intact_frames_then_error(make_clip, name, codec, options):
    whole = make_clip(name, frame_count=100, codec=codec, options=options)
    expected, error, _ = read(whole)
    assert error is None
    assert len(expected) == 100
    got, error, _ = read(cut(whole, 0.7))
    assert isinstance(error, CorruptMediaError)
    assert 10 < len(got) < 100
    by_time = {frame.pts_seconds: frame.image for frame in expected}
    assert all(np.array_equal(frame.image, by_time[frame.pts_seconds]) for frame in got)


def test_file_truncated_gif_drops_last_frame(shared_data, tmp_path):
    content = (shared_data / "videos" / "conveyor_bolt.gif").read_bytes()
    short = tmp_path / "bolt.gif"
    short.write_bytes(content[:1_000_000])  # in the middle of picture 20: FFmpeg paints it over half of picture 19
    expected, _, _ = read(shared_data / "videos" / "conveyor_bolt.gif")
    frames, error, _ = read(short)
    assert isinstance(error, CorruptMediaError)
    assert "trailer is missing" in str(error)
    assert len(frames) == 20
    assert np.array_equal(frames[-1].image, expected[19].image)


def test_file_cut_between_packets_is_detected(make_clip):
    whole = make_clip(frame_count=40, options={"movflags": "faststart"})
    with av.open(str(whole)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    whole.write_bytes(whole.read_bytes()[: ends[35]])
    frames, error, _ = read(whole)
    assert len(frames) == 36
    assert isinstance(error, CorruptMediaError)
    assert "36 of 40 packets" in str(error)


def test_damage_in_the_middle_keeps_the_good_pictures_on_both_sides(make_clip):
    whole = make_clip(frame_count=60, codec="libx264", coding={"g": "12", "bf": "0", "sc_threshold": "0"})
    with av.open(str(whole)) as container:
        spot = [packet.pos for packet in container.demux(video=0) if packet.size][26]
    content = bytearray(whole.read_bytes())
    content[spot : spot + 4] = b"\xff" * 4  # how long the slice is
    expected, _, _ = read(whole)
    whole.write_bytes(content)
    frames, error, _ = read(whole)
    assert isinstance(error, CorruptMediaError)
    assert [f.pts_seconds for f in frames] == pytest.approx([k / 10 for k in range(60) if not 26 <= k < 36])
    by_time = {f.pts_seconds: f.image for f in expected}
    assert all(np.array_equal(f.image, by_time[f.pts_seconds]) for f in frames)


def test_times_are_the_files_own(shared_data):
    frames, _, source = read(shared_data / "videos" / "odd" / "vfr_kitten.mp4")
    steps = np.diff([f.pts_seconds for f in frames])
    assert steps.min() == pytest.approx(1 / 30, abs=0.002)
    assert steps.max() == pytest.approx(1 / 15, abs=0.002)
    assert source.frames_total == 149


def test_file_gives_encoded_images(make_clip):
    from_clip, _, _ = read(make_clip(frame_count=20))
    means = [float(f.image.mean()) for f in from_clip]
    assert means == pytest.approx([16 + 8 * k for k in range(20)], abs=3.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.mp4", b"this is a shopping list, not a film\n" * 20, "not a video that FFmpeg can read"),
        ("empty.mp4", b"", "is empty"),
        ("noise.avi", bytes(range(256)) * 40, "not a video that FFmpeg can read"),
    ],
)
def test_file_without_video_is_refused_on_entering(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message), build_source(str(path)):
        pass


def test_file_without_index_is_refused_with_hint(make_clip):
    whole = make_clip(frame_count=40)  # its index stands at the end
    with pytest.raises(SourceError, match=r"index is missing.*ffmpeg -i"), build_source(str(cut(whole, 0.7))):
        pass


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match="contains no video, only audio"), build_source(str(path)):
        pass


def test_file_deleted_before_entering_is_named(make_clip):
    path = make_clip()
    source = build_source(str(path))
    path.unlink()
    with pytest.raises(SourceError, match=r"clip\.mp4: no such file"), source:
        pass


def test_stop_ends_a_file_at_once(make_clip):
    stop = threading.Event()
    with build_source(str(make_clip(frame_count=50))) as source:
        frames = source.frames(stop)
        next(frames)
        stop.set()
        assert list(frames) == []


def test_file_left_early_is_closed(make_clip):
    with build_source(str(make_clip(frame_count=50))) as source:
        next(iter(source.frames(threading.Event())))


def test_file_with_title_in_other_encoding_is_read(tmp_path):
    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XYZZY"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"XYZZY", b"M\xfcll\xe9"))
    with build_source(str(path)) as source:
        assert len(list(source.frames(threading.Event()))) == 1


@pytest.mark.parametrize(("tag", "matrix"), [("ycgco", 8), ("bt2020c", 10)])
def test_colours_that_cannot_be_converted_are_named(make_clip, tag, matrix):
    frames, error, source = read(make_clip(codec="libx264", coding={"colorspace": tag}))
    assert not frames
    assert re.search(
        rf"clip\.mp4: .* matrix {matrix} \(.*\), which FFmpeg cannot convert to RGB; .*BT\.709", str(error)
    )
    assert (source.health.state, source.health.cause) == ("failed", "codec")


def test_reserved_colour_matrix_counts_as_unspecified():
    rows = np.random.default_rng(0).integers(0, 256, (72, 64), np.uint8)
    images = []
    for matrix in (2, 3):
        frame = av.VideoFrame.from_ndarray(rows, format="yuv420p")
        frame.colorspace = matrix
        images.append(RgbConverter().convert(frame))
    np.testing.assert_array_equal(*images)
