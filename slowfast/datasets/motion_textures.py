"""What the things of the motion data set look like: photographs and procedural textures, different ones per split.

A texture is a uint8 RGB array [H, W, 3] drawn from a generator. Train, val and test share nothing: each has its
own strip of every photograph (those that installed packages ship) and its own families of procedural textures.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Texture = Callable[[np.random.Generator, int, int], np.ndarray]

# Where each split's strip of a photograph begins and ends, as fractions of its width; the gaps keep them apart.
PHOTO_STRIPS = {"train": (0.0, 0.52), "val": (0.54, 0.75), "test": (0.77, 1.0)}


# Photographs that packages install with themselves, as package and path inside it.
_PHOTOS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


@functools.cache
def _photos() -> tuple[Image.Image, ...]:
    """The photographs that are installed; none is a valid answer."""
    found = []
    for package, path in _PHOTOS:
        spec = importlib.util.find_spec(package)  # NOTE: importing scikit-learn would take seconds in every process
        for folder in (spec and spec.submodule_search_locations) or ():
            if Path(folder, path).is_file():
                found.append(Image.open(Path(folder, path)).convert("RGB"))
    return tuple(found)


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """``count`` colours [count, 3] in 0..255 that differ in brightness: their mean levels are spread out."""
    level = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    colours = np.clip(level[:, None] + rng.uniform(-0.3, 0.3, (count, 3)), 0, 1) * 255
    return rng.permutation(colours)


def _field(rng: np.random.Generator, width: int, height: int, cells: int, channels: int = 1) -> np.ndarray:
    """A smooth random field [H, W, channels] of about ``cells`` hills across, in 0..1."""
    grid = rng.uniform(0, 255, (cells, cells, channels)).astype(np.uint8)
    layers = [Image.fromarray(grid[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    return np.stack([np.asarray(layer, np.float32) for layer in layers], -1) / 255


def _grid(width: int, height: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across ``angle`` (radians), in units of the shorter side, each [H, W]."""
    unit = min(width, height)
    x, y = np.meshgrid(np.arange(width) / unit, np.arange(height) / unit)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def photo(split: str) -> Texture:
    """Random crops, mirrored and turned by quarters, of the split's strip of a photograph."""

    def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
        for _ in range(5):
            image = _photos()[rng.integers(len(_photos()))]
            left, right = (round(edge * image.width) for edge in PHOTO_STRIPS[split])
            side = min(right - left, image.height) * rng.uniform(0.5, 1.0)
            w, h = side * min(1.0, width / height), side * min(1.0, height / width)
            x, y = rng.uniform(left, right - w), rng.uniform(0, image.height - h)
            crop = image.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + w, y + h), reducing_gap=2.0)
            out = np.asarray(crop)[:, :: rng.choice([-1, 1])]
            if out.std((0, 1)).mean() > 20:  # not just sky
                break
        if width == height:
            out = np.rot90(out, rng.integers(4))
        return np.ascontiguousarray(out[..., rng.permutation(3)])

    return texture


def fractal(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Clouds: colour fields of doubling frequency, summed."""
    total = sum(_field(rng, width, height, cells, 3) / weight for cells, weight in ((3, 1), (6, 1.5), (12, 3)))
    low, high = total.min(), total.max()
    return ((total - low) / (high - low) * 255).astype(np.uint8)


def cells(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Flat cells around random points."""
    count = int(rng.integers(8, 20))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    points = rng.uniform((0, 0), (width, height), (count, 2))
    nearest = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)
    return _colours(rng, count)[nearest].astype(np.uint8)


def leaves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Overlapping ellipses of all sizes."""
    image = Image.new("RGB", (width, height))
    draw, unit = ImageDraw.Draw(image), min(width, height)
    for colour in _colours(rng, 45):
        x, y = rng.uniform((0, 0), (width, height))
        w, h = unit * rng.uniform(0.06, 0.3, 2)
        draw.ellipse((x - w, y - h, x + w, y + h), fill=tuple(int(c) for c in colour))
    return np.asarray(image)


def plaid(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Two crossed gratings between two colours."""
    u, v = _grid(width, height, rng.uniform(0, np.pi))
    f, g = rng.uniform(2.0, 6.0, 2)
    mix = (np.sin(2 * np.pi * (f * u + rng.uniform())) + np.sin(2 * np.pi * (g * v + rng.uniform()))) / 4 + 0.5
    first, second = _colours(rng, 2)
    return (first + mix[..., None] * (second - first)).astype(np.uint8)


def stripes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Hard stripes of three colours with a bend."""
    u, v = _grid(width, height, rng.uniform(0, np.pi))
    phase = rng.uniform(1.0, 2.5) * u + rng.uniform(0.1, 0.4) * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * v)
    return _colours(rng, 3)[(phase * 3).astype(int) % 3].astype(np.uint8)


def tiles(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Overlapping rectangles."""
    image = Image.new("RGB", (width, height))
    draw, unit = ImageDraw.Draw(image), min(width, height)
    for colour in _colours(rng, 40):
        x, y = rng.uniform((0, 0), (width, height))
        w, h = unit * rng.uniform(0.08, 0.35, 2)
        draw.rectangle((x - w, y - h, x + w, y + h), fill=tuple(int(c) for c in colour))
    return np.asarray(image)


def waves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Contour bands of a smooth landscape."""
    bands = _field(rng, width, height, int(rng.integers(4, 7)))[..., 0] * rng.uniform(4, 7)
    return _colours(rng, 5)[bands.astype(int) % 5].astype(np.uint8)


def confetti(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Overlapping triangles."""
    image = Image.new("RGB", (width, height))
    draw, unit = ImageDraw.Draw(image), min(width, height)
    for colour in _colours(rng, 60):
        centre = rng.uniform((0, 0), (width, height))
        corners = centre + rng.uniform(-0.4, 0.4, (3, 2)) * unit
        draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(c) for c in colour))
    return np.asarray(image)


FAMILIES: dict[str, tuple[Texture, ...]] = {
    "train": (fractal, cells, leaves, plaid),
    "val": (stripes, tiles),
    "test": (waves, confetti),
}


def draw_texture(split: str, rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """One texture of ``split``, uint8 [H, W, 3]: half of them photographs where any are installed."""
    families = FAMILIES[split]
    use_photo, family = rng.uniform() < 0.5, families[rng.integers(len(families))]
    return (photo(split) if use_photo and _photos() else family)(rng, width, height)
