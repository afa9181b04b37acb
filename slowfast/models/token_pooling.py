"""Pooling of tokens over their grid.

Tokens are [B, heads, N, d]: a class token first, where there is one, then a grid of t x h x w of them, t slowest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slowfast.models.depthwise import DepthwiseConv3d
from slowfast.models.layers import AvgPool3d, MaxPool3d

Grid = tuple[int, int, int]  # t, h, w


def pooled_size(size: Sequence[int], kernel: Grid | None, stride: Grid) -> Grid:
    """The grid after pooling with a padding of half the kernel."""
    if kernel is None:
        return tuple(size)
    return tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))


def make_pool(mode: str, dim: int, kernel: Grid | None, stride: Grid) -> nn.Module | None:
    """The pooling of [B, dim, t, h, w], or None where it would do nothing."""
    if kernel is None:
        return None
    padding = tuple(k // 2 for k in kernel)
    if mode == "max":
        return MaxPool3d(kernel, stride, padding)
    if mode == "avg":
        return AvgPool3d(kernel, stride, padding)
    return DepthwiseConv3d(dim, kernel, stride, padding)


def pool_tokens(
    x: Tensor,
    pool: Callable[[Tensor], Tensor] | None,
    grid: Grid,
    *,
    has_cls: bool,
    norm: nn.Module | None = None,
) -> tuple[Tensor, Grid]:
    """Pool the grid of tokens [B, heads, N, d] and normalise; the class token is normalised only."""
    if pool is None:
        return x, grid
    batch, heads = x.shape[:2]
    cls, x = split_cls(x) if has_cls else (None, x)
    x = x.flatten(0, 1).unflatten(1, grid).permute(0, 4, 1, 2, 3)  # [B*heads, d, t, h, w]
    x = pool(x)
    grid = tuple(x.shape[2:])
    x = x.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, (batch, heads))  # [B, heads, N', d]
    if cls is not None:
        x = torch.cat([cls, x], dim=2)
    return (x if norm is None else norm(x)), grid


def split_cls(x: Tensor) -> tuple[Tensor, Tensor]:
    """Class token and the others of [B, heads, N, d]. (Their gradients come together in one pass; slices need four.)"""
    return x.split([1, x.shape[2] - 1], dim=2)


@dataclass(frozen=True)
class SeenTokens:
    """The tokens that a pooling sees: pooled with ``stride`` on their ``grid`` they give what all tokens give."""

    index: Tensor  # int64, the class token first
    grid: Grid
    stride: Grid


def seen_tokens(
    grid: Grid, kernel: Grid, stride: Grid, *, has_cls: bool, device: torch.device | None = None
) -> SeenTokens | None:
    """What pooling with a padding of half the kernel sees where its stride leaves gaps; None where it sees all."""
    if all(s <= k for k, s in zip(kernel, stride, strict=True)):
        return None
    axes = []
    for n, k, s, last in zip(grid, kernel, stride, pooled_size(grid, kernel, stride), strict=True):
        # In the padded grid windows begin at multiples of the stride.
        places = [i for i in range(n) if s <= k or ((i + k // 2) % s < k and i + k // 2 < last * s)]
        axes.append(torch.tensor(places, device=device))
    t, h, w = axes
    index = (t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w  # [t', h', w']
    index = index.flatten() + int(has_cls)
    if has_cls:
        index = torch.cat([index.new_zeros(1), index])
    steps = tuple(min(s, k) for k, s in zip(kernel, stride, strict=True))
    return SeenTokens(index, tuple(len(places) for places in axes), steps)
