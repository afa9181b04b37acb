"""Pre-training by predicting what is hidden: masked autoencoders and MaskFeat, on MViT and ViT.

The one idea: a *mask* says for each token whether it is hidden. A masked autoencoder leaves hidden tokens out of the
encoder and lets a small decoder predict their pixels; MaskFeat replaces them by one learnt token and predicts their
histograms of gradients from the output of chosen blocks. Only what is hidden is predicted and judged.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slowfast.models.attention import NORM_EPS, BlockOptions, BlockSpec, MultiScaleBlock
from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.hog import HOG
from slowfast.models.mvit import MViT, build_plan, build_trunk_options, init_transformer, joint_table, separate_table
from slowfast.models.parts import sincos_table
from slowfast.models.token_pooling import Grid

TARGETS = ("pixels", "hog")
HEADS = ("separate", "separate_xformer")


@dataclass(frozen=True)
class DecoderSpec:
    """The blocks between the encoder and the predictions; ``depth`` 0: none."""

    depth: int = 0
    dim: int = 512
    kernel_kv: Grid | None = None
    stride_kv: Grid = (1, 1, 1)
    separate_positions: bool = False  # of a masked autoencoder: one table for space and one for time

    @property
    def heads(self) -> int:
        """One for each 64 channels."""
        return self.dim // 64

    def plan(self, dim_in: int, grid: Grid) -> list[BlockSpec]:
        """Its blocks, on all tokens of ``grid``; the first widens tokens of ``dim_in``."""
        dims = [dim_in] + [self.dim] * self.depth
        pooling = {"kernel_kv": self.kernel_kv, "stride_kv": self.stride_kv}
        return [
            BlockSpec(dim=dims[i], dim_out=self.dim, heads=self.heads, grid=grid, size=grid, **pooling)
            for i in range(self.depth)
        ]


@dataclass(frozen=True)
class MaskSpec:
    """What is hidden, what is predicted of it, and from where."""

    depths: tuple[int, ...]  # blocks whose tokens predict; the last one ends the network
    autoencoder: bool = False  # hidden tokens do not enter the encoder
    draws: bool = False  # masks are drawn here, not given
    ratio: float = 0.0  # of tokens to hide, where masks are drawn
    kind: str = "token"  # of masks drawn here: token, tube (cells through time), frame (equally many in each)
    target: str = "pixels"
    norm_pixels: bool = True  # to zero mean and unit deviation within each token
    every_frame: bool = False  # predict all frames of a token, not only its first
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    scale_init: bool = False  # smaller initial weights in deeper residual branches

    def __post_init__(self):
        if self.target not in TARGETS:
            raise ValueError(f"target={self.target!r}: allowed are {', '.join(TARGETS)}")
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 0:
            raise ValueError(f"MASK.PRETRAIN_DEPTH={list(self.depths)}: needed are numbers of blocks, ascending")
        if self.autoencoder and len(self.depths) > 1:
            raise ValueError(
                f"MASK.PRETRAIN_DEPTH={list(self.depths)} with MASK.MAE_ON: an autoencoder predicts from one depth"
            )
        if self.draws and not 0 < self.ratio < 1:
            raise ValueError(f"AUG.MASK_RATIO={self.ratio} with MASK.MAE_RND_MASK: needed is a share between 0 and 1")


# ------------------------------ targets ------------------------------


def pixel_targets(clips: Tensor, stride: Grid, *, every_frame: bool = False, colours_first: bool = False) -> Tensor:
    """Pixels of each token: clips [B, C, T, H, W] -> [B, N, frames * rows * columns * C], in that order.

    ``stride`` are the frames, rows and columns of a token; of its frames only the first counts, or ``every_frame``.
    ``colours_first`` puts C first.
    """
    t, p, q = stride
    if not every_frame:
        clips, t = clips[:, :, ::t], 1
    x = clips.unflatten(4, (-1, q)).unflatten(3, (-1, p)).unflatten(2, (-1, t))  # [B, C, t, u, h, p, w, q]
    order = (0, 2, 4, 6, 1, 3, 5, 7) if colours_first else (0, 2, 4, 6, 3, 5, 7, 1)
    return x.permute(order).flatten(4).flatten(1, 3)


def clips_of_pixels(x: Tensor, grid: Grid, stride: Grid, *, every_frame: bool = False, colours_first: bool = False):
    """The clips [B, C, T', H, W] of which ``x`` [B, N, D] are the ``pixel_targets``; T' has the frames that count."""
    t, p, q = stride
    t = t if every_frame else 1
    shape = (-1, t, p, q) if colours_first else (t, p, q, x.shape[2] // (t * p * q))
    x = x.unflatten(2, shape).unflatten(1, grid)  # [B, t, h, w, C, u, p, q] or [B, t, h, w, u, p, q, C]
    order = (0, 4, 1, 5, 2, 6, 3, 7) if colours_first else (0, 7, 1, 4, 2, 5, 3, 6)
    return x.permute(order).flatten(6).flatten(4, 5).flatten(2, 3)


def hog_targets(clips: Tensor, stride: Grid, hog: HOG) -> Tensor:
    """Histograms of each token's first frame: clips [B, 3, T, H, W] -> [B, N, 3 * bins * rows * columns of cells]."""
    t, p, q = stride
    if p % hog.cell or q % hog.cell:
        raise ValueError(
            f"tokens of {p} x {q} pixels hold no whole cells of {hog.cell} x {hog.cell}: MASK.PRED_HOG needs tokens of "
            "a multiple of that at each depth of MASK.PRETRAIN_DEPTH (MVIT.PATCH_STRIDE, MVIT.POOL_Q_STRIDE)"
        )
    frames = clips[:, :, ::t].transpose(1, 2)  # [B, T', 3, H, W]
    cells = hog(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # [B, T', 3, bins, H / 8, W / 8]
    cells = cells.unflatten(5, (-1, q // hog.cell)).unflatten(4, (-1, p // hog.cell))
    return cells.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)  # [B, T', h, w, 3, bins, r, s] -> [B, N, ..]


def normalize_tokens(x: Tensor) -> Tensor:
    """[R, D] to zero mean and unit deviation in each row."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


# ------------------------------ masks ------------------------------


def fit_mask(mask: Tensor, grid: Grid) -> Tensor:
    """A mask [B, t, h, w] (or [B, h, w]) of any grid, the nearest cell for each token: bool [B, N]."""
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    return F.interpolate(mask.float().unsqueeze(1), size=grid, mode="nearest").flatten(1) > 0.5


@dataclass(frozen=True)
class Order:
    """Tokens of each clip in two parts, by number: int64 [B, V] and [B, N - V]; the second ascending."""

    visible: Tensor
    hidden: Tensor

    def mask(self, grid: Grid) -> Tensor:
        """The same as a mask, bool [B, t, h, w]."""
        hidden = torch.ones(len(self.visible), math.prod(grid), dtype=torch.bool, device=self.visible.device)
        return hidden.scatter(1, self.visible, False).unflatten(1, grid)


def draw_order(batch: int, grid: Grid, ratio: float, kind: str, device: torch.device) -> Order:
    """Random masks that hide about ``ratio`` of the tokens of each clip.

    NOTE: a tube may end within its cell where the number of tokens to keep is no multiple of the frames.
    """
    t, cells = grid[0], math.prod(grid[1:])
    if kind == "frame":
        order = _noise(batch, (t, cells), device).argsort(dim=2)
        order = order + cells * torch.arange(t, device=device)[:, None]
        visible, hidden = order.split(_parts(cells, ratio), dim=2)
        return Order(visible.flatten(1), hidden.flatten(1).sort(dim=1).values)
    noise = _noise(batch, (cells,), device).repeat(1, t) if kind == "tube" else _noise(batch, (t * cells,), device)
    return sort_by(noise, *_parts(t * cells, ratio))


_rows: Tensor | None = None


@contextmanager
def masks_of(rows: Tensor) -> Iterator[None]:
    """Within it, the mask that is drawn for each clip is a function of its row (int64 [B]) alone.

    An evaluation then gives the same loss however its clips are dealt out to batches and processes.
    """
    global _rows
    before, _rows = _rows, rows
    try:
        yield
    finally:
        _rows = before


def _noise(batch: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers [B, *size]."""
    if _rows is None:
        return torch.rand(batch, *size, device=device)
    generators = (torch.Generator().manual_seed(row) for row in _rows.tolist())
    return torch.stack([torch.rand(size, generator=generator) for generator in generators]).to(device)


def _parts(total: int, ratio: float) -> list[int]:
    """How many of ``total`` tokens are visible, and how many hidden."""
    visible = int(total * (1 - ratio))
    if visible < 2:
        raise ValueError(f"AUG.MASK_RATIO={ratio} leaves {visible} of {total} tokens; at least 2 are needed: lower it")
    return [visible, total - visible]


def sort_by(noise: Tensor, num_visible: int, num_hidden: int) -> Order:
    """The tokens of lowest ``noise`` [B, N] are visible."""
    visible, hidden = noise.argsort(dim=1).split([num_visible, num_hidden], dim=1)
    return Order(visible, hidden.sort(dim=1).values)


# ------------------------------ the network ------------------------------


class PredictionHead(nn.Module):
    """For each depth: decoder blocks over all tokens, then a norm and a linear layer for those that are hidden."""

    def __init__(
        self,
        dims_in: Sequence[int],
        dims_out: Sequence[int],
        grids: Sequence[Grid],
        decoder: DecoderSpec,
        options: BlockOptions,
    ):
        super().__init__()
        self.has_cls = options.has_cls
        self.transforms, self.projections = nn.ModuleList(), nn.ModuleList()
        for dim, dim_out, grid in zip(dims_in, dims_out, grids, strict=True):
            blocks = [MultiScaleBlock(spec, options) for spec in decoder.plan(dim, grid)]
            dim = decoder.dim if blocks else dim
            self.transforms.append(nn.Sequential(*blocks, nn.LayerNorm(dim, eps=NORM_EPS)))
            self.projections.append(nn.Linear(dim, dim_out))
        init_transformer(self)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, k: int, x: Tensor, grid: Grid, select) -> Tensor:
        """Tokens [B, N, D] of depth ``k`` -> predictions [R, D'] for those that ``select`` takes of [B, N, D]."""
        *blocks, norm = self.transforms[k]
        for block in blocks:
            x, _ = block(x, grid)
        return self.projections[k](norm(select(x[:, int(self.has_cls) :])))


@MODEL_REGISTRY.register()
class MaskMViT(MViT):
    """An encoder without a classifier, and what predicts hidden tokens from it. Gives predictions and their targets.

    Masked autoencoders (He et al., https://arxiv.org/abs/2111.06377; for video, Feichtenhofer et al.,
    https://arxiv.org/abs/2205.09113) and MaskFeat (Wei et al., https://arxiv.org/abs/2112.09133).

    Differs from the original where that failed: masks of single frames can be drawn, MaskFeat can draw masks for
    networks with pooling, and each depth's decoder knows its own grid.
    """

    def __init__(self, plan: Sequence[BlockSpec], *, masking: MaskSpec, options: BlockOptions, **trunk):
        depth = masking.depths[-1] + 1
        if depth > len(plan):
            raise ValueError(f"MASK.PRETRAIN_DEPTH={list(masking.depths)}: blocks are numbered 0 to {len(plan) - 1}")
        super().__init__(plan[:depth], head=None, options=options, **trunk)
        self.masking = masking
        self.is_flat = self.patch_embed.spec.flat
        decoder, dim = masking.decoder, self.plan[0].dim
        if masking.autoencoder:
            self._check_autoencoder(options, trunk.get("norm_stem", False))
            dim = decoder.dim
            self._add_decoder_positions(dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if masking.target == "hog":
            self.hogs = nn.ModuleList([HOG()])
        strides = [self.feat_stride[i] for i in masking.depths]
        self.pred_head = PredictionHead(
            [dim] if masking.autoencoder else [self.plan[i].dim_out for i in masking.depths],
            [self._target_size(stride) for stride in strides],
            [tuple(self.feat_size[i]) for i in masking.depths],
            decoder,
            replace(
                options,
                separate_qkv=False,
                rel_pos_spatial=False,
                rel_pos_temporal=False,
                residual_pooling=False,
                dim_mul_in_att=False,
                layer_scale=0.0,
            ),
        )
        if masking.autoencoder:
            self.norm = nn.LayerNorm(self.plan[-1].dim_out, eps=NORM_EPS)
            self.decoder_embed = nn.Linear(self.plan[-1].dim_out, dim)
            init_transformer(self.norm)
            init_transformer(self.decoder_embed)
        if masking.scale_init:
            self._scale_init()

    def _check_autoencoder(self, options: BlockOptions, norm_stem: bool) -> None:
        pooled = any(spec.kernel_q or spec.kernel_kv for spec in self.plan)
        if pooled or options.rel_pos_spatial or options.rel_pos_temporal or norm_stem:
            raise ValueError(
                "MASK.MAE_ON=True: the encoder sees some tokens only, so there can be no pooling "
                "(MVIT.POOL_Q_STRIDE, MVIT.POOL_KV_STRIDE*), no relative positions (MVIT.REL_POS_*) and no "
                "MVIT.NORM_STEM; unset them, as for a plain ViT"
            )

    def _add_decoder_positions(self, dim: int) -> None:
        t, h, w = self.patch_dims
        if self.masking.decoder.separate_positions:
            self.dec_pos_embed_spatial = nn.Parameter(torch.zeros(1, h * w, dim))
            self.dec_pos_embed_temporal = nn.Parameter(torch.zeros(1, t, dim))
            tables = [self.dec_pos_embed_spatial, self.dec_pos_embed_temporal]
            if self.has_cls:
                self.dec_pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim))
                tables.append(self.dec_pos_embed_class)
        else:
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.has_cls + t * h * w, dim))
            tables = [self.decoder_pos_embed]
        for table in tables:
            nn.init.trunc_normal_(table, std=0.02)
        if self.positions == "sincos" and not self.masking.decoder.separate_positions:
            with torch.no_grad():
                self.decoder_pos_embed[0, : self.has_cls] = 0
                self.decoder_pos_embed[0, self.has_cls :] = sincos_table(dim, self.patch_dims)
            self.decoder_pos_embed.requires_grad_(False)

    @torch.no_grad()
    def _scale_init(self) -> None:
        """Divide what residual branches end with by the root of twice the number of layers up to there."""
        for i, block in enumerate(self.blocks):
            block.attn.proj.weight.div_(math.sqrt(2 * (i + 1)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * (i + 1)))
        for *blocks, _ in self.pred_head.transforms:
            for i, block in enumerate(blocks):
                block.attn.proj.weight.div_(math.sqrt(2 * (i + 1 + len(self.blocks))))
                block.mlp.fc2.weight.div_(math.sqrt(2 * (i + 1)))

    @classmethod
    def from_cfg(cls, cfg) -> "MaskMViT":
        """The network that MVIT.* and MASK.* describe."""
        mask, aug = cfg.MASK, cfg.AUG
        if not mask.ENABLE:
            raise ValueError("MODEL.MODEL_NAME='MaskMViT' is for pre-training: set MASK.ENABLE True")
        if cfg.MVIT.REV.ENABLE or cfg.DETECTION.ENABLE:
            raise ValueError("MODEL.MODEL_NAME='MaskMViT' with MVIT.REV.ENABLE or DETECTION.ENABLE: set both False")
        if mask.HEAD_TYPE not in HEADS:
            raise ValueError(f"MASK.HEAD_TYPE={mask.HEAD_TYPE!r}: allowed are {', '.join(HEADS)}")
        if aug.MASK_TUBE and mask.PER_FRAME_MASKING:
            raise ValueError("AUG.MASK_TUBE and MASK.PER_FRAME_MASKING are both True: choose one")
        return cls(
            build_plan(cfg),
            masking=MaskSpec(
                depths=tuple(mask.PRETRAIN_DEPTH),
                autoencoder=mask.MAE_ON,
                draws=mask.MAE_RND_MASK,
                ratio=aug.MASK_RATIO,
                kind="tube" if aug.MASK_TUBE else "frame" if mask.PER_FRAME_MASKING else "token",
                target="hog" if mask.PRED_HOG else "pixels",
                norm_pixels=mask.NORM_PRED_PIXEL,
                every_frame=mask.MAE_ON and not mask.TIME_STRIDE_LOSS,
                decoder=DecoderSpec(
                    depth=mask.DECODER_DEPTH if mask.HEAD_TYPE == "separate_xformer" else 0,
                    dim=mask.DECODER_EMBED_DIM,
                    kernel_kv=tuple(mask.DEC_KV_KERNEL) or None,
                    stride_kv=tuple(mask.DEC_KV_STRIDE) or (1, 1, 1),
                    separate_positions=mask.DECODER_SEP_POS_EMBED,
                ),
                scale_init=mask.SCALE_INIT_BY_DEPTH,
            ),
            **build_trunk_options(cfg),
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that do not decay.

        NOTE: positions of the encoder, the joint ones of the decoder and the mask token do; published networks were
        trained so.
        """
        if not self.zero_decay_positions:
            return set()
        names = {name for name, _ in self.named_parameters(recurse=False)}
        return {name for name in names if name == "cls_token" or name.startswith("dec_pos_embed")}

    def _target_size(self, stride: Sequence[int]) -> int:
        t, p, q = stride
        if self.masking.target == "hog":
            return 3 * 9 * max(p // 8, 1) * max(q // 8, 1)
        return 3 * p * q * (t if self.masking.every_frame else 1)

    @torch.no_grad()
    def targets(self, clips: Tensor, depth: int) -> Tensor:
        """What tokens of block ``depth`` are to predict, not yet normalised: [B, N, D']."""
        stride = tuple(self.feat_stride[depth])
        if any(n % s for n, s in zip(clips.shape[2:], stride, strict=True)):
            raise ValueError(
                f"clips of {tuple(clips.shape[2:])} (t, h, w) do not divide into tokens of {stride}: change "
                "DATA.NUM_FRAMES or DATA.TRAIN_CROP_SIZE"
            )
        if self.masking.target == "hog":
            return hog_targets(clips, stride, self.hogs[0])
        return pixel_targets(clips, stride, every_frame=self.masking.every_frame, colours_first=self.is_flat)

    def forward(
        self, clips: Tensor | Sequence[Tensor], mask: Tensor | None = None
    ) -> tuple[list[Tensor], list[tuple[Tensor, float]]]:
        """Clips [B, C, T, H, W] and masks (bool [B, t, h, w], True is hidden) -> predictions and targets per depth.

        Predictions are [R, D'] for the R hidden tokens of all clips, targets the same with the weight of their error
        in the loss. Also takes the original's list, [clips] or [clips, anything, mask].
        """
        if not isinstance(clips, Tensor):
            clips, mask = clips[0], clips[2] if len(clips) > 2 else mask
        preds, labels, _ = self._run(clips, mask)
        return preds, labels

    def _run(self, clips: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[tuple[Tensor, float]], Tensor]:
        """Predictions, targets, and which tokens of the last depth are hidden (bool [B, N], or their numbers)."""
        clips = clips.unsqueeze(2) if clips.ndim == 4 else clips  # images
        if mask is None and not self.masking.draws:
            raise ValueError("no mask was given: set AUG.GEN_MASK_LOADER True, or MASK.MAE_RND_MASK True to draw them")
        mask = None if self.masking.draws else mask
        return (self._autoencode if self.masking.autoencoder else self._predict)(clips, mask)

    @torch.no_grad()
    def reconstruct(self, clips: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """For looking at: the frames to predict [B, C, T', H, W]; the same with what is hidden at 0; and predicted.

        Predictions of normalised pixels get the mean and deviation of the true ones.
        """
        if self.masking.target != "pixels":
            raise ValueError("histograms are no picture: VIS_MASK.ENABLE needs MASK.PRED_HOG False")
        preds, _, hidden = self._run(clips, mask)
        depth = self.masking.depths[-1]
        clips = clips.unsqueeze(2) if clips.ndim == 4 else clips
        tokens = self.targets(clips, depth)
        if hidden.dtype != torch.bool:
            hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, hidden, True)
        true, pred = tokens[hidden], preds[-1].to(tokens.dtype)
        if self.masking.norm_pixels:
            pred = pred * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        seen, whole = tokens.clone(), tokens.clone()
        seen[hidden], whole[hidden] = 0.0, pred
        stride = tuple(self.feat_stride[depth])
        grid = tuple(n // s for n, s in zip(clips.shape[2:], stride, strict=True))
        options = {"every_frame": self.masking.every_frame, "colours_first": self.is_flat}
        return tuple(clips_of_pixels(x, grid, stride, **options) for x in (tokens, seen, whole))

    # ---- masked autoencoders

    def _autoencode(self, clips: Tensor, mask: Tensor | None):
        run = self._checkpointed if self.checkpoint_blocks and torch.is_grad_enabled() else self._plain
        x, grid = run(self.patch_embed, clips)
        order = self._order(x, grid, mask)
        if self.positions != "none":
            table = self.position_table(grid)
            x = x + table[:, int(self.has_cls) :]
        x = take(x, order.visible)
        if self.has_cls:
            cls = self.cls_token if self.positions == "none" else self.cls_token + table[:, :1]
            x = torch.cat([cls.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x, _ = run(block, x, grid)
        x = self.decoder_embed(self.norm(x))
        cls, x = x.split([int(self.has_cls), order.visible.shape[1]], dim=1)
        hidden = self.mask_token.to(x.dtype).expand(len(x), math.prod(grid), -1)
        x = hidden.scatter(1, order.visible.unsqueeze(2).expand_as(x), x)  # every token in its place
        x = torch.cat([cls, x], dim=1) + self.decoder_positions(grid)
        pred = self.pred_head(0, x, grid, lambda tokens: take(tokens, order.hidden).flatten(0, 1))
        target = take(self.targets(clips, self.masking.depths[0]), order.hidden).flatten(0, 1)
        return [pred], [self._label(target)], order.hidden

    def _order(self, x: Tensor, grid: Grid, mask: Tensor | None) -> Order:
        """Which tokens enter the encoder; of given masks, equally many of each clip: what the mean clip shows."""
        if mask is None:
            return draw_order(len(x), grid, self.masking.ratio, self.masking.kind, x.device)
        mask = fit_mask(mask, grid)
        num_visible = int((~mask).sum()) // len(mask)
        if num_visible < 2:
            raise ValueError(
                f"masks leave {num_visible} of {mask.shape[1]} tokens; at least 2 are needed: lower AUG.MASK_RATIO"
            )
        return sort_by(mask.float(), num_visible, mask.shape[1] - num_visible)

    def decoder_positions(self, grid: Grid) -> Tensor:
        """What is added to the tokens that enter the decoder, that of the class token first: [1, N, D]."""
        if self.masking.decoder.separate_positions:
            cls = self.dec_pos_embed_class if self.has_cls else None
            return separate_table(self.dec_pos_embed_spatial, self.dec_pos_embed_temporal, cls, self.patch_dims, grid)
        return joint_table(self.decoder_pos_embed, self.patch_dims, grid)

    # ---- MaskFeat

    def _predict(self, clips: Tensor, mask: Tensor | None):
        run = self._checkpointed if self.checkpoint_blocks and torch.is_grad_enabled() else self._plain
        x, grid = run(self.patch_embed, clips)
        if mask is None:
            cells = tuple(self.feat_size[self.masking.depths[-1]])
            mask = draw_order(len(x), cells, self.masking.ratio, self.masking.kind, x.device).mask(cells)
        x = torch.where(fit_mask(mask, grid).unsqueeze(2), self.mask_token.to(x.dtype), x)
        x = self.enter(x, grid)
        preds, labels = [], []
        for i, block in enumerate(self.blocks):
            x, grid = run(block, x, grid)
            if i in self.masking.depths:
                hidden = fit_mask(mask, grid)
                preds.append(self.pred_head(len(preds), x, grid, lambda tokens, hidden=hidden: tokens[hidden]))
                labels.append(self._label(self.targets(clips, i)[hidden]))
        return preds, labels, hidden

    def _label(self, target: Tensor) -> tuple[Tensor, float]:
        """Targets [R, D'] as they are compared, and the weight of their error."""
        if self.masking.target == "hog":
            return target, 1.0
        if self.masking.norm_pixels:
            target = normalize_tokens(target)
        return target, 1.0 if self.is_flat else 1.0 / len(self.masking.depths)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens [B, N, D] numbered ``index`` [B, M] -> [B, M, D]."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))
