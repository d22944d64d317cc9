"""A decoded picture becomes an upright RGB array: colour matrix, range, rotation and fields put right."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, cast

import av
import av.error
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.frames import Image

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


class RgbConverter:
    """Converts decoded pictures to RGB, one after the other; keeps its tables from picture to picture.

    Matrix and range are those the picture is tagged with. An untagged picture is read as BT.601 limited, as FFmpeg
    and OpenCV read it. HDR (PQ, HLG) gets its matrix and primaries' numbers as they are: no tone mapping. Pixels are
    the stored ones: a sample aspect ratio other than 1 is not stretched out.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # frame.reformat() would build its tables anew for each picture
        self._parted = VideoReformatter()

    def convert(self, picture: av.VideoFrame) -> Image:
        """Return the picture as uint8 RGB (height, width, 3), contiguous, the way up its metadata asks for."""
        planar = picture
        if picture.format.name == "nv12":  # what a card gives: FFmpeg's fast path, and its colours, want planes
            planar = self._parted.reformat(picture, format="yuv420p", threads=1)
        rgb = self._reformatter.reformat(planar, format="rgb24", threads=1, interpolation=_EXACT_ABOVE_8_BITS)
        image: Image = np.ascontiguousarray(rgb.to_ndarray(), dtype=np.uint8)
        turn = orientation(picture)
        return image if turn == (False, False, False) else upright(image, turn)


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


def upright(image: Image, turn: tuple[bool, bool, bool]) -> Image:
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

    def feed(self, picture: av.VideoFrame) -> list[av.VideoFrame]:
        """Take one picture; return those that are ready, in order."""
        shape = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        ready: list[av.VideoFrame] = []
        if self._graph is not None and shape != self._shape:
            ready = self.flush()
        if self._graph is None:
            if not picture.interlaced_frame:
                return [*ready, picture]
            self._graph, self._shape = _bwdif(picture), shape
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
