"""Pooling attention: relative positions folded into plain attention, pooling of tokens, and the block."""

from itertools import product

import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slowfast.models.attention import (
    BlockOptions,
    BlockSpec,
    MultiScaleAttention,
    MultiScaleBlock,
    dot_product_attention,
)
from slowfast.models.layers import set_conv_backend
from slowfast.models.relative_positions import relative_index, resize_table


def plain_attention(attn, x, grid):
    """The textbook form: a table of all queries times all keys, its biases added one by one."""
    q, k, v, q_grid, k_grid = attn.project(x, grid)
    weights = q @ k.transpose(-2, -1) * attn.scale
    first = int(attn.has_cls)
    q_cells, k_cells = (list(product(*map(range, g))) for g in (q_grid, k_grid))
    for axis in attn.axes:
        i = "thw".index(axis)
        n, m = q_grid[i], k_grid[i]
        table = getattr(attn, f"rel_pos_{axis}")
        length = 2 * max(n, m) - 1
        if len(table) != length:
            table = nn.functional.interpolate(table.t()[None], size=length, mode="linear")[0].t()
        rows = relative_index(n, m)
        index = torch.tensor([[rows[a[i], b[i]] for b in k_cells] for a in q_cells])
        bias = torch.einsum("bnqd,qkd->bnqk", q[:, :, first:], table[index])
        weights = weights + nn.functional.pad(bias, (first, 0, first, 0))
    x = weights.softmax(-1) @ v
    if attn.residual_pooling:
        x = x + nn.functional.pad(q[:, :, first:], (0, 0, first, 0))
    return attn.proj(x.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(
    ("spatial", "temporal", "grid", "size"),
    [
        (True, True, (2, 4, 4), (2, 4, 4)),
        (True, False, (2, 4, 4), (2, 4, 4)),
        (False, True, (3, 4, 4), (3, 4, 4)),
        (True, True, (3, 5, 7), (3, 4, 6)),  # tables of another length than the grid needs
    ],
)
def test_folded_positions_equal_the_plain_form(has_cls, spatial, temporal, grid, size):
    spec = BlockSpec(8, 8, 2, grid, size, (3, 3, 3), (3, 3, 3), stride_q=(1, 2, 2), stride_kv=(2, 1, 1))
    options = BlockOptions(
        has_cls=has_cls, rel_pos_spatial=spatial, rel_pos_temporal=temporal, residual_pooling=True, dim_mul_in_att=True
    )
    attn = fill_model(MultiScaleAttention(spec, options), gain=2.0).double()
    x = fill_input("attention:folded", (2, has_cls + grid[0] * grid[1] * grid[2], 8)).double().requires_grad_()
    y, _ = attn(x, grid)
    slope = fill_input("attention:slope", tuple(y.shape)).double()
    names, params = zip(*attn.named_parameters(), strict=True)
    folded = torch.autograd.grad((y * slope).sum(), [x, *params])
    expected = plain_attention(attn, x, grid)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for name, a, b in zip(
        ["x", *names], folded, torch.autograd.grad((expected * slope).sum(), [x, *params]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=name)
    assert any("rel_pos" in name for name in names)


def test_no_table_of_queries_times_keys_is_stored():
    spec = BlockSpec(16, 16, 2, (2, 16, 16), (2, 16, 16))
    attn = MultiScaleAttention(spec, BlockOptions(has_cls=True, rel_pos_spatial=True, rel_pos_temporal=True))
    x = torch.rand(1, 1 + 512, 16, requires_grad=True)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), hooks:  # refuses whatever that kernel cannot do
        y, _ = attn(x, (2, 16, 16))
    y.sum().backward()
    assert max(saved) < 513 * 513


@pytest.mark.parametrize("queries", [16, 17, 19])
def test_a_single_head_of_many_queries_is_cut(queries, monkeypatch):
    monkeypatch.setattr("slowfast.models.attention.MANY_QUERIES", 16)
    torch.manual_seed(0)
    leaves = [torch.randn(1, 1, n, 6, dtype=torch.float64, requires_grad=True) for n in (queries, 5, 5)]
    q, k, v = leaves
    slope = torch.randn_like(q)
    seen = []
    plain = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda q, *args, **options: seen.append(tuple(q.shape)) or plain(q, *args, **options),
    )
    found = dot_product_attention(q, k, v, 0.3)
    assert seen == [(1, 4, (queries + 3) // 4, 6)]
    expected = (0.3 * q @ k.transpose(-2, -1)).softmax(-1) @ v
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(y, leaves, slope) for y in (found, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        dot_product_attention(q, k, v, 0.3)
    dot_product_attention(*(x.expand(2, -1, -1, -1) for x in leaves), 0.3)
    assert seen[1:] == [(1, 1, queries, 6), (2, 1, queries, 6)]


def test_another_grid_than_planned_looks_up_other_positions():
    options = BlockOptions(rel_pos_spatial=True, rel_pos_temporal=True)
    small = fill_model(MultiScaleAttention(BlockSpec(8, 8, 1, (2, 4, 4), (2, 4, 4)), options))
    large = MultiScaleAttention(BlockSpec(8, 8, 1, (2, 6, 6), (2, 6, 6)), options)
    state = small.state_dict()
    for axis in "hw":
        state[f"rel_pos_{axis}"] = resize_table(state[f"rel_pos_{axis}"], 11)
    large.load_state_dict(state)
    x = fill_input("attention:grid", (1, 72, 8))
    torch.testing.assert_close(small(x, (2, 6, 6)), large(x, (2, 6, 6)))


def test_lookups_are_no_part_of_a_checkpoint_but_move_with_the_model():
    attn = MultiScaleAttention(BlockSpec(8, 8, 1, (1, 4, 4), (1, 4, 4)), BlockOptions(rel_pos_spatial=True))
    assert list(attn.state_dict())[:2] == ["rel_pos_h", "rel_pos_w"]
    assert not any("index" in name or "positions" in name for name in attn.state_dict())
    names = {"index_h", "index_w", "key_columns"}
    assert {name for name, _ in attn.named_buffers()} == {f"positions.{name}" for name in names}


def attention_with_gaps(**options):
    spec = BlockSpec(8, 16, 2, (2, 9, 8), (2, 9, 8), (3, 3, 3), (3, 3, 3), stride_q=(1, 2, 2), stride_kv=(1, 4, 4))
    return fill_model(MultiScaleAttention(spec, BlockOptions(dim_mul_in_att=True, **options)), gain=2.0)


@pytest.mark.parametrize(
    "options",
    [
        {"has_cls": True, "rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True},
        {"has_cls": False, "qkv_bias": False},
        {"has_cls": True, "separate_qkv": True},
    ],
)
def test_keys_and_values_that_no_pooling_sees_are_not_made(options, monkeypatch):
    attn = attention_with_gaps(**options).double()
    x = fill_input("attention:gaps", (2, options["has_cls"] + 144, 8)).double().requires_grad_()
    counts = []
    plain = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, *args: counts.append(x.shape[1]) or plain(x, *args))
    leaves = [x, *attn.parameters()]
    y, grid = attn(x, (2, 9, 8))
    assert 2 * 7 * 5 + options["has_cls"] in counts  # rows 0, 1, 3, 4, 5, 7, 8 and columns 0, 1, 3, 4, 5
    slope = fill_input("attention:slope", tuple(y.shape)).double()
    found = torch.autograd.grad((y * slope).sum(), leaves)
    set_conv_backend(attn, "native")  # makes all of them
    counts.clear()
    expected, same_grid = attn(x, (2, 9, 8))
    assert 2 * 7 * 5 + options["has_cls"] not in counts
    assert grid == same_grid
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, torch.autograd.grad((expected * slope).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["qkv", "pool_k"])
def test_a_layer_that_someone_looks_into_gets_all_tokens(name):
    attn = attention_with_gaps(has_cls=True)
    x = fill_input("attention:gaps", (1, 145, 8))
    expected, _ = attn(x, (2, 9, 8))
    seen = []
    attn.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    found, _ = attn(x, (2, 9, 8))
    assert seen == [(1, 145, 8) if name == "qkv" else (2, 8, 2, 9, 8)]
    torch.testing.assert_close(found, expected)


def test_a_replaced_projection_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2.0 * super().forward(x)

    attn = attention_with_gaps(has_cls=True)
    x = fill_input("attention:gaps", (1, 145, 8))
    layer = Doubled(8, 48)
    layer.load_state_dict(attn.qkv.state_dict())
    attn.qkv = layer
    found, _ = attn(x, (2, 9, 8))
    attn.qkv = nn.Linear(8, 48)
    attn.qkv.load_state_dict({name: 2.0 * value for name, value in layer.state_dict().items()})
    torch.testing.assert_close(found, attn(x, (2, 9, 8))[0])


def test_pooling_first_with_all_channels_at_once():
    spec = BlockSpec(8, 8, 2, (2, 4, 4), (2, 4, 4), (1, 3, 3), (1, 3, 3), stride_q=(1, 2, 2), stride_kv=(1, 4, 4))
    attn = MultiScaleAttention(spec, BlockOptions(mode="conv_unshared", pool_first=True, has_cls=True))
    assert attn.pool_q.weight.shape == (8, 1, 1, 3, 3)
    assert attn.norm_k.weight.shape == (8,)
    y, grid = attn(torch.rand(3, 33, 8), (2, 4, 4))
    assert (y.shape, grid) == ((3, 9, 8), (2, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, r"MVIT\.MODE='mean': allowed are conv, conv_unshared, avg, max"),
        ({"mode": "conv_unshared"}, r"set MVIT\.POOL_FIRST True"),
    ],
)
def test_options_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        BlockOptions(**options)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"width 10 cannot be split into 4 heads"):
        MultiScaleAttention(BlockSpec(10, 10, 4, (1, 2, 2), (1, 2, 2)), BlockOptions())


@pytest.mark.parametrize("in_att", [True, False])
def test_block_changes_width_and_grid(in_att):
    spec = BlockSpec(8, 16, 2, (2, 4, 4), (2, 4, 4), (3, 3, 3), (3, 3, 3), stride_q=(1, 2, 2), stride_kv=(1, 4, 4))
    block = MultiScaleBlock(spec, BlockOptions(has_cls=True, dim_mul_in_att=in_att))
    assert block.mlp.fc1.in_features == (16 if in_att else 8)
    x, grid = block(torch.rand(2, 33, 8), (2, 4, 4))
    assert (x.shape, grid) == ((2, 9, 16), (2, 2, 2))


def test_layer_scale_acts_on_both_branches():
    spec = BlockSpec(8, 16, 2, (1, 2, 2), (1, 2, 2))
    block = MultiScaleBlock(spec, BlockOptions(dim_mul_in_att=True, layer_scale=1e-5))
    assert [name for name, _ in block.named_parameters(recurse=False)] == ["gamma_1", "gamma_2"]
    assert block.gamma_1.shape == (16,)
    x = torch.rand(2, 4, 8)
    y, _ = block(x, (1, 2, 2))
    torch.testing.assert_close(y, block.proj(block.norm1(x)), rtol=0, atol=1e-4)
    y.sum().backward()
    assert block.gamma_1.grad.abs().sum() > 0
    assert block.gamma_2.grad.abs().sum() > 0


def test_stochastic_depth_leaves_out_a_branch_of_a_sample():
    torch.manual_seed(0)
    block = fill_model(MultiScaleBlock(BlockSpec(8, 8, 1, (1, 2, 2), (1, 2, 2), drop_path=0.5), BlockOptions()))
    x = torch.rand(200, 4, 8)
    y = block(x, (1, 2, 2))[0]
    unchanged = (y == x).flatten(1).all(1).float().mean().item()
    assert 0.15 < unchanged < 0.35  # both branches, one half each
    assert not torch.equal(block.eval()(x, (1, 2, 2))[0], y)
