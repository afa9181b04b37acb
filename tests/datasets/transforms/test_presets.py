from dataclasses import replace

import numpy as np
import pytest
import torch

from slowfast.config import load_cfg
from slowfast.datasets.sampling import View
from slowfast.datasets.transforms.color import SelfSupervisedColor
from slowfast.datasets.transforms.erasing import RandomErasing
from slowfast.datasets.transforms.masking import MaskRule
from slowfast.datasets.transforms.presets import (
    EvalTransform,
    Normalize,
    SamplePlan,
    TrainTransform,
    build_clip_transform,
)
from slowfast.datasets.transforms.randaugment import RandAugment


def frames(height=48, width=64, num_frames=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def rng(seed=0):
    return np.random.default_rng(seed)


def reference(clip_frames, scale, mean=0.45, std=0.225):
    """The plain order of work: float, normalise, then resize."""
    x = ((clip_frames.float() / 255 - mean) / std).permute(3, 0, 1, 2)
    height, width = x.shape[-2:]
    if min(height, width) == scale:
        return x
    size = (scale, int(width / height * scale)) if height <= width else (int(height / width * scale), scale)
    return torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_normalize_equals_the_golden_values(golden_sampling):
    golden = golden_sampling("tensor_normalize")
    clip = (torch.arange(24) * 10).reshape(golden["in_uint8_shape"]).to(torch.uint8).permute(3, 0, 1, 2)
    out = Normalize(golden["mean"], golden["std"])(clip)
    assert out.permute(1, 2, 3, 0).flatten().tolist() == pytest.approx(golden["out"], abs=1e-6)


def test_channels_are_reversed_after_normalising():
    clip = frames().permute(3, 0, 1, 2)
    plain = Normalize((0.1, 0.2, 0.3), (1, 2, 3))(clip)
    assert torch.equal(Normalize((0.1, 0.2, 0.3), (1, 2, 3), reverse_channels=True)(clip), plain[[2, 1, 0]])


@pytest.mark.parametrize("scale", [48, 40, 60])
@pytest.mark.parametrize("crop", [0, 1, 2])
def test_test_views_equal_the_plain_order_of_work(scale, crop):
    transform = EvalTransform(Normalize((0.45,) * 3, (0.225,) * 3), scale=scale, crop=scale)
    expected = reference(frames(), scale)
    left = [0, -(-(expected.shape[-1] - scale) // 2), expected.shape[-1] - scale][crop]
    clip = transform(frames(), view=View(0, 1, crop, 3))
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    torch.testing.assert_close(clip, expected[..., left : left + scale], rtol=0, atol=2e-6)


def test_a_single_crop_is_the_centre():
    transform = EvalTransform(Normalize((0.45,) * 3, (0.225,) * 3), scale=48, crop=32)
    assert torch.equal(transform(frames(), view=View(2, 5, 0, 1)), transform(frames(), view=View(2, 5, 1, 3)))


def test_training_is_a_function_of_its_generator():
    transform = TrainTransform(Normalize((0.45,) * 3, (0.225,) * 3), (40, 60), crop=32, full_crop=32)
    first = transform(frames(), rng(1))
    assert first.shape == (3, 3, 32, 32)
    assert torch.equal(first, transform(frames(), rng(1)))
    assert not torch.equal(first, transform(frames(), rng(2)))


def test_half_of_the_training_clips_are_flipped():
    transform = TrainTransform(Normalize((0.0,) * 3, (1.0,) * 3), (48, 48), crop=48, full_crop=48)
    square = frames(48, 48)
    plain = square.permute(3, 0, 1, 2).float() / 255
    flipped = [not torch.allclose(transform(square, rng(seed)), plain) for seed in range(100)]
    assert 30 < sum(flipped) < 70
    steady = TrainTransform(transform.normalize, (48, 48), crop=48, full_crop=48, flip=False)
    assert all(torch.allclose(steady(square, rng(seed)), plain) for seed in range(10))


def test_a_smaller_crop_lowers_the_smaller_scale_in_proportion():
    transform = TrainTransform(Normalize((0.45,) * 3, (0.225,) * 3), (256, 320), crop=224, full_crop=224)
    assert transform.short_side() == 256
    assert transform.short_side(112) == 128
    assert transform(frames(130, 160, 2), rng(), crop_size=112).shape == (3, 2, 112, 112)


def test_random_area_and_aspect_replace_scale_and_crop():
    cfg = load_cfg(
        None, ["DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.08, 1.0], "DATA.TRAIN_JITTER_ASPECT_RELATIVE", [0.75, 1.3333]]
    )
    transform = build_clip_transform(cfg, "train")
    assert transform(frames(), rng()).shape == (3, 3, 224, 224)  # larger than the frames: resized, not cropped
    assert build_clip_transform(cfg, "val").scale == 256


def test_validation_sees_the_centre_unless_asked_otherwise():
    val = build_clip_transform(load_cfg(), "val")
    assert (val.scale, val.crop) == (256, 224)
    assert isinstance(build_clip_transform(load_cfg(None, ["DATA.VAL_RANDOM_VIEW", True]), "val"), TrainTransform)


def test_test_scale_depends_on_the_number_of_crops():
    assert build_clip_transform(load_cfg(None, ["DATA.TEST_CROP_SIZE", 224]), "test").scale == 224
    one = ["DATA.TEST_CROP_SIZE", 224, "TEST.NUM_SPATIAL_CROPS", 1]
    assert build_clip_transform(load_cfg(None, one), "test").scale == 256


def build(split, *opts):
    return build_clip_transform(load_cfg(None, [*opts]), split)


def test_a_recipe_without_augmentation_has_no_operations():
    plain = build("train")
    assert (plain.on_frames, plain.on_clip, plain.plan) == ((), (), SamplePlan())


def test_the_transformer_recipe():
    train = build("train", "AUG.ENABLE", True, "AUG.AA_TYPE", "rand-m7-n4-mstd0.5-inc1", "AUG.NUM_SAMPLE", 2)
    assert train.on_frames == (RandAugment(7, 4, 0.5, True, interpolation="bicubic"),)
    assert train.on_clip == (RandomErasing(0.25, "pixel", 1),)
    assert train.plan == SamplePlan(copies=2)
    off = build("train", "AUG.ENABLE", True, "AUG.AA_TYPE", "", "AUG.RE_PROB", 0.0)
    assert (off.on_frames, off.on_clip) == ((), ())


def test_the_contrastive_colours_come_before_randaugment():
    moco = ["DATA.SSL_COLOR_JITTER", True, "DATA.SSL_MOCOV2_AUG", True, "DATA.COLOR_RND_GRAYSCALE", 0.2]
    train = build("train", *moco, "AUG.ENABLE", True)
    assert train.on_frames[0] == SelfSupervisedColor((0.4, 0.4, 0.4), 0.1, 0.2, True, (0.1, 2.0))
    assert isinstance(train.on_frames[1], RandAugment)
    assert build("train", *moco[:2]).on_frames == (SelfSupervisedColor(),)
    blur = ["DATA.SSL_BLUR_SIGMA_MIN", [0.3, 0.1], "DATA.SSL_BLUR_SIGMA_MAX", [0.5, 2.0]]
    assert build("train", *moco[:2], *blur).on_frames[0].blur_sigma == (0.3, 0.5)


def test_operations_act_in_the_order_of_the_reference():
    seen = []

    def on_frames(frames, rng):
        seen.append((tuple(frames.shape), frames.dtype))
        return 255 - frames

    def on_clip(clip, rng):
        seen.append((tuple(clip.shape), clip.dtype))
        return clip + 10

    transform = TrainTransform(Normalize((0.5,) * 3, (0.5,) * 3), (48, 48), 48, 48, flip=False)
    changed = replace(transform, on_frames=(on_frames,), on_clip=(on_clip,))
    square = frames(48, 48)
    assert torch.allclose(changed(square, rng()), 10 - transform(square, rng()), atol=1e-5)
    assert seen == [((3, 3, 48, 48), torch.uint8), ((3, 3, 48, 48), torch.float32)]
    # Differences over time are no whole numbers; 8-bit operations see them cut off.
    changed(square.float() + 0.9, rng())
    assert torch.equal(changed(square.float() + 0.9, rng()), changed(square, rng()))


def test_the_whole_recipe_is_a_function_of_its_generator():
    opts = ["AUG.ENABLE", True, "DATA.SSL_COLOR_JITTER", True, "DATA.TRAIN_JITTER_MOTION_SHIFT", True]
    opts += ["DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.2, 0.8], "DATA.TRAIN_JITTER_ASPECT_RELATIVE", [0.75, 1.3333]]
    train = build("train", *opts, "DATA.TRAIN_CROP_SIZE", 32)
    for seed in range(3):
        clip = train(frames(), rng(seed))
        assert clip.shape == (3, 3, 32, 32)
        assert torch.equal(clip, train(frames(), rng(seed)))


def test_a_shifting_part_looks_elsewhere_in_the_last_frame():
    still = frames(num_frames=1).repeat(4, 1, 1, 1)
    train = TrainTransform(Normalize((0.45,) * 3, (0.225,) * 3), (48, 48), 24, 24, False, False, (0.2, 0.5), (0.8, 1.2))
    assert torch.equal(train(still, rng())[:, 0], train(still, rng())[:, 3])
    moving = replace(train, motion_shift=True)
    clip = moving(still, rng())
    assert torch.equal(clip[:, 0], train(still, rng())[:, 0])
    assert not torch.equal(clip[:, 0], clip[:, 3])


def test_plans_belong_to_training_and_masks_to_every_split():
    opts = ["DATA.TRAIN_CROP_NUM_TEMPORAL", 2, "DATA.TRAIN_CROP_NUM_SPATIAL", 3, "AUG.NUM_SAMPLE", 2]
    opts += ["CONTRASTIVE.DELTA_CLIPS_MIN", 5.0, "DATA.TIME_DIFF_PROB", 0.5]
    opts += ["AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 0.4]
    mask = MaskRule((8, 7, 7), 0.4)
    plan = build("train", *opts).plan
    assert plan == SamplePlan(2, 5.0, float("inf"), 6, 0.5, mask)
    assert plan.num_samples == 12
    for split in ("val", "test"):
        assert build(split, *opts).plan == SamplePlan(mask=mask)


def test_masks_are_chosen_by_their_keys():
    base = ["AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 0.4]
    assert build("train", *base, "AUG.MASK_TUBE", True).plan.mask.kind == "tube"
    assert build("train", *base, "AUG.MASK_FRAMES", True).plan.mask.kind == "frame"
    flat = ["AUG.MASK_TUBE", True, "AUG.MASK_WINDOW_SIZE", [14, 14], "DATA.NUM_FRAMES", 16]
    assert build("train", *base, *flat).plan.mask.grid == (8, 14, 14)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["AUG.GEN_MASK_LOADER", True, "AUG.MASK_WINDOW_SIZE", [7, 7]], "AUG.MASK_WINDOW_SIZE"),
        (["AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 1.5], "AUG.MASK_RATIO=1.5"),
        (["AUG.GEN_MASK_LOADER", True, "AUG.MASK_TUBE", True, "AUG.MASK_FRAMES", True], "choose one"),
        (["DATA.TRAIN_JITTER_MOTION_SHIFT", True], "DATA.TRAIN_JITTER_SCALES_RELATIVE"),
        (["AUG.NUM_SAMPLE", 0], "AUG.NUM_SAMPLE=0"),
        (["AUG.ENABLE", True, "AUG.AA_TYPE", "augmix-m3"], "AUG.AA_TYPE"),
        (["AUG.ENABLE", True, "AUG.INTERPOLATION", "lanczos"], "AUG.INTERPOLATION"),
    ],
)
def test_augmentations_that_cannot_be_name_their_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        build("train", *opts)


def test_a_contrastive_model_gets_views_of_one_sample():
    opts = ["MODEL.MODEL_NAME", "ContrastiveModel", "DATA.TRAIN_CROP_NUM_TEMPORAL", 2, "AUG.NUM_SAMPLE", 2]
    plan = build("train", *opts).plan
    assert (plan.num_clips, plan.copies, plan.as_views) == (2, 2, True)
    assert not build("val", *opts).plan.as_views


def test_training_augmentation_does_not_touch_the_test():
    assert isinstance(build_clip_transform(load_cfg(None, ["AUG.ENABLE", True]), "test"), EvalTransform)


@pytest.mark.parametrize(
    ("opts", "split", "message"),
    [
        (["DATA.TRAIN_CROP_SIZE", 300], "train", "DATA.TRAIN_CROP_SIZE=300"),
        (["DATA.TEST_CROP_SIZE", 300, "TEST.NUM_SPATIAL_CROPS", 1], "test", "DATA.TEST_CROP_SIZE=300"),
        (["TEST.NUM_SPATIAL_CROPS", 4], "test", "NUM_SPATIAL_CROPS=4"),
        (["DATA.TRAIN_JITTER_SCALES_RELATIVE", [0.1, 1.0]], "train", "set both"),
        ([], "trian", "'trian'"),
    ],
)
def test_impossible_settings_name_their_keys(opts, split, message):
    with pytest.raises(ValueError, match=message):
        build_clip_transform(load_cfg(None, opts), split)


@pytest.mark.parametrize("scale", [48, 40])
def test_a_test_clip_loses_nothing_by_being_normalised_later(scale):
    transform = EvalTransform(Normalize((0.45,) * 3, (0.225,) * 3), scale=scale, crop=32)
    pixels, patches = transform.pixels(frames(), view=View(0, 1, 2, 3))
    assert (pixels.dtype, patches) == ({48: torch.uint8, 40: torch.float32}[scale], ())
    assert torch.equal(transform.normalize(pixels), transform(frames(), view=View(0, 1, 2, 3)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"area_range": (0.3, 1.0), "aspect_range": (0.75, 1.3333)},
        {"area_range": (0.3, 1.0), "aspect_range": (0.75, 1.3333), "motion_shift": True},
    ],
)
def test_training_in_bytes_differs_by_less_than_a_grey_level(options):
    transform = TrainTransform(Normalize((0.0,) * 3, (1 / 255,) * 3), (50, 60), crop=40, full_crop=40, **options)
    smooth = torch.nn.functional.interpolate(frames(6, 8).permute(0, 3, 1, 2).float(), size=(48, 64), mode="bilinear")
    smooth = smooth.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    for seed in range(5):
        pixels, patches = transform.pixels(smooth, rng(seed))
        assert (pixels.dtype, pixels.shape, patches) == (torch.uint8, (3, 3, 40, 40), ())
        error = pixels.float() - transform(smooth, rng(seed))
        assert error.abs().max() < 1.6
        assert error.square().mean().sqrt() < 0.5


def test_erasing_later_is_erasing():
    plain = TrainTransform(Normalize((0.45,) * 3, (0.225,) * 3), (48, 48), crop=48, full_crop=48)
    for mode in ("pixel", "rand", "const"):
        transform = replace(plain, on_clip=(RandomErasing(1.0, mode, 2),))
        assert transform.can_defer
        pixels, patches = transform.pixels(frames(), rng(4))
        clip = transform.normalize(pixels)
        for patch in patches:
            patch.apply(clip)
        assert 1 <= len(patches) <= 2
        assert torch.equal(clip, transform(frames(), rng(4)))
    assert not replace(plain, on_clip=(lambda clip, rng: clip,)).can_defer
