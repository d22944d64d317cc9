"""Two-stage detectors: each box is explained on the 7x7 features of its region.

The explained scalar is the softmax score of a region for a class. The network after the region features is a classifier
of these features, so the plans of ``engine.methods`` compute its map exactly. The map only shows the inside of the
region: information that the backbone collected from elsewhere is already in the region's features, and the first
stage's choice of the region is not explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.detectors.definition import check_mode
from engine.detectors.detections import MAX_BOXES, Detections
from engine.detectors.input_format import InputFormat
from engine.detectors.regions import Mode
from engine.methods.recipro import plan_for
from engine.split.network import SplitModel

GRID: Final = (7, 7)
"""Numbers of rows and columns of a region's features."""


class RegionClassifier(nn.Module):
    """The second stage without box regression: features (P, C, 7, 7) to class logits (P, K + 1)."""

    def __init__(self, box_head: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.box_head = box_head
        self.score = score

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits; column 0 is the background."""
        logits: Tensor = self.score(torch.flatten(self.box_head(features), 1))
        return logits


@dataclass(frozen=True, eq=False)
class Proposals:
    """The regions of one image, and the outputs of the second stage for them."""

    rectangles: Tensor
    """The regions in pixels of the network's input, (P, 4) float32; each is covered by a 7x7 grid of features."""
    features: Tensor
    """Features of each region, (P, C, 7, 7) float32."""
    boxes: Tensor
    """Box of each class, not clipped, (P, K, 4) float32."""
    log_scores: Tensor
    """Log-softmax of the classes without the background, (P, K) float32."""


@dataclass(frozen=True, eq=False)
class RegionDetector:
    """A two-stage detector of torchvision."""

    name: str
    model: Any
    """The torchvision module, in inference mode."""
    labels: tuple[str, ...]
    """One name per class, without the background."""
    input: InputFormat
    score: float = 0.3
    """Minimum score of a detection, 0 to 1."""
    iou: float = 0.5
    """Boxes of one class with a higher IoU count as the same object."""
    split: SplitModel = field(init=False)
    """The second stage as a classifier of region features; ``head`` returns its input."""

    def __post_init__(self) -> None:
        heads = self.model.roi_heads
        tail = RegionClassifier(heads.box_head, heads.box_predictor.cls_score).eval()
        channels = self.model.backbone.out_channels
        object.__setattr__(
            self,
            "split",
            SplitModel(
                nn.Identity(), tail, "roi_heads.box_roi_pool", GRID, GRID, channels, len(self.labels) + 1, traced=True
            ),
        )

    def proposals(self, images: Tensor) -> list[Proposals]:
        """Return the region proposals of each preprocessed image (N, 3, H, W)."""
        from torchvision.models.detection.image_list import ImageList

        heads = self.model.roi_heads
        size = (images.shape[2], images.shape[3])
        with torch.inference_mode():
            maps = self.model.backbone(images)
            rectangles, _ = self.model.rpn(ImageList(images, [size] * len(images)), maps)
            features = heads.box_roi_pool(maps, rectangles, [size] * len(images))
            logits, deltas = heads.box_predictor(heads.box_head(features))
            boxes = heads.box_coder.decode(deltas, rectangles).view(*logits.shape, 4)
            log_scores = F.log_softmax(logits.float(), dim=-1)
            counts = [len(p) for p in rectangles]
            parts = zip(rectangles, *(t.split(counts) for t in (features, boxes, log_scores)), strict=True)
            return [Proposals(p, f, b[:, 1:], s[:, 1:]) for p, f, b, s in parts]

    def select(self, proposals: Proposals, limit: int = MAX_BOXES) -> Detections:
        """Return the boxes of one image; ``Detections.anchors`` contains region numbers."""
        scores = proposals.log_scores.exp()
        rows, classes = torch.nonzero(scores > self.score, as_tuple=True)
        boxes, found = proposals.boxes[rows, classes], scores[rows, classes]
        from torchvision.ops import batched_nms

        kept = batched_nms(boxes, found, classes, self.iou)[:limit]
        return Detections(boxes[kept], found[kept], classes[kept], rows[kept])

    def heat(self, proposals: Proposals, numbers: Sequence[int], classes: Sequence[int], mode: Mode = "keep") -> Tensor:
        """Return the heat of some regions: (len(numbers), 49) float32, not normalised, row by row.

        Args:
            proposals: the regions of one image.
            numbers: the regions to explain.
            classes: the class of each region.
            mode: ``keep``: the log-score with one cell only; ``drop``: the score minus the score without the cell.

        Raises:
            ConfigError: the mode is unknown.
        """
        check_mode(mode)
        if not numbers:
            return proposals.log_scores.new_zeros(0, GRID[0] * GRID[1])
        features = proposals.features[list(numbers)]
        columns = torch.tensor(list(classes), device=features.device) + 1
        with torch.inference_mode():
            if mode == "keep":
                _, logits = plan_for(self.split, features, "point")(features)
            else:
                logits = _without_each_cell(self.split.tail, features)
            log_scores = F.log_softmax(logits.float(), dim=-1)
            chosen = log_scores.gather(2, columns[:, None, None].expand(-1, log_scores.shape[1], 1))[..., 0]
            if mode == "keep":
                return chosen
            plain = proposals.log_scores[list(numbers)].gather(1, columns[:, None] - 1)
            return plain.exp() - chosen.exp()


def _without_each_cell(tail: nn.Module, features: Tensor) -> Tensor:
    """Return the logits with each cell masked in turn: (P, 49, K + 1)."""
    cells = GRID[0] * GRID[1]
    mask = 1 - torch.eye(cells, dtype=features.dtype, device=features.device).view(cells, 1, *GRID)
    return torch.stack([tail(feature * mask) for feature in features])
