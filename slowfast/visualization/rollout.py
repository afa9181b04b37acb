"""Attention roll-out: how much each place of a clip reaches what a transformer classifies.

(Abnar and Zuidema, https://arxiv.org/abs/2005.00928.) A block is taken as ``(I + A) / 2``: half of a token is its
shortcut, half the mean of the tokens it attends to, with A the mean over heads. The product over all blocks says how
much of each token of the first one there is in what the head reads (the class token, or the mean of all tokens). It is
of no class. Values, MLPs, norms and residual pooling are left out, as in the paper.

Pooled keys and values stand for the tokens of their cell in equal parts, and so do pooled shortcuts: the grid is cut
into as many cells as there are pooled tokens. (Windows overlap or leave gaps; tokens in two windows would count twice,
and the map would show the pattern of the windows.) Numbers of tokens may so change from block to block. The product
is computed from the last block to the first as a row vector times a matrix; only queries and keys are kept, never a
table of first by last tokens.

In reversible networks, y1 = x1 + A x2 and y2 = x2 + y1 (the MLP of y1 is taken as y1) give equal parts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from slowfast.models.mvit import MViT
from slowfast.models.ptv import PTVMViT
from slowfast.models.reversible import StageTransition

Grid = tuple[int, int, int]  # t, h, w
_CHUNK = 1 << 24  # numbers of a table of attention that are computed at once


@dataclass
class BlockAttention:
    """What one block did with its tokens. ``kind``: "plain", "reversible" or "transition" (two streams into one)."""

    grid: Grid  # of the tokens that came in
    rows: Tensor  # zeros [B, N'], one for each token that left
    pull: Callable[[Tensor], Tensor]  # a row vector [B, N'] times A [N', M]
    key_pool: nn.Module | None
    shortcut_pool: nn.Module | None
    has_cls: bool
    kind: str = "plain"

    def through_attention(self, row: Tensor) -> Tensor:
        """[B, N'] over tokens that left -> [B, N] over those that came in, by way of attention."""
        return self._unpool(self.pull(row), self.key_pool)

    def through_shortcut(self, row: Tensor) -> Tensor:
        """[B, N'] -> [B, N] by way of the shortcut."""
        return self._unpool(row, self.shortcut_pool)

    def _unpool(self, row: Tensor, pool: nn.Module | None) -> Tensor:
        if pool is None:
            return row
        cls, body = row[:, : int(self.has_cls)], row[:, int(self.has_cls) :]
        return torch.cat([cls, spread_over_cells(body, pool, self.grid)], dim=1)


def spread_over_cells(row: Tensor, pool: nn.Module, grid: Grid) -> Tensor:
    """Each pooled token's share [B, N'] in equal parts to the tokens [B, N] of its cell of ``grid``."""
    sizes = zip(grid, *(_triple(getattr(pool, key)) for key in ("kernel_size", "stride", "padding")))
    pooled = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    # The cell that each token lies in, along each axis, and how many share it.
    cells = [torch.arange(n, device=row.device) * m // n for n, m in zip(grid, pooled)]
    counts = [torch.bincount(cell, minlength=m).to(row.dtype) for cell, m in zip(cells, pooled)]
    shares = row.unflatten(1, pooled)  # [B, t', h', w']
    for axis, (cell, count) in enumerate(zip(cells, counts), start=1):
        shares = shares.index_select(axis, cell) / count[cell].view(-1, *[1] * (3 - axis))
    return shares.flatten(1)


def _triple(value: int | Sequence[int]) -> Grid:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


@torch.no_grad()
def attention_rollout(blocks: Sequence[BlockAttention], *, reads_class_token: bool) -> Tensor:
    """[B, t, h, w] of the tokens that enter the first block, summing to 1 (less what the class token keeps)."""
    row = blocks[-1].rows.clone()
    read = row[:, :1] if reads_class_token else row[:, int(blocks[-1].has_cls) :]
    read.fill_(1.0 / read.shape[1])
    if any(block.kind != "plain" for block in blocks):
        row = _through_streams(row, blocks)
    else:
        for block in reversed(blocks):
            row = (block.through_attention(row) + block.through_shortcut(row)) / 2
    return row[:, int(blocks[0].has_cls) :].unflatten(1, blocks[0].grid)


def _through_streams(row: Tensor, blocks: Sequence[BlockAttention]) -> Tensor:
    """The same with two streams, of which the head reads equal parts."""
    first, second = row / 2, row / 2
    for block in reversed(blocks):
        if block.kind == "transition":
            row = first + second
            row = (block.through_attention(row) + block.through_shortcut(row)) / 2
            first, second = row / 2, row / 2
        else:
            first = first + second / 2  # y2 = (x2 + y1) / 2
            second = second / 2 + block.through_attention(first) / 2  # y1 = (x1 + A x2) / 2
            first = first / 2
    return first + second


# ---------------------------------------------------------------- what is kept in a forward pass


class _Recorder(TorchFunctionMode):
    """Keeps the weights of attention that is computed while it is on: of fused kernels and of plain softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Callable[[Tensor], Tensor] | None = None

    def take(self) -> Callable[[Tensor], Tensor]:
        """That of the attention that ended just now."""
        if self.last is None:
            raise ValueError("this network's attention is computed in a way that cannot be recorded")
        last, self.last = self.last, None
        return last

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            self.last = _pull_by_keys(query.detach(), key.detach(), (kwargs or {})["scale"])
        elif func is Tensor.softmax and result.ndim == 4:
            self.last = _pull_by_table(result.detach().mean(1))
        return result


def _pull_by_table(table: Tensor) -> Callable[[Tensor], Tensor]:
    """Of the weights [B, N, M] themselves."""

    def pull(row: Tensor) -> Tensor:
        return torch.einsum("bn,bnm->bm", row, table.to(row.dtype))

    return pull


def _pull_by_keys(query: Tensor, key: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """Of queries [B, heads, N, d] and keys [B, heads, M, d], some queries at a time."""
    heads, rows = query.shape[1], max(1, _CHUNK // (query.shape[0] * query.shape[1] * key.shape[2]))

    def pull(row: Tensor) -> Tensor:
        total = torch.zeros(len(query), key.shape[2], device=row.device, dtype=row.dtype)
        for part, queries in zip(row.split(rows, 1), query.split(rows, 2)):
            weights = ((queries * scale) @ key.transpose(-2, -1)).softmax(-1)
            total += torch.einsum("bn,bhnm->bm", part, weights.to(row.dtype)) / heads
        return total

    return pull


@contextmanager
def recorded_attention(network: nn.Module) -> Iterator[list[BlockAttention]]:
    """Inside, a forward pass of ``network`` fills the list, block by block; that of no transformer leaves it empty."""
    kept: list[BlockAttention] = []
    plan = list(_plan(network))
    if not plan:
        yield kept
        return
    recorder, handles, has_cls = _Recorder(), [], has_class_token(network)

    def keep(kind: str, shortcut: nn.Module | None) -> Callable:
        def hook(attention: nn.Module, args: tuple, output: tuple) -> None:
            grid, rows = tuple(int(n) for n in args[1]), torch.zeros(output[0].shape[:2], device=output[0].device)
            kept.append(BlockAttention(grid, rows, recorder.take(), attention.pool_k, shortcut, has_cls, kind))

        return hook

    for attention, shortcut, kind in plan:
        handles.append(attention.register_forward_hook(keep(kind, shortcut)))
    try:
        with recorder:
            yield kept
    finally:
        for handle in handles:
            handle.remove()


def has_class_token(network: nn.Module) -> bool:
    """Whether a class token stands before the others."""
    return network.model.cls_positional_encoding.cls_embed_on if isinstance(network, PTVMViT) else network.has_cls


def _plan(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None, str]]:
    """Attention, pooling of the shortcut, and kind of each block."""
    if isinstance(network, PTVMViT) or (isinstance(network, MViT) and network.rev_backbone is None):
        blocks = network.model.blocks if isinstance(network, PTVMViT) else network.blocks
        for block in blocks:
            yield block.attn, block.pool_skip, "plain"
    elif isinstance(network, MViT):
        for layer in network.rev_backbone.layers:
            if isinstance(layer, StageTransition):
                attention = layer.F.attn
                yield attention, layer.max_pool if layer.by_max else attention.pool_q, "transition"
            else:
                yield layer.F.attn, None, "reversible"
