"""Conversion of decoded frames to upright RGB arrays."""

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

from pipeline.errors import SourceError
from pipeline.frames import Image
from stream.bit_depth import eight_bits, value_bits

log = logging.getLogger(__name__)

# Without these flags, 10-bit frames become 1.6 levels too dark on average. 8-bit frames take FFmpeg's fast path with or
# without them, and become 1 level too dark: exact conversion would take ten times the 0.3 ms of a 720p frame.
_EXACT_ABOVE_8_BITS: Final = int(Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT)

# (transposed, mirrored left-right, mirrored top-bottom) -> OpenCV's rotation code, where one exists.
_ROTATIONS: Final = {
    (True, True, False): cv2.ROTATE_90_CLOCKWISE,
    (True, False, True): cv2.ROTATE_90_COUNTERCLOCKWISE,
    (False, True, True): cv2.ROTATE_180,
}
_FLIPS: Final = {(True, False): 1, (False, True): 0, (True, True): -1}

# Reading ``frame.side_data`` creates a reference cycle: the frame, and with it the buffers of a closed decoder, would
# stay in memory until Python's cyclic garbage collector runs, which is rare.
_side_data_of = cast("Callable[[av.VideoFrame], SideDataContainer]", SideDataContainer)


_MAX_ASPECT: Final = Fraction(4)  # a pixel aspect ratio above 4 or below 1/4 is an error in the header
# Matrices of ITU-T H.273 (table 4) that FFmpeg's conversion to RGB refuses.
_REFUSED_MATRICES: Final = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE ST 2085", 12: "by the primaries",
    13: "by the primaries, with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
_RESERVED_MATRIX: Final = 3  # counts as unspecified: FFmpeg refuses it, too, but it states nothing
_UNSPECIFIED_MATRIX: Final = 2

_NEARLY_SQUARE: Final = Fraction(1, 100)  # from rounding to even sizes; resampling would only blur


class ColoursRefusedError(SourceError):
    """Frames are tagged with a colour matrix that FFmpeg cannot convert to RGB."""

    def __init__(self, matrix: int) -> None:
        """Create the error for a matrix of ITU-T H.273."""
        super().__init__(
            f"its frames are tagged with colour matrix {matrix} ({_REFUSED_MATRICES[matrix]}), which FFmpeg cannot "
            "convert to RGB; set the camera or the encoder to BT.709, or correct a wrong tag: ffmpeg -i IN -c copy "
            "-bsf:v h264_metadata=matrix_coefficients=1 OUT (hevc_metadata for H.265)"
        )


class PixelAspect:
    """The current pixel aspect ratio (width / height) of a stream."""

    def __init__(self, stream: VideoStream, *, max_pixels: int | None = None) -> None:
        """Create the reader; it returns 1 where scaling would exceed ``max_pixels``."""
        self._max_pixels = max_pixels
        self._context = stream.codec_context
        self._stated = stream.sample_aspect_ratio
        self._coded: Fraction | None = None
        self._has_begun = False

    def now(self) -> Fraction:
        """Return the pixel aspect ratio of the last frame; 1 if the declared ratio is implausible."""
        coded = self._context.sample_aspect_ratio
        if not self._has_begun:
            self._has_begun, self._coded = True, coded
        aspect = self._stated if coded == self._coded and self._stated else coded  # a joined file: the codec's value
        if not aspect or not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT or abs(aspect - 1) < _NEARLY_SQUARE:
            return Fraction(1)
        pixels = self._context.width * self._context.height * max(aspect, 1 / aspect)
        is_too_large = self._max_pixels is not None and pixels > self._max_pixels
        return Fraction(1) if is_too_large else Fraction(aspect)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return (width, height) with square pixels; neither becomes smaller."""
    return (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))


class RgbConverter:
    """Converts the decoded frames of one stream to RGB.

    Uses the colour matrix and range in the frame's tags; frames without tags count as BT.601 limited range, as in
    FFmpeg and OpenCV. HDR (PQ, HLG) is converted by its matrix, without tone mapping. Anamorphic frames are scaled up
    to square pixels. 16-bit monochrome frames that use only 10, 12 or 14 bits are scaled by that depth.
    """

    def __init__(self, camera: str = "the video") -> None:
        """Create a converter; ``camera`` is the name of the stream in the log."""
        self._camera = camera
        self._reformatter = VideoReformatter()  # frame.reformat() would rebuild its tables for each frame
        self._planar_reformatter = VideoReformatter()
        self._bits = 0  # depth of the largest value of all frames; 0: no 16-bit frame yet

    def convert(self, frame: av.VideoFrame, aspect: Fraction = Fraction(1)) -> Image:
        """Return the oriented frame as contiguous uint8 RGB (height, width, 3).

        ``aspect`` is the pixel aspect ratio, width / height.

        Raises:
            ColoursRefusedError: FFmpeg cannot convert the colour matrix in the frame's tags.
        """
        if int(frame.colorspace) == _RESERVED_MATRIX:
            frame.colorspace = _UNSPECIFIED_MATRIX
        try:
            return self._convert(frame, aspect)
        except av.error.FFmpegError:
            if int(frame.colorspace) in _REFUSED_MATRICES:
                raise ColoursRefusedError(int(frame.colorspace)) from None
            raise

    def _convert(self, frame: av.VideoFrame, aspect: Fraction) -> Image:
        width, height = square_size(frame.width, frame.height, aspect)
        planar = self._eight_bits(frame) if frame.format.name.startswith("gray16") else frame
        if frame.format.name == "nv12":  # NVDEC's format: FFmpeg's fast path, with the CPU's colours, needs planes
            planar = self._planar_reformatter.reformat(frame, format="yuv420p", threads=1)
        rgb = self._reformatter.reformat(
            planar, width, height, format="rgb24", threads=1, interpolation=_EXACT_ABOVE_8_BITS
        )
        image: Image = np.ascontiguousarray(rgb.to_ndarray(), dtype=np.uint8)
        transform = orientation(frame)
        return image if transform == (False, False, False) else apply_orientation(image, transform)

    def _eight_bits(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Scale a 16-bit grey frame to 8 bits by the depth of the largest value of the stream."""
        values = np.asarray(frame.to_ndarray(format="gray16le"), dtype=np.uint16)
        bits = max(self._bits, value_bits(values))
        if bits != self._bits:
            self._bits = bits
            if bits < 16:
                log.warning(
                    "%s: the largest 16-bit value is %d, so the frames are read with %d bits",
                    self._camera,
                    values.max(),
                    bits,
                )
        grey = av.VideoFrame.from_ndarray(eight_bits(values, bits), format="gray")
        grey.color_range = frame.color_range
        return grey


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transposed, mirrored left-right, mirrored top-bottom) of a frame.

    The matrix is FFmpeg's ``AV_FRAME_DATA_DISPLAYMATRIX``: nine 32-bit fixed-point numbers, row by row. An angle is
    rounded to the nearest multiple of 90 degrees.
    """
    try:
        matrix = _side_data_of(frame)[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return (False, False, False)
    across, across_down, _, down_across, down, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(across) >= abs(across_down):
        return (False, across < 0, down < 0)
    return (True, down_across < 0, across_down < 0)


def apply_orientation(image: Image, transform: tuple[bool, bool, bool]) -> Image:
    """Transpose, then mirror ``image`` by the flags that ``orientation`` returns."""
    rotation = _ROTATIONS.get(transform)
    if rotation is not None:
        return np.asarray(cv2.rotate(image, rotation), dtype=np.uint8)
    transposed, *mirrored = transform
    oriented = cv2.transpose(image) if transposed else image
    flip = _FLIPS.get((mirrored[0], mirrored[1]))
    return np.asarray(oriented if flip is None else cv2.flip(oriented, flip), dtype=np.uint8)


def on_host(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a decoded frame in host memory, in the decoder's pixel format; downloads it from a GPU."""
    layout = frame.sw_format
    return frame if layout is None else VideoReformatter().reformat(frame, format=layout.name, threads=1)


class Deinterlacer:
    """Deinterlaces with FFmpeg's filter bwdif, from the first interlaced frame on.

    The filter then delays the video by one frame; ``flush`` returns the last one. A change of size or format restarts
    it.
    """

    def __init__(self, camera: str = "the video") -> None:
        """Create the filter; ``camera`` is the name of the stream in the log."""
        self._camera = camera
        self.has_filtered = False
        """True after the first interlaced frame."""
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[object, ...] = ()
        self._unsupported: tuple[object, ...] = ()  # format of frames that are too small for bwdif

    def feed(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Add one frame; return the frames that are ready, in order."""
        if self._graph is not None or frame.interlaced_frame:  # the filter runs on the host
            frame = on_host(frame)
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        ready: list[av.VideoFrame] = []
        if self._graph is not None and shape != self._shape:
            ready = self.flush()
        if self._graph is None:
            if not frame.interlaced_frame or shape == self._unsupported:
                return [*ready, frame]
            try:
                self._graph, self._shape, self.has_filtered = _bwdif(frame), shape, True
            except av.error.FFmpegError:
                log.warning(
                    "%s: interlaced frames of %dx%d are too small for FFmpeg's filter bwdif and are not deinterlaced",
                    self._camera,
                    frame.width,
                    frame.height,
                )
                self._unsupported = shape
                return [*ready, frame]
        self._graph.vpush(frame)
        return ready + self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Return the frames still in the filter, and reset it."""
        if self._graph is None:
            return []
        self._graph.vpush(None)
        remaining = self._pull()
        self._graph = None
        return remaining

    def _pull(self) -> list[av.VideoFrame]:
        ready: list[av.VideoFrame] = []
        while self._graph is not None:
            try:
                ready.append(self._graph.vpull())
            except (av.error.BlockingIOError, av.error.EOFError):
                break
        return ready


def _bwdif(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
        f":pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}",
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
