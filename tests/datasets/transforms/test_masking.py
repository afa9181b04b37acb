"""Masks: exact counts, and the shapes that blocks, tubes and frames leave."""

import numpy as np
import pytest
import torch

from slowfast.datasets.transforms import masking
from slowfast.datasets.transforms.masking import MaskRule, block_mask, frame_block_mask, frame_mask, tube_mask

GRID = (8, 7, 7)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("mask_of", [block_mask, tube_mask, frame_mask])
def test_masks_hide_exactly_what_was_asked_for(mask_of, ratio):
    expected = {
        block_mask: round(8 * 49 * ratio),
        tube_mask: 8 * round(49 * ratio),
        frame_mask: 49 * round(8 * ratio),
    }[mask_of]
    for seed in range(20):
        mask = mask_of(GRID, ratio, rng(seed))
        assert mask.shape == GRID
        assert mask.dtype == bool
        assert mask.sum() == expected


def test_a_block_mask_is_made_of_blocks():
    for seed in range(30):
        mask = block_mask(GRID, 0.4, rng(seed))
        # Hidden cells touch: far more neighbours in time and space are alike than in scattered cells (0.52).
        alike = [(np.diff(mask, axis=axis) == 0).mean() for axis in range(3)]
        assert min(alike) > 0.65
        assert not mask.all(axis=(1, 2)).all()


def record_areas(monkeypatch):
    """The areas that rectangles are drawn for."""
    areas, rectangle = [], masking._rectangle
    monkeypatch.setattr(
        masking, "_rectangle", lambda h, w, area, rng: (areas.append(area), rectangle(h, w, area, rng))[1]
    )
    return areas


def test_blocks_have_a_fifth_of_the_frame_to_all_of_it(monkeypatch):
    areas = record_areas(monkeypatch)
    for seed in range(50):
        block_mask(GRID, 0.4, rng(seed))
    assert 9 <= min(areas) < 11
    assert 47 < max(areas) <= 49


def test_blocks_of_an_image_have_a_fifth_of_the_count_to_the_largest_allowed(monkeypatch):
    areas = record_areas(monkeypatch)
    for seed in range(50):
        frame_block_mask((14, 14), 0.4, rng(seed), max_block=30)  # 78 cells
    assert 1 <= min(areas) < 16  # less than a fifth is missing at the end
    assert 29 < max(areas) <= 30
    areas.clear()
    frame_block_mask((14, 14), 0.4, rng())
    assert 15 <= areas[0] <= 78


def test_rectangles_have_the_asked_area_and_aspect():
    places = [masking._rectangle(30, 30, 100, rng(seed)) for seed in range(300)]
    sides = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in places]
    assert all(85 <= height * width <= 115 for height, width in sides)
    assert min(height for height, _ in sides) in (5, 6)  # sqrt(100 * 0.3) = 5.5
    assert max(height for height, _ in sides) in (18, 19)
    assert {rows.stop for rows, _ in places} >= {30}


def test_tubes_are_the_same_at_all_times_and_differ_between_clips():
    masks = [tube_mask(GRID, 0.5, rng(seed)) for seed in range(10)]
    assert all((mask == mask[:1]).all() for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 10


def test_frames_are_hidden_whole_and_each_as_often():
    often = np.zeros(8)
    for seed in range(200):
        mask = frame_mask(GRID, 0.5, rng(seed))
        assert set(mask.reshape(8, -1).sum(1)) <= {0, 49}
        often += mask[:, 0, 0]
    assert often.min() > 75
    assert often.max() < 125


@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 1, 9), (2, 2, 2)])
def test_grids_too_small_for_blocks_are_filled_cell_by_cell(grid):
    cells = int(np.prod(grid))
    assert block_mask(grid, 0.5, rng()).sum() == round(cells * 0.5)
    assert tube_mask(grid, 1.0, rng()).all()


def test_a_rule_is_a_function_of_its_generator():
    for kind in ("block", "tube", "frame"):
        rule = MaskRule(GRID, 0.4, kind)
        mask = rule(rng(1))
        assert mask.dtype == torch.bool
        assert torch.equal(mask, rule(rng(1)))
        assert any(not torch.equal(mask, rule(rng(seed))) for seed in range(2, 6))
