"""MViT, first and second version, and ViT as the one without pooling. Plan first (``plan_blocks``), then build."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slowfast.models.attention import (
    NORM_EPS,
    BlockOptions,
    BlockSpec,
    MultiScaleAttention,
    MultiScaleBlock,
)
from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.heads import ACTIVATIONS, HeadSpec, refuse_boxes
from slowfast.models.layers import Conv3d, set_conv_backend
from slowfast.models.parts import MLPHead, round_width, sincos_table
from slowfast.models.pathways import as_pathways
from slowfast.models.reversible import ReversibleBackbone, ReversibleSpec, TwoStreamFusion
from slowfast.models.token_pooling import Grid, pooled_size

POSITIONS = ("none", "joint", "separate", "sincos")


def plan_blocks(
    depth: int,
    *,
    dim: int,
    heads: int,
    grid: Grid,
    size: Grid | None = None,
    dim_mul: Sequence[Sequence] = (),
    head_mul: Sequence[Sequence] = (),
    pool_q_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride_adaptive: Sequence[int] | None = None,
    pool_kernel: Sequence[int] | None = None,
    dim_mul_in_att: bool = False,
    drop_path: float = 0.0,
) -> list[BlockSpec]:
    """What each block is: widths, heads, pooling and the tokens that reach it.

    ``grid`` of tokens (t, h, w) enters the first block; ``size`` is the grid as tables of relative positions are
    sized (``grid`` unless given). ``dim_mul`` and ``head_mul`` list [block, factor]: a block has the heads *after* its
    factor. With ``dim_mul_in_att`` it also widens by its own factor, otherwise the block before it widens in its MLP.
    Strides are listed as [block, t, h, w]; the adaptive one holds for all blocks, each time divided by the strides of
    queries so far. ``pool_kernel`` None stands for stride + 1 where the stride is above 1.
    """
    if depth < 1:
        raise ValueError(f"MVIT.DEPTH={depth}: must be at least 1")
    dim_factors = _by_block("MVIT.DIM_MUL", dim_mul, depth + 1, 1)
    head_factors = _by_block("MVIT.HEAD_MUL", head_mul, depth + 1, 1)
    q_strides = _by_block("MVIT.POOL_Q_STRIDE", pool_q_stride, depth, 3)
    kv_strides = _by_block("MVIT.POOL_KV_STRIDE", pool_kv_stride, depth, 3)
    if pool_kv_stride_adaptive is not None:
        stride = tuple(pool_kv_stride_adaptive)
        for i in range(depth):
            stride = tuple(max(s // q, 1) for s, q in zip(stride, q_strides.get(i, (1, 1, 1)), strict=True))
            kv_strides[i] = stride
    grid = tuple(grid)
    size = grid if size is None else tuple(size)
    specs = []
    for i in range(depth):
        heads = round_width(heads, head_factors.get(i, 1.0))
        # NOTE: the divisor applies the factor of the heads a second time, as published widths do.
        j = i if dim_mul_in_att else i + 1
        divisor = round_width(heads, head_factors.get(j, 1.0))
        dim_out = round_width(dim, dim_factors.get(j, 1.0), divisor=divisor)
        kernel_q, stride_q = _pooling(pool_kernel, q_strides.get(i))
        kernel_kv, stride_kv = _pooling(pool_kernel, kv_strides.get(i))
        if min(grid) < 1 or min(pooled_size(grid, kernel_kv, stride_kv)) < 1:
            raise ValueError(f"no tokens are left at block {i}: the clip is too small for the strides of MVIT.*")
        specs.append(
            BlockSpec(
                dim=dim,
                dim_out=dim_out,
                heads=heads,
                grid=grid,
                size=size,
                kernel_q=kernel_q,
                kernel_kv=kernel_kv,
                stride_q=stride_q,
                stride_kv=stride_kv,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
        )
        dim = dim_out
        grid = pooled_size(grid, kernel_q, stride_q)
        size = tuple(max(n // s, 1) for n, s in zip(size, stride_q, strict=True))
    return specs


def _by_block(key: str, rows: Sequence[Sequence], depth: int, length: int) -> dict[int, tuple | float]:
    """[[block, values ...], ...] -> {block: values}; a single value stands bare."""
    table = {}
    for row in rows:
        if len(row) != 1 + length or row[0] not in range(depth) or min(row[1:]) <= 0:
            raise ValueError(
                f"{key} has the entry {list(row)}: needed are a block from 0 to {depth - 1} and then {length} positive "
                "number(s)"
            )
        table[int(row[0])] = tuple(row[1:]) if length > 1 else float(row[1])
    return table


def _pooling(kernel: Sequence[int] | None, stride: Grid | None) -> tuple[Grid | None, Grid]:
    """Kernel and stride of a pooling; the kernel is None where there is nothing to do."""
    if stride is None:
        return None, (1, 1, 1)
    kernel = tuple(kernel) if kernel is not None else tuple(s + 1 if s > 1 else s for s in stride)
    if max(kernel) == 1 and max(stride) == 1:
        return None, stride
    return kernel, stride


@dataclass(frozen=True)
class PatchSpec:
    """The convolution that makes tokens of a clip; (t, h, w) throughout."""

    dim: int
    in_channels: int = 3
    kernel: Grid = (3, 7, 7)
    stride: Grid = (2, 4, 4)
    padding: Grid = (1, 3, 3)
    flat: bool = False  # images: 4-D weights, kernel and stride 1 and padding 0 in time

    def grid(self, clip: Sequence[int]) -> Grid:
        """Tokens of a clip of that many frames, rows and columns."""
        sizes = zip(clip, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)


class PatchEmbed(nn.Module):
    """A clip to tokens; a matrix product where patches do not overlap."""

    def __init__(self, spec: PatchSpec):
        super().__init__()
        self.spec = spec
        if spec.flat:
            self.proj = nn.Conv2d(spec.in_channels, spec.dim, spec.kernel[1:], spec.stride[1:], spec.padding[1:])
        else:
            self.proj = Conv3d(spec.in_channels, spec.dim, spec.kernel, spec.stride, spec.padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """[B, C, T, H, W] -> [B, N, D] and the grid of the N tokens."""
        grid = self.spec.grid(x.shape[2:])
        if min(grid) < 1:
            raise ValueError(
                f"a clip of {tuple(x.shape[2:])} (t, h, w) holds no patch of MVIT.PATCH_KERNEL={self.spec.kernel}: "
                "give a larger clip (DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE, DATA.TEST_CROP_SIZE)"
            )
        if self.spec.kernel == self.spec.stride and not any(self.spec.padding):
            for axis, (n, k) in enumerate(zip(grid, self.spec.kernel, strict=True)):
                x = x.narrow(2 + 2 * axis, 0, n * k).unflatten(2 + 2 * axis, (n, k))
            x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # [B, N, C*kt*kh*kw]
            return F.linear(x, self.proj.weight.flatten(1), self.proj.bias), grid
        x = self.proj(x.squeeze(2)).unsqueeze(2) if self.spec.flat else self.proj(x)
        return x.flatten(2).transpose(1, 2), grid  # [B, D, t, h, w] -> [B, N, D]


def resize_positions(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions [1, N, D] of a grid for another one: bicubic in space, linear in time."""
    if tuple(old) == tuple(new):
        return table
    x = table[0].unflatten(0, old).permute(0, 3, 1, 2)  # [t, D, h, w]
    if old[1:] != new[1:]:
        x = F.interpolate(x, size=tuple(new[1:]), mode="bicubic")
    if old[0] != new[0]:
        x = x.permute(2, 3, 1, 0).flatten(0, 1)  # [h*w, D, t]
        x = F.interpolate(x, size=new[0], mode="linear")
        x = x.unflatten(0, tuple(new[1:])).permute(3, 2, 0, 1)  # [t', D, h, w]
    return x.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(0)


def separate_table(space: Tensor, time: Tensor, cls: Tensor | None, old: Grid, new: Grid) -> Tensor:
    """Positions [1, h*w, D] in space and [1, t, D] in time of the grid ``old``, summed for ``new``: [1, N, D].

    ``cls`` [1, 1, D] comes first.
    """
    t, h, w = old
    space = resize_positions(space, (1, h, w), (1, *new[1:]))
    time = resize_positions(time, (t, 1, 1), (new[0], 1, 1))
    table = (time.unsqueeze(2) + space.unsqueeze(1)).flatten(1, 2)  # [1, t, h*w, D] -> [1, N, D]
    return table if cls is None else torch.cat([cls, table], dim=1)


def joint_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions [1, (1 +) N, D] of the grid ``old``, perhaps after that of a class token, for ``new``."""
    if tuple(old) == tuple(new):
        return table
    cls, table = table.split([table.shape[1] - math.prod(old), math.prod(old)], dim=1)
    return torch.cat([cls, resize_positions(table, old, new)], dim=1)


@dataclass(frozen=True)
class TokenHeadSpec:
    """What stands on the class token or the mean of the tokens."""

    num_classes: int
    dropout: float = 0.0
    act: str = "softmax"
    detach: bool = False  # no gradient below the classifier
    num_layers: int = 1  # above 1: an MLP
    dim_hidden: int = 2048
    norm_hidden: bool = False

    def __post_init__(self):
        if self.act not in ACTIVATIONS:
            raise ValueError(f"MODEL.HEAD_ACT={self.act!r}: allowed are {', '.join(ACTIVATIONS)}")

    def make(self, dims: Sequence[int]) -> nn.Module:
        """The head for tokens of width ``dims[0]``."""
        return TokenHead(dims[0], self)


class TokenHead(nn.Module):
    """Dropout and a linear classifier, or an MLP."""

    def __init__(self, dim: int, spec: TokenHeadSpec):
        super().__init__()
        self.detach = spec.detach
        self.act = ACTIVATIONS[spec.act]
        self.dropout = nn.Dropout(spec.dropout) if spec.dropout else nn.Identity()
        if spec.num_layers == 1:
            self.projection = nn.Linear(dim, spec.num_classes)
        else:
            self.projection = MLPHead(
                dim,
                spec.dim_hidden,
                spec.num_classes,
                num_layers=spec.num_layers,
                norm=nn.BatchNorm1d if spec.norm_hidden else None,
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, K] scores, or logits in training."""
        x = self.dropout(x)
        if self.detach:
            x = x.detach()
        x = self.projection(x)
        return x if self.training else self.act(x)


@torch.no_grad()
def init_transformer(model: nn.Module) -> None:
    """Truncated normal of std 0.02 for all linear and convolution weights; 0.02 for biases of linear and norm layers.

    Biases of convolutions stay as PyTorch makes them.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            module.bias.fill_(0.02)


@MODEL_REGISTRY.register()
class MViT(nn.Module):
    """Multiscale Vision Transformers.

    MViT (Fan et al., https://arxiv.org/abs/2104.11227), MViTv2 (Li et al., https://arxiv.org/abs/2112.01526) and, with
    no pooling, ViT (Dosovitskiy et al., https://arxiv.org/abs/2010.11929) over clips or images.

    With ``reversible``, blocks hand on two streams of tokens and keep no activations (see reversible.py). A ``head``
    for boxes makes it a detector: its forward pass needs boxes beside the clips. Without a ``head`` it ends with
    the blocks.

    Differs from the original where that was wrong: fixed sine-cosine positions are added once (twice there),
    MVIT.LAYER_SCALE_INIT_VALUE acts, an MLP head can be built, and a clip of another length or resolution than that
    of training is no error: position tables are interpolated.
    """

    def __init__(
        self,
        plan: Sequence[BlockSpec],
        *,
        patch: PatchSpec,
        head: TokenHeadSpec | HeadSpec | None,
        head_scale: float = 1.0,
        options: BlockOptions | None = None,
        reversible: ReversibleSpec | None = None,
        positions: str = "none",
        norm_stem: bool = False,
        mean_pooling: bool = False,
        zero_decay_positions: bool = True,
        checkpoint_blocks: bool = False,
        conv_backend: str = "auto",
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}: allowed are {', '.join(POSITIONS)}")
        options = options or BlockOptions()
        self.plan = tuple(plan)
        self.has_cls = options.has_cls
        self.positions = positions
        self.mean_pooling = mean_pooling
        self.zero_decay_positions = zero_decay_positions
        self.checkpoint_blocks = checkpoint_blocks
        self.patch_dims = self.plan[0].grid
        self.patch_stride = patch.stride

        if self.has_cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, patch.dim))
        self._add_positions(patch.dim)
        self.patch_embed = PatchEmbed(patch)
        self.pos_drop = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.norm_stem = nn.LayerNorm(patch.dim, eps=NORM_EPS) if norm_stem else nn.Identity()
        dim = self.plan[-1].dim_out
        self.rev_backbone = self.fuse = None
        if reversible is None:
            self.blocks = nn.ModuleList(MultiScaleBlock(spec, options) for spec in self.plan)
        else:
            self.rev_backbone = ReversibleBackbone(
                self.plan, options, reversible, checkpoint_transitions=checkpoint_blocks
            )
            self.fuse = TwoStreamFusion(reversible.fuse, 2 * dim, key="MVIT.REV.RESPATH_FUSE")
            dim = self.fuse.dim_out
        if head is not None:
            self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
            self.head = head.make([dim])
        self.scores_boxes = isinstance(head, HeadSpec)
        if self.scores_boxes and reversible is not None:
            raise ValueError("MVIT.REV.ENABLE=True with DETECTION.ENABLE=True: a reversible network has no box head")
        self._init_weights(head_scale)
        set_conv_backend(self, conv_backend)

    def _add_positions(self, dim: int) -> None:
        t, h, w = self.patch_dims
        if self.positions == "separate":
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, h * w, dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, t, dim))
            if self.has_cls:
                self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim))
        elif self.positions in ("joint", "sincos"):
            table = torch.zeros(1, self.has_cls + t * h * w, dim)
            self.pos_embed = nn.Parameter(table, requires_grad=self.positions == "joint")

    @torch.no_grad()
    def _init_weights(self, head_scale: float) -> None:
        for name, param in self.named_parameters(recurse=False):
            if name != "pos_embed" or self.positions == "joint":
                nn.init.trunc_normal_(param, std=0.02)
        if self.positions == "sincos":
            self.pos_embed[0, self.has_cls :] = sincos_table(self.pos_embed.shape[2], self.patch_dims)
        init_transformer(self)
        if hasattr(self, "head"):
            classifier = [module for module in self.head.modules() if isinstance(module, nn.Linear)][-1]
            classifier.weight.mul_(head_scale)
            classifier.bias.mul_(head_scale)

    @classmethod
    def from_cfg(cls, cfg) -> "MViT":
        """The network that MVIT.* and MODEL.* describe, for clips of DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE."""
        if cfg.MASK.ENABLE:
            raise ValueError(
                "MASK.ENABLE=True with MODEL.MODEL_NAME='MViT': pre-training needs MODEL.MODEL_NAME 'MaskMViT', "
                "fine-tuning MASK.ENABLE False"
            )
        return cls(
            build_plan(cfg),
            head=build_mvit_head(cfg),
            head_scale=cfg.MVIT.HEAD_INIT_SCALE,
            reversible=build_reversible_spec(cfg),
            mean_pooling=cfg.MVIT.USE_MEAN_POOLING,
            **build_trunk_options(cfg),
        )

    @property
    def feat_size(self) -> list[list[int]]:
        """Tokens [t, h, w] after each block, as relative position tables are sized."""
        return [[n // s for n, s in zip(spec.size, spec.stride_q, strict=True)] for spec in self.plan]

    @property
    def feat_stride(self) -> list[list[int]]:
        """Frames, rows and columns of the clip per token after each block."""
        strides = [list(self.patch_stride)]
        for spec in self.plan:
            strides.append([a * b for a, b in zip(strides[-1], spec.stride_q, strict=True)])
        return strides[1:]

    def no_weight_decay(self) -> set[str]:
        """Names, or parts of names, of the parameters that do not decay: positions and the class token."""
        if not self.zero_decay_positions:
            return set()
        own = {name for name, _ in self.named_parameters(recurse=False)}
        attentions = [module for module in self.modules() if isinstance(module, MultiScaleAttention)]
        return own | {f"rel_pos_{axis}" for attention in attentions for axis in attention.axes}

    def position_table(self, grid: Grid) -> Tensor:
        """What is added to the tokens of ``grid``, that of the class token first: [1, N, D]."""
        if self.positions == "separate":
            cls = self.pos_embed_class if self.has_cls else None
            return separate_table(self.pos_embed_spatial, self.pos_embed_temporal, cls, self.patch_dims, grid)
        if self.positions == "sincos" and tuple(grid) != tuple(self.patch_dims):  # as if built for that grid
            table = sincos_table(self.pos_embed.shape[2], grid).to(self.pos_embed)
            return F.pad(table, (0, 0, int(self.has_cls), 0))[None]
        return joint_table(self.pos_embed, self.patch_dims, grid)

    def features(self, x: Tensor, *, only_cls: bool = False) -> tuple[Tensor, Grid]:
        """A clip [B, C, T, H, W] -> tokens [B, N, D] of the last block, class token first, and their grid.

        Of a reversible network, both streams [B, N, 2 D]. ``only_cls``: the class token alone is needed, so the last
        block may leave out the others.
        """
        run = self._checkpointed if self.checkpoint_blocks and torch.is_grad_enabled() else self._plain
        x, grid = run(self.patch_embed, x)
        x = self.enter(x, grid)
        if self.rev_backbone is not None:
            return self.rev_backbone(x, grid)
        for block in self.blocks[:-1]:
            x, grid = run(block, x, grid)
        last = self.blocks[-1]
        leaves_out = only_cls and isinstance(last, MultiScaleBlock) and last.leaves_out()
        return run(last, x, grid, only_cls=True) if leaves_out else run(last, x, grid)

    def enter(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, N, D] as the first block gets them: with the class token, positions and dropout."""
        if self.has_cls:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.positions != "none":
            x = x + self.position_table(grid)
        return self.norm_stem(self.pos_drop(x))

    @staticmethod
    def _plain(module: nn.Module, *args, **options) -> tuple[Tensor, Grid]:
        return module(*args, **options)

    @staticmethod
    def _checkpointed(module: nn.Module, *args, **options) -> tuple[Tensor, Grid]:
        """As ``module(*args, **options)``; its activations are computed again in the backward pass."""
        return checkpoint(module, *args, use_reentrant=False, **options)

    def forward(self, clips: Tensor | Sequence[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, H, W] or images [B, C, H, W] (or a list of that one tensor) -> logits or scores [B, K].

        For detection, boxes [R, 5] (batch row, x1, y1, x2, y2 in clip pixels) -> scores [R, K].
        """
        has_cls_alone = self.has_cls and not (self.mean_pooling or self.scores_boxes or self.fuse is not None)
        # A class derived from this one may have features of its own.
        options = {"only_cls": True} if has_cls_alone and type(self).features is MViT.features else {}
        x, grid = self.features(as_pathways(clips, 1)[0], **options)
        if self.scores_boxes:
            x = self.norm(x)[:, int(self.has_cls) :]
            return self.head([x.transpose(1, 2).unflatten(2, grid)], boxes)  # [B, N, D] -> [B, D, t, h, w]
        refuse_boxes(boxes)
        if self.fuse is not None:
            return self.head(self._merged(x))
        if has_cls_alone:
            x = self.norm(x[:, 0])  # the norm is per token
        elif self.mean_pooling:
            x = self.norm(x[:, int(self.has_cls) :].mean(1))
        else:
            x = self.norm(x).mean(1)
        return self.head(x)

    def _merged(self, x: Tensor) -> Tensor:
        """Both streams of tokens [B, N, 2 D] -> what is classified, [B, D'].

        NOTE: streams that stay side by side are normalised before they are fused, as published weights want it.
        """
        x = self.pos_drop(x)
        if self.mean_pooling:
            return self.norm(self.fuse(x).mean(1))
        if self.fuse.merge is None:
            return self.fuse(self.norm(x)).mean(1)
        return self.norm(self.fuse(x)).mean(1)


def build_plan(cfg) -> list[BlockSpec]:
    """The blocks that MVIT.* describe, for clips of DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE."""
    mvit = cfg.MVIT
    patch = build_patch_spec(cfg)
    # Multigrid: position tables are those of the full shape in every phase; smaller clips interpolate them.
    crop = cfg.MULTIGRID.DEFAULT_S or cfg.DATA.TRAIN_CROP_SIZE
    clip = (cfg.MULTIGRID.DEFAULT_T or cfg.DATA.NUM_FRAMES, crop, crop)
    return plan_blocks(
        mvit.DEPTH,
        dim=mvit.EMBED_DIM,
        heads=mvit.NUM_HEADS,
        grid=patch.grid(clip),
        size=tuple(n // s for n, s in zip(clip, patch.stride, strict=True)),
        dim_mul=mvit.DIM_MUL,
        head_mul=mvit.HEAD_MUL,
        pool_q_stride=mvit.POOL_Q_STRIDE,
        pool_kv_stride=mvit.POOL_KV_STRIDE or (),
        pool_kv_stride_adaptive=mvit.POOL_KV_STRIDE_ADAPTIVE,
        pool_kernel=mvit.POOL_KVQ_KERNEL,
        dim_mul_in_att=mvit.DIM_MUL_IN_ATT or mvit.REV.ENABLE,
        drop_path=mvit.DROPPATH_RATE,
    )


def build_trunk_options(cfg) -> dict[str, Any]:
    """Arguments of ``MViT`` about all but its plan and what stands on the blocks."""
    mvit = cfg.MVIT
    if mvit.NORM != "layernorm":
        raise ValueError(f"MVIT.NORM={mvit.NORM!r}: allowed is 'layernorm'")
    return {
        "patch": build_patch_spec(cfg),
        "options": BlockOptions(
            has_cls=mvit.CLS_EMBED_ON,
            mode=mvit.MODE,
            pool_first=mvit.POOL_FIRST,
            separate_qkv=mvit.SEPARATE_QKV,
            qkv_bias=mvit.QKV_BIAS,
            rel_pos_spatial=mvit.REL_POS_SPATIAL,
            rel_pos_temporal=mvit.REL_POS_TEMPORAL,
            rel_pos_zero_init=mvit.REL_POS_ZERO_INIT,
            residual_pooling=mvit.RESIDUAL_POOLING,
            dim_mul_in_att=mvit.DIM_MUL_IN_ATT,
            mlp_ratio=mvit.MLP_RATIO,
            dropout=mvit.DROPOUT_RATE,
            layer_scale=mvit.LAYER_SCALE_INIT_VALUE,
        ),
        "positions": build_positions(cfg),
        "norm_stem": mvit.NORM_STEM,
        "zero_decay_positions": mvit.ZERO_DECAY_POS_CLS,
        "checkpoint_blocks": cfg.MODEL.ACT_CHECKPOINT,
        "conv_backend": cfg.MODEL.CONV_BACKEND,
    }


def build_reversible_spec(cfg) -> ReversibleSpec | None:
    """What MVIT.REV.* describe; None where it is off."""
    rev = cfg.MVIT.REV
    if not rev.ENABLE:
        return None
    return ReversibleSpec(tuple(rev.BUFFER_LAYERS), rev.RESPATH_FUSE, rev.PRE_Q_FUSION, rev.RES_PATH)


def build_mvit_head(cfg) -> TokenHeadSpec | HeadSpec:
    """A classifier of clips, or with DETECTION.ENABLE of boxes."""
    model = cfg.MODEL
    if cfg.DETECTION.ENABLE:
        last = build_plan(cfg)[-1]
        frames = pooled_size(last.grid, last.kernel_q, last.stride_q)[0]
        detection = cfg.DETECTION
        return HeadSpec(
            num_classes=model.NUM_CLASSES,
            windows=((frames, 1, 1),),
            dropout=model.DROPOUT_RATE,
            act=model.HEAD_ACT,
            detach=model.DETACH_FINAL_FC,
            roi=(detection.ROI_XFORM_RESOLUTION, detection.SPATIAL_SCALE_FACTOR, detection.ALIGNED),
        )
    return TokenHeadSpec(
        num_classes=model.NUM_CLASSES,
        dropout=model.DROPOUT_RATE,
        act=model.HEAD_ACT,
        detach=model.DETACH_FINAL_FC,
        num_layers=cfg.CONTRASTIVE.NUM_MLP_LAYERS,
        dim_hidden=cfg.CONTRASTIVE.MLP_DIM,
        norm_hidden=cfg.CONTRASTIVE.BN_MLP,
    )


def build_patch_spec(cfg) -> PatchSpec:
    """The patches that MVIT.PATCH_* describe; those of images get a temporal size of 1."""
    flat = cfg.MVIT.PATCH_2D
    sizes = {key: tuple(cfg.MVIT[f"PATCH_{key}"]) for key in ("KERNEL", "STRIDE", "PADDING")}
    for key, size in sizes.items():
        if len(size) != 3 - flat:
            raise ValueError(
                f"MVIT.PATCH_{key}={list(size)} with MVIT.PATCH_2D={flat}: needed are {3 - flat} numbers, "
                f"{'[h, w]' if flat else '[t, h, w]'}"
            )
    if flat and cfg.DATA.NUM_FRAMES != 1:
        raise ValueError(f"MVIT.PATCH_2D is for images: set DATA.NUM_FRAMES 1 instead of {cfg.DATA.NUM_FRAMES}")
    return PatchSpec(
        dim=cfg.MVIT.EMBED_DIM,
        in_channels=cfg.DATA.INPUT_CHANNEL_NUM[0],
        kernel=(1,) * flat + sizes["KERNEL"],
        stride=(1,) * flat + sizes["STRIDE"],
        padding=(0,) * flat + sizes["PADDING"],
        flat=flat,
    )


def build_positions(cfg) -> str:
    """The kind of absolute positions: one of ``POSITIONS``."""
    if cfg.MVIT.USE_FIXED_SINCOS_POS:
        if not cfg.MVIT.USE_ABS_POS or cfg.MVIT.SEP_POS_EMBED:
            raise ValueError(
                f"MVIT.USE_FIXED_SINCOS_POS=True with MVIT.USE_ABS_POS={cfg.MVIT.USE_ABS_POS} and "
                f"MVIT.SEP_POS_EMBED={cfg.MVIT.SEP_POS_EMBED}: needed are True and False"
            )
        return "sincos"
    if not cfg.MVIT.USE_ABS_POS:
        return "none"
    return "separate" if cfg.MVIT.SEP_POS_EMBED else "joint"
