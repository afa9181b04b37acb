"""RandAugment against PIL, its ranges, and the sameness of all frames of a clip."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from slowfast.datasets.transforms import randaugment
from slowfast.datasets.transforms.randaugment import RandAugment, apply_operation, operation_value, parse_spec, warp

WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clip():
    """Three smooth pictures with noise, uint8 [T, C, H, W] in the memory order of decoded frames."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 6, 8, generator=generator) * 200
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 56), mode="bicubic") + 30
    frames = (smooth + torch.randn(smooth.shape, generator=generator) * 4).clamp(0, 255).to(torch.uint8)
    return frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def with_pil(frames, function):
    """``function`` of every frame as a PIL image."""
    images = [np.asarray(function(Image.fromarray(frame.permute(1, 2, 0).numpy()))) for frame in frames]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def difference(one, other):
    return (one.int() - other.int()).abs()


PIXELWISE = [
    ("AutoContrast", None, ImageOps.autocontrast),
    ("Equalize", None, ImageOps.equalize),
    ("Invert", None, ImageOps.invert),
    ("Posterize", 2, lambda image: ImageOps.posterize(image, 2)),
    ("Posterize", 0, lambda image: image.point(lambda value: 0)),
    ("Solarize", 100, lambda image: ImageOps.solarize(image, 100)),
    ("Solarize", 256, lambda image: ImageOps.solarize(image, 256)),
    ("SolarizeAdd", 77, lambda image: image.point(lambda value: min(value + 77, 255) if value < 128 else value)),
    ("Color", 0.3, lambda image: ImageEnhance.Color(image).enhance(0.3)),
    ("Color", 1.7, lambda image: ImageEnhance.Color(image).enhance(1.7)),
    ("Contrast", 0.4, lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
    ("Brightness", 1.6, lambda image: ImageEnhance.Brightness(image).enhance(1.6)),
    ("Sharpness", 0.1, lambda image: ImageEnhance.Sharpness(image).enhance(0.1)),
    ("Sharpness", 1.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
]


@pytest.mark.parametrize(("name", "value", "pil"), PIXELWISE)
def test_pixel_operations_are_those_of_pil(clip, name, value, pil):
    ours, theirs = apply_operation(name, clip, value), with_pil(clip, pil)
    assert ours.dtype == torch.uint8
    allowed = 2 if name in ("Color", "Sharpness", "Contrast") else 1
    assert difference(ours, theirs).max() <= allowed
    assert (difference(ours, theirs) > 1).float().mean() < 0.01


def pil_warp(name, value, mode):
    def apply(image):
        width, height = image.size
        affine = {
            "ShearX": (1, value, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, value, 1, 0),
            "TranslateX": (1, 0, value * width, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, value * height),
        }
        if name == "Rotate":
            return image.rotate(value, resample=mode, fillcolor=(128, 128, 128))
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], resample=mode, fillcolor=(128,) * 3)

    return apply


@pytest.mark.parametrize("value", [0.21, -0.13])
@pytest.mark.parametrize("name", WARPS)
def test_warps_are_those_of_pil(clip, name, value):
    value = value * 100 if name == "Rotate" else value
    theirs = with_pil(clip, pil_warp(name, value, Image.Resampling.BILINEAR))
    ours = apply_operation(name, clip, value)
    assert ((ours == 128).all(1) & (theirs == 128).all(1)).any()  # something is uncovered on this side too
    assert difference(ours, theirs).max() <= 1  # PIL rounds down
    # PIL's cubic kernel overshoots a little more than torch's.
    theirs = with_pil(clip, pil_warp(name, value, Image.Resampling.BICUBIC))
    gap = difference(apply_operation(name, clip, value, "bicubic"), theirs)
    assert gap.max() <= 5
    assert gap.float().mean() < 0.8


def test_warped_points_come_from_where_the_matrix_says():
    frames = torch.zeros(1, 3, 5, 7, dtype=torch.uint8)
    frames[..., 2, 3] = 200
    moved = warp(frames, (1, 0, 2, 0, 1, -1), fill=(7, 8, 9))  # shows what lies 2 to the right and 1 above
    assert (moved[0, :, 3, 1] == 200).all()
    assert moved[0, :, 0, 6].tolist() == [7, 8, 9]
    assert torch.equal(warp(frames, (1, 0, 0, 0, 1, 0)), frames)


def test_levels_become_the_values_of_the_reference():
    def values(name, increasing):
        return [operation_value(name, level, rng(), increasing=increasing) for level in (0, 5, 10)]

    assert values("Posterize", False) == [0, 2, 4]
    assert values("Posterize", True) == [4, 2, 0]
    assert values("Solarize", False) == [0, 128, 256]
    assert values("Solarize", True) == [256, 128, 0]
    assert values("SolarizeAdd", True) == [0, 55, 110]
    assert values("Color", False) == pytest.approx([0.1, 1.0, 1.9])
    assert values("Equalize", True) == [None] * 3


@pytest.mark.parametrize(
    ("name", "largest"), [("Rotate", 21.0), ("ShearX", 0.21), ("ShearY", 0.21), ("TranslateX", 0.315)]
)
def test_warps_take_either_sign(name, largest):
    values = [operation_value(name, 7, rng(seed)) for seed in range(200)]
    assert {round(abs(value), 9) for value in values} == {round(largest, 9)}
    assert 60 < sum(value < 0 for value in values) < 140


def test_increasing_factors_lie_on_both_sides_of_one():
    values = [operation_value("Contrast", 7, rng(seed), increasing=True) for seed in range(200)]
    assert {round(value, 9) for value in values} == {0.37, 1.63}


def recorded(monkeypatch, **options):
    """(name, level) of every operation over 400 clips."""
    seen = []
    monkeypatch.setattr(randaugment, "operation_value", lambda name, level, rng, increasing: seen.append((name, level)))
    monkeypatch.setattr(randaugment, "apply_operation", lambda name, frames, *rest: frames)
    augment = RandAugment(**options)
    for seed in range(400):
        augment(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), rng(seed))
    return seen


def test_every_operation_is_chosen_and_half_of_them_act(monkeypatch):
    seen = recorded(monkeypatch, magnitude=7, num_operations=4, noise=0.5)
    assert {name for name, _ in seen} == set(randaugment.OPERATIONS)
    assert 720 < len(seen) < 880  # 400 x 4 x 0.5
    levels = np.array([level for _, level in seen])
    assert levels.mean() == pytest.approx(7, abs=0.1)
    assert levels.std() == pytest.approx(0.5, abs=0.1)


def test_levels_stay_within_their_range(monkeypatch):
    levels = [level for _, level in recorded(monkeypatch, magnitude=9.5, noise=2.0)]
    assert min(levels) < 8
    assert max(levels) == 10


def test_weighted_choice_prefers_geometry_and_does_not_repeat(monkeypatch):
    seen = [name for name, _ in recorded(monkeypatch, num_operations=2, weighted=True)]
    assert not {"Posterize", "Invert"} & set(seen)
    assert sum(name in WARPS for name in seen) > 0.75 * len(seen)
    with pytest.raises(ValueError, match="n14"):
        RandAugment(num_operations=14, weighted=True)


def test_all_frames_of_a_clip_change_alike_and_by_the_generator(clip):
    still = clip[:1].repeat(4, 1, 1, 1)
    augment = RandAugment.from_spec("rand-m7-n4-mstd0.5-inc1", "random")
    changed = 0
    for seed in range(12):
        frames = augment(still, rng(seed))
        assert frames.shape == still.shape
        assert frames.dtype == torch.uint8
        assert all(torch.equal(frame, frames[0]) for frame in frames)
        assert torch.equal(frames, augment(still, rng(seed)))
        changed += not torch.equal(frames, still)
    assert changed > 8


def test_random_interpolation_is_one_of_two():
    augment = RandAugment(interpolation="random")
    assert {augment._mode(rng(seed)) for seed in range(20)} == {"bilinear", "bicubic"}


def test_specifications_are_read_in_any_order():
    full = {"magnitude": 7.0, "num_operations": 4, "noise": 0.5, "increasing": True}
    assert parse_spec("rand-m7-n4-mstd0.5-inc1") == full
    assert parse_spec("rand-inc1-mstd0.5-n4-m7") == full
    assert parse_spec("rand-m9-inc0-w0") == {"magnitude": 9.0, "increasing": False, "weighted": True}
    assert RandAugment.from_spec("rand") == RandAugment(10.0, 2)


@pytest.mark.parametrize("spec", ["augmix-m3", "rand-x3", "rand-m", "rand-m1.2.3", "rand-w1", "rand-m11", "rand-n2.5"])
def test_a_wrong_specification_is_named(spec):
    with pytest.raises(ValueError, match=f"AUG.AA_TYPE='{spec}'"):
        parse_spec(spec)


def test_an_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match=r"AUG.INTERPOLATION='lanczos'"):
        RandAugment(interpolation="lanczos")
