"""Colour operations: against PIL, their ranges, one draw for all frames."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from slowfast.datasets.transforms import color
from slowfast.datasets.transforms.color import SelfSupervisedColor, color_jitter, gaussian_blur, grayscale


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clip():
    """Four frames, uint8 [T, C, H, W] in the memory order of decoded frames."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 24, 32, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)


def as_image(frames):
    """The frames below one another as one PIL image."""
    return Image.fromarray(frames.permute(0, 2, 3, 1).flatten(0, 1).numpy())


def close(frames, image, allowed):
    ours = frames.permute(0, 2, 3, 1).flatten(0, 1).int()
    return (ours - torch.from_numpy(np.array(image)).int()).abs().max() <= allowed


def test_grey_is_the_luminance(clip):
    grey = grayscale(clip)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert close(grey, as_image(clip).convert("L").convert("RGB"), 1)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_is_that_of_the_whole_clip_as_one_image(clip, name):
    dark = clip.clone()
    dark[0] = dark[0] // 4  # a frame of its own mean
    enhance = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[name]
    for factor in (0.6, 1.37):
        frames = color_jitter(dark, Fixed(factor), **{name: 0.4})
        assert close(frames, getattr(ImageEnhance, enhance)(as_image(dark)).enhance(factor), 2)


class Fixed:
    """A generator of one number."""

    def __init__(self, value):
        self.value = value

    def uniform(self, low, high):
        return self.value

    def permutation(self, count):
        return np.arange(count)


def test_contrast_may_go_by_the_mean_of_each_frame(clip):
    dark = clip.clone()
    dark[0] = dark[0] // 4
    each = color_jitter(dark, Fixed(0.5), contrast=0.5, frame_contrast=True)
    alone = [color_jitter(dark[[row]], Fixed(0.5), contrast=0.5) for row in range(4)]
    assert torch.equal(each, torch.cat(alone))
    assert not torch.equal(each, color_jitter(dark, Fixed(0.5), contrast=0.5))


def test_factors_fill_their_range_and_the_order_changes():
    calls = []

    class Recorder:
        def __init__(self, seed):
            self.rng = rng(seed)

        def uniform(self, low, high):
            calls.append((low, high, value := self.rng.uniform(low, high)))
            return value

        def permutation(self, count):
            return self.rng.permutation(count)

    grey = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    values = [color_jitter(grey, Recorder(seed), brightness=0.4)[0, 0, 0, 0].item() for seed in range(200)]
    assert min(values) in range(59, 65)
    assert max(values) in range(136, 141)
    assert calls[0][:2] == (0.6, 1.4)
    assert calls[3][:2] == (0.0, 0.0)  # hue
    color_jitter(grey, Recorder(0), brightness=1.5)
    assert calls[-4][:2] == (0.0, 2.5)


def test_hue_turns_colours(clip):
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 255
    assert color_jitter(red, Fixed(1 / 3), hue=0.5)[0, :, 0, 0].tolist() == [0, 255, 0]


def test_blur_is_that_of_pil_and_stays_within_a_frame(clip):
    smooth = torch.nn.functional.avg_pool2d(clip.float(), 5, 1, 2).to(torch.uint8)
    for sigma in (0.5, 2.0):
        blurred = gaussian_blur(smooth, sigma)
        for ours, frame in zip(blurred, smooth):
            theirs = Image.fromarray(frame.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(sigma))
            theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
            inner = (ours.int() - theirs.int()).abs()[:, 6:-6, 6:-6]
            assert inner.max() <= 4  # PIL approximates the curve by boxes
            assert inner.float().mean() < 1
    lonely = torch.zeros_like(clip)
    lonely[1] = 255
    blurred = gaussian_blur(lonely, 2.0)
    assert torch.equal(blurred, lonely)


def test_blur_larger_than_the_frame_is_possible():
    assert gaussian_blur(torch.full((1, 3, 3, 5), 9, dtype=torch.uint8), 4.0).unique().tolist() == [9]


def count(monkeypatch, recipe):
    """How often 400 clips are jittered, made grey and blurred; and the sigmas."""
    seen = {"jitter": 0, "grey": 0, "sigma": []}

    def note(name):
        return lambda frames, *rest, **named: (seen.__setitem__(name, seen[name] + 1), frames)[1]

    monkeypatch.setattr(color, "color_jitter", note("jitter"))
    monkeypatch.setattr(color, "grayscale", note("grey"))
    monkeypatch.setattr(color, "gaussian_blur", lambda frames, sigma: (seen["sigma"].append(sigma), frames)[1])
    for seed in range(400):
        recipe(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), rng(seed))
    return seen


def test_the_plain_recipe_always_jitters_and_never_blurs(monkeypatch):
    seen = count(monkeypatch, SelfSupervisedColor(gray=0.2))
    assert seen["jitter"] == 400
    assert 55 < seen["grey"] < 105
    assert seen["sigma"] == []


def test_the_moco_recipe_has_its_probabilities(monkeypatch):
    seen = count(monkeypatch, SelfSupervisedColor(gray=0.2, moco=True, blur_sigma=(0.1, 2.0)))
    assert 295 < seen["jitter"] < 345
    assert 55 < seen["grey"] < 105
    assert 165 < len(seen["sigma"]) < 235
    assert 0.1 <= min(seen["sigma"]) < 0.15
    assert 1.95 < max(seen["sigma"]) <= 2.0


def test_frames_that_are_equal_stay_equal(clip):
    still = clip[:1].repeat(3, 1, 1, 1)
    recipe = SelfSupervisedColor((0.6, 0.6, 0.6), 0.15, gray=0.2, moco=True, blur_sigma=(0.1, 2.0))
    for seed in range(8):
        frames = recipe(still, rng(seed))
        assert frames.dtype == torch.uint8
        assert all(torch.equal(frame, frames[0]) for frame in frames)
        assert torch.equal(frames, recipe(still, rng(seed)))


def test_lighting_moves_channels_along_the_components():
    values, vectors = [0.2, 0.1, 0.0], [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    alphas = rng(4).normal(0.0, 0.1, 3)
    shift = color.lighting_shift(0.1, values, vectors, rng(4))
    assert shift.tolist() == pytest.approx([0.2 * alphas[0], 0.2 * alphas[1], 0.0], abs=1e-7)
    shifts = torch.stack([color.lighting_shift(0.1, values, vectors, rng(seed)) for seed in range(500)])
    assert shifts[:, 0].std().item() == pytest.approx(0.02, rel=0.1)


def test_differences_over_time_are_grey_and_centred():
    frames = torch.zeros(2, 1, 1, 3, dtype=torch.uint8)
    following = torch.tensor([[[[255, 0, 0]]], [[[0, 0, 0]]]], dtype=torch.uint8)
    out = color.time_difference(frames, following)
    assert out.shape == (2, 1, 1, 3)
    assert out[0, 0, 0].tolist() == pytest.approx([(255 - 0.299 * 255) / 2] * 3)
    assert out[1].unique().tolist() == [127.5]
