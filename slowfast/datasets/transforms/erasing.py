"""Random erasing: rectangles of a clip are filled with noise or nothing, the same ones in every frame.

Zhong et al., "Random Erasing Data Augmentation", https://arxiv.org/abs/1708.04896
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slowfast.datasets.batch import Patch

MODES = ("const", "rand", "pixel")


@dataclass(frozen=True)
class RandomErasing:
    """With ``probability``, 1 to ``max_count`` rectangles of a normalised clip are filled.

    A rectangle has 0.02 to 1/3 of the area of a frame, divided by their number, and an aspect (height / width)
    uniform in its logarithm within ``aspect_range``; one that does not fit is drawn again, ``tries`` times in all.
    ``mode``: ``pixel`` is noise of N(0, 1) per value, ``rand`` one such value per frame and channel, ``const`` 0.

    The original passes the largest count on as a number of groups, which spares the first frames where it is
    above 1; here every frame is erased.
    """

    probability: float = 0.25
    mode: str = "pixel"
    max_count: int = 1
    area_range: tuple[float, float] = (0.02, 1 / 3)
    aspect_range: tuple[float, float] = (0.3, 1 / 0.3)
    tries: int = 100

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"AUG.RE_MODE={self.mode!r} is not one of {', '.join(MODES)}")
        if self.max_count < 1:
            raise ValueError(f"AUG.RE_COUNT={self.max_count} is not 1 or more")

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """``clip`` [C, T, H, W], float and normalised; changed in place and returned."""
        for patch in self.patches(clip.shape, rng):
            patch.apply(clip)
        return clip

    def patches(self, shape: Sequence[int], rng: np.random.Generator) -> list[Patch]:
        """What is pasted over a normalised clip of ``shape`` [C, T, H, W], in order."""
        if rng.random() >= self.probability:
            return []
        count = int(rng.integers(1, self.max_count, endpoint=True))
        found = []
        for _ in range(count):
            box = self._place(*shape[-2:], count, rng)
            if box is not None:
                found.append(Patch(*box, self._filling((*shape[:2], *box[2:]), rng)))
        return found

    def _place(self, height: int, width: int, count: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) strictly smaller than the frame, or None where none was found."""
        low, high = np.log(self.aspect_range)
        for _ in range(self.tries):
            area = rng.uniform(*self.area_range) * height * width / count
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = int(rng.integers(height - h, endpoint=True)), int(rng.integers(width - w, endpoint=True))
                return top, left, h, w
        return None

    def _filling(self, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        if self.mode == "const":
            return torch.zeros(())
        shape = shape if self.mode == "pixel" else (*shape[:2], 1, 1)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
