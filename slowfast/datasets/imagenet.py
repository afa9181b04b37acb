"""ImageNet, and any other images in class folders: a clip of a single frame.

``<DATA.PATH_TO_DATA_DIR>/{train,val,test}/<class>/<image>``, or the lists ``{train,val,test}.json`` in
``DATA.PATH_TO_PRELOAD_IMDB``: arrays of ``{"im_path": ..., "class": id}``.

Two recipes: that of ResNets, and with ``AUG.ENABLE`` that of vision transformers (the "timm" recipe).
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as operators

from slowfast.datasets.batch import Patch, Shift
from slowfast.datasets.build import DATASET_REGISTRY, build_clip_options
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.folders import is_image, load_class_folders
from slowfast.datasets.records import PathLabels, check_files
from slowfast.datasets.sampling import FrameChoice, View
from slowfast.datasets.sources import VideoInfo
from slowfast.datasets.transforms import geometry
from slowfast.datasets.transforms.color import color_jitter, lighting_shift
from slowfast.datasets.transforms.erasing import RandomErasing
from slowfast.datasets.transforms.masking import MaskRule
from slowfast.datasets.transforms.presets import (
    ONE_CLIP,
    ClipTransform,
    EvalTransform,
    Normalize,
    Operation,
    SamplePlan,
    build_sample_plan,
)
from slowfast.datasets.transforms.randaugment import RandAugment
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

AREA_RANGE, ASPECT_RANGE = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random part of an image, unless the configuration says
LIGHTING = 0.1
Box = tuple[int, int, int, int]  # top, left, height, width


def load_image_list(file: str, prefix: str = "", num_classes: int | None = None) -> PathLabels:
    """The images of a JSON list, paths joined to ``prefix``; ``ValueError`` names the entry that cannot be used."""
    if not pathmgr.isfile(file):
        raise FileNotFoundError(f"there is no list {file} (DATA.PATH_TO_PRELOAD_IMDB is its folder)")
    with pathmgr.open(file, "r") as stream:
        try:
            rows = json.load(stream)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{file} is not a JSON array of {{"im_path": ..., "class": id}}')
    for number, row in enumerate(rows, start=1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("im_path"), str)
            or not isinstance(row.get("class"), int)
        ):
            raise ValueError(f'{file}, entry {number}: {row!r} is not {{"im_path": ..., "class": id}}')
        if row["class"] < 0 or (num_classes is not None and row["class"] >= num_classes):
            allowed = f"0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})" if num_classes else "0 or more"
            raise ValueError(f"{file}, entry {number}: class {row['class']} is not {allowed}")
    return PathLabels((os.path.join(prefix, row["im_path"]) for row in rows), (row["class"] for row in rows))


def build_records(cfg: CfgNode, split: str) -> PathLabels:
    """The images of ``split``: of a list, or of class folders."""
    data = cfg.DATA
    if not data.PATH_TO_PRELOAD_IMDB:
        return load_class_folders(data.PATH_TO_DATA_DIR, split, cfg.RNG_SEED, cfg.MODEL.NUM_CLASSES, is_image)
    file = os.path.join(data.PATH_TO_PRELOAD_IMDB, f"{split}.json")
    records = load_image_list(file, data.PATH_PREFIX, cfg.MODEL.NUM_CLASSES)
    check_files(records, file, may_miss=split != "test" or cfg.TEST.SKIP_BAD_VIDEOS, prefix=data.PATH_PREFIX)
    logger.info("%s: %d images", file, len(records))
    return records


# ---------------------------------------------------------------- transforms


def inception_box(
    height: int,
    width: int,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A random part of given relative area and aspect (width / height), which is uniform and turned half the time.

    After 10 draws that do not fit, the largest centred square.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*area_range)
        aspect = rng.uniform(*aspect_range)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h, endpoint=True)), int(rng.integers(width - w, endpoint=True)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@dataclass(frozen=True)
class ImageTrainTransform:
    """A random part of the image at one size, a random flip, colour, erasing.

    With an ``interpolation`` (bilinear, bicubic, or random: one of them) the part is resized in 8 bits and
    antialiased, as PIL does; without one bilinear, not antialiased, and in floating point unless it travels as bytes.
    ``on_frames`` act before and ``on_clip`` after normalisation.
    """

    normalize: Normalize
    crop: int
    box: Callable[..., Box]
    interpolation: str | None = None
    on_frames: Sequence[Operation] = ()  # uint8 [1, C, H, W]
    on_clip: Sequence[Operation] = ()  # float32 [C, 1, H, W]
    plan: SamplePlan = ONE_CLIP

    def short_side(self, crop_size: int | None = None) -> int:
        """The crop, as the least that is needed."""
        return crop_size or self.crop

    @property
    def can_defer(self) -> bool:
        """Whether ``pixels`` can be had: what acts on normalised clips must be known before there are any."""
        return all(hasattr(operation, "patches") for operation in self.on_clip)

    def __call__(self, frames, rng=None, *, view=None, crop_size=None) -> Tensor:
        """See ``ClipTransform``."""
        clip = self.normalize(self._placed(frames, rng, crop_size, in_bytes=False))
        for operation in self.on_clip:
            clip = operation(clip, rng)
        return clip

    def pixels(self, frames, rng=None, *, view=None, crop_size=None) -> tuple[Tensor, tuple[Patch | Shift, ...]]:
        """The clip in 8 bits, before it is normalised, and what changes it after that."""
        clip = self._placed(frames, rng, crop_size, in_bytes=True)
        return clip, tuple(patch for operation in self.on_clip for patch in operation.patches(clip.shape, rng))

    def _placed(self, frames: Tensor, rng: np.random.Generator, crop_size: int | None, in_bytes: bool) -> Tensor:
        """The image [1, H, W, C] to a clip [C, 1, size, size] of 0..255."""
        images = frames.permute(0, 3, 1, 2)  # [1, H, W, C] -> [1, C, H, W]
        box, size = self.box(*images.shape[-2:], rng=rng), crop_size or self.crop
        if self.interpolation is None:
            images = geometry.resized_crop(images.transpose(0, 1), box, size, in_bytes=in_bytes)[0].transpose(0, 1)
        else:
            images = operators.resized_crop(images, *box, [size, size], self._mode(rng), antialias=True)
        images = geometry.random_flip(images, rng)[0]
        for operation in self.on_frames:
            images = operation(images, rng)
        return images.transpose(0, 1)  # [1, C, H, W] -> [C, 1, H, W]

    def _mode(self, rng: np.random.Generator) -> InterpolationMode:
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        return InterpolationMode(name)


@dataclass(frozen=True)
class Lighting:
    """Principal-component lighting of a normalised clip of deviation ``std``; components are in reversed order."""

    eigenvalues: Sequence[float]
    eigenvectors: Sequence[Sequence[float]]
    std: Sequence[float]

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """``clip`` [C, T, H, W] plus one value per channel; changed in place and returned."""
        for shift in self.patches(clip.shape, rng):
            shift.apply(clip)
        return clip

    def patches(self, shape: Sequence[int], rng: np.random.Generator) -> list[Shift]:
        """What is added to a normalised clip of ``shape`` [C, T, H, W]."""
        moved = lighting_shift(LIGHTING, self.eigenvalues, self.eigenvectors, rng).flip(0)
        return [Shift(moved / torch.tensor(self.std, dtype=torch.float32))]


@dataclass(frozen=True)
class SmoothEvalTransform:
    """The short side (or with ``ratio`` 0 both sides) brought to crop / ratio as PIL does, bicubic; the centre crop."""

    normalize: Normalize
    crop: int
    ratio: float
    plan: SamplePlan = ONE_CLIP
    can_defer = True

    def short_side(self, crop_size: int | None = None) -> int:
        """What the short side becomes."""
        return int(self.crop / self.ratio) if self.ratio else self.crop

    def scaled(self, frames: Tensor) -> Tensor:
        """The resized image, 8-bit [C, 1, H, W]."""
        size = [self.short_side()] if self.ratio else [self.crop, self.crop]
        return operators.resize(frames.permute(3, 0, 1, 2), size, InterpolationMode.BICUBIC, antialias=True)

    def part(self, clip: Tensor, view: View | None = None) -> Tensor:
        """The pixels of the centre of what ``scaled`` gave."""
        return operators.center_crop(clip, [self.crop, self.crop])

    def cropped(self, clip: Tensor, view: View | None = None) -> Tensor:
        """The clip of the centre of what ``scaled`` gave."""
        return self.normalize(self.part(clip, view))

    def pixels(self, frames, rng=None, *, view=None, crop_size=None) -> tuple[Tensor, tuple[Patch | Shift, ...]]:
        """The clip before it is normalised, and nothing that changes it later."""
        return self.part(self.scaled(frames), view), ()

    def __call__(self, frames, rng=None, *, view=None, crop_size=None) -> Tensor:
        """See ``ClipTransform``."""
        return self.cropped(self.scaled(frames), view)


def build_image_transform(cfg: CfgNode, split: str) -> ClipTransform:
    """The recipe of ``split``.

    Without ``AUG.ENABLE``: a random area and aspect at ``DATA.TRAIN_CROP_SIZE``, flip, lighting; val and test bring the
    short side to ``DATA.TEST_CROP_SIZE`` and take the centre of ``DATA.TRAIN_CROP_SIZE``. With it: smooth resizing,
    RandAugment or colour jitter, erasing; val and test take the centre of ``DATA.TEST_CROP_SIZE``.
    """
    data, aug = cfg.DATA, cfg.AUG
    normalize = Normalize(tuple(data.MEAN), tuple(data.STD), data.REVERSE_INPUT_CHANNEL)
    plan = replace(build_sample_plan(cfg, split), mask=None)
    if aug.GEN_MASK_LOADER:
        plan = replace(plan, mask=build_mask_rule(cfg))
    if split != "train":
        if aug.ENABLE:
            return SmoothEvalTransform(normalize, data.TEST_CROP_SIZE, data.IN_VAL_CROP_RATIO, plan)
        if data.TEST_CROP_SIZE < data.TRAIN_CROP_SIZE:
            raise ValueError(
                f"DATA.TEST_CROP_SIZE={data.TEST_CROP_SIZE} is less than DATA.TRAIN_CROP_SIZE={data.TRAIN_CROP_SIZE}: "
                "images are scaled to the first and cropped to the second (224 and 256, usually)"
            )
        return EvalTransform(normalize, data.TEST_CROP_SIZE, data.TRAIN_CROP_SIZE, plan, rounded=True)
    area = tuple(data.TRAIN_JITTER_SCALES_RELATIVE) or AREA_RANGE
    aspect = tuple(data.TRAIN_JITTER_ASPECT_RELATIVE) or ASPECT_RANGE
    if not aug.ENABLE:
        box = partial(inception_box, area_range=area, aspect_range=aspect)
        lighting = Lighting(data.TRAIN_PCA_EIGVAL, data.TRAIN_PCA_EIGVEC, tuple(data.STD))
        return ImageTrainTransform(normalize, data.TRAIN_CROP_SIZE, box, on_clip=(lighting,), plan=plan)
    masked = aug.GEN_MASK_LOADER
    box = partial(
        geometry.area_aspect_box,
        area_range=area if masked else AREA_RANGE,
        aspect_range=aspect if masked else ASPECT_RANGE,
    )
    on_frames = []
    if aug.AA_TYPE:
        fill = [round(255 * mean) for mean in data.MEAN]
        on_frames.append(RandAugment.from_spec(aug.AA_TYPE, aug.INTERPOLATION, fill))
    elif aug.COLOR_JITTER:
        strengths = dict.fromkeys(("brightness", "contrast", "saturation"), aug.COLOR_JITTER)
        on_frames.append(partial(color_jitter, **strengths))
    erases = aug.RE_PROB > 0 and not masked
    on_clip = [RandomErasing(aug.RE_PROB, aug.RE_MODE, aug.RE_COUNT)] if erases else []
    return ImageTrainTransform(normalize, data.TRAIN_CROP_SIZE, box, aug.INTERPOLATION, on_frames, on_clip, plan)


def build_mask_rule(cfg: CfgNode) -> MaskRule:
    """Masks on the square grid of tokens after the last layer of ``MASK.PRETRAIN_DEPTH``."""
    aug, stride = cfg.AUG, cfg.MVIT.PATCH_STRIDE[-1]
    for layer, *strides in cfg.MVIT.POOL_Q_STRIDE:
        if layer <= cfg.MASK.PRETRAIN_DEPTH[-1]:
            stride *= strides[-1]
    side = cfg.DATA.TRAIN_CROP_SIZE // stride
    return MaskRule((1, side, side), aug.MASK_RATIO, "tube", aug.MAX_MASK_PATCHES_PER_BLOCK)


# ---------------------------------------------------------------- data set


def image_rule(info: VideoInfo, view: View | None, rng: np.random.Generator | None) -> FrameChoice:
    """The only frame there is."""
    return FrameChoice(torch.zeros(1, dtype=torch.int64), 0.0, 0.0)


@DATASET_REGISTRY.register()
class Imagenet(ClipDataset):
    """Images as clips of one frame: [C, 1, H, W]. Every network takes them so, image patches or not."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Imagenet:
        """The data set of ``split``, its list and its options checked."""
        if cfg.DATA.NUM_FRAMES != 1:
            raise ValueError(f"DATA.NUM_FRAMES={cfg.DATA.NUM_FRAMES}: an image is a clip of one frame; set it to 1")
        options = build_clip_options(cfg, split)
        if split == "test":
            options["views"] = (1, 1)
            if (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS) != (1, 1):
                logger.warning("TEST.NUM_ENSEMBLE_VIEWS and TEST.NUM_SPATIAL_CROPS: an image has one view, the centre")
        options["centre"] = split == "val"
        transform = build_image_transform(cfg, split)
        return cls(build_records(cfg, split), image_rule, transform, decode_scaled=False, **options)
