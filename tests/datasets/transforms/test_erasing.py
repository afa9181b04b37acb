"""Random erasing: sizes, fillings, places."""

import math

import numpy as np
import pytest
import torch

from slowfast.datasets.transforms.erasing import RandomErasing


def rng(seed=0):
    return np.random.default_rng(seed)


def erased(seed, height=40, width=60, **options):
    """A clip of sevens after erasing, [3, 4, H, W]."""
    return RandomErasing(**{"probability": 1.0, **options})(torch.full((3, 4, height, width), 7.0), rng(seed))


def rectangle(clip):
    """(height, width) of the one box that is not 7; it is the same in every frame and channel."""
    hidden = clip != 7
    assert (hidden == hidden[:1, :1]).all()
    rows, columns = hidden[0, 0].any(1), hidden[0, 0].any(0)
    assert hidden[0, 0].sum() == rows.sum() * columns.sum()
    return int(rows.sum()), int(columns.sum())


def test_one_box_of_the_right_area_and_aspect_in_every_frame():
    areas, aspects, corners = [], [], set()
    for seed in range(200):
        clip = erased(seed, mode="const")
        height, width = rectangle(clip)
        areas.append(height * width / (40 * 60))
        aspects.append(math.log(height / width))
        corners.add(tuple((clip[0, 0] == 0).nonzero()[0].tolist()))
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert math.log(0.25) < min(aspects) < -0.9
    assert 0.9 < max(aspects) < math.log(4.1)
    assert abs(np.mean(aspects)) < 0.15
    assert len(corners) > 150


def test_boxes_reach_the_last_row_and_column():
    ends = [erased(seed, 12, 12, mode="const") == 0 for seed in range(200)]
    assert any(end[0, 0, -1].any() for end in ends)
    assert any(end[0, 0, :, -1].any() for end in ends)


def test_pixel_filling_is_fresh_noise_for_every_value():
    clip = erased(1, 80, 80)
    noise = clip[clip != 7]
    assert len(noise.unique()) > 0.99 * len(noise)
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1.0, abs=0.1)


def test_rand_filling_is_one_value_for_each_frame_and_channel():
    clip = erased(2, mode="rand")
    values = {tuple(plane[plane != 7].unique().tolist()) for plane in clip.flatten(0, 1)}
    assert len(values) == 3 * 4
    assert all(len(value) == 1 for value in values)


def test_the_probability_is_one_draw_for_a_clip():
    changed = [bool((erased(seed, probability=0.25, mode="const") == 0).any()) for seed in range(400)]
    assert 70 < sum(changed) < 130
    assert not (erased(0, probability=0.0) != 7).any()


def test_several_boxes_share_the_area_and_spare_no_frame():
    shares = []
    for seed in range(200):
        hidden = erased(seed, mode="const", max_count=4) == 0
        assert (hidden == hidden[:1, :1]).all()  # the first frames too
        shares.append(hidden[0, 0].float().mean().item())
    assert max(shares) < 0.36
    assert np.mean(shares) == pytest.approx(0.17, abs=0.04)


def test_a_frame_without_room_stays():
    assert (erased(0, 1, 1) == 7).all()


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"AUG.RE_MODE='noise'"):
        RandomErasing(mode="noise")
    with pytest.raises(ValueError, match=r"AUG.RE_COUNT=0"):
        RandomErasing(max_count=0)
