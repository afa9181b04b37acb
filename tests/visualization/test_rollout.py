"""Attention roll-out as derived by hand, and that what is recorded is the attention of the network."""

import pytest
import torch
from torch import nn

from slowfast.models.attention import BlockOptions, BlockSpec, MultiScaleAttention
from slowfast.models.mvit import MViT, PatchSpec, TokenHeadSpec, plan_blocks
from slowfast.visualization.rollout import (
    BlockAttention,
    _pull_by_keys,
    _pull_by_table,
    attention_rollout,
    recorded_attention,
    spread_over_cells,
)


def block(table, grid, *, key_pool=None, shortcut_pool=None, has_cls=False, kind="plain"):
    table = torch.tensor(table)
    rows = torch.zeros(1, len(table))
    return BlockAttention(grid, rows, _pull_by_table(table[None]), key_pool, shortcut_pool, has_cls, kind)


def test_cells_share_out_what_was_pooled_however_windows_overlap():
    pool = nn.MaxPool3d((1, 1, 3), (1, 1, 2), (0, 0, 1))
    assert spread_over_cells(torch.tensor([[6.0, 12.0]]), pool, (1, 1, 4)).tolist() == [[3.0, 3.0, 6.0, 6.0]]
    # Two rows of five become one of three: cells of columns 0 and 1, 2 and 3, and 4.
    pool = nn.AvgPool3d((1, 2, 3), (1, 2, 2), (0, 0, 1))
    shares = spread_over_cells(torch.tensor([[4.0, 8.0, 6.0]]), pool, (1, 2, 5))
    assert shares.view(2, 5).tolist() == [[1.0, 1.0, 2.0, 2.0, 3.0]] * 2


def test_even_attention_gives_an_even_map():
    pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    first = block([[1 / 16] * 16] * 16, (1, 8, 8), key_pool=pool, shortcut_pool=pool)
    found = attention_rollout([first], reads_class_token=False)
    torch.testing.assert_close(found, torch.full((1, 1, 8, 8), 1 / 64))


def test_two_blocks_by_hand():
    first = [[0.5, 0.5], [0.0, 1.0]]
    second = [[1.0, 0.0], [1.0, 0.0]]
    found = attention_rollout([block(first, (1, 1, 2)), block(second, (1, 1, 2))], reads_class_token=False)
    # (I + A1) / 2 = [[.75, .25], [0, 1]]; (I + A2) / 2 = [[1, 0], [.5, .5]]; mean row (.75, .25) times the first.
    torch.testing.assert_close(found, torch.tensor([[[[0.5625, 0.4375]]]]))


def test_class_token_reads_and_pooling_changes_the_number_of_tokens():
    pool = nn.AvgPool3d((1, 1, 2), (1, 1, 2), 0)
    # Queries and keys of a class token and two pooled tokens, which stand for four.
    table = [[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    only = block(table, (1, 1, 4), key_pool=pool, shortcut_pool=pool, has_cls=True)
    found = attention_rollout([only], reads_class_token=True)
    torch.testing.assert_close(found, torch.tensor([[[[0.125, 0.125, 0.075, 0.075]]]]))
    found = attention_rollout([only], reads_class_token=False)
    torch.testing.assert_close(found, torch.full((1, 1, 1, 4), 0.25))


def test_reversible_streams_by_hand():
    blocks = [block([[0.0, 1.0], [0.0, 1.0]], (1, 1, 2), kind="reversible")]
    # y1 = (x + A x) / 2, y2 = (x + y1) / 2, read (y1 + y2) / 2 = 5/8 x + 3/8 A x; the mean row of A is (0, 1).
    found = attention_rollout(blocks, reads_class_token=False)
    torch.testing.assert_close(found, torch.tensor([[[[5 / 16, 5 / 16 + 3 / 8]]]]))


@pytest.mark.parametrize("rel_pos", [False, True])
def test_queries_and_keys_give_the_weights_of_the_definition(rel_pos, monkeypatch):
    torch.manual_seed(0)
    spec = BlockSpec(8, 8, 2, (2, 4, 4), (2, 4, 4), kernel_kv=(1, 3, 3), stride_kv=(1, 2, 2))
    options = BlockOptions(has_cls=True, rel_pos_spatial=rel_pos, rel_pos_temporal=rel_pos)
    attention = MultiScaleAttention(spec, options).eval()
    x = torch.randn(2, 33, 8)
    q, k, _, q_grid, k_grid = attention.project(x, spec.grid)
    eye = torch.eye(9).expand(2, 2, -1, -1)
    weights = attention.attend_plainly(q, k, eye, q_grid, k_grid).mean(1)  # [B, N, M]
    network = nn.Module()
    network.has_cls = True
    monkeypatch.setattr("slowfast.visualization.rollout._plan", lambda network: [(attention, None, "plain")])
    with torch.no_grad(), recorded_attention(network) as kept:
        attention(x, spec.grid)
    monkeypatch.setattr("slowfast.visualization.rollout._CHUNK", 40)
    row = torch.rand(2, 33)
    torch.testing.assert_close(kept[0].pull(row), torch.einsum("bn,bnm->bm", row, weights))
    assert kept[0].key_pool is attention.pool_k
    assert not attention._forward_hooks


def test_parts_of_the_queries_give_what_all_give(monkeypatch):
    q, k = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 5, 4)
    row = torch.rand(2, 7)
    whole = _pull_by_keys(q, k, 0.5)(row)
    monkeypatch.setattr("slowfast.visualization.rollout._CHUNK", 60)
    torch.testing.assert_close(_pull_by_keys(q, k, 0.5)(row), whole)
    torch.testing.assert_close(whole.sum(1), row.sum(1))


def test_nothing_is_lost_on_the_way_through_a_network():
    plan = plan_blocks(
        4,
        dim=8,
        heads=1,
        grid=(2, 8, 8),
        dim_mul=[[1, 2.0]],
        head_mul=[[1, 2.0]],
        pool_q_stride=[[1, 1, 2, 2], [3, 2, 2, 2]],
        pool_kv_stride_adaptive=[1, 4, 4],
    )
    patch = PatchSpec(8, kernel=(2, 4, 4), stride=(2, 4, 4), padding=(0, 0, 0))
    network = MViT(plan, patch=patch, head=TokenHeadSpec(3), mean_pooling=True).eval()
    with torch.no_grad(), recorded_attention(network) as kept:
        network(torch.randn(2, 3, 4, 32, 32))
    assert [entry.grid for entry in kept] == [(2, 8, 8), (2, 8, 8), (2, 4, 4), (2, 4, 4)]
    found = attention_rollout(kept, reads_class_token=False)
    assert found.shape == (2, 2, 8, 8)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2))
    assert found.min() > 0
