"""Reversible transformers: blocks whose inputs follow from their outputs, so that training need not keep them.

Reversible Vision Transformers (Mangalam et al., https://arxiv.org/abs/2302.04869). Two streams [B, N, D] pass through
every block: Y1 = X1 + F(X2), Y2 = X2 + G(Y1), with attention in F and an MLP in G. The backward pass goes
X2 = Y2 - G(Y1), X1 = Y1 - F(X2). Where the width or the grid changes, a transition, which is not reversible, merges
the streams into one; the next block gets it twice.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from slowfast.models.attention import (
    NORM_EPS,
    BlockOptions,
    BlockSpec,
    MultiScaleAttention,
    make_shortcut_pool,
)
from slowfast.models.parts import Mlp, drop_path
from slowfast.models.token_pooling import Grid, pool_tokens

SHORTCUTS = ("conv", "max")


def _mean(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2


MERGES = {"add": torch.add, "avg": _mean, "max": torch.maximum, "min": torch.minimum}
_CONCAT_LINEAR = re.compile(r"(ln\+)?concat_linear(?:_([0-9.]+))?(?:_([0-9.]+))?")


@dataclass(frozen=True)
class ReversibleSpec:
    """Which blocks are transitions, and how streams become one there and at the end (see ``TwoStreamFusion``)."""

    transitions: tuple[int, ...] = ()
    fuse: str = "concat"  # after the last block
    pre_fuse: str = "avg"  # before a transition
    shortcut: str = "conv"  # pooling of a transition's shortcut: as of its queries, or "max"

    def __post_init__(self):
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"MVIT.REV.RES_PATH={self.shortcut!r}: allowed are {', '.join(SHORTCUTS)}")


class TwoStreamFusion(nn.Module):
    """Both streams, side by side in one tensor, to what follows.

    ``add``, ``avg``, ``max`` and ``min`` merge the halves; ``concat`` leaves both. ``concat_linear_<m>_<p>`` adds to
    both an MLP of them with ``m`` times as many hidden channels (1 if not given) and dropout ``p`` (0); ``ln+`` in
    front normalises its input. ``key`` is named in the error for any other name.
    """

    def __init__(self, mode: str, dim: int, *, key: str = "mode"):
        super().__init__()
        self.merge = MERGES.get(mode)
        self.fuse_fn = None
        self.dim_out = dim // 2 if self.merge else dim
        match = _CONCAT_LINEAR.fullmatch(mode)
        if match:
            norm, factor, dropout = match.groups()
            mlp = Mlp(dim, int(dim * float(factor or 1)), dim, dropout=float(dropout or 0))
            self.fuse_fn = nn.Sequential(nn.LayerNorm(dim), mlp) if norm else mlp
        elif mode != "concat" and self.merge is None:
            raise ValueError(
                f"{key}={mode!r}: allowed are {', '.join(MERGES)}, concat, and [ln+]concat_linear[_factor[_dropout]]"
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 2 D] -> [B, N, D], or as wide as it came."""
        if self.merge is not None:
            return self.merge(*x.chunk(2, dim=-1))
        return x if self.fuse_fn is None else x + self.fuse_fn(x)


class AttentionBranch(nn.Module):
    """F: attention of normalised tokens."""

    def __init__(self, spec: BlockSpec, options: BlockOptions):
        super().__init__()
        self.norm = nn.LayerNorm(spec.dim, eps=NORM_EPS)
        self.attn = MultiScaleAttention(spec, options)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """[B, N, dim] on ``grid`` -> [B, N', dim_out] on the grid of the pooled queries."""
        return self.attn(self.norm(x), grid)


class MlpBranch(nn.Module):
    """G: an MLP of normalised tokens."""

    def __init__(self, dim: int, options: BlockOptions):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), dim, dropout=options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> same."""
        return self.mlp(self.norm(x))


class ReversibleBlock(nn.Module):
    """Y1 = X1 + F(X2), Y2 = X2 + G(Y1); stochastic depth leaves out F and G of the *same* samples."""

    def __init__(self, spec: BlockSpec, options: BlockOptions):
        super().__init__()
        self.F = AttentionBranch(spec, options)
        self.G = MlpBranch(spec.dim_out, options)
        self.drop_path = drop_path(spec.drop_path)
        self.has_dropout = options.dropout > 0

    def kept(self, x: Tensor) -> Tensor | None:
        """What stochastic depth multiplies the branches of each sample with: [B, 1, 1]; None for 1."""
        if not self.training or isinstance(self.drop_path, nn.Identity):
            return None
        return self.drop_path(x.new_ones(len(x), 1, 1))

    def f(self, x2: Tensor, grid: Grid, kept: Tensor | None) -> Tensor:
        """What is added to X1."""
        y, _ = self.F(x2, grid)
        return y if kept is None else y * kept

    def g(self, y1: Tensor, kept: Tensor | None) -> Tensor:
        """What is added to X2."""
        y = self.G(y1)
        return y if kept is None else y * kept

    def forward(self, x1: Tensor, x2: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Streams [B, N, D] -> streams of the same shape, by plain autograd."""
        kept = self.kept(x1)
        y1 = x1 + self.f(x2, grid, kept)
        return y1, x2 + self.g(y1, kept)


class _Randomness:
    """The state of the random generators at one place, to draw the same again."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [] if device.type == "cpu" else [device]
        self.type = "cuda" if device.type == "cpu" else device.type
        self.cpu = torch.get_rng_state()
        self.others = [getattr(torch, self.type).get_rng_state(device) for device in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, what was drawn since is drawn again; afterwards the generators go on as if nothing had been."""
        with torch.random.fork_rng(self.devices, device_type=self.type):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.others, strict=True):
                getattr(torch, self.type).set_rng_state(state, device)
            yield


class _Tape:
    """The streams behind the block whose gradient comes next; blocks of one run hand them from last to first."""

    def __init__(self, first: ReversibleBlock) -> None:
        self.first = first
        self.streams: tuple[Tensor, Tensor] | None = None


class _ReversibleStep(torch.autograd.Function):
    """One block that keeps none of its activations; of a run of blocks, only the last keeps the streams it gives.

    Parameters are inputs of the function, so gradients reach them the ordinary way, block by block.
    """

    @staticmethod
    def forward(ctx, block, grid, tape, is_last, x1, x2, *parameters):
        device = x1.device.type
        ctx.block, ctx.grid, ctx.tape, ctx.is_last = block, grid, tape, is_last
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        is_random = block.has_dropout and block.training
        ctx.kept = block.kept(x1)
        ctx.random_f = _Randomness(x1.device) if is_random else None
        y1 = x1 + block.f(x2, grid, ctx.kept)
        ctx.random_g = _Randomness(x1.device) if is_random else None
        y2 = x2 + block.g(y1, ctx.kept)
        if is_last:
            ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y1, grad_y2):
        block, kept, tape = ctx.block, ctx.kept, ctx.tape
        y1, y2 = ctx.saved_tensors if ctx.is_last else tape.streams
        tape.streams = None
        added, through_y1, grads_g = _again(ctx, lambda y: block.g(y, kept), y1, grad_y2, block.G, random=ctx.random_g)
        x2 = y2 - added
        grad_x1 = grad_y1 + through_y1
        added, through_x2, grads_f = _again(
            ctx, lambda x: block.f(x, ctx.grid, kept), x2, grad_x1, block.F, random=ctx.random_f
        )
        tape.streams = None if block is tape.first else (y1 - added, x2)
        return None, None, None, None, grad_x1, grad_y2 + through_x2, *grads_f, *grads_g


def _again(ctx, function, x, grad, module, *, random):
    """``function(x)`` computed anew as in the forward pass, and the gradients of ``x`` and of the parameters."""
    parameters = trainable(module)
    with torch.enable_grad(), torch.autocast(**ctx.autocast):
        x = x.detach().requires_grad_()
        if random is None:
            y = function(x)
        else:
            with random.again():
                y = function(x)
    grad_x, *grads = torch.autograd.grad(y, [x, *parameters], grad.to(y.dtype))
    return y.detach(), grad_x, grads


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [param for param in module.parameters() if param.requires_grad]


class StageTransition(nn.Module):
    """Merges the streams, then attention and MLP with shortcuts, as in a usual block.

    The shortcut of attention is pooled by the convolution of the queries. NOTE: stochastic depth acts on the whole
    output, shortcuts included, so a sample may lose all its tokens; published networks were trained so.
    """

    def __init__(self, spec: BlockSpec, options: BlockOptions, reversible: ReversibleSpec):
        super().__init__()
        fuse = TwoStreamFusion(reversible.pre_fuse, 2 * spec.dim, key="MVIT.REV.PRE_Q_FUSION")
        dim = fuse.dim_out
        self.F = AttentionBranch(replace(spec, dim=dim), options)
        self.G = MlpBranch(spec.dim_out, options)
        self.res_proj = nn.Linear(dim, spec.dim_out) if dim != spec.dim_out else nn.Identity()
        self.pre_q_fuse = fuse
        self.drop_path = drop_path(spec.drop_path)
        self.pool_first = options.pool_first
        self.by_max = reversible.shortcut == "max"
        self.max_pool = make_shortcut_pool(spec) if self.by_max else None

    def shortcut(self, x: Tensor, grid: Grid) -> Tensor:
        """[B, N, dim] -> [B, N', dim_out], pooled as the queries are."""
        if self.by_max:
            return pool_tokens(self.res_proj(x).unsqueeze(1), self.max_pool, grid, has_cls=False)[0].squeeze(1)
        if not self.pool_first:
            x = self.res_proj(x)
        attn = self.F.attn
        x = attn.split_heads(x, attn.pool_heads)
        x, _ = pool_tokens(x, attn.pool_q, grid, has_cls=False, norm=attn.norm_q)
        x = x.transpose(1, 2).flatten(2)  # [B, heads, N', d] -> [B, N', D]
        return self.res_proj(x) if self.pool_first else x

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Both streams [B, N, 2 D] on ``grid`` -> one, [B, N', dim_out], on the grid of the pooled queries."""
        x = self.pre_q_fuse(x)
        y, new_grid = self.F(x, grid)
        x = self.shortcut(x, grid) + y
        return self.drop_path(x + self.G(x)), new_grid


class ReversibleBackbone(nn.Module):
    """The blocks of ``plan``, reversible but for the transitions.

    In training, the memory of activations does not grow with the number of reversible blocks. (Compiled by
    ``torch.compile`` they are ordinary blocks, and what is kept is the compiler's choice.)
    """

    def __init__(
        self,
        plan: Sequence[BlockSpec],
        options: BlockOptions,
        reversible: ReversibleSpec,
        *,
        checkpoint_transitions: bool = False,
    ):
        super().__init__()
        if options.has_cls:
            raise ValueError("MVIT.REV.ENABLE=True knows no class token: set MVIT.CLS_EMBED_ON False")
        unknown = [i for i in reversible.transitions if i not in range(len(plan))]
        if unknown:
            raise ValueError(f"MVIT.REV.BUFFER_LAYERS has {unknown}: blocks are numbered 0 to {len(plan) - 1}")
        for i, spec in enumerate(plan):
            if i not in reversible.transitions and (spec.dim != spec.dim_out or max(spec.stride_q) > 1):
                raise ValueError(
                    f"block {i} changes the width or the grid (MVIT.DIM_MUL, MVIT.POOL_Q_STRIDE), which a reversible "
                    f"block cannot: add it to MVIT.REV.BUFFER_LAYERS={list(reversible.transitions)}"
                )
        options = replace(options, dim_mul_in_att=True)
        self.checkpoint_transitions = checkpoint_transitions
        self.layers = nn.ModuleList(
            StageTransition(spec, options, reversible)
            if i in reversible.transitions
            else ReversibleBlock(spec, options)
            for i, spec in enumerate(plan)
        )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """[B, N, D] on ``grid`` -> both streams [B, N', 2 D'] and their grid."""
        saves = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        x1, x2 = x, x
        tape = None
        for i, layer in enumerate(self.layers):
            if isinstance(layer, StageTransition):
                x = torch.cat([x1, x2], dim=-1)
                if saves and self.checkpoint_transitions:
                    x, grid = checkpoint(layer, x, grid, use_reentrant=False)
                else:
                    x, grid = layer(x, grid)
                x1, x2 = x, x
                tape = None
            elif saves:
                tape = tape or _Tape(first=layer)
                is_last = i + 1 == len(self.layers) or isinstance(self.layers[i + 1], StageTransition)
                parameters = trainable(layer.F) + trainable(layer.G)
                x1, x2 = _ReversibleStep.apply(layer, grid, tape, is_last, x1, x2, *parameters)
            else:
                x1, x2 = layer(x1, x2, grid)
        return torch.cat([x1, x2], dim=-1), grid
