"""Relative positions as columns of plain attention equal their definition."""

import pytest
import torch
from fill import fill_input

from slowfast.models.relative_positions import (
    FEW_ROWS,
    UNIT,
    RelativePositions,
    one_hot_positions,
    relative_index,
    resize_table,
)


@pytest.mark.parametrize(
    ("q", "k", "rows"),
    [
        (3, 3, [[2, 1, 0], [3, 2, 1], [4, 3, 2]]),
        (4, 2, [[2, 0], [3, 1], [4, 2], [5, 3]]),
        (2, 4, [[3, 2, 1, 0], [5, 4, 3, 2]]),
        (3, 2, [[1, 0], [2, 1], [3, 2]]),  # steps of 1.5 are truncated
    ],
)
def test_relative_index(q, k, rows):
    assert relative_index(q, k).tolist() == rows


def test_one_hot_positions_have_a_one_per_axis():
    table = one_hot_positions((1, 2, 3), ("h", "w", "t"))
    assert table.tolist() == [
        [1, 0, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 1],
        [1, 0, 0, 0, 1, 1],
        [0, 1, 1, 0, 0, 1],
        [0, 1, 0, 1, 0, 1],
        [0, 1, 0, 0, 1, 1],
    ]
    assert one_hot_positions((2, 1, 2), ("t",)).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_tables_of_another_length_are_interpolated():
    table = torch.tensor([[0.0], [1.0], [2.0]])
    assert resize_table(table, 3) is table
    torch.testing.assert_close(resize_table(table, 5), torch.tensor([[0.0], [0.4], [1.0], [1.6], [2.0]]))


def tables_of(q_grid, k_grid, dim, axes="hwt"):
    return {
        axis: fill_input(f"table:{axis}", (2 * max(q_grid[i], k_grid[i]) - 1, dim)).double()
        for axis, i in zip("thw", range(3), strict=True)
        if axis in axes
    }


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("axes", ["hwt", "hw", "t"])
@pytest.mark.parametrize("few_rows", [0, FEW_ROWS])
@pytest.mark.parametrize("k_grid", [(2, 4, 4), (2, 2, 2), (1, 3, 5)])
def test_appended_columns_add_to_the_products_what_the_definition_says(has_cls, axes, few_rows, k_grid, monkeypatch):
    monkeypatch.setattr("slowfast.models.relative_positions.FEW_ROWS", few_rows)
    q_grid, dim = (2, 4, 4), 6
    positions = RelativePositions(axes, q_grid, (2, 2, 2), head_dim=dim, has_cls=has_cls).double()
    q = fill_input("positions:q", (3, 2, has_cls + 32, dim)).double().requires_grad_()
    sizes = k_grid[0] * k_grid[1] * k_grid[2]
    k, v = (fill_input(f"positions:{name}", (3, 2, has_cls + sizes, dim)).double() for name in "kv")
    tables = {axis: table.requires_grad_() for axis, table in tables_of(q_grid, k_grid, dim, axes).items()}
    wide_q, wide_k, wide_v = positions.append(q, k, v, tables, q_grid, k_grid)
    assert wide_q.shape[-1] == wide_k.shape[-1] == wide_v.shape[-1]
    assert wide_q.shape[-1] % UNIT == 0
    assert torch.equal(wide_v[..., :dim], v)
    assert not wide_v[..., dim:].any()
    expected = q @ k.transpose(-2, -1)
    for axis in axes:
        i = "thw".index(axis)
        rows = relative_index(q_grid[i], k_grid[i])
        for query in range(32):
            for key in range(sizes):
                q_place, k_place = (
                    torch.unravel_index(torch.tensor(n), g)[i] for n, g in ((query, q_grid), (key, k_grid))
                )
                row = tables[axis][rows[q_place, k_place]]
                add = torch.zeros_like(expected)
                add[:, :, has_cls + query, has_cls + key] = 1.0
                expected = expected + add * (q[:, :, has_cls + query] @ row)[:, :, None, None]
    found = wide_q @ wide_k.transpose(-2, -1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slope = fill_input("positions:slope", tuple(found.shape)).double()
    leaves = [q, *tables.values()]
    for a, b in zip(*(torch.autograd.grad((y * slope).sum(), leaves) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
