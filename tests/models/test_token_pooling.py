"""Pooling of tokens, and which of them it sees."""

import pytest
import torch
from fill import fill_model
from torch import nn

from slowfast.models.token_pooling import make_pool, pool_tokens, pooled_size, seen_tokens


@pytest.mark.parametrize("size", [(4, 8, 8), (3, 39, 39), (1, 7, 5)])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 2, 2)), ((1, 3, 3), (1, 1, 1)), ((3, 9, 9), (2, 8, 8))])
def test_pooled_size_is_what_pooling_gives(size, kernel, stride):
    pooled = make_pool("max", 1, kernel, stride)(torch.zeros(1, 1, *size))
    assert pooled_size(size, kernel, stride) == tuple(pooled.shape[2:])


def test_class_token_is_normalised_but_not_pooled():
    x = torch.tensor([3.0, 5.0, 1.0, 2.0, 7.0, 4.0]).view(1, 1, 6, 1).repeat(1, 1, 1, 2)
    x[..., 1] += 1.0
    pooled, grid = pool_tokens(x[:, :, :5], make_pool("max", 2, (1, 2, 2), (1, 2, 2)), (1, 2, 2), has_cls=True)
    assert grid == (1, 2, 2)  # a padding of half the kernel
    assert pooled[0, 0, :, 0].tolist() == [3, 5, 1, 2, 7]
    norm = nn.LayerNorm(2)
    pooled, _ = pool_tokens(x[:, :, :5], make_pool("max", 2, (1, 2, 2), (1, 2, 2)), (1, 2, 2), has_cls=True, norm=norm)
    torch.testing.assert_close(pooled[0, 0, 0], norm(torch.tensor([3.0, 4.0])))


def test_average_pooling_counts_the_padding():
    x = torch.ones(1, 1, 9, 1)
    pooled, grid = pool_tokens(x, make_pool("avg", 1, (1, 3, 3), (1, 2, 2)), (1, 3, 3), has_cls=False)
    assert grid == (1, 2, 2)
    assert pooled.flatten().tolist() == pytest.approx([4 / 9] * 4)


def test_a_stride_above_the_kernel_leaves_gaps():
    seen = seen_tokens((1, 9, 4), (1, 3, 1), (1, 4, 2), has_cls=False)
    assert (seen.grid, seen.stride) == ((1, 7, 2), (1, 3, 1))
    rows = [0, 1, 3, 4, 5, 7, 8]  # a row of padding comes first
    assert seen.index.tolist() == [4 * row + column for row in rows for column in (0, 2)]
    with_cls = seen_tokens((1, 9, 4), (1, 3, 1), (1, 4, 2), has_cls=True)
    assert with_cls.index.tolist() == [0, *(seen.index + 1).tolist()]
    assert (with_cls.grid, with_cls.stride) == (seen.grid, seen.stride)
    assert seen_tokens((1, 9, 4), (1, 3, 3), (1, 3, 2), has_cls=False) is None


@pytest.mark.parametrize("mode", ["conv", "max", "avg"])
@pytest.mark.parametrize("size", [(4, 8, 8), (3, 9, 10), (2, 5, 13), (5, 2, 4)])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (1, 8, 8)), ((3, 3, 3), (1, 4, 5)), ((1, 1, 1), (1, 2, 2)), ((3, 2, 3), (4, 3, 2))],
)
def test_pooling_what_is_seen_gives_what_pooling_all_gives(mode, size, kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size)
    seen = seen_tokens(size, kernel, stride, has_cls=False)
    assert len(seen.index) == seen.grid[0] * seen.grid[1] * seen.grid[2]
    some = x.flatten(2)[:, :, seen.index].unflatten(2, seen.grid)
    pool, of_some = (fill_model(make_pool(mode, 6, kernel, s)) for s in (stride, seen.stride))
    torch.testing.assert_close(of_some(some), pool(x))
    if mode == "conv":
        torch.testing.assert_close(pool.convolve(some, seen.stride), pool(x))
