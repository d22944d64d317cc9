"""A decoded picture becomes an upright RGB array: colour matrix, range, rotation and fields put right."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Final, cast

import av
import av.error
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipeline.frames import Image
from stream.bit_depth import eight_bits, value_bits

log = logging.getLogger(__name__)

# Without it 10-bit pictures come out 1.6 levels too dark on the mean. Pictures of 8 bits take FFmpeg's fast path, 1
# level too dark, with or without it: exact ones would cost ten times the 0.3 ms that a 720p picture takes.
_EXACT_ABOVE_8_BITS: Final = int(Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT)

# (transposed, mirrored left-right, mirrored top-bottom) -> OpenCV's word for it, where it has one.
_ROTATIONS: Final = {
    (True, True, False): cv2.ROTATE_90_CLOCKWISE,
    (True, False, True): cv2.ROTATE_90_COUNTERCLOCKWISE,
    (False, True, True): cv2.ROTATE_180,
}
_FLIPS: Final = {(True, False): 1, (False, True): 0, (True, True): -1}

# A picture whose own ``side_data`` was asked for refers to itself through it: it, and with it the pictures of a decoder
# long gone, would stay in memory until Python looks for such circles, which it seldom does.
_side_data_of = cast("Callable[[av.VideoFrame], SideDataContainer]", SideDataContainer)


_ODD_ASPECT: Final = Fraction(4)  # beyond it either way a pixel's aspect is a header's mistake
_NEARLY_SQUARE: Final = Fraction(1, 100)  # what scaling to even sizes leaves; to resample for it would only blur


class PixelAspect:
    """The shape of a stream's pixels, width over height, as it is now: the container's word, then the codec's."""

    def __init__(self, stream: VideoStream, *, max_pixels: int | None = None) -> None:
        """Take the stream, and how many pixels a picture may have when it has been scaled; None: any number."""
        self._max_pixels = max_pixels
        self._context = stream.codec_context
        self._stated = stream.sample_aspect_ratio
        self._coded: Fraction | None = None
        self._has_begun = False

    def now(self) -> Fraction:
        """Return it, of the picture decoded last; 1 where nothing sensible is stated."""
        coded = self._context.sample_aspect_ratio
        if not self._has_begun:
            self._has_begun, self._coded = True, coded
        aspect = self._stated if coded == self._coded and self._stated else coded  # joined from two: the codec's word
        if not aspect or not 1 / _ODD_ASPECT <= aspect <= _ODD_ASPECT or abs(aspect - 1) < _NEARLY_SQUARE:
            return Fraction(1)
        pixels = self._context.width * self._context.height * max(aspect, 1 / aspect)
        is_too_large = self._max_pixels is not None and pixels > self._max_pixels
        return Fraction(1) if is_too_large else Fraction(aspect)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return the (width, height) of a picture with square pixels that loses none: one side grows, as players do."""
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


class RgbConverter:
    """Converts decoded pictures to RGB, one after the other; keeps its tables from picture to picture.

    Matrix and range are those the picture is tagged with. An untagged picture is read as BT.601 limited, as FFmpeg
    and OpenCV read it. HDR (PQ, HLG) gets its matrix and primaries' numbers as they are: no tone mapping. Pixels come
    out square: anamorphic pictures are scaled up to the shape they are shown in. Monochrome of 16 bits whose values
    are those of 10, 12 or 14 is read as such.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # frame.reformat() would build its tables anew for each picture
        self._parted = VideoReformatter()
        self._bits = 0  # of the largest value so far; 0: no picture of 16 bits has come

    def convert(self, picture: av.VideoFrame, aspect: Fraction = Fraction(1)) -> Image:
        """Return the picture as uint8 RGB (height, width, 3), contiguous, the way up its metadata asks for.

        ``aspect`` is the width of its pixels over their height.
        """
        width, height = square_size(picture.width, picture.height, aspect)
        planar = self._eight_bits(picture) if picture.format.name.startswith("gray16") else picture
        if picture.format.name == "nv12":  # what a card gives: FFmpeg's fast path, and its colours, want planes
            planar = self._parted.reformat(picture, format="yuv420p", threads=1)
        rgb = self._reformatter.reformat(
            planar, width, height, format="rgb24", threads=1, interpolation=_EXACT_ABOVE_8_BITS
        )
        image: Image = np.ascontiguousarray(rgb.to_ndarray(), dtype=np.uint8)
        turn = orientation(picture)
        return image if turn == (False, False, False) else apply_orientation(image, turn)

    def _eight_bits(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return a grey picture of 16 bits as one of 8; the largest value so far says how many bits are in use."""
        values = np.asarray(picture.to_ndarray(format="gray16le"), dtype=np.uint16)
        bits = max(self._bits, value_bits(values))
        if bits != self._bits:
            self._bits = bits
            if bits < 16:
                log.warning("values of 16 bits reach %d only: read as %d bits", values.max(), bits)
        grey = av.VideoFrame.from_ndarray(eight_bits(values, bits), format="gray")
        grey.color_range = picture.color_range
        return grey


def orientation(picture: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transposed, mirrored left-right, mirrored top-bottom) of the picture's display matrix.

    The matrix is FFmpeg's ``AV_FRAME_DATA_DISPLAYMATRIX``: nine 32-bit fixed-point numbers, row by row; an angle
    that is no multiple of 90 degrees is taken for the nearest that is.
    """
    try:
        matrix = _side_data_of(picture)[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return (False, False, False)
    across, across_down, _, down_across, down, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(across) >= abs(across_down):
        return (False, across < 0, down < 0)
    return (True, down_across < 0, across_down < 0)


def apply_orientation(image: Image, turn: tuple[bool, bool, bool]) -> Image:
    """Return ``image`` (height, width, 3) transposed and then mirrored as ``turn`` says."""
    rotation = _ROTATIONS.get(turn)
    if rotation is not None:
        return np.asarray(cv2.rotate(image, rotation), dtype=np.uint8)
    transposed, *mirrored = turn
    turned = cv2.transpose(image) if transposed else image
    flip = _FLIPS.get((mirrored[0], mirrored[1]))
    return np.asarray(turned if flip is None else cv2.flip(turned, flip), dtype=np.uint8)


class Deinterlacer:
    """Turns interlaced pictures into whole ones (bwdif), one for one; costs nothing until the first of them comes.

    From then on it holds back one picture, so ``flush`` gives the last. A change of size or format starts anew.
    """

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[object, ...] = ()
        self._refused: tuple[object, ...] = ()  # the shape of pictures that bwdif does not take: too small

    def feed(self, picture: av.VideoFrame) -> list[av.VideoFrame]:
        """Take one picture; return those that are ready, in order."""
        shape = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        ready: list[av.VideoFrame] = []
        if self._graph is not None and shape != self._shape:
            ready = self.flush()
        if self._graph is None:
            if not picture.interlaced_frame or shape == self._refused:
                return [*ready, picture]
            try:
                self._graph, self._shape = _bwdif(picture), shape
            except av.error.FFmpegError:
                log.warning("interlaced pictures of %dx%d are shown as they are", picture.width, picture.height)
                self._refused = shape
                return [*ready, picture]
        self._graph.vpush(picture)
        return ready + self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Return what was held back, and start anew."""
        if self._graph is None:
            return []
        self._graph.vpush(None)
        rest = self._pull()
        self._graph = None
        return rest

    def _pull(self) -> list[av.VideoFrame]:
        ready: list[av.VideoFrame] = []
        while self._graph is not None:
            try:
                ready.append(self._graph.vpull())
            except (av.error.BlockingIOError, av.error.EOFError):
                break
        return ready


def _bwdif(picture: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    door = graph.add(
        "buffer",
        f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base={picture.time_base}"
        f":pixel_aspect=1/1:colorspace={picture.colorspace}:range={picture.color_range}",
    )
    graph.link_nodes(door, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
