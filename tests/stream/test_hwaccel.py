"""Tests of decoding on a GPU: same images as on the CPU, and errors without a GPU."""

import contextlib
import logging
import re
import threading

import av
import av.filter
import numpy as np
import pytest
import torch
from av.codec.hwaccel import HWAccel
from av.video.reformatter import VideoReformatter

from commands.wiring.cameras import make_cameras
from commands.wiring.kinds import load_config
from commands.wiring.run import make_sources
from pipeline.errors import ConfigError, ConnectionLostError, SourceError
from stream import cuda_context, hwaccel
from stream.convert import Deinterlacer, RgbConverter
from stream.diagnostics import diagnostics
from stream.sources import build_source
from tests.support.feed import Feed
from tests.support.limits import WAITS
from tests.support.reader import Reader
from tests.support.rtsp_server import RtspServer

CARDS = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}
CLIPS = [
    "dog_playing.mp4", "traffic_car-detection.mp4", "dashcam_solidWhiteRight.mp4", "odd/bt709_full_range.mp4",
    "odd/fate_tiny_82x144.mp4", "odd/rotated_90.mov", "odd/h264_10bits.mp4", "odd/fate_10bit_amve.mp4",
]  # fmt: skip


@pytest.fixture
def no_card():
    try:
        hwaccel.cuda_hwaccel(0)
    except hwaccel.HardwareDecoderUnavailableError:
        return
    pytest.skip("needs a machine without a card to decode on")


@pytest.fixture
def card_without_driver(no_card, monkeypatch):
    """A GPU that seems to work: FFmpeg really requests it, and finds no driver."""
    accelerator = HWAccel("cuda", device="0")
    monkeypatch.setitem(hwaccel._OPENED, (0, False), hwaccel._Opened(accelerator, accelerator))


def pictures_of(path, count=3):
    with av.open(str(path)) as container:
        for number, image in enumerate(container.decode(container.streams.best("video"))):
            if number == count:
                return
            yield image


def as_from_a_card(image):
    """Return the image as it is downloaded from a GPU: in the layout of FFmpeg's filter, with the tags of the image."""
    brought = VideoReformatter().reformat(image, format=CARDS[image.format.name], threads=1)
    graph = av.filter.Graph()
    door = graph.add(
        "buffer",
        f"video_size={image.width}x{image.height}:pix_fmt={image.format.name}:time_base=1/30:pixel_aspect=1/1"
        f":colorspace={image.colorspace}:range={image.color_range}",
    )
    graph.link_nodes(door, graph.add("format", f"pix_fmts={brought.format.name}"), graph.add("buffersink"))
    graph.configure()
    graph.vpush(image)
    packed = graph.vpull()
    for ours, theirs in zip(brought.planes, packed.planes, strict=True):
        assert np.array_equal(rows(ours, image), rows(theirs, image))
    assert (brought.colorspace, brought.color_range) == (image.colorspace, image.color_range)
    return brought


def rows(plane, image):
    """Return the bytes of a plane of nv12 or p010, without what pads its lines; sizes are even."""
    seen = image.width * (2 if "10" in image.format.name else 1)
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, :seen]


def read(source):
    with source:
        return list(source.frames(threading.Event()))


@pytest.mark.parametrize("name", CLIPS)
def test_gpu_frame_has_colours_of_cpu(shared_data, name):
    by_cpu, by_card = RgbConverter(), RgbConverter()
    for image in pictures_of(shared_data / "videos" / name):
        brought = as_from_a_card(image)
        assert np.array_equal(by_card.convert(brought), by_cpu.convert(image))


def test_interlaced_pictures_from_a_card_are_made_whole_as_the_cpus_are(shared_data):
    by_cpu, by_card, rgb = Deinterlacer(), Deinterlacer(), RgbConverter()
    for image in pictures_of(shared_data / "videos" / "odd" / "fate_mpeg2_field.mpg", 6):
        brought = as_from_a_card(image)
        assert brought.interlaced_frame == image.interlaced_frame
        for ours, theirs in zip(by_card.feed(brought), by_cpu.feed(image), strict=True):
            assert np.array_equal(rgb.convert(ours), rgb.convert(theirs))
            assert ours.pts == theirs.pts


def test_auto_without_gpu_reads_file_on_cpu_and_logs_once(no_card, shared_data, caplog):
    caplog.set_level(logging.INFO)
    path = str(shared_data / "videos" / "odd" / "h265_video.mp4")
    ours = read(build_source(path, decoder="auto"))
    theirs = read(build_source(path))
    assert len(ours) == len(theirs) > 0
    assert all(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))
    messages = [line for line in caplog.messages if "decoded on" in line]
    assert messages == ["h265_video: decoded on the CPU: cuda:0 cannot decode: no NVIDIA driver is installed"]


def test_auto_without_gpu_finds_same_damage_as_cpu(no_card, shared_data):
    source = build_source(str(shared_data / "videos" / "odd" / "corrupted.mp4"), decoder="auto")
    with pytest.raises(SourceError, match="near frame 28 of 50"):
        read(source)
    assert source.health.corrupt == 20


def test_auto_without_gpu_reads_camera_and_logs_once(no_card, caplog):
    caplog.set_level(logging.INFO)
    options = {**WAITS, "decoder": "auto"}
    with Feed((160, 120), rate=20) as feed, RtspServer(feed) as server, contextlib.ExitStack() as stack:
        source = stack.enter_context(build_source(server.url(), camera="door", **options))
        reader = stack.enter_context(Reader(source))
        reader.until(lambda: len(reader.frames) >= 10)
        server.reset()
        reader.until(lambda: source.health.reconnects == 1)
    numbers = [mark.number for mark in reader.marks[:10]]
    assert numbers == list(range(numbers[0], numbers[0] + 10))
    assert len([line for line in caplog.messages if line.startswith("door: decoded on the CPU")]) == 1


@pytest.mark.parametrize("uri", ["rtsp://127.0.0.1:1/live", "http://127.0.0.1:1/live", "http://127.0.0.1:1/a.mp4"])
@pytest.mark.parametrize("decoder", ["cuda", "cuda:3"])
def test_cuda_without_gpu_is_refused_at_start(no_card, uri, decoder):
    number = decoder.partition(":")[2] or "0"
    message = f"decoder: {decoder}: cuda:{number} cannot decode: no NVIDIA driver is installed; .* decoder: cpu"
    with pytest.raises(SourceError, match=message), build_source(uri, decoder=decoder):
        pytest.fail("entered")


def test_codec_without_gpu_decoder_is_refused_or_decoded_on_cpu(card_without_driver, shared_data, caplog):
    caplog.set_level(logging.INFO)
    path = str(shared_data / "videos" / "odd" / "fate_odd_height_cfhd.mov")
    must = build_source(path, decoder="cuda")
    with pytest.raises(SourceError, match=r"FFmpeg decodes cfhd on the CPU only; set decoder: cpu"):
        read(must)
    ours, theirs = read(build_source(path, decoder="auto")), read(build_source(path))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))
    assert "fate_odd_height_cfhd: decoded on the CPU: FFmpeg decodes cfhd on the CPU only" in caplog.messages


def test_camera_without_gpu_decoder_fails_at_first_frame(card_without_driver, web_server, tmp_path):
    film = tmp_path / "live.mkv"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            grey = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        container.mux(stream.encode())

    def answer(request):
        request.send_response(200)
        request.send_header("Content-Type", "video/x-matroska")
        request.end_headers()
        request.wfile.write(film.read_bytes())

    source = build_source(f"{web_server(answer)}/live", decoder="cuda")
    with pytest.raises(ConnectionLostError, match=r"cuda: FFmpeg decodes ffv1 on the CPU only; .* can decode$"):
        read(source)
    assert (source.health.state, source.health.cause) == ("failed", "codec")


def test_cuda_hwaccel_requests_gpu_from_ffmpeg(card_without_driver, shared_data):
    path = str(shared_data / "videos" / "odd" / "h265_video.mp4")
    with pytest.raises(av.error.PermissionError):  # no driver: what FFmpeg says when it is asked for a card
        hwaccel.DecoderSelector("cuda").open(path, options={}, timeout=(None, None))
    with hwaccel.DecoderSelector("cpu").open(path, options={}, timeout=(None, None)) as container:
        assert not container.streams.video[0].codec_context.is_hwaccel


def test_over_udp_auto_keeps_to_the_cpu_which_sees_holes(card_without_driver):
    decoder = hwaccel.DecoderSelector("auto", reason_against_gpu="holes")
    decoder.check()
    assert not decoder.wants_gpu
    assert hwaccel.DecoderSelector("auto").wants_gpu
    assert hwaccel.DecoderSelector("cuda", reason_against_gpu="holes").wants_gpu


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "cuda"}, "decoder: cuda: cuda:0 cannot decode:"),
        ({"decoder": "cuda", "engine": {"device": "cuda:2"}}, "decoder: cuda: cuda:2 cannot decode:"),
        ({"sources": [{"uri": "rtsp://127.0.0.1:1/x", "decoder": "cuda:1"}]}, "cuda:1: cuda:1 cannot decode:"),
    ],
)  # fmt: skip
def test_decoder_of_configuration_reaches_source(no_card, options, message):
    ((source, _),) = make_sources(load_config({"sources": ["rtsp://127.0.0.1:1/x"], **options}, "run.yaml"))
    with pytest.raises(SourceError, match=re.escape(message)), source:
        pytest.fail("entered")


def test_decoder_of_source_wins_and_bad_value_is_refused(no_card):
    own = {"uri": "rtsp://127.0.0.1:1/x", "decoder": "cpu"}
    ((source, _),) = make_sources(load_config({"sources": [own], "decoder": "cuda"}, "run.yaml"))
    with source:
        pass
    with pytest.raises(ConfigError, match=r"run\.yaml: decoder"):
        load_config({"decoder": "gpu"}, "run.yaml")


def test_decoder_of_command_line_reaches_source(no_card, command, make_clip):
    clip = make_clip()
    code, _, errors = command("stream", "--source", clip, "--decoder", "cuda")
    assert code == 2
    assert "decoder: cuda: cuda:0 cannot decode: no NVIDIA driver is installed" in errors


def test_doctor_says_whether_a_card_can_be_opened(no_card):
    (items,) = [check for check in diagnostics() if check.name == "decoding on a GPU"]
    assert not items.present
    assert items.detail == f"no NVIDIA driver is installed (FFmpeg supports {hwaccel.available_hwaccels()})"
    assert "nvidia-smi" in items.hint


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dog_playing.mp4", "dashcam_solidWhiteRight.mp4", "odd/h265_video.mp4"])
def test_gpu_frames_equal_cpu_frames_within_one_level(shared_data, caplog, name):
    """H.264 and H.265 define each pixel exactly: decoders do not differ by rounding."""
    caplog.set_level(logging.INFO)
    path, options = str(shared_data / "videos" / name), {"decoder": "cuda"}
    with build_source(path, camera="door", **options) as ours, build_source(path) as theirs:
        stop, counted = threading.Event(), 0
        for mine, his in zip(ours.frames(stop), theirs.frames(stop), strict=True):
            assert mine.pts_seconds == his.pts_seconds
            assert np.abs(mine.image.astype(int) - his.image).max() <= 1
            counted += 1
    assert counted > 10
    assert "door: decoded on cuda:0" in caplog.messages


class FakeCuda:
    """The driver's library with one GPU; notes the contexts that are current when FFmpeg opens it."""

    def __init__(self, monkeypatch, *, refuses=()):
        self.current, self.opened, self.refuses = [], [], refuses
        monkeypatch.setattr(cuda_context, "_driver", lambda: self)
        monkeypatch.setattr(cuda_context, "_retained", cuda_context._retained.__wrapped__)
        monkeypatch.setattr(hwaccel, "HWAccel", self.accelerator)
        monkeypatch.setattr(hwaccel, "_OPENED", {})
        monkeypatch.setattr(hwaccel, "hwdevices_available", lambda: ["cuda"])

    def cuInit(self, flags):  # noqa: N802 - the driver's own names
        return 0

    def cuDeviceGet(self, device, number):  # noqa: N802
        device._obj.value = number
        return 0 if number == 0 else 101

    def cuDevicePrimaryCtxSetFlags_v2(self, device, flags):  # noqa: N802
        return 708  # it is open already, as after torch

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        context._obj.value = 0x1234
        return 0

    def cuCtxPushCurrent_v2(self, context):  # noqa: N802
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context):  # noqa: N802
        self.current.pop()
        return 0

    def accelerator(self, kind, *, device, allow_software_fallback, options, is_hw_owned):
        def create(codec):
            self.opened.append((*(name for name in options if options[name] == "1"), *self.current))
            self.owned = is_hw_owned
            if {*options} & {*self.refuses}:
                raise av.error.ExternalError(1, "refused")
            return self

        self.create = create
        return self


def test_gpu_is_opened_in_the_primary_context_whoever_opened_it(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    hwaccel.cuda_hwaccel(0)
    assert cuda.opened == [("current_ctx", 0x1234)]
    assert cuda.current == []


def test_frames_stay_on_the_gpu_only_in_the_networks_context(monkeypatch):
    cuda = FakeCuda(monkeypatch, refuses=["current_ctx", "primary_ctx"])
    with pytest.raises(hwaccel.HardwareDecoderUnavailableError, match="refused"):
        hwaccel.cuda_hwaccel(0, keep_frames=True)
    assert cuda.opened == [("current_ctx", 0x1234), ("primary_ctx", 0x1234)]
    assert cuda.owned
    hwaccel.cuda_hwaccel(0)  # a context of its own serves frames that are downloaded
    assert not cuda.owned


def test_frames_that_stay_are_asked_for_without_a_second_context():
    # PyAV adds primary_ctx=1 to a request for frames that stay, and FFmpeg refuses it beside current_ctx=1.
    for options in hwaccel._CONTEXTS_OF_FRAMES:
        asked = HWAccel("cuda", device="0", options=dict(options), is_hw_owned=True).options
        assert [asked.get(name, "0") for name in ("current_ctx", "primary_ctx")].count("1") == 1


class OnGpu:
    """Stands in for a frame in a GPU's memory: what is read without downloading it."""

    def __init__(self, frame):
        self.frame, self.sw_format = frame, frame.format

    def __getattr__(self, name):
        return getattr(self.frame, name)


def test_interlaced_frames_leave_the_gpu_before_the_filter(monkeypatch, shared_data):
    downloads = []

    def download(frame):
        if not isinstance(frame, OnGpu):
            return frame
        downloads.append(frame)
        return frame.frame

    monkeypatch.setattr("stream.convert.on_host", download)
    by_gpu, by_cpu = Deinterlacer(), Deinterlacer()
    for image in pictures_of(shared_data / "videos" / "odd" / "fate_mpeg2_field.mpg", 6):
        brought = as_from_a_card(image)
        for ours, theirs in zip(by_gpu.feed(OnGpu(brought)), by_cpu.feed(brought), strict=True):
            assert np.array_equal(RgbConverter().convert(ours), RgbConverter().convert(theirs))
    assert len(downloads) == 6
    progressive = OnGpu(next(pictures_of(shared_data / "videos" / "dog_playing.mp4", 1)))
    assert Deinterlacer().feed(progressive) == [progressive]
    assert len(downloads) == 6


@pytest.mark.parametrize(
    ("engine", "decoder", "remedy"),
    [
        ("cpu", "cuda", "set engine.device: cuda, or remove device_frames"),
        ("cuda", "cpu", "needs a decoder on cuda:0, not cpu; set decoder: cuda:0, or auto"),
        ("cuda", "cuda:1", "needs a decoder on cuda:0, not cuda:1; set decoder: cuda:0, or auto"),
    ],
)
def test_device_frames_without_their_gpu_are_refused(monkeypatch, engine, decoder, remedy):
    monkeypatch.setattr("engine.runtime.devices.choose_device", lambda name: torch.device(name, 0))
    source = {"uri": "rtsp://u:secret@127.0.0.1:1/live", "device_frames": True, "decoder": decoder}
    config = load_config({"sources": [source], "engine": {"device": engine}}, "test")
    with pytest.raises(ConfigError, match=remedy) as refusal:
        make_cameras(config)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("device_frames", [True, False])
def test_device_frames_is_an_option_of_each_source(monkeypatch, device_frames):
    monkeypatch.setattr("engine.runtime.devices.choose_device", lambda name: torch.device(name, 0))
    source = {"uri": "rtsp://127.0.0.1:1/live", "device_frames": device_frames, "decoder": "auto"}
    (camera,) = make_cameras(load_config({"sources": [source], "engine": {"device": "cuda"}}, "test"))
    assert (camera.source._spec.decoder.copy_planes is not None) == device_frames


def test_stream_is_opened_while_the_primary_context_is_current(monkeypatch):
    cuda, seen = FakeCuda(monkeypatch), []
    monkeypatch.setattr(hwaccel.av, "open", lambda *arguments, **options: seen.append(list(cuda.current)))
    hwaccel.DecoderSelector("cuda").open("clip.mp4", options={})
    hwaccel.DecoderSelector("cpu").open("clip.mp4", options={})
    assert seen == [[0x1234], []]


@pytest.mark.parametrize(("gpu", "refuses", "tried"), [
    (0, ("current_ctx",), [("current_ctx", 0x1234), ("primary_ctx", 0x1234)]),
    (0, ("current_ctx", "primary_ctx"), [("current_ctx", 0x1234), ("primary_ctx", 0x1234), (0x1234,)]),
    (1, (), [("primary_ctx",)]),
])  # fmt: skip
def test_gpu_is_opened_otherwise_where_the_primary_context_is_refused(monkeypatch, gpu, refuses, tried):
    cuda = FakeCuda(monkeypatch, refuses=refuses)
    hwaccel.cuda_hwaccel(gpu)
    assert cuda.opened == tried


def test_primary_context_without_a_driver_is_absent(monkeypatch):
    monkeypatch.setattr(cuda_context, "_LIBRARY", "no_such_library.so")
    for function in (cuda_context._driver, cuda_context._retained):
        monkeypatch.setattr(cuda_context, function.__name__, function.__wrapped__)
    with cuda_context.primary_context(0) as is_current:
        assert not is_current
