"""Perceptual hashes: copies are recognised in another format, parts that merely look alike are not."""

import cv2
import numpy as np
import pytest

from engine.finetuning.near_duplicates import near_duplicates
from engine.finetuning.splits import TEST, TRAIN, VALIDATION, Sample
from engine.io.perceptual_hash import (
    BITS,
    MAX_DIFFERENT_BITS,
    KnownImages,
    hashes_of,
    medians_of,
    nearest_hashes,
    spectrum_of,
)

CHANGES = {
    "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1),
    "webp": lambda image: cv2.imdecode(cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 60])[1], 1),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "grey": lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
}


def texture(seed, size=(120, 160), cells=24):
    """Return a smooth picture unlike every other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def parts_in_a_fixture(count):
    """Return images with the same background, each of another part."""
    shared = texture(999, cells=8).astype(np.float32)
    return [np.clip(0.85 * shared + 0.15 * texture(k), 0, 255).astype(np.uint8) for k in range(count)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [lambda: [texture(k) for k in range(30)], lambda: parts_in_a_fixture(30)])
def test_copies_are_recognised_and_other_pictures_are_not(change, make):
    images = make()
    spectra = [spectrum_of(image) for image in images]
    medians = medians_of(spectra)
    known = KnownImages.from_text(KnownImages(medians, hashes_of(spectra[:20], medians)).to_text())
    copies = [spectrum_of(CHANGES[change](image)) for image in images]
    assert known.find(copies).tolist() == [True] * 20 + [False] * 10


def test_slight_crop_is_recognised():
    images = [texture(k, size=(300, 400)) for k in range(30)]
    spectra = [spectrum_of(image) for image in images]
    medians = medians_of(spectra)
    cropped = [spectrum_of(image[3:-3, 4:-4]) for image in images]
    assert KnownImages(medians, hashes_of(spectra, medians)).find(cropped).all()


def test_picture_of_one_colour_is_like_no_other():
    spectra = [spectrum_of(np.full((40, 40, 3), value, np.uint8)) for value in (0, 90, 255)]
    assert not any(sample.any() for sample in spectra)
    known = KnownImages(np.zeros(BITS, np.float32), hashes_of([spectrum_of(texture(0))], np.zeros(BITS, np.float32)))
    assert not known.find(spectra).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3), (700, 1100)])
def test_pictures_of_any_size_have_a_hash(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    spectrum = spectrum_of(image)
    assert spectrum.shape == (BITS,)
    assert np.isfinite(spectrum).all()


def test_nearest_hash_is_that_of_the_definition():
    rng = np.random.default_rng(4)
    first, second = (rng.integers(0, 256, (count, BITS // 8), np.uint8) for count in (50, 70))
    apart = np.array([[np.unpackbits(sample ^ other).sum() for other in second] for sample in first])
    rows, bits = nearest_hashes(first, second)
    np.testing.assert_array_equal(bits, apart.min(1))
    np.testing.assert_array_equal(rows, apart.argmin(1))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"medians": "AAAA", "hashes": ""}', '{"medians": 1, "hashes": 2}'])
def test_text_that_holds_no_hashes_is_refused(text):
    with pytest.raises(ValueError, match="no image hashes"):
        KnownImages.from_text(text)


def test_near_duplicates_are_named_once_with_the_part_they_examine():
    images = {f"{k}.png": texture(k) for k in range(30)} | {
        "copy of 1": CHANGES["jpeg"](texture(1)), "copy of 2": CHANGES["darker"](texture(2)),
        "copy of 25": CHANGES["jpeg"](texture(25)), "dark": np.zeros((9, 9, 3), np.uint8),
        "black": np.zeros((9, 9, 3), np.uint8),
    }  # fmt: skip
    names = [f"{k}.png" for k in range(30)]
    divided = {
        TRAIN: [*names[:20], "dark"],
        VALIDATION: [*names[20:26], "copy of 1"],
        TEST: [*names[26:], "copy of 2", "copy of 25", "black"],
    }
    parts = {
        part: [Sample(name, "dent" if name == "copy of 2" else "ok", name) for name in several]
        for part, several in divided.items()
    }
    actual, known = near_duplicates(parts, {name: spectrum_of(image) for name, image in images.items()})
    assert {(sample.split, sample.path, sample.learned) for sample in actual} == {
        (VALIDATION, "copy of 1", "1.png"), (TEST, "copy of 2", "2.png"), (TEST, "copy of 25", "25.png"),
    }  # fmt: skip
    assert {sample.path: sample.labels for sample in actual if sample.labels[0] != sample.labels[1]} == {
        "copy of 2": ("dent", "ok")
    }
    assert max(sample.different_bits for sample in actual) <= MAX_DIFFERENT_BITS
    assert known.find([spectrum_of(texture(k)) for k in (0, 24, 28)]).tolist() == [True, True, False]
    again, _ = near_duplicates(parts, {name: spectrum_of(image) for name, image in images.items()}, [known])
    assert {sample.path for sample in again if sample.split == TEST} == {"copy of 2", "copy of 25"}


def test_exposures_of_one_tile_are_found_among_real_tiles(shared_data):
    places = sorted((shared_data / "defects" / "magnetic_tile" / "MT_Blowhole").glob("*.jpg"))
    spectra = [spectrum_of(cv2.imread(str(path))) for path in places]
    hashes = hashes_of(spectra, medians_of(spectra))
    numbers = np.array([int(path.stem.rpartition("_")[2]) for path in places])
    alike = np.array([nearest_hashes(hashes[k : k + 1], np.delete(hashes, k, 0)) for k in range(len(places))])[:, :, 0]
    near = alike[:, 1] <= MAX_DIFFERENT_BITS
    others = np.array([np.delete(numbers, k)[row] for k, row in enumerate(alike[:, 0])])
    assert near.sum() >= 20
    assert (np.abs(numbers - others)[near] <= 1000).all()
