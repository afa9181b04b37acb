"""Scale, crop and flip: clips and their boxes together.

Clips are tensors [..., H, W] of any type; boxes [R, 4] hold x1, y1, x2, y2 in pixels of the clip.
Every random operation takes its NumPy generator.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as operators


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side brought to ``size`` and the other rounded down."""
    if min(height, width) == size:
        return height, width
    if width < height:
        return math.floor(height / width * size), size
    return size, math.floor(width / height * size)


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners not aligned, not antialiased; a floating-point clip."""
    if clip.shape[-2:] == (height, width):
        return clip
    return operators.resize(clip, [height, width], InterpolationMode.BILINEAR, antialias=False)


def resized_window(clip: Tensor, height: int, width: int, top: int, left: int, size: int) -> Tensor:
    """The square of ``size`` at (``top``, ``left``) of ``resize(clip, height, width)``, computed alone.

    The same values up to rounding of the last bits, at the cost of what is kept; ``clip`` may be 8-bit.
    """
    rows, row_weight = _taps(clip.shape[-2], height, top, size)
    columns, column_weight = _taps(clip.shape[-1], width, left, size)
    first_row, first_column = int(rows[0, 0]), int(columns[0, 0])
    clip = clip[..., first_row : int(rows[1, -1]) + 1, first_column : int(columns[1, -1]) + 1].contiguous().float()
    upper, lower = (clip.index_select(-2, index - first_row) for index in rows)
    blend = clip.new_zeros(clip.shape[-1], size)  # [w, size]: at most two source columns for each new one
    for index, weight in zip(columns, (1 - column_weight, column_weight)):
        blend.index_put_((index - first_column, torch.arange(size)), weight, accumulate=True)
    return torch.lerp(upper, lower, row_weight[:, None]) @ blend


def resize_bytes(clip: Tensor, height: int, width: int) -> Tensor:
    """``resize`` of an 8-bit clip [C, T, H, W] in 8 bits: off by at most one, and several times faster.

    The result lies in memory as frames do ([T, H, W, C]).
    """
    if clip.shape[-2:] == (height, width):
        return clip
    frames = clip.transpose(0, 1).contiguous(memory_format=torch.channels_last)  # [C, T, H, W] -> [T, C, H, W]
    return resize(frames, height, width).transpose(0, 1)


def _taps(old: int, new: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Source indices [2, count] and the weight [count] of the second ones, for a part of a resized axis."""
    position = ((torch.arange(first, first + count) + 0.5) * (old / new) - 0.5).clamp(min=0)
    lower = position.long()
    return torch.stack([lower, (lower + 1).clamp(max=old - 1)]), position - lower


def short_side_scale(clip: Tensor, size: int, boxes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Clip and boxes with the shorter side of the clip brought to ``size``.

    Boxes are multiplied on both axes by the factor of the longer side.
    """
    old = clip.shape[-2:]
    new = short_side_size(*old, size)
    return resize(clip, *new), boxes if boxes is None else scale_boxes(boxes, old, new)


def scale_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes of a clip of ``old`` (height, width) that became ``new``: times the factor of the longer side."""
    return boxes * (max(new) / max(old))


def jittered_size(low: int, high: int, rng: np.random.Generator, *, inverse: bool = False) -> int:
    """A random short side within [low, high]: uniform, or uniform in its inverse."""
    if inverse:
        return round(1.0 / rng.uniform(1.0 / high, 1.0 / low))
    return round(rng.uniform(low, high))


def crop(clip: Tensor, top: int, left: int, height: int, width: int, boxes: Tensor | None = None):
    """The part of a clip (a view of it) and its boxes, moved but not cut."""
    if boxes is not None:
        boxes = boxes - boxes.new_tensor([left, top, left, top])
    return clip[..., top : top + height, left : left + width], boxes


def random_crop(clip: Tensor, size: int, rng: np.random.Generator, boxes: Tensor | None = None):
    """A square of ``size`` at a random place, every place equally likely."""
    _check_fits(*clip.shape[-2:], size)
    return crop(clip, *random_offsets(*clip.shape[-2:], size, rng), size, size, boxes)


def random_offsets(height: int, width: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a square of ``size`` within height x width, every place equally likely."""
    return int(rng.integers(height - size, endpoint=True)), int(rng.integers(width - size, endpoint=True))


def uniform_offsets(height: int, width: int, size: int, position: int) -> tuple[int, int]:
    """(top, left) of one of three squares along the longer side: 0 start, 1 centre, 2 end."""
    if position not in (0, 1, 2):
        raise ValueError(f"crop position {position} is not 0 (start), 1 (centre) or 2 (end)")
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if position != 1:
        at_end = position == 2
        if height > width:
            top = (height - size) * at_end
        else:
            left = (width - size) * at_end
    return top, left


def uniform_crop(clip: Tensor, size: int, position: int, boxes: Tensor | None = None):
    """A square of ``size`` at the start (0), centre (1) or end (2) of the longer side."""
    height, width = clip.shape[-2:]
    _check_fits(height, width, size)
    top, left = uniform_offsets(height, width, size, position)
    return crop(clip, top, left, size, size, boxes)


def flip(clip: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Mirrored left to right; a box edge at pixel x goes to W - 1 - x."""
    if boxes is not None:
        x1, y1, x2, y2 = boxes.unbind(1)
        last = clip.shape[-1] - 1
        boxes = torch.stack([last - x2, y1, last - x1, y2], dim=1)
    return clip.flip(-1), boxes


def random_flip(clip: Tensor, rng: np.random.Generator, boxes: Tensor | None = None):
    """Mirrored left to right with probability one half."""
    return flip(clip, boxes) if rng.random() < 0.5 else (clip, boxes)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes cut to the pixels [0, W - 1] x [0, H - 1]."""
    highest = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), highest)


def area_aspect_box(
    height: int,
    width: int,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of given relative area and aspect (width / height).

    The aspect is uniform in its logarithm. After 10 draws that do not fit, the largest centred part
    of an allowed aspect is taken.
    """
    low, high = np.log(aspect_range)
    for _ in range(10):
        area = height * width * rng.uniform(*area_range)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h, endpoint=True))
            left = int(rng.integers(width - w, endpoint=True))
            return top, left, h, w
    aspect = min(max(width / height, aspect_range[0]), aspect_range[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(
    clip: Tensor, box: tuple[int, int, int, int], size: int, boxes: Tensor | None = None, *, in_bytes: bool = False
):
    """The part ``box`` (top, left, height, width) brought to a square of ``size``; boxes move along.

    In float32, or with ``in_bytes`` in 8 bits (see ``resize_bytes``).
    """
    top, left, height, width = box
    if boxes is not None:
        boxes = (boxes - boxes.new_tensor([left, top, left, top])) * (
            boxes.new_tensor([1 / width, 1 / height] * 2) * size
        )
    part = crop(clip, *box)[0]
    return (resize_bytes(part, size, size) if in_bytes else resized_window(part, size, size, 0, 0, size)), boxes


def shifted_resized_crop(
    clip: Tensor,
    first: tuple[int, int, int, int],
    last: tuple[int, int, int, int],
    size: int,
    *,
    in_bytes: bool = False,
) -> Tensor:
    """``resized_crop`` of a part that moves evenly from ``first`` (in frame 0) to ``last`` (in the last frame).

    ``clip`` is [C, T, H, W]; places between the two are rounded down to whole pixels.
    """
    places = np.linspace(first, last, clip.shape[1]).astype(int)  # [T, 4]
    parts = enumerate(places.tolist())
    frames = [resized_crop(clip[:, t : t + 1], tuple(place), size, in_bytes=in_bytes)[0] for t, place in parts]
    return torch.cat(frames, dim=1)


def _check_fits(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise ValueError(f"a crop of {size} pixels does not fit into frames of {width}x{height}")
