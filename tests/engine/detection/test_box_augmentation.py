"""Augmentation of images with boxes."""

import pytest
import torch

from engine.finetuning.detection.assignment import Objects
from engine.finetuning.detection.augmentation import (
    MIN_VISIBLE,
    BoxAugmentation,
    check_augmentations,
    flipped,
    mosaic,
    paste,
    scaled,
)
from pipeline.errors import ConfigError

HEIGHT, WIDTH = 60, 80


def painted(left, top, right, bottom):
    """Return a black image with a white rectangle, which is its only object."""
    pixels = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    pixels[:, top:bottom, left:right] = 255
    return pixels, Objects(torch.tensor([[left, top, right, bottom]], dtype=torch.float32), torch.tensor([0]))


def white_box(pixels):
    rows, columns = torch.nonzero(pixels[0] > 200, as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("axis", [0, 1])
def test_flip_moves_boxes_with_their_pixels(axis):
    pixels, objects = flipped(*painted(10, 20, 30, 50), axis=axis)
    assert white_box(pixels) == objects.boxes[0].int().tolist()
    again, same = flipped(pixels, objects, axis=axis)
    assert torch.equal(again, painted(10, 20, 30, 50)[0])
    assert same.boxes.tolist() == [[10, 20, 30, 50]]


@pytest.mark.parametrize("seed", range(20))
def test_scaled_boxes_stay_on_their_pixels(seed):
    torch.manual_seed(seed)
    pixels, objects = scaled(painted(20, 10, 60, 50))
    assert len(objects.boxes) == 1
    assert objects.boxes[0].tolist() == pytest.approx(white_box(pixels), abs=2.0)


@pytest.mark.parametrize("seed", range(20))
def test_mosaic_keeps_enough_of_every_box_that_it_shows(seed):
    torch.manual_seed(seed)
    images = [painted(20 + 4 * k, 12, 50 + 4 * k, 44) for k in range(4)]
    joined = mosaic(images)
    if joined is None:
        return
    pixels, objects = joined
    covered = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for left, top, right, bottom in objects.boxes.round().int().tolist():
        covered[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert (right - left) * (bottom - top) >= MIN_VISIBLE * 0.5**2 * 30 * 32 * 0.9
    assert not ((pixels[0] > 200) & ~covered).any(), "an object without its box"


def test_paste_refuses_to_cut_a_box_to_less_than_half():
    canvas = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image = painted(0, 0, 40, 40)
    assert paste(canvas, image, 1.0, (-25.0, 0.0), (0, 0, WIDTH, HEIGHT)) is None
    assert not canvas.any(), "a refused image is not painted"
    cut = paste(canvas, image, 1.0, (-15.0, 0.0), (0, 0, WIDTH, HEIGHT))
    assert cut is not None
    assert cut.boxes.tolist() == [[0.0, 0.0, 25.0, 40.0]]


def test_paste_drops_boxes_that_are_outside():
    canvas = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    objects = paste(canvas, painted(0, 0, 20, 20), 1.0, (-30.0, 0.0), (0, 0, WIDTH, HEIGHT))
    assert objects is not None
    assert len(objects.boxes) == 0


def test_geometric_changes_are_off_in_the_last_epochs():
    augment = BoxAugmentation(["scale", "mosaic"])
    image = painted(20, 10, 60, 50)
    torch.manual_seed(0)
    pixels, objects = augment(0, torch.arange(1).numpy(), lambda _: image, geometric=False)
    assert pixels is image[0]
    assert objects is image[1]
    assert any(
        not torch.equal(augment(0, torch.arange(1).numpy(), lambda _: image, geometric=True)[0], image[0])
        for _ in range(4)
    )


def test_unknown_augmentation_is_named_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"mosiac.*Did you mean 'mosaic'"):
        check_augmentations(["mosiac"])
