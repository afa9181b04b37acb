import pytest
import torch

from slowfast.models.pathways import as_pathways, cut_pathways, slow_indices


@pytest.mark.parametrize(
    ("num_frames", "alpha", "expected"),
    [
        (8, 8, (0,)),
        (8, 4, (0, 7)),
        (8, 2, (0, 2, 4, 7)),
        (16, 4, (0, 5, 10, 15)),
        (32, 8, (0, 10, 20, 31)),
        (32, 4, (0, 4, 8, 13, 17, 22, 26, 31)),
        (64, 4, (0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63)),
        (4, 1, (0, 1, 2, 3)),
    ],
)
def test_slow_pathway_takes_even_positions_truncated(num_frames, alpha, expected):
    assert slow_indices(num_frames, alpha) == expected


def test_clip_is_cut_into_slow_and_fast():
    clip = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(2, 3, 16, 4, 5)
    slow, fast = cut_pathways(clip, alpha=4)
    assert slow.shape == (2, 3, 4, 4, 5)
    assert slow[1, 2, :, 3, 4].tolist() == [0, 5, 10, 15]
    assert fast is clip


def test_a_list_is_used_as_it_is():
    given = [torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 3, 8, 4, 4)]
    assert all(a is b for a, b in zip(as_pathways(given, 2, alpha=8), given, strict=True))


def test_images_count_as_one_frame():
    assert as_pathways(torch.zeros(2, 3, 5, 6), 1)[0].shape == (2, 3, 1, 5, 6)
    assert as_pathways([torch.zeros(2, 3, 5, 6)], 1)[0].shape == (2, 3, 1, 5, 6)


def test_uneven_pathways_name_both_keys():
    with pytest.raises(ValueError, match=r"DATA.NUM_FRAMES=10 is not a multiple of SLOWFAST.ALPHA=4"):
        cut_pathways(torch.zeros(1, 3, 10, 4, 4), alpha=4)


def test_wrong_number_of_pathways_is_refused():
    with pytest.raises(ValueError, match=r"2 pathway.* given 1"):
        as_pathways([torch.zeros(1, 3, 8, 4, 4)], 2, alpha=4)
