"""MViTv2's decomposed relative positions as part of plain attention (https://arxiv.org/abs/2112.01526).

The weight of query i and key j grows by q_i . R_h[i, row of j] + q_i . R_w[i, column of j] + q_i . R_t[i, frame of j].
That is the product of these *terms*, one per row, column and frame, with the one-hot position of j: appended to q and k
they make it plain attention, and no table of queries times keys is stored. Plain attention scales its products, so the
tables are divided by that scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.token_pooling import Grid, split_cls

FEW_ROWS = 128  # of all tables together: up to here one product with all of them is faster, on a CPU
UNIT = 8  # products are faster where rows and columns are a multiple of it


def relative_index(q_size: int, k_size: int, device: torch.device | None = None) -> Tensor:
    """Row of a table of ``2 * max(q_size, k_size) - 1`` relative positions for each query and key: int64 [q, k]."""
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q = torch.arange(q_size, device=device)[:, None] * q_step
    k = torch.arange(k_size, device=device)[None, :] * k_step
    return (q - k + (k_size - 1) * k_step).long()


def one_hot_positions(grid: Grid, axes: Sequence[str], device: torch.device | None = None) -> Tensor:
    """Position of each token of ``grid`` along each of ``axes`` ("h", "w", "t"), one-hot: [N, sum of sizes]."""
    columns = []
    for axis in axes:
        place = "thw".index(axis)
        columns.append(_along(torch.eye(grid[place], device=device), place, grid))
    return torch.cat(columns, dim=3).flatten(0, 2)


def _along(rows: Tensor, place: int, grid: Grid) -> Tensor:
    """One of ``rows`` [size of that axis, K] for each token of ``grid``: [t, h, w, K]."""
    shape = [grid[place] if i == place else 1 for i in range(3)]
    return rows.view(*shape, -1).expand(*grid, -1)


def resize_table(table: Tensor, length: int) -> Tensor:
    """[L, d] -> [length, d], linearly interpolated."""
    if len(table) == length:
        return table
    return F.interpolate(table.t().unsqueeze(0), size=length, mode="linear")[0].t()


class RelativePositions(nn.Module):
    """What is looked up in tables of relative positions, made once for the planned grids of queries and keys.

    The tables, {"h", "w", "t": [2 * max(q, k) - 1, d]} or some of these, belong to the attention. NOTE: where a stride
    leaves a rest, the length of a table (as in published checkpoints) is not the one that the grids need; the table is
    then interpolated in every forward pass.
    """

    def __init__(self, axes: Sequence[str], q_grid: Grid, k_grid: Grid, *, head_dim: int, has_cls: bool):
        super().__init__()
        self.axes = tuple(axes)
        self.k_grid = k_grid
        self.has_cls = has_cls
        self.head_dim = head_dim
        for axis in self.axes:
            i = "thw".index(axis)
            self.register_buffer(f"index_{axis}", relative_index(q_grid[i], k_grid[i]), persistent=False)
        self.register_buffer("key_columns", self._make_key_columns(k_grid), persistent=False)

    def _sizes(self, grid: Grid) -> list[int]:
        return [grid["thw".index(axis)] for axis in self.axes]

    def _lengths(self, q_grid: Grid, k_grid: Grid) -> list[int]:
        """Rows of each table."""
        return [2 * max(q, k) - 1 for q, k in zip(self._sizes(q_grid), self._sizes(k_grid), strict=True)]

    def _spare(self, k_grid: Grid) -> int:
        """Columns of zeros behind the terms, for the sake of the width."""
        return -(self.head_dim + sum(self._sizes(k_grid))) % UNIT

    def _make_key_columns(self, k_grid: Grid, device: torch.device | None = None) -> Tensor:
        positions = one_hot_positions(k_grid, self.axes, device)
        return F.pad(positions, (0, self._spare(k_grid), int(self.has_cls), 0))

    def _index(self, axis: str, q_grid: Grid, k_grid: Grid) -> Tensor:
        """``relative_index`` of ``axis``."""
        index, i = getattr(self, f"index_{axis}"), "thw".index(axis)
        if tuple(index.shape) == (q_grid[i], k_grid[i]):
            return index
        return relative_index(q_grid[i], k_grid[i], index.device)

    def _rows(self, q_grid: Grid, k_grid: Grid) -> Tensor:
        """Row of all tables, one after the other and a row of zeros last, for each query and column: int64 [N, K]."""
        columns, first = [], 0
        for axis, length in zip(self.axes, self._lengths(q_grid, k_grid), strict=True):
            columns.append(_along(first + self._index(axis, q_grid, k_grid), "thw".index(axis), q_grid))
            first += length
        rows = torch.cat(columns, dim=3).flatten(0, 2)
        return F.pad(rows, (0, self._spare(k_grid), int(self.has_cls), 0), value=first)

    def append(
        self, q: Tensor, k: Tensor, v: Tensor, tables: dict[str, Tensor], q_grid: Grid, k_grid: Grid
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Wider q [B, heads, N, d] and k, v [B, heads, M, d], whose plain attention heeds positions.

        v gets zeros, because fast kernels want one width for all three.
        """
        columns = self.key_columns if k_grid == self.k_grid else self._make_key_columns(k_grid, k.device)
        columns = columns.to(k.dtype).expand(*k.shape[:2], -1, -1)
        q = torch.cat([q, self._terms_and_spare(q, tables, q_grid, k_grid).to(q.dtype)], dim=-1)
        return q, torch.cat([k, columns], dim=-1), torch.cat([v, v.new_zeros(1).expand_as(columns)], dim=-1)

    def _terms_and_spare(self, q: Tensor, tables: dict[str, Tensor], q_grid: Grid, k_grid: Grid) -> Tensor:
        lengths = self._lengths(q_grid, k_grid)
        # NOTE: on a GPU the gradient of ``gather`` is a sum in any order.
        if q.device.type != "cpu" or sum(lengths) > FEW_ROWS:
            return self.terms(q, tables, q_grid, k_grid, spare=self._spare(k_grid))
        rows = torch.cat([resize_table(tables[axis], n) for axis, n in zip(self.axes, lengths, strict=True)])
        rows = F.pad(rows, (0, 0, 0, UNIT - len(rows) % UNIT))  # at least one row of zeros
        products = F.linear(q, rows.to(q.dtype))  # [B, heads, N, all rows]
        return products.gather(3, self._rows(q_grid, k_grid).expand(*q.shape[:2], -1, -1))

    def terms(self, q: Tensor, tables: dict[str, Tensor], q_grid: Grid, k_grid: Grid, *, spare: int = 0) -> Tensor:
        """What positions add to the weights of queries [B, heads, N, d], per row, column and frame of the keys.

        By their definition: [B, heads, N, h + w + t + spare]; 0 for a class token and in spare columns.
        """
        body = (split_cls(q)[1] if self.has_cls else q).unflatten(2, q_grid)  # [B, heads, t, h, w, d]
        equations = {"h": "bnthwd,hkd->bnthwk", "w": "bnthwd,wkd->bnthwk", "t": "bnthwd,tkd->bnthwk"}
        parts = []
        for axis, length in zip(self.axes, self._lengths(q_grid, k_grid), strict=True):
            table = resize_table(tables[axis], length)[self._index(axis, q_grid, k_grid)]
            parts.append(torch.einsum(equations[axis], body, table))
        terms = torch.cat(parts, dim=-1).flatten(2, 4)
        return F.pad(terms, (0, spare, int(self.has_cls), 0)) if self.has_cls or spare else terms
