"""Resized images, crops and augmentations of a training."""

import numpy as np
import pytest
import torch

from engine.finetuning.dataset import AUGMENTATIONS, ImageDataset, build_augmentation
from engine.models.preprocess import Preprocessing
from pipeline.errors import ConfigError
from pipeline.frames import Box
from tests.support.training import SQUARE, square_box, square_image, square_samples

SIDE = 32
INPUT = Preprocessing((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)


def test_dataset_reads_images_beyond_the_cache_again():
    reads = []

    def read(path):
        reads.append(path)
        return square_image(path)

    paths = [sample.path for sample in square_samples(4)]
    small = ImageDataset(paths, read, INPUT, cache_bytes=2 * 3 * SIDE * SIDE)
    large = ImageDataset(paths, square_image, INPUT)
    for _ in range(2):
        assert torch.equal(small.fitted(range(12)), large.fitted(range(12)))
    assert len(reads) == 12 + 10


def test_preload_reads_images_in_order_until_stopped_or_full():
    reads = []

    def read(path):
        reads.append(path)
        return square_image(path)

    paths = [sample.path for sample in square_samples(4)]
    ImageDataset(paths, read, INPUT, cache_bytes=5 * 3 * SIDE * SIDE).preload(lambda: False)
    assert reads == paths[:5]
    ImageDataset(paths, read, INPUT).preload(lambda: len(reads) == 8)
    assert reads[5:] == paths[:3]


def test_crops_hold_the_whole_box():
    paths = [sample.path for sample in square_samples(6)]
    whole_size = Preprocessing((40, 48), (0.5,) * 3, (0.5,) * 3)
    images = ImageDataset(paths, square_image, whole_size, boxes={path: square_box(path) for path in paths})
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(20):
        crops = images.crops(range(len(paths)), 20, rng)
        assert crops.shape == (len(paths), 3, 20, 20)
        bright = crops == 255
        assert bright.flatten(1).sum(1).tolist() == [SQUARE**2] * len(paths)
        corners.add(tuple(bright[0].nonzero()[0].tolist()))
    assert len(corners) > 5


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
def test_crops_find_the_box_in_the_resized_image(fit):
    image = np.zeros((60, 120, 3), np.uint8)
    image[30:40, 60:70] = 255
    preprocessing = Preprocessing((60, 60), (0.5,) * 3, (0.5,) * 3, fit)
    images = ImageDataset(["a"], lambda _: image, preprocessing, boxes={"a": Box(60, 30, 70, 40)})
    bright = (images.fitted([0]) == 255).sum()
    rng = np.random.default_rng(0)
    assert bright > 0
    assert all((images.crops([0], 16, rng) == 255).sum() == bright for _ in range(10))


def test_crops_of_images_without_a_box_lie_anywhere():
    image = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE)
    ramp = np.stack([image // 256, image % 256, image * 0], 2).astype(np.uint8)
    images = ImageDataset(["a"], lambda _: ramp, INPUT)
    rng = np.random.default_rng(0)
    corners = [crop[:2, 0, 0].tolist() for crop in (images.crops([0], 8, rng)[0] for _ in range(60))]
    places = [divmod(256 * high + low, SIDE) for high, low in corners]
    assert len(set(places)) > 40
    assert max(max(place) for place in places) <= SIDE - 8


def test_crops_without_a_generator_are_repeatable():
    paths = [sample.path for sample in square_samples(2)]
    images = ImageDataset(paths, square_image, INPUT)
    assert torch.equal(images.crops(range(6), 12), images.crops(range(6), 12))


@pytest.mark.parametrize("word", sorted(AUGMENTATIONS))
def test_augmentation_keeps_shape_and_type_and_repeats_with_the_seed(word):
    pixels = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augmentation = build_augmentation([word], (SIDE, SIDE))
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(augmentation(pixels))
    assert results[0].shape == pixels.shape
    assert results[0].dtype == torch.uint8
    assert torch.equal(*results)
    assert not torch.equal(results[0], pixels)


def test_augmentation_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'hflip'"):
        build_augmentation(["hflp"], (SIDE, SIDE))
