"""RandAugment: a few random operations of PIL's kind, the same for all frames of a clip.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
https://arxiv.org/abs/1909.13719. A level of 0..10 says how strong an operation is. Frames are uint8
[T, C, H, W] in any memory order. Pixel arithmetic is torchvision's; only the warp is ours, because
torchvision's has no bicubic resampling of tensors.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as operators

MAX_LEVEL = 10.0
PROBABILITY = 0.5  # that a chosen operation acts
INTERPOLATIONS = ("bilinear", "bicubic")

# Operation -> its share in the weighted choice (w0).
OPERATIONS = {
    "AutoContrast": 0.025,
    "Equalize": 0.005,
    "Invert": 0.0,
    "Rotate": 0.3,
    "Posterize": 0.0,
    "Solarize": 0.005,
    "SolarizeAdd": 0.005,
    "Color": 0.025,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Sharpness": 0.025,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateX": 0.1,
    "TranslateY": 0.1,
}
# Largest degrees, slope, or share of the frame's side; the sign is random.
_WARPS = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
_ENHANCE = {
    "Color": operators.adjust_saturation,
    "Contrast": operators.adjust_contrast,
    "Brightness": operators.adjust_brightness,
    "Sharpness": operators.adjust_sharpness,
}
_PLAIN = {"AutoContrast": operators.autocontrast, "Equalize": operators.equalize, "Invert": operators.invert}


@dataclass(frozen=True)
class RandAugment:
    """``num_operations`` random ones, each acting with probability one half at about ``magnitude``.

    ``noise`` is the deviation of the level around ``magnitude`` (cut to 0..10). With ``increasing`` a higher level
    is a stronger change for every operation. With ``weighted`` geometry is preferred and no operation chosen twice.
    What a warp uncovers gets ``fill`` per channel. ``interpolation``: bilinear, bicubic, or ``random``, one of them
    drawn for each operation on a clip (the original draws it for each frame).
    """

    magnitude: float = 10.0
    num_operations: int = 2
    noise: float = 0.0
    increasing: bool = False
    weighted: bool = False
    interpolation: str = "bilinear"
    fill: Sequence[float] = (128, 128, 128)

    def __post_init__(self) -> None:
        if self.interpolation not in (*INTERPOLATIONS, "random"):
            raise ValueError(
                f"AUG.INTERPOLATION={self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}, random"
            )
        most = sum(share > 0 for share in OPERATIONS.values())
        if self.weighted and self.num_operations > most:
            raise ValueError(f"AUG.AA_TYPE: n{self.num_operations} with w0 is more than {most} different operations")

    @classmethod
    def from_spec(cls, spec: str, interpolation: str = "bilinear", fill: Sequence[float] = (128, 128, 128)):
        """From ``rand-m<magnitude>-n<number>-mstd<noise>-inc<0 or 1>-w0``, each part in any order or left out."""
        return cls(**parse_spec(spec), interpolation=interpolation, fill=tuple(fill))

    def __call__(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """New frames [T, C, H, W], uint8."""
        names = list(OPERATIONS)
        shares = np.array(list(OPERATIONS.values())) if self.weighted else None
        shares = None if shares is None else shares / shares.sum()
        for name in rng.choice(names, self.num_operations, replace=not self.weighted, p=shares):
            if rng.random() < PROBABILITY:
                level = self.magnitude + (rng.normal(0.0, self.noise) if self.noise else 0.0)
                value = operation_value(name, min(max(level, 0.0), MAX_LEVEL), rng, increasing=self.increasing)
                frames = apply_operation(name, frames, value, self._mode(rng), self.fill)
        return frames

    def _mode(self, rng: np.random.Generator) -> str:
        return str(rng.choice(INTERPOLATIONS)) if self.interpolation == "random" else self.interpolation


def parse_spec(spec: str) -> dict:
    """The numbers of a specification such as ``rand-m7-n4-mstd0.5-inc1`` as arguments of ``RandAugment``."""
    first, *parts = spec.split("-")
    if first != "rand":
        raise ValueError(f"AUG.AA_TYPE={spec!r} does not begin with rand-: only RandAugment is known")
    kinds = {
        "m": ("magnitude", float),
        "n": ("num_operations", int),
        "mstd": ("noise", float),
        "inc": ("increasing", lambda text: bool(int(text))),
        "w": ("weighted", lambda text: {"0": True}[text]),
    }
    values = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)([0-9.]+)", part)
        try:
            name, convert = kinds[match[1]]
            values[name] = convert(match[2])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"AUG.AA_TYPE={spec!r}: {part!r} is not m<magnitude>, n<number>, mstd<noise>, inc<0 or 1> or w0"
            ) from error
    if not 0 <= values.get("magnitude", MAX_LEVEL) <= MAX_LEVEL:
        raise ValueError(f"AUG.AA_TYPE={spec!r}: the magnitude is not within 0 and {MAX_LEVEL:g}")
    return values


def operation_value(name: str, level: float, rng: np.random.Generator, *, increasing: bool = False) -> float | None:
    """What a level of 0..10 means for an operation: degrees, factor, threshold, bits ...; None where it means nothing.

    Warps take a random sign; so do colour, contrast, brightness and sharpness with ``increasing``.
    """
    share = level / MAX_LEVEL
    if name in _WARPS:
        return _random_sign(_WARPS[name] * share, rng)
    if name in _ENHANCE:
        return 1.0 + _random_sign(0.9 * share, rng) if increasing else 0.1 + 1.8 * share
    if name == "Posterize":
        return 4 - int(4 * share) if increasing else int(4 * share)
    if name == "Solarize":
        return 256 - int(256 * share) if increasing else int(256 * share)
    if name == "SolarizeAdd":
        return int(110 * share)
    return None


def _random_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def apply_operation(
    name: str,
    frames: Tensor,
    value: float | None,
    interpolation: str = "bilinear",
    fill: Sequence[float] = (128, 128, 128),
) -> Tensor:
    """One operation on frames [T, C, H, W]; ``value`` as ``operation_value`` gives it."""
    height, width = frames.shape[-2:]
    bend = partial(warp, frames, interpolation=interpolation, fill=fill)
    if name in _PLAIN:
        return _PLAIN[name](frames)
    if name in _ENHANCE:
        return _ENHANCE[name](frames, value)
    if name == "Posterize":
        return operators.posterize(frames, int(value))
    if name == "Solarize":
        return operators.solarize(frames, value) if value <= 255 else frames
    if name == "SolarizeAdd":
        return torch.where(frames < 128, frames.clamp(max=255 - value) + value, frames)
    if name == "Rotate":
        return bend(_rotation(value, height, width))
    if name == "ShearX":
        return bend((1, value, 0, 0, 1, 0))
    if name == "ShearY":
        return bend((1, 0, 0, value, 1, 0))
    if name == "TranslateX":
        return bend((1, 0, value * width, 0, 1, 0))
    if name == "TranslateY":
        return bend((1, 0, 0, 0, 1, value * height))
    raise KeyError(f"{name} is not one of {', '.join(OPERATIONS)}")


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """A turn against the clock about the centre, as ``warp`` wants it."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


def warp(
    frames: Tensor,
    matrix: Sequence[float],
    *,
    interpolation: str = "bilinear",
    fill: Sequence[float] = (128, 128, 128),
) -> Tensor:
    """Frames [T, C, H, W] whose point (x, y) shows the point (a x + b y + c, d x + e y + f) of the old ones.

    ``matrix`` is (a, b, c, d, e, f) in pixels; pixel centres lie at halves, as in PIL. Points outside get ``fill``
    per channel, those near an edge repeat it.
    """
    num_frames, channels, height, width = frames.shape
    a, b, c, d, e, f = matrix
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None]
    old_x, old_y = a * x + b * y + c, d * x + e * y + f  # [H, W]
    inside = (old_x >= 0) & (old_x < width) & (old_y >= 0) & (old_y < height)
    grid = torch.stack([old_x * (2 / width) - 1, old_y * (2 / height) - 1], dim=-1).float()
    # All frames are channels of one image: the places and weights of a point are found once.
    image = frames.reshape(1, num_frames * channels, height, width).float()
    image = F.grid_sample(image, grid[None], interpolation, padding_mode="border", align_corners=False)
    image = image.round_().clamp_(0, 255).to(frames.dtype).view(frames.shape)
    color = torch.as_tensor(fill).to(frames.dtype)[:, None, None]  # [C, 1, 1]
    return torch.where(inside, image, color)
