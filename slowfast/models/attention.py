"""Attention over pooled tokens: relative positions folded into plain attention, and the blocks made of it.

Tokens are [B, N, D]: a class token first, where there is one, then a grid of t x h x w of them, t slowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.depthwise import DepthwiseConv3d
from slowfast.models.layers import AvgPool3d, MaxPool3d
from slowfast.models.parts import Mlp, drop_path

Grid = tuple[int, int, int]  # t, h, w

POOLING_MODES = ("conv", "conv_unshared", "avg", "max")
NORM_EPS = 1e-6
MANY_QUERIES, PIECES = 4096, 4  # see ``dot_product_attention``


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block. A kernel of None stands for no pooling."""

    dim: int
    dim_out: int
    heads: int
    grid: Grid  # of the tokens that come in
    size: Grid  # the same as relative position tables are sized; it parts from ``grid`` where strides leave a rest
    kernel_q: Grid | None = None
    kernel_kv: Grid | None = None
    stride_q: Grid = (1, 1, 1)
    stride_kv: Grid = (1, 1, 1)
    drop_path: float = 0.0


@dataclass(frozen=True)
class BlockOptions:
    """What all transformer blocks of a network share."""

    has_cls: bool = False
    mode: str = "conv"
    pool_first: bool = False  # pool before the projections to queries, keys and values
    separate_qkv: bool = False
    qkv_bias: bool = True
    rel_pos_spatial: bool = False
    rel_pos_temporal: bool = False
    rel_pos_zero_init: bool = False
    residual_pooling: bool = False  # add the pooled queries to the output of attention
    dim_mul_in_att: bool = False  # the width changes in attention (MViTv2) rather than in the MLP (MViTv1)
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    layer_scale: float = 0.0  # initial scale of the residual branches; 0: no such scale

    def __post_init__(self):
        if self.mode not in POOLING_MODES:
            raise ValueError(f"MVIT.MODE={self.mode!r}: allowed are {', '.join(POOLING_MODES)}")
        if self.mode == "conv_unshared" and not self.pool_first:
            raise ValueError(
                "MVIT.MODE='conv_unshared' pools all heads at once, before the projections: set MVIT.POOL_FIRST True "
                "or MVIT.MODE 'conv'"
            )


def pooled_size(size: Sequence[int], kernel: Grid | None, stride: Grid) -> Grid:
    """The grid after pooling with a padding of half the kernel."""
    if kernel is None:
        return tuple(size)
    return tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))


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
        eye = torch.eye(grid[place], device=device)
        shape = [grid[place] if i == place else 1 for i in range(3)]
        columns.append(eye.view(*shape, -1).expand(*grid, -1))
    return torch.cat(columns, dim=3).flatten(0, 2)


def resize_table(table: Tensor, length: int) -> Tensor:
    """[L, d] -> [length, d], linearly interpolated."""
    if len(table) == length:
        return table
    return F.interpolate(table.t().unsqueeze(0), size=length, mode="linear")[0].t()


def pool_tokens(
    x: Tensor, pool: nn.Module | None, grid: Grid, *, has_cls: bool, norm: nn.Module | None = None
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


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v of q [B, heads, N, d] and k, v [B, heads, M, d].

    In training on a CPU PyTorch's backward pass gives each head to one thread: a single one with many queries is cut.
    """
    queries = q.shape[2]
    needs_grad = torch.is_grad_enabled() and q.requires_grad
    is_alone = q.device.type == "cpu" and q.shape[:2] == (1, 1) and queries >= MANY_QUERIES
    if not (is_alone and needs_grad) or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    q = F.pad(q, (0, 0, 0, -queries % PIECES)).unflatten(2, (PIECES, -1)).squeeze(1)
    k, v = (x.expand(-1, PIECES, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).flatten(1, 2).unsqueeze(1)[:, :, :queries]


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


class MultiScaleAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled over the grid.

    (MViT, https://arxiv.org/abs/2104.11227; relative positions and residual pooling: MViTv2,
    https://arxiv.org/abs/2112.01526)
    """

    def __init__(self, spec: BlockSpec, options: BlockOptions):
        super().__init__()
        dim = spec.dim
        dim_att = spec.dim_out if options.dim_mul_in_att else dim
        if dim_att % spec.heads or (options.pool_first and dim % spec.heads):
            raise ValueError(
                f"a block of width {dim_att} cannot be split into {spec.heads} heads: change MVIT.EMBED_DIM, "
                "MVIT.NUM_HEADS, MVIT.DIM_MUL or MVIT.HEAD_MUL"
            )
        self.heads = spec.heads
        self.has_cls = options.has_cls
        self.pool_first = options.pool_first
        self.residual_pooling = options.residual_pooling
        # Before the projections an unshared pooling sees all channels as one head.
        self.pool_heads = 1 if options.mode == "conv_unshared" else spec.heads
        head_dim = dim_att // spec.heads
        self.scale = head_dim**-0.5

        self.axes = ("h", "w") * options.rel_pos_spatial + ("t",) * options.rel_pos_temporal
        self._add_relative_positions(spec, head_dim, zero=options.rel_pos_zero_init)

        if options.separate_qkv or options.pool_first:
            self.q = nn.Linear(dim, dim_att, bias=options.qkv_bias)
            self.k = nn.Linear(dim, dim_att, bias=options.qkv_bias)
            self.v = nn.Linear(dim, dim_att, bias=options.qkv_bias)
            self.qkv = None
        else:
            self.qkv = nn.Linear(dim, 3 * dim_att, bias=options.qkv_bias)
        self.proj = nn.Linear(dim_att, dim_att)
        self.proj_drop = nn.Dropout(options.dropout) if options.dropout else nn.Identity()

        dim_pool = dim // self.pool_heads if options.pool_first else head_dim
        has_norm = options.mode.startswith("conv")
        for name, kernel, stride in (
            ("q", spec.kernel_q, spec.stride_q),
            ("k", spec.kernel_kv, spec.stride_kv),
            ("v", spec.kernel_kv, spec.stride_kv),
        ):
            pool = make_pool(options.mode, dim_pool, kernel, stride)
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(dim_pool, eps=NORM_EPS) if pool and has_norm else None)

    def _add_relative_positions(self, spec: BlockSpec, head_dim: int, *, zero: bool) -> None:
        """Tables, and what is looked up in them for the planned grid.

        NOTE: where a stride leaves a rest, the length of a table (as in published checkpoints) is not the one that
        the grid needs; the table is then interpolated in every forward pass.
        """
        q_grid = pooled_size(spec.grid, spec.kernel_q, spec.stride_q)
        k_grid = pooled_size(spec.grid, spec.kernel_kv, spec.stride_kv)
        for axis in self.axes:
            i = "thw".index(axis)
            longest = spec.size[i] // (1 if axis == "t" else min(spec.stride_q[i], spec.stride_kv[i]))
            table = nn.Parameter(torch.zeros(2 * longest - 1, head_dim))
            if not zero:
                nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)
            self.register_buffer(f"index_{axis}", relative_index(q_grid[i], k_grid[i]), persistent=False)
        if self.axes:
            self.register_buffer("key_positions", one_hot_positions(k_grid, self.axes), persistent=False)
            self.k_grid = k_grid

    def relative_positions(self, axis: str, q_size: int, k_size: int) -> Tensor:
        """What each query of ``axis`` is multiplied with for each key: [q, k, head_dim]."""
        table = resize_table(getattr(self, f"rel_pos_{axis}"), 2 * max(q_size, k_size) - 1)
        index = getattr(self, f"index_{axis}")
        if tuple(index.shape) != (q_size, k_size):
            index = relative_index(q_size, k_size, table.device)
        return table[index]

    def position_terms(self, q: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """What relative positions add to the weights of a query, per row, column and frame of the keys.

        q [B, heads, N, d] -> [B, heads, N, h + w + t of the keys]; 0 for a class token.
        """
        body = (split_cls(q)[1] if self.has_cls else q).unflatten(2, q_grid)  # [B, heads, t, h, w, d]
        equations = {"h": "bnthwd,hkd->bnthwk", "w": "bnthwd,wkd->bnthwk", "t": "bnthwd,tkd->bnthwk"}
        terms = []
        for axis in self.axes:
            i = "thw".index(axis)
            terms.append(torch.einsum(equations[axis], body, self.relative_positions(axis, q_grid[i], k_grid[i])))
        terms = torch.cat(terms, dim=-1).flatten(2, 4)
        return F.pad(terms, (0, 0, 1, 0)) if self.has_cls else terms

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """Weighted mean of v [B, heads, M, d] for each query [B, heads, N, d].

        The weight of query i and key j grows by q_i . R_h[i, row of j] + q_i . R_w[i, column of j] + q_i . R_t[..].
        That is the product of these terms, one per row, column and frame, with the one-hot position of j: appended to
        q and k, and divided by the scale that all products get, they make it plain attention, and no N x M table is
        stored. (v gets as many zeros, because fast kernels want one width for all three.)
        """
        if not self.axes:
            return dot_product_attention(q, k, v, self.scale)
        terms = self.position_terms(q, q_grid, k_grid)
        positions = self.key_positions
        if k_grid != self.k_grid:
            positions = one_hot_positions(k_grid, self.axes, k.device)
        positions = F.pad(positions, (0, 0, 1, 0)) if self.has_cls else positions  # [M, h + w + t]
        wide_q = torch.cat([q, (terms / self.scale).to(q.dtype)], dim=-1)
        wide_k = torch.cat([k, positions.to(k.dtype).expand(*k.shape[:2], -1, -1)], dim=-1)
        wide_v = F.pad(v, (0, terms.shape[-1]))
        return dot_product_attention(wide_q, wide_k, wide_v, self.scale)[..., : v.shape[-1]]

    def attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """The same as :meth:`attend` by its definition: stores the weights [B, heads, N, M] and what is added to them.

        For comparing and for counting operations as papers do.
        """
        weights = (q * self.scale) @ k.transpose(-2, -1)
        if self.axes:
            sizes = [k_grid["thw".index(axis)] for axis in self.axes]
            bias = 0.0
            for axis, part in zip(self.axes, self.position_terms(q, q_grid, k_grid).split(sizes, -1), strict=True):
                shape = [1, 1, 1]
                shape["thw".index(axis)] = part.shape[-1]
                bias = bias + part.unflatten(-1, shape)  # [B, heads, N, t, h, w] in the end
            bias = bias.expand(*bias.shape[:3], *k_grid).flatten(3)
            weights = weights + (F.pad(bias, (1, 0)) if self.has_cls else bias)
        return weights.softmax(-1) @ v

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def project(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Grid, Grid]:
        """Tokens [B, N, dim] -> queries, keys and values [B, heads, N', d], and the grids of queries and keys."""
        names = ("q", "k", "v")
        if self.pool_first:
            whole = self.split_heads(x, self.pool_heads)
            parts = [whole, whole, whole]
        elif self.qkv is None:
            parts = [self.split_heads(getattr(self, name)(x), self.heads) for name in names]
        else:
            # Cut along the last axis, so that the three gradients are put together in one pass.
            parts = [self.split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=2)]
        grids = []
        pooled = []
        for name, part in zip(names, parts, strict=True):
            norm = getattr(self, f"norm_{name}")
            part, part_grid = pool_tokens(part, getattr(self, f"pool_{name}"), grid, has_cls=self.has_cls, norm=norm)
            if self.pool_first:
                part = self.split_heads(getattr(self, name)(part.transpose(1, 2).flatten(2)), self.heads)
            pooled.append(part)
            grids.append(part_grid)
        return *pooled, grids[0], grids[1]

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """[B, N, dim] on ``grid`` -> [B, N', dim_att] on the grid of the pooled queries."""
        q, k, v, q_grid, k_grid = self.project(x, grid)
        x = self.attend(q, k, v, q_grid, k_grid)
        if self.residual_pooling and self.has_cls:
            cls, x = split_cls(x)
            x = torch.cat([cls, x + split_cls(q)[1]], dim=2)
        elif self.residual_pooling:
            x = x + q
        x = x.transpose(1, 2).flatten(2)  # [B, heads, N', d] -> [B, N', dim_att]
        return self.proj_drop(self.proj(x)), q_grid


class MultiScaleBlock(nn.Module):
    """Attention and MLP, each with its norm and a shortcut; the shortcut of attention is max-pooled as queries are.

    The width changes on the shortcut by ``proj`` of the *normalised* input, around attention (MViTv2) or the MLP
    (MViTv1). (Layer scale: https://arxiv.org/abs/2103.17239)
    """

    def __init__(self, spec: BlockSpec, options: BlockOptions):
        super().__init__()
        self.has_cls = options.has_cls
        self.dim_mul_in_att = options.dim_mul_in_att
        dim_att = spec.dim_out if options.dim_mul_in_att else spec.dim
        if options.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((dim_att,), float(options.layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((spec.dim_out,), float(options.layer_scale)))
        else:
            self.gamma_1 = self.gamma_2 = None
        self.norm1 = nn.LayerNorm(spec.dim, eps=NORM_EPS)
        self.attn = MultiScaleAttention(spec, options)
        self.drop_path = drop_path(spec.drop_path)
        self.norm2 = nn.LayerNorm(dim_att, eps=NORM_EPS)
        self.mlp = Mlp(dim_att, int(dim_att * options.mlp_ratio), spec.dim_out, dropout=options.dropout)
        self.proj = nn.Linear(spec.dim, spec.dim_out) if spec.dim != spec.dim_out else None
        self.pool_skip = None
        if max(spec.stride_q) > 1:
            kernel = tuple(s + 1 if s > 1 else s for s in spec.stride_q)
            self.pool_skip = make_pool("max", spec.dim_out, kernel, spec.stride_q)

    def _scaled(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(x if gamma is None else x * gamma)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """[B, N, dim] on ``grid`` -> [B, N', dim_out] on the grid of the pooled queries."""
        normed = self.norm1(x)
        y, new_grid = self.attn(normed, grid)
        if self.proj is not None and self.dim_mul_in_att:
            x = self.proj(normed)
        shortcut, _ = pool_tokens(x.unsqueeze(1), self.pool_skip, grid, has_cls=self.has_cls)
        x = shortcut.squeeze(1) + self._scaled(y, self.gamma_1)
        normed = self.norm2(x)
        y = self.mlp(normed)
        if self.proj is not None and not self.dim_mul_in_att:
            x = self.proj(normed)
        return x + self._scaled(y, self.gamma_2), new_grid
