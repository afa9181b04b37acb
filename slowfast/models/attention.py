"""Attention over pooled tokens: relative positions folded into plain attention, and the blocks made of it.

Tokens are [B, N, D]: a class token first, where there is one, then a grid of t x h x w of them, t slowest.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.depthwise import DepthwiseConv3d
from slowfast.models.parts import Mlp, drop_path, has_hooks, is_untouched
from slowfast.models.relative_positions import RelativePositions
from slowfast.models.token_pooling import Grid, SeenTokens, make_pool, pool_tokens, pooled_size, seen_tokens

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


class MultiScaleAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled over the grid.

    (MViT, https://arxiv.org/abs/2104.11227; relative positions and residual pooling: MViTv2,
    https://arxiv.org/abs/2112.01526)
    """

    by_definition = False  # computed by ``attend_plainly``, with no token left out: to compare, and to count

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
        self.spec = spec
        for name, kernel, stride in (
            ("q", spec.kernel_q, spec.stride_q),
            ("k", spec.kernel_kv, spec.stride_kv),
            ("v", spec.kernel_kv, spec.stride_kv),
        ):
            pool = make_pool(options.mode, dim_pool, kernel, stride)
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(dim_pool, eps=NORM_EPS) if pool and has_norm else None)

    def _add_relative_positions(self, spec: BlockSpec, head_dim: int, *, zero: bool) -> None:
        """Tables, and what is looked up in them for the planned grids."""
        for axis in self.axes:
            i = "thw".index(axis)
            longest = spec.size[i] // (1 if axis == "t" else min(spec.stride_q[i], spec.stride_kv[i]))
            table = nn.Parameter(torch.zeros(2 * max(longest, 1) - 1, head_dim))
            if not zero:
                nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)
        if self.axes:
            q_grid = pooled_size(spec.grid, spec.kernel_q, spec.stride_q)
            k_grid = pooled_size(spec.grid, spec.kernel_kv, spec.stride_kv)
            self.positions = RelativePositions(self.axes, q_grid, k_grid, head_dim=head_dim, has_cls=self.has_cls)

    def position_tables(self, scale: float = 1.0) -> dict[str, Tensor]:
        """The relative positions of each axis, divided by ``scale``."""
        return {axis: getattr(self, f"rel_pos_{axis}") / scale for axis in self.axes}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """Weighted mean of v [B, heads, M, d] for each query [B, heads, N, d]."""
        if self.by_definition:
            return self.attend_plainly(q, k, v, q_grid, k_grid)
        if self.axes:
            wide = self.positions.append(q, k, v, self.position_tables(self.scale), q_grid, k_grid)
            return dot_product_attention(*wide, self.scale)[..., : v.shape[-1]]
        return dot_product_attention(q, k, v, self.scale)

    def attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:
        """The same as :meth:`attend` by its definition: stores the weights [B, heads, N, M] and what is added to them.

        For comparing and for counting operations as papers do.
        """
        weights = (q * self.scale) @ k.transpose(-2, -1)
        if self.axes:
            sizes = [k_grid["thw".index(axis)] for axis in self.axes]
            terms = self.positions.terms(q, self.position_tables(), q_grid, k_grid)
            bias = 0.0
            for axis, part in zip(self.axes, terms.split(sizes, -1), strict=True):
                shape = [1, 1, 1]
                shape["thw".index(axis)] = part.shape[-1]
                bias = bias + part.unflatten(-1, shape)  # [B, heads, N, t, h, w] in the end
            bias = bias.expand(*bias.shape[:3], *k_grid).flatten(3)
            weights = weights + (F.pad(bias, (1, 0)) if self.has_cls else bias)
        return weights.softmax(-1) @ v

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def project(self, x: Tensor, grid: Grid, *, only_cls: bool = False) -> tuple[Tensor, Tensor, Tensor, Grid, Grid]:
        """Tokens [B, N, dim] -> queries, keys and values [B, heads, N', d], and the grids of queries and keys.

        ``only_cls``: the query of the class token alone.
        """
        names = ("q", "k", "v")
        pools = [getattr(self, f"pool_{name}") for name in names]
        grids = [grid, grid, grid]
        seen = self._seen(x, grid)
        if self.pool_first:
            whole = self.split_heads(x, self.pool_heads)
            parts = [whole, whole, whole]
        elif seen is not None:
            pools[1:] = [partial(pool.convolve, stride=seen.stride) for pool in pools[1:]]
            grids[1:] = [seen.grid, seen.grid]
            parts = self._project_apart(x[:, :1] if only_cls else x, x.index_select(1, seen.index))
        elif only_cls:
            parts = self._project_apart(x[:, :1], x)
        elif self.qkv is None:
            parts = [self.split_heads(getattr(self, name)(x), self.heads) for name in names]
        else:
            # Cut along the last axis, so that the three gradients are put together in one pass.
            parts = [self.split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=2)]
        pooled = []
        for i, (name, part) in enumerate(zip(names, parts, strict=True)):
            norm = getattr(self, f"norm_{name}")
            if name == "q" and only_cls:
                part = part if norm is None else norm(part)
                grids[i] = pooled_size(grid, self.spec.kernel_q, self.spec.stride_q)
            else:
                part, grids[i] = pool_tokens(part, pools[i], grids[i], has_cls=self.has_cls, norm=norm)
            if self.pool_first:
                part = self.split_heads(getattr(self, name)(part.transpose(1, 2).flatten(2)), self.heads)
            pooled.append(part)
        return *pooled, grids[0], grids[1]

    def _seen(self, x: Tensor, grid: Grid) -> SeenTokens | None:
        """Of the pooling of keys and values, where what it does not see need not be made."""
        pools = [self.pool_k, self.pool_v]
        is_measured = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (is_measured and all(is_untouched(pool, DepthwiseConv3d) and pool.backend == "auto" for pool in pools)):
            return None
        seen = seen_tokens(grid, self.spec.kernel_kv, self.spec.stride_kv, has_cls=self.has_cls, device=x.device)
        return seen if seen is not None and self.can_skip() else None

    def can_skip(self) -> bool:
        """Whether queries, keys and values that nobody needs may be left out.

        Layers that someone looks into or has replaced get all tokens.
        """
        layers = [self.q, self.k, self.v] if self.qkv is None else [self.qkv]
        return (
            not (self.by_definition or self.pool_first)
            and all(is_untouched(layer, nn.Linear) for layer in layers)
            and all(type(layer.weight) in (Tensor, nn.Parameter) for layer in layers)
        )

    def _project_apart(self, x: Tensor, tokens: Tensor) -> list[Tensor]:
        """Queries of x [B, N, dim], keys and values of other tokens [B, M, dim]: [B, heads, N or M, d]."""
        if self.qkv is None:
            parts = [self.q(x), self.k(tokens), self.v(tokens)]
        else:
            third = self.qkv.out_features // 3
            sizes = [third, 2 * third]
            weights = self.qkv.weight.split(sizes)
            biases = [None, None] if self.qkv.bias is None else self.qkv.bias.split(sizes)
            parts = [F.linear(x, weights[0], biases[0]), *F.linear(tokens, weights[1], biases[1]).chunk(2, dim=2)]
        return [self.split_heads(part, self.heads) for part in parts]

    def mix(self, x: Tensor, grid: Grid, *, only_cls: bool = False) -> tuple[Tensor, Grid]:
        """What ``forward`` gives, before its last layer."""
        q, k, v, q_grid, k_grid = self.project(x, grid, only_cls=only_cls)
        if only_cls:  # it has no relative position, and its query is not added
            x = dot_product_attention(q + self._zero_of_unused(), k, v, self.scale)
        else:
            x = self.attend(q, k, v, q_grid, k_grid)
            if self.residual_pooling:
                x = self._add_body(x, q) if self.has_cls else x + q
        return x.transpose(1, 2).flatten(2), q_grid  # [B, heads, N', d] -> [B, N', dim_att]

    def _zero_of_unused(self) -> Tensor | float:
        """0 made of the parameters that act on no class token: optimisers and DDP expect gradients of 0 for them."""
        if not torch.is_grad_enabled():
            return 0.0
        unused = [*self.position_tables().values(), *(self.pool_q.parameters() if self.pool_q else ())]
        return sum((0.0 * param).sum() for param in unused)

    @staticmethod
    def _add_body(x: Tensor, q: Tensor) -> Tensor:
        """Both [B, heads, N, d]: ``x + q``, but ``x`` for the class token."""
        is_body = q.new_ones(q.shape[2], 1)
        is_body[0] = 0.0
        return torch.addcmul(x, q, is_body)

    def forward(self, x: Tensor, grid: Grid, *, only_cls: bool = False) -> tuple[Tensor, Grid]:
        """[B, N, dim] on ``grid`` -> [B, N', dim_att] on the grid of the pooled queries.

        ``only_cls``, where ``can_skip``: [B, 1, dim_att], the class token alone.
        """
        x, grid = self.mix(x, grid, only_cls=only_cls)
        return self.proj_drop(self.proj(x)), grid


def make_shortcut_pool(spec: BlockSpec) -> nn.Module | None:
    """Maximum pooling to the grid of the queries, or None; ``ValueError`` where it would give another grid."""
    kernel = tuple(s + 1 if s > 1 else s for s in spec.stride_q) if max(spec.stride_q) > 1 else None
    queries, shortcut = (pooled_size(spec.grid, size, spec.stride_q) for size in (spec.kernel_q, kernel))
    if queries != shortcut:
        raise ValueError(
            f"queries pooled with kernel {list(spec.kernel_q or ())} and stride {list(spec.stride_q)} make {queries} "
            f"(t, h, w) of {spec.grid} tokens, but their shortcut has {shortcut}: change MVIT.POOL_KVQ_KERNEL, "
            "MVIT.POOL_Q_STRIDE or the size of the clip"
        )
    return make_pool("max", spec.dim_out, kernel, spec.stride_q)


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
        self.pool_skip = make_shortcut_pool(spec)

    def _scaled(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(x if gamma is None else x * gamma)

    def shortcut(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, N, D] pooled as the queries are."""
        return pool_tokens(x.unsqueeze(1), self.pool_skip, grid, has_cls=self.has_cls)[0].squeeze(1)

    def leaves_out(self) -> bool:
        """Whether all but the class token may be left out where only that is wanted.

        Not if someone looks in or has put in parts of his own, and not if there is dropout, which would draw other
        numbers.
        """
        own_methods = {"forward", "mix", "project", "attend"}
        return (
            self.has_cls
            and type(self).forward is MultiScaleBlock.forward
            and type(self.attn) is MultiScaleAttention
            and type(self.mlp) is Mlp
            and not own_methods & (vars(self).keys() | vars(self.attn).keys() | vars(self.mlp).keys())
            and self.attn.can_skip()
            and all(isinstance(dropout, nn.Identity) for dropout in (self.attn.proj_drop, self.mlp.drop))
            and not has_hooks(self)
        )

    def forward(self, x: Tensor, grid: Grid, *, only_cls: bool = False) -> tuple[Tensor, Grid]:
        """[B, N, dim] on ``grid`` -> [B, N', dim_out] on the grid of the pooled queries.

        ``only_cls``, where ``leaves_out``: [B, 1, dim_out], the class token alone.
        """
        all_normed = normed = self.norm1(x)
        if only_cls:
            x, normed = x[:, :1], normed[:, :1]
        if self.proj is not None and self.dim_mul_in_att:
            x = self.proj(normed)
        options = {"only_cls": True} if only_cls else {}
        x, new_grid = self.add_attention(x if only_cls else self.shortcut(x, grid), all_normed, grid, **options)
        normed = self.norm2(x)
        if self.proj is not None and not self.dim_mul_in_att:
            x = self.proj(normed)
        return self.add_mlp(x, normed), new_grid

    def add_attention(self, x: Tensor, normed: Tensor, grid: Grid, **options) -> tuple[Tensor, Grid]:
        """``x`` and the attention of ``normed`` tokens, and the grid of the sum."""
        y, grid = self.attn(normed, grid, **options)
        return x + self._scaled(y, self.gamma_1), grid

    def add_mlp(self, x: Tensor, normed: Tensor) -> Tensor:
        """``x`` and the MLP of ``normed`` tokens."""
        return x + self._scaled(self.mlp(normed), self.gamma_2)
