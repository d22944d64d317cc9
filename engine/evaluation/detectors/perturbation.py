"""Deletion and Insertion of one box, and D-RISE: the scores of a box in changed images.

Two scores are measured on the same images:

- the score of the *same anchor* and class, which the maps explain (specific to this project);
- D-RISE's similarity to the explained box: over all boxes of the changed image, the maximum of IoU x cosine of the
class scores x objectness (Petsiuk et al., arXiv:2006.03204, section 3.2). For detectors without objectness, the highest
class score replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from engine.detectors.detector import Detector
from engine.detectors.input_format import InputFormat, Placement
from engine.detectors.outputs import Candidates, Target
from engine.detectors.plain_pass import compile_plain_pass
from engine.evaluation import metrics
from engine.evaluation.evaluator import batched, interpolate_pixels
from engine.runtime.compile_cache import CompileCache

BATCH: Final = 4
"""Batch size of the detector."""
BLUR_SHARE: Final = 5.0 / 224.0
"""Sigma of the blur at the start of Insertion, as a fraction of the input's shorter side (RISE: 5 of 224 pixels)."""
GRID: Final = 16
"""Rows and columns of a random mask of D-RISE."""
KEPT: Final = 0.5
"""Probability that a cell of a random mask of D-RISE is kept."""


@dataclass(frozen=True, eq=False)
class ScoredBox:
    """An explained box, whose score is measured in changed images."""

    target: Target
    corners: Tensor
    """The detected box, (4,): left, top, right, bottom in pixels of the input."""
    class_scores: Tensor
    """The box's scores for all classes, (K,)."""


class Scores(NamedTuple):
    """Scores of a box in several images."""

    anchor: Tensor
    """Score of the box's anchor and class in each image, (N,), 0 to 1."""
    similarity: Tensor
    """Highest D-RISE similarity of any box to the explained box in each image, (N,), 0 to 1."""


class Ends(NamedTuple):
    """Scores of a box in the images at the ends of the curves, which are the same for all its maps."""

    image: Scores
    grey: Scores
    blurred: Scores


class Areas(NamedTuple):
    """Areas under the curves of one map."""

    deletion: float
    insertion: float
    similarity_deletion: float
    similarity_insertion: float


class ScoreReader:
    """Runs a detector on changed images."""

    def __init__(self, detector: Detector, backend: str = "eager", cache: CompileCache | None = None) -> None:
        """Compile the detector.

        Args:
            detector: the detector.
            backend: a backend's name, or ``auto`` for the fastest on this machine.
            cache: cache of compiled results.

        Raises:
            BackendError: the backend is not available, or its outputs differ from eager PyTorch's.
        """
        self._detector, self._layout = detector, detector.layout
        example = torch.zeros(1, 3, *detector.input.size)
        self._network = compile_plain_pass(detector.network().module, example, backend, cache)

    def scored(self, candidates: Candidates, number: int, target: Target) -> ScoredBox:
        """Return the box of the anchor with this number."""
        return ScoredBox(target, candidates.boxes[0, number], candidates.log_scores[0, number].exp())

    def read(self, images: Tensor, boxes: Sequence[ScoredBox]) -> list[Scores]:
        """Return the scores of each box in changed images (N, 3, H, W)."""
        maps = self._network(images)
        candidates = self._layout.decode(maps, self._detector.input.size)
        objectness = self._objectness(maps, candidates)
        found = []
        for box in boxes:
            vectors = [maps[r.map][:, :, r.row, r.column] for r in self._layout.reads(box.target.anchor)]
            score = self._layout.log_score(vectors, box.target.class_index, box.target.anchor).exp()
            found.append(Scores(score, similarity(box, candidates, objectness)))
        return found

    def _objectness(self, maps: Sequence[Tensor], candidates: Candidates) -> Tensor:
        """Return the objectness of all boxes, (N, A), 0 to 1."""
        if any(level.objectness_map is None for level in self._layout.levels):
            return candidates.log_scores.amax(2).exp()
        parts = [maps[level.objectness_map or 0].float().sigmoid() for level in self._layout.levels]
        return torch.cat([part.permute(0, 2, 3, 1).flatten(1) for part in parts], 1)


def similarity(box: ScoredBox, candidates: Candidates, objectness: Tensor) -> Tensor:
    """Return the highest D-RISE similarity to ``box`` in each image: (N,)."""
    scores = candidates.log_scores.exp()
    cosine = (scores @ box.class_scores) / (scores.norm(dim=2) * box.class_scores.norm()).clamp(min=1e-12)
    overlap = torch.stack([box_iou(boxes, box.corners[None])[:, 0] for boxes in candidates.boxes]).nan_to_num(0.0)
    highest: Tensor = (overlap * cosine * objectness).amax(1)
    return highest


def shares_of(steps: int) -> list[float]:
    """Return the fractions of changed pixels, 0 to 1: squares of even steps, fine for small objects."""
    return [(k / steps) ** 2 for k in range(steps + 1)]


@dataclass(frozen=True, eq=False)
class PerturbedImage:
    """An image, with the grey image for Deletion and the blurred image for Insertion."""

    image: Tensor
    """The image in the network's input format, (1, 3, H, W)."""
    grey: Tensor
    """The image's area in the border's colour: the end of Deletion."""
    blurred: Tensor
    """The blurred image: the start of Insertion."""
    placement: Placement

    def order(self, wide: Tensor) -> npt.NDArray[np.intp]:
        """Return indices of pixels in the flattened input, hottest first, without the border."""
        (left, top), (height, width) = self.placement.offset, self.placement.size
        order = metrics.hottest_first(wide[top : top + height, left : left + width].numpy())
        rows, columns = np.divmod(order, width)
        return np.asarray((rows + top) * wide.shape[1] + columns + left)


def perturbed_image(image: Tensor, input_format: InputFormat, placement: Placement) -> PerturbedImage:
    """Create the grey and the blurred copy of an image.

    Args:
        image: (1, 3, H, W) in the network's input format.
        input_format: the network's input format.
        placement: the position of the frame in the input.
    """
    (left, top), (height, width) = placement.offset, placement.size
    inner = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
    grey, blurred = image.clone(), image.clone()
    grey[inner] = border_colour(input_format)
    blurred[inner] = gaussian_blur(image[inner], BLUR_SHARE * min(input_format.size))
    return PerturbedImage(image, grey, blurred, placement)


def border_colour(input_format: InputFormat) -> Tensor:
    """Return the normalised colour of the input's border: (1, 3, 1, 1)."""
    border, mean, std = (torch.tensor(v) for v in (input_format.border, input_format.mean, input_format.std))
    return ((border - mean) / std)[None, :, None, None]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur images (N, 3, h, w) by a Gaussian, truncated as in RISE: 11 pixels for a sigma of 5."""
    away = torch.arange(-round(sigma), round(sigma) + 1, dtype=image.dtype)
    line = torch.exp(-(away**2) / (2.0 * sigma**2))
    line = (line / line.sum()).expand(3, 1, 1, -1)
    margin = len(away) // 2
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)


def curve_ends(reader: ScoreReader, image: PerturbedImage, box: ScoredBox) -> Ends:
    """Return the scores of a box in the unchanged, the grey and the blurred image."""
    return Ends(*(reader.read(changed, [box])[0] for changed in (image.image, image.grey, image.blurred)))


def curve_areas(
    reader: ScoreReader, image: PerturbedImage, box: ScoredBox, wide: Tensor, *, steps: int, ends: Ends
) -> Areas:  # fmt: skip
    """Return the areas under the curves of Deletion and Insertion for one map.

    Args:
        reader: runs the detector.
        image: the image.
        box: the explained box.
        wide: the map at input resolution.
        steps: number of steps; see ``shares_of``.
        ends: the scores of the box at the ends of the curves.
    """
    shares = shares_of(steps)
    order = torch.from_numpy(image.order(wide))
    bounds = [round(share * len(order)) for share in shares]
    parts = [order[a:b] for a, b in pairwise(bounds)]
    areas = []
    for (start, first), (end, last) in (
        ((image.image, ends.image), (image.grey, ends.grey)),
        ((image.blurred, ends.blurred), (image.image, ends.image)),
    ):
        between = islice(interpolate_pixels(start, end, parts), 1, steps)
        scores = [first, *(reader.read(torch.cat(images), [box])[0] for images in batched(between, BATCH)), last]
        areas.append([metrics.area_at(shares, torch.cat(values).tolist()) for values in zip(*scores, strict=True)])
    (deletion, similar_deletion), (insertion, similar_insertion) = areas
    return Areas(deletion, insertion, similar_deletion, similar_insertion)


def random_masks(size: tuple[int, int], count: int, seed: int) -> Iterator[Tensor]:
    """Yield D-RISE's random masks (H, W) in [0, 1]: coarse binary grids, upsampled, at a random offset.

    Petsiuk et al., arXiv:2006.03204, section 3.3, with 16 x 16 cells and a probability of 0.5.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = [-(-side // GRID) for side in size]
    for _ in range(count):
        grid = (torch.rand(1, 1, GRID + 1, GRID + 1, generator=generator) < KEPT).float()
        wide = F.interpolate(grid, size=[(GRID + 1) * side for side in cell], mode="bilinear", align_corners=False)
        top, left = (int(torch.randint(side, (1,), generator=generator)) for side in cell)
        yield wide[0, 0, top : top + size[0], left : left + size[1]]


def d_rise(
    reader: ScoreReader, image: PerturbedImage, boxes: Sequence[ScoredBox], count: int, seed: int = 0
) -> list[Tensor]:
    """Return D-RISE's map (H, W) of each box: the mean of the masks weighted by the similarity.

    Args:
        reader: runs the detector.
        image: the image; masked pixels become grey.
        boxes: the explained boxes, which share the masks.
        count: number of masks.
        seed: seed of the random masks.
    """
    size = (image.image.shape[2], image.image.shape[3])
    sums = [torch.zeros(size) for _ in boxes]
    for masks in batched(random_masks(size, count, seed), BATCH):
        stacked = torch.stack(masks)[:, None]
        found = reader.read(image.image * stacked + image.grey * (1.0 - stacked), boxes)
        for total, scores in zip(sums, found, strict=True):
            total.add_((scores.similarity[:, None, None] * stacked[:, 0]).sum(0))
    return [total / max(count, 1) for total in sums]
