"""How a picture becomes a network's input, as plain values: what training, examination and model files share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.errors import ModelError, did_you_mean
from pipeline.frames import Image


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A picture is stretched to ``input_size``, scaled to [0, 1] and normalised; outputs are named by ``labels``."""

    labels: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def stretch(self, image: Image) -> torch.Tensor:
        """Stretch one picture, uint8 RGB (height, width, 3), to the input size: uint8 (3, H, W)."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
        return F.interpolate(pixels, list(self.input_size), mode="bilinear", antialias=True, align_corners=False)[0]

    def normalise(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map stretched pictures (N, 3, H, W), 0 to 255, to the network's input, float32."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pictures.float() / 255.0 - mean) / std

    def class_of(self, label: str) -> int:
        """Return a label's class index. Raises ``ModelError`` for a label that is not among ``labels``."""
        if label not in self.labels:
            known = ", ".join(self.labels)
            raise ModelError(f"label {label!r} is none of the classes {known}.{did_you_mean(label, self.labels)}")
        return self.labels.index(label)
