"""Masks over the token grid of a clip, for masked pre-training: blocks in space and time, tubes, whole frames.

A mask is a bool array of cells [t, h, w]; True is hidden. Every mask hides exactly the cells asked for (the original's
may fall short), so that all clips of a batch hide equally many: the last block is cut to what is missing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ASPECTS = (0.3, 1 / 0.3)

Block = tuple[slice, ...]


def block_mask(grid: tuple[int, int, int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks [t, h, w] of random length in time, and of a fifth of the frame to all of it (``AUG.MASK_*`` plain)."""
    frames, height, width = grid

    def draw(_: int) -> Block | None:
        length = int(rng.integers(1, frames, endpoint=True))
        area = rng.uniform(height * width // 5, height * width)
        place = _rectangle(height, width, area, rng)
        first = int(rng.integers(frames - length, endpoint=True))
        return None if place is None else (slice(first, first + length), *place)

    return _fill(grid, round(math.prod(grid) * ratio), draw, rng, tries=100)


def frame_block_mask(
    grid: tuple[int, int],
    ratio: float,
    rng: np.random.Generator,
    max_block: int | None = None,
) -> np.ndarray:
    """Blocks [h, w] of one image: each a fifth of the count to what is missing, or to ``max_block`` cells.

    (Bao et al., "BEiT", https://arxiv.org/abs/2106.08254.)
    """
    count = round(math.prod(grid) * ratio)

    def draw(missing: int) -> Block | None:
        ends = sorted((count // 5, min(missing, max_block or count)))
        return _rectangle(*grid, rng.uniform(*ends), rng)

    return _fill(grid, count, draw, rng, tries=10)


def tube_mask(
    grid: tuple[int, int, int],
    ratio: float,
    rng: np.random.Generator,
    max_block: int | None = None,
) -> np.ndarray:
    """The mask of one image, the same at every step of time."""
    return np.repeat(frame_block_mask(grid[1:], ratio, rng, max_block)[None], grid[0], axis=0)


def frame_mask(grid: tuple[int, int, int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Whole steps of time, drawn without replacement."""
    mask = np.zeros(grid, dtype=bool)
    mask[rng.choice(grid[0], round(grid[0] * ratio), replace=False)] = True
    return mask


def _rectangle(height: int, width: int, area: float, rng: np.random.Generator) -> Block | None:
    """A rectangle of about ``area`` cells, smaller than the grid on both sides; None if it is not."""
    aspect = math.exp(rng.uniform(*np.log(ASPECTS)))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < h < height and 0 < w < width):
        return None
    top, left = int(rng.integers(height - h, endpoint=True)), int(rng.integers(width - w, endpoint=True))
    return slice(top, top + h), slice(left, left + w)


def _fill(
    grid: tuple[int, ...],
    count: int,
    draw: Callable[[int], Block | None],
    rng: np.random.Generator,
    tries: int,
) -> np.ndarray:
    """A mask of ``count`` cells: blocks that fit into what is missing, then one that is cut to it."""
    mask = np.zeros(grid, dtype=bool)
    missing = count
    while missing > 0:
        block = None
        for _ in range(tries):
            block = draw(missing)
            if block is not None and 0 < (~mask[block]).sum() <= missing:
                break
        else:
            break
        mask[block] = True
        missing = count - int(mask.sum())
    for _ in range(tries):
        if missing <= 0:
            break
        block = draw(missing)
        if block is not None:
            free = np.argwhere(~mask[block])[:missing] + [part.start for part in block]
            mask[tuple(free.T)] = True
            missing = count - int(mask.sum())
    if missing > 0:  # no block fits this grid
        mask.flat[rng.choice(np.flatnonzero(~mask), missing, replace=False)] = True
    return mask


KINDS = {"block": block_mask, "tube": tube_mask, "frame": frame_mask}


@dataclass(frozen=True)
class MaskRule:
    """A mask for each clip: ``kind`` block, tube or frame, hiding ``ratio`` of the cells of ``grid`` (t, h, w)."""

    grid: tuple[int, int, int]
    ratio: float
    kind: str = "block"
    max_block: int | None = None  # tubes: the most cells of one block in a frame

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """bool [t, h, w]; True is hidden."""
        extra = {"max_block": self.max_block} if self.kind == "tube" else {}
        return torch.from_numpy(KINDS[self.kind](self.grid, self.ratio, rng, **extra))
