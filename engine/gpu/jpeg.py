"""Encodes images on the device as JPEG: by nvImageCodec if it is installed, else by torchvision.

nvImageCodec halves the chroma resolution (4:2:0), as encoders on the host do; torchvision's nvJPEG encoder keeps it
(4:4:4), so its files are larger at the same quality.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

log = logging.getLogger(__name__)

PACKAGE: Final = "nvidia.nvimgcodec"
HOST: Final = torch.device("cpu")


class NvImageCodecEncoder:
    """Encodes RGB images in the memory of one device; one thread at a time."""

    def __init__(self, device: torch.device = HOST) -> None:
        """Create an encoder.

        Args:
            device: where the images are.

        Raises:
            ImportError: the package ``nvidia-nvimgcodec-cu13`` (or ``-cu12``) is not installed.
            RuntimeError: its library cannot be initialised.
        """
        self._library: Any = importlib.import_module(PACKAGE)
        number = self._library.NVIMGCODEC_DEVICE_CPU_ONLY if device.type == "cpu" else device.index
        self._encoder = self._library.Encoder(device_id=number)
        self._device = device
        self.version = str(self._library.__version__)
        """Version of nvImageCodec."""

    def encode(self, images: Sequence[Tensor], quality: int) -> list[bytes]:
        """Return images as JPEG; on a GPU they are encoded together, on the current stream.

        Args:
            images: uint8 (3, H, W), contiguous, on the encoder's device.
            quality: 1 to 100.

        Raises:
            RuntimeError: an image cannot be encoded, or this version of the library has another interface.
        """
        try:
            return self._encode(images, quality)
        except (AttributeError, TypeError) as error:
            raise RuntimeError(f"nvImageCodec {self.version} lacks the expected interface: {error}") from error

    def _encode(self, images: Sequence[Tensor], quality: int) -> list[bytes]:
        library = self._library
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        sources = [
            library.as_image(
                image if image.is_cuda else image.numpy(), stream, sample_format=library.SampleFormat.P_RGB
            )
            for image in images
        ]
        options = library.EncodeParams(
            quality_type=library.QualityType.QUALITY,
            quality_value=quality,
            chroma_subsampling=library.ChromaSubsampling.CSS_420,
        )
        encoded = self._encoder.encode(sources, "jpeg", params=options, cuda_stream=stream)
        if any(each is None for each in encoded):
            raise RuntimeError("nvImageCodec cannot encode an image")
        return [bytes(memoryview(each)) for each in encoded]


def open_encoder(device: torch.device) -> NvImageCodecEncoder | None:
    """Return nvImageCodec's encoder for a GPU; None if it is not installed or does not work, or for a CPU."""
    if device.type != "cuda":
        return None
    try:
        encoder = NvImageCodecEncoder(device)
    except ImportError:
        return None
    except (RuntimeError, OSError, AttributeError, TypeError) as reason:  # the last two: another version
        log.warning("nvImageCodec cannot be used (%s); torchvision encodes JPEG", reason)
        return None
    log.info("JPEG is encoded by nvImageCodec %s", encoder.version)
    return encoder
