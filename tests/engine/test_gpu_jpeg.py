"""JPEG by nvImageCodec: the images that were given, at the requested quality, and torchvision's encoder without it."""

import importlib
import types

import cv2
import numpy as np
import pytest
import torch

from engine.explainers.gpu import GpuExplainer
from engine.gpu import jpeg
from engine.gpu.jpeg import NvImageCodecEncoder, open_encoder
from overlays.render.gpu_tables import heat_lut
from overlays.render.jpeg import decode_image
from pipeline.config import EngineConfig
from pipeline.frames import Frame

CUDA = torch.device("cuda", 0)


def picture(seed, size=(48, 64)):
    """Return an image (3, H, W) of a few smooth colours, which JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return torch.from_numpy(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1).copy())


class Library(types.ModuleType):
    """nvImageCodec's interface over OpenCV's encoder; it notes what it was asked for."""

    NVIMGCODEC_DEVICE_CPU_ONLY = -99999
    SampleFormat = types.SimpleNamespace(P_RGB="planar")
    QualityType = types.SimpleNamespace(QUALITY="quality")
    ChromaSubsampling = types.SimpleNamespace(CSS_420="4:2:0")
    EncodeParams = types.SimpleNamespace
    __version__ = "0.9.0"

    def __init__(self, *, fails=False):
        super().__init__("nvimgcodec")
        self.devices, self.params, self.fails = [], [], fails

    def Encoder(self, device_id):  # noqa: N802 - the library's own name
        self.devices.append(device_id)
        return self

    def as_image(self, image, _stream, *, sample_format):
        assert sample_format == "planar"
        assert image.flags.c_contiguous
        return image

    def encode(self, images, codec, *, params, cuda_stream):
        self.params.append((codec, params.quality_value, params.chroma_subsampling, cuda_stream))
        options = [cv2.IMWRITE_JPEG_QUALITY, params.quality_value]
        coded = [cv2.imencode(".jpg", image.transpose(1, 2, 0)[..., ::-1], options)[1] for image in images]
        return [None if self.fails else part for part in coded]


@pytest.fixture(params=["a fake", "the library"])
def library(request, monkeypatch):
    if request.param == "the library":
        return pytest.importorskip(jpeg.PACKAGE, reason="needs nvidia-nvimgcodec-cu13")
    fake = Library()
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    return fake


def test_images_are_encoded_together_at_the_requested_quality(library):
    images = [picture(1), picture(2), picture(3, (33, 50))]
    encoder = NvImageCodecEncoder()
    fine, coarse = encoder.encode(images, 95), encoder.encode(images, 20)
    for image, large, small in zip(images, fine, coarse, strict=True):
        shown = decode_image(large)
        assert shown.shape == (*image.shape[1:], 3)
        assert np.abs(shown.astype(int) - image.permute(1, 2, 0).numpy()).mean() < 4
        assert len(small) < len(large)
    if isinstance(library, Library):
        assert library.params == [("jpeg", 95, "4:2:0", 0), ("jpeg", 20, "4:2:0", 0)]


def test_encoder_is_opened_on_the_explainers_gpu(monkeypatch, caplog):
    caplog.set_level("INFO")
    fake = Library()
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    assert open_encoder(torch.device("cuda", 1)) is not None
    assert fake.devices == [1]
    assert "JPEG is encoded by nvImageCodec 0.9.0" in caplog.messages
    assert open_encoder(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [(ImportError("no"), False), (RuntimeError("no driver"), True), (TypeError("no driver"), True)],
)
def test_without_nvimagecodec_torchvision_encodes(monkeypatch, caplog, error, is_logged):
    def refuse(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert open_encoder(CUDA) is None
    assert ("nvImageCodec cannot be used (no driver); torchvision encodes JPEG" in caplog.messages) == is_logged


class OtherLibrary(Library):
    """A version whose parameters have other names."""

    @staticmethod
    def EncodeParams(*, quality):  # noqa: N802 - the library's own name
        return quality


@pytest.mark.parametrize(
    ("fake", "encoded_by_it", "reason"),
    [
        (Library(), 2, ""),
        (Library(fails=True), 1, "nvImageCodec cannot encode an image"),
        (OtherLibrary(), 0, "nvImageCodec 0.9.0 lacks the expected interface"),
    ],
)
def test_frames_have_a_jpeg_whether_nvimagecodec_works_or_not(
    lively_squeezenet, monkeypatch, caplog, fake, encoded_by_it, reason
):
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", lambda name: fake)
        encoder = NvImageCodecEncoder()
    monkeypatch.setattr("engine.explainers.gpu.open_encoder", lambda device: encoder)
    options = EngineConfig(model="squeezenet1_1", input_size="64x64", cache="off", backend="eager", device="cpu")
    explainer = GpuExplainer(lively_squeezenet, options, table=heat_lut("inferno", 0.6))
    image = picture(5, (60, 90)).permute(1, 2, 0).numpy()
    for number in range(2):
        [explanation] = explainer.explain([Frame(image, "a", number, 1.0)])
        encoded, _ = explainer.download(explanation, (), jpeg_quality=80, as_array=False)
        assert decode_image(encoded.payload).shape == (60, 90, 3)
    assert len(fake.params) == encoded_by_it
    assert caplog.text.count("images are encoded on the host") == bool(reason)
    assert reason in caplog.text
