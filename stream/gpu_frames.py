"""Leaves the frames of a GPU decoder on the GPU, for the engine; the host converts them only when it reads them."""

from __future__ import annotations

import logging
import threading
from fractions import Fraction
from typing import Final

import av

from pipeline.device_image import CopyPlanes, DeviceImage, DeviceMemoryFullError, Nv12, YuvColours
from pipeline.frames import Image, Pixels
from stream.convert import RgbConverter, on_host, orientation

log = logging.getLogger(__name__)

# Kr and Kb by FFmpeg's AVColorSpace (ITU-T H.273, table 4). 0 and 2 are without information: FFmpeg uses BT.601.
_LUMA_WEIGHTS: Final = {
    0: (0.299, 0.114), 1: (0.2126, 0.0722), 2: (0.299, 0.114), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114),
    7: (0.212, 0.087), 9: (0.2627, 0.0593),
}  # fmt: skip
_FULL_RANGE: Final = 2  # FFmpeg's AVCOL_RANGE_JPEG


class FrameConverter:
    """Converts the decoded frames of one stream to RGB, or leaves them in device memory."""

    def __init__(self, copy_planes: CopyPlanes | None = None, camera: str = "the video") -> None:
        """Create a converter.

        Args:
            copy_planes: copies an image within device memory; None: every frame is converted on the host.
            camera: the name of the stream in the log.
        """
        self._copy_planes = copy_planes
        self._camera = camera
        self._rgb = RgbConverter(camera)
        self._is_full = False  # whether the device once had no memory for a frame
        self._lock = threading.Lock()  # images are downloaded by any thread
        self._downloaded = RgbConverter(camera)

    def convert(self, frame: av.VideoFrame, aspect: Fraction = Fraction(1)) -> Pixels:
        """Return the oriented frame as RGB, uint8 (height, width, 3), or its image in device memory.

        A frame stays in device memory if it is NV12 with square pixels, an even size, no rotation, and colours that
        are known; the host converts all others.

        Args:
            frame: the decoded frame.
            aspect: pixel aspect ratio, width / height.
        """
        if self._copy_planes is None or not _is_plain_nv12(frame) or aspect != 1:
            return self._rgb.convert(on_host(frame), aspect)
        kr, kb = _LUMA_WEIGHTS[int(frame.colorspace)]
        colours = YuvColours(kr, kb, full_range=int(frame.color_range) == _FULL_RANGE)
        luma, chroma = frame.planes
        try:
            planes = self._copy_planes(luma, chroma)
        except DeviceMemoryFullError as error:
            if not self._is_full:
                log.warning(
                    "%s: %s; such frames are copied to the host; set device_frames: false to use less GPU memory",
                    self._camera,
                    error,
                )
            self._is_full = True
            return self._rgb.convert(on_host(frame), aspect)
        tags = (int(frame.colorspace), int(frame.color_range))
        return DeviceImage(planes, colours, lambda rows: self._to_rgb(rows, *tags))

    def _to_rgb(self, rows: Nv12, colorspace: int, color_range: int) -> Image:
        """Convert a downloaded image as the host converts the frames that it decodes."""
        frame = av.VideoFrame.from_ndarray(rows, format="nv12")
        frame.colorspace, frame.color_range = colorspace, color_range
        with self._lock:
            return self._downloaded.convert(frame)


def _is_plain_nv12(frame: av.VideoFrame) -> bool:
    """Return whether the engine can read the frame's planes as they are."""
    layout = frame.sw_format or frame.format
    return (
        layout.name == "nv12"
        and not frame.width % 2
        and not frame.height % 2
        and int(frame.colorspace) in _LUMA_WEIGHTS
        and orientation(frame) == (False, False, False)
    )
