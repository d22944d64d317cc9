"""H.264 on the page: the viewers' chain of units, the encoders, and a real Chromium."""

from __future__ import annotations

import asyncio

import av
import numpy as np
import pytest

from overlays.sinks.settings import WebSettings
from overlays.web.broadcast import MAX_VIDEO_IN_FLIGHT, MAX_VIDEO_WAITING, WebClient, WebFrame
from overlays.web.framing import unpack
from overlays.web.video import VideoEncoders
from overlays.wire.header import decode_header
from tests.support import footage
from tests.support.browser import CHROMIUM
from tests.support.limits import LIMIT_SECONDS
from tests.support.page import connect_viewer, page
from tests.support.page_feed import fed, grey, numbered, shade, shown, shown_frames

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")


def painted(number, width=320):
    return footage.paint(np.zeros((240, width, 3), np.uint8), number, 0)


class Clock:
    """A clock that a test sets, and that advances at each reading."""

    def __init__(self, step=0.0):
        self.seconds, self.step = 0.0, step

    def __call__(self):
        self.seconds += self.step
        return self.seconds


# The encoders


def test_encoder_makes_key_frames_for_new_viewers_at_once_and_for_lost_ones_once_a_second():
    clock = Clock()
    encoders = VideoEncoders(is_limited=False, clock=clock)
    made = []
    for seconds, is_new, is_lost in [
        (0.0, True, False),
        (0.1, False, False),
        (0.2, False, True),
        (0.3, True, False),
        (1.2, False, True),
        (1.4, False, True),
        (9.0, False, False),
        (11.5, False, False),
    ]:
        clock.seconds = seconds
        made.append(encoders.encode("line", "plain", painted(len(made)), is_new=is_new, is_lost=is_lost))
    assert [unit.is_key for unit in made] == [True, False, False, True, False, True, False, True]
    assert [unit.number for unit in made] == list(range(8))
    assert all(unit.codec.startswith("avc1.42") for unit in made)
    decoder = av.CodecContext.create("h264", "r")
    packets = [*(av.Packet(unit.payload) for unit in made), None]
    frames = [frame for packet in packets for frame in decoder.decode(packet)]
    assert [footage.read(frame.to_ndarray(format="rgb24")).number for frame in frames] == list(range(8))


def test_encoder_begins_again_with_another_size_and_ends_with_its_viewers():
    encoders = VideoEncoders(is_limited=False)
    units = [
        encoders.encode("line", "plain", painted(number, width), is_new=False, is_lost=False)
        for number, width in enumerate([320, 320, 480, 480])
    ]
    assert [unit.is_key for unit in units] == [True, False, True, False]
    assert [unit.number for unit in units] == [0, 1, 2, 3]
    encoders.encode("line", "small", painted(0), is_new=False, is_lost=False)
    encoders.keep(lambda camera, size: (camera, size) == ("line", "small"))
    assert encoders.count == 1
    encoders.forget("line")
    assert encoders.count == 0


@pytest.mark.parametrize(
    ("is_limited", "step", "gives_up"), [(True, 1.0, True), (False, 1.0, False), (True, 0.0, False)]
)
def test_encoders_give_up_when_they_take_too_much_of_the_processors(monkeypatch, is_limited, step, gives_up):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    encoders = VideoEncoders(is_limited=is_limited, clock=Clock(step))
    for number in range(6):
        encoders.encode("line", "plain", painted(number), is_new=False, is_lost=False)
    assert encoders.given_up is gives_up


# The viewers


def unit(number, *, key=False):
    return WebFrame("line", "plain-video", 100 + number, b"", number, key)


def viewer():
    client = WebClient()
    client.set_video(decodes_video=True)
    return client


async def taken(client):
    """Return the numbers of the units that may be sent now."""
    units = []
    while client._slots.get("line") and client._in_flight.get("line", 0) < MAX_VIDEO_IN_FLIGHT:
        units.append((await client.next()).unit)
    return units


def test_viewer_begins_at_a_key_frame_and_misses_nothing():
    async def run():
        client = viewer()
        assert client.needs_key("line", "plain-video") == "new"
        client.put(unit(4))
        assert await taken(client) == []
        for number in range(5, 8):
            for _ in range(2):  # the sink publishes a frame again while a viewer has not taken it yet
                client.put(unit(number, key=number == 5))
        assert await taken(client) == [5, 6, 7]
        assert not client.needs_key("line", "plain-video")

    asyncio.run(run())


def test_viewer_that_missed_a_unit_gets_the_next_key_frame_and_nothing_between():
    async def run():
        client = viewer()
        client.put(unit(0, key=True))
        client.put(unit(2))
        client.put(unit(3))
        assert client.needs_key("line", "plain-video") == "lost"
        client.put(unit(4, key=True))
        client.put(unit(5))
        assert await taken(client) == [4, 5]
        assert client.skipped == 3

    asyncio.run(run())


def test_slow_viewer_skips_to_the_next_key_frame():
    async def run():
        client = viewer()
        client.put(unit(0, key=True))
        received = await taken(client)
        last = MAX_VIDEO_IN_FLIGHT + MAX_VIDEO_WAITING + 3
        for number in range(1, last):
            client.put(unit(number))
            received += await taken(client)
        assert received == list(range(MAX_VIDEO_IN_FLIGHT))
        client.put(unit(last, key=True))
        assert client.needs_key("line", "plain-video") == "", "it takes no frame yet, so none is made for it"
        for _ in range(MAX_VIDEO_IN_FLIGHT):
            client.acknowledge("line")
        assert await taken(client) == [last]

    asyncio.run(run())


def next_frame(link):
    while True:
        received = link.recv(timeout=LIMIT_SECONDS)
        if isinstance(received, bytes):
            packed, payload = unpack(received)
            return decode_header(packed), payload


def frames_in_h264(link, wanted):
    """Return the next frames that come as H.264: indices, units and the mean grey of each image."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    headers, levels = [], []
    while len(headers) < wanted:
        header, payload = next_frame(link)
        link.send('{"shown": "line"}')
        if header.encoding == "h264":
            headers.append(header.index)
            levels += [frame.to_ndarray(format="rgb24").mean() for frame in decoder.decode(av.Packet(payload))]
    levels += [frame.to_ndarray(format="rgb24").mean() for frame in decoder.decode(None)]
    return headers, levels


def test_messages_hold_image_and_explanation_of_one_frame_and_late_viewers_begin_with_a_key_frame():
    with fed(video="h264") as (sink, _), connect_viewer(sink) as early:
        early.send('{"video": true}')
        seen = [frames_in_h264(early, 6)]
        with connect_viewer(sink) as late:
            late.send('{"video": true}')
            seen.append(frames_in_h264(late, 3))
    for indices, levels in seen:
        assert indices == sorted(indices)
        assert levels == pytest.approx([shade(index) for index in indices], abs=4), "every unit is decoded"


def test_page_offers_no_video_where_it_is_not_asked_for():
    with page(video="jpeg") as sink, connect_viewer(sink) as link:
        link.send('{"video": true}')
        sink.put(numbered(0))
        assert next_frame(link)[0].encoding == "jpeg"
        assert sink.video_encoded == 0


def test_auto_offers_video_to_other_machines_only():
    assert WebSettings(uri="http://127.0.0.1:0").video == "auto"
    with page() as sink:
        state = sink._page
        assert not state.offers_video("127.0.0.1")
        assert not state.offers_video("::1")
        assert state.offers_video("192.168.1.8")
        sink._encoders.given_up = True
        assert not state.offers_video("192.168.1.8")


# A browser


@needs_browser
@pytest.mark.browser
def test_browser_shows_image_label_and_number_of_one_frame_in_h264(tab):
    with fed(video="h264") as (sink, _):
        view = tab(sink.endpoint)
        view.wait_for_function("() => document.querySelector('.card[data-index]')")
        before = sink.video_encoded
        seen = shown_frames(view)
        for frame in seen:
            assert frame["label"] == f"part {frame['index'] % 16}"
            assert abs(grey(frame["cold"]) - shade(frame["index"])) < 5, "the image is the label's own"
            assert frame["hot"][0] > frame["cold"][0] + 40, "the heat is drawn over it"
        assert sink.video_encoded > before
        late = tab(sink.endpoint)
        began_at = shown(late)["index"]
        assert began_at > seen[-1]["index"]
        for each in (late, view):
            each.wait_for_function(f"() => +document.querySelector('.card').dataset.index > {began_at + 10}")


@needs_browser
@pytest.mark.browser
def test_browser_shows_the_newest_frame_in_h264_without_a_further_one(tab):
    with fed(video="h264") as (sink, feed):
        view = tab(sink.endpoint)
        view.wait_for_function("() => +document.querySelector('.card')?.dataset.index > 5")
        feed.pause("line")
        last = sink._last["line", "plain-video"][1].explanation.frame.index
        view.wait_for_function(f"() => document.querySelector('.card').dataset.index === '{last}'")


@needs_browser
@pytest.mark.browser
def test_browser_without_a_decoder_gets_jpeg(tab):
    with fed(video="h264") as (sink, _):
        view = tab("about:blank")
        view.add_init_script("delete window.VideoDecoder")
        view.goto(sink.endpoint)
        first = shown(view)["index"]
        view.wait_for_function(f"() => +document.querySelector('.card').dataset.index > {first + 5}")
        assert sink.video_encoded == 0
        assert sink.encoded > 0


@needs_browser
@pytest.mark.browser
def test_browser_asks_for_a_key_frame_after_damage(tab):
    with fed(video="h264") as (sink, _):
        view = tab("about:blank")
        view.add_init_script(
            """const decode = VideoDecoder.prototype.decode; let count = 0;
            VideoDecoder.prototype.decode = function (chunk) {
              if (++count === 5) throw new DOMException("damaged", "DataError");
              window.decoded = count;
              return decode.call(this, chunk);
            };"""
        )
        view.goto(sink.endpoint)
        view.wait_for_function("() => window.decoded > 15")
        frame = shown(view)
        assert abs(grey(frame["cold"]) - shade(frame["index"])) < 5


@needs_browser
@pytest.mark.browser
def test_browser_enlarges_a_camera_in_h264(tab):
    with fed("door", "gate", video="h264", size=(720, 1280), rate=10) as (sink, _):
        view = tab(sink.endpoint)
        width = "(wanted) => document.querySelector('.card[data-camera=door] .view canvas')?.width === wanted"
        view.wait_for_function(width, arg=640)
        view.locator('.card[data-camera="door"] .view').click()
        view.wait_for_function(width, arg=1280)
        view.keyboard.press("Escape")
        view.wait_for_function(width, arg=640)
        assert sink.video_encoded > 0
