"""Copies the frames of a GPU decoder into the engine's memory, on the device.

The decoder has few surfaces and stalls when all of them are in use, so each frame is copied at once (1.4 MB for 720p).
The copy runs on CUDA's default stream, on which FFmpeg's decoder writes, and is complete when the function returns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.device_image import CopyPlanes, DeviceImage, DeviceMemoryFullError, DlpackPlane, Nv12


class DecodedPlanes:
    """An NV12 image in device memory: uint8 (height * 3 // 2, width), luma rows before chroma rows."""

    def __init__(self, data: Tensor) -> None:
        """Create an image from its rows, which no other stream is writing."""
        self.data = data

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.data.shape[0] * 2 // 3, self.data.shape[1]

    @property
    def nbytes(self) -> int:
        """Used device memory in bytes."""
        return self.data.nbytes

    def download(self) -> Nv12:
        """Return the image in host memory."""
        return np.asarray(self.data.cpu().numpy(), np.uint8)


def plane_copier(device: torch.device) -> CopyPlanes:
    """Return a function that copies the planes of a decoded NV12 image into new memory of ``device``.

    Args:
        device: the engine's device, on which the decoder's surfaces are.
    """

    def copy(luma: DlpackPlane, chroma: DlpackPlane) -> DecodedPlanes:
        # PyAV refuses a stream in ``__dlpack__``, which ``torch.from_dlpack(plane)`` would pass for a CUDA plane.
        rows, pairs = (from_dlpack(plane.__dlpack__()) for plane in (luma, chroma))
        height, width = rows.shape
        on_cuda = device.type == "cuda"
        with torch.cuda.stream(torch.cuda.default_stream(device)) if on_cuda else nullcontext():
            try:
                data = torch.empty((height * 3 // 2, width), dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError:
                raise DeviceMemoryFullError(f"{device} has no memory for {height}x{width} pixels") from None
            data[:height].copy_(rows)
            data[height:].copy_(pairs.flatten(1))
            if on_cuda:
                event: Callable[..., Any] = torch.cuda.Event
                done = event(blocking=True)  # a waiting thread sleeps
                done.record()
                done.synchronize()
        return DecodedPlanes(data)

    return copy


def decoded_planes(image: DeviceImage) -> Tensor:
    """Return the rows of an image that ``plane_copier`` has copied, uint8 (height * 3 // 2, width)."""
    planes = image.planes
    assert isinstance(planes, DecodedPlanes)  # noqa: S101 - the engine's copier made it
    return planes.data
