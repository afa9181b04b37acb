"""The ResNet family for video: 2D, C2D, I3D and Slow networks. Plan first (``StageSpec``), then build."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.heads import HeadSpec, MLPSpec
from slowfast.models.layers import Conv3d, MaxPool3d, init_weights, mark_final, maybe_checkpointed, set_conv_backend
from slowfast.models.nonlocal_block import Nonlocal
from slowfast.models.norm import Norm, build_mlp_norm, build_norm
from slowfast.models.pathways import as_pathways

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@dataclass(frozen=True)
class TemporalKernels:
    """Temporal kernel sizes of one pathway, and its temporal pooling after the first stage."""

    stem: int
    stages: tuple[tuple[int, ...], ...]  # repeated over the blocks of each stage
    pool: int = 1


_FLAT = ((1,), (1,), (1,), (1,))
_I3D = ((3,), (3, 1), (3, 1), (1, 3))
TEMPORAL_KERNELS = {
    "2d": (TemporalKernels(1, _FLAT),),
    "c2d": (TemporalKernels(1, _FLAT, pool=2),),
    "slow_c2d": (TemporalKernels(1, _FLAT),),
    "i3d": (TemporalKernels(5, _I3D, pool=2),),
    "slow_i3d": (TemporalKernels(5, _I3D),),
    "slow": (TemporalKernels(1, ((1,), (1,), (3,), (3,))),),
    "slowfast": (TemporalKernels(1, ((1,), (1,), (3,), (3,))), TemporalKernels(5, ((3,), (3,), (3,), (3,)))),
}


def temporal_kernels(arch: str, num_pathways: int) -> tuple[TemporalKernels, ...]:
    """The row of ``arch``, one entry per pathway."""
    known = [name for name, row in TEMPORAL_KERNELS.items() if len(row) == num_pathways]
    if arch not in known:
        raise ValueError(
            f"MODEL.ARCH={arch!r} is no architecture of {num_pathways} pathway(s): allowed are {', '.join(known)}; "
            "or change MODEL.MODEL_NAME"
        )
    return TEMPORAL_KERNELS[arch]


@dataclass(frozen=True)
class StageSpec:
    """One residual stage of one pathway; the stage has one block per entry of ``kernels``."""

    dim_in: int
    dim_out: int
    dim_inner: int
    stride: int  # of the first block, in space
    dilation: int
    groups: int
    kernels: tuple[int, ...]  # temporal kernel size of each block
    nonlocal_at: tuple[int, ...] = ()  # blocks that a non-local block follows
    nonlocal_pool: tuple[int, ...] = (1, 1, 1)
    nonlocal_group: int = 1


def plan_stages(
    depth: int,
    *,
    width: int,
    kernels: Sequence[Sequence[int]],
    num_temporal: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int = 1,
    shrink: int = 1,
    lateral: Sequence[int] = (0, 0, 0, 0),
    nonlocal_at: Sequence[Sequence[int]] = ((), (), (), ()),
    nonlocal_pool: Sequence[Sequence[int]] = ((1, 1, 1),) * 4,
    nonlocal_group: Sequence[int] = (1, 1, 1, 1),
) -> list[StageSpec]:
    """The four stages of one pathway, res2 to res5.

    ``width`` is the width of the stem (RESNET.WIDTH_PER_GROUP) and ``shrink`` divides all widths (SLOWFAST.BETA_INV
    for the Fast pathway). ``kernels`` are repeated over the blocks of a stage; only the first ``num_temporal``
    blocks use them, the rest have temporal size 1. ``lateral`` channels join the input of each stage.
    """
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"RESNET.DEPTH={depth}: allowed are {', '.join(map(str, BLOCKS_PER_STAGE))}")
    if width < 1 or width % shrink:
        raise ValueError(
            f"RESNET.WIDTH_PER_GROUP={width} is not a positive multiple of SLOWFAST.BETA_INV={shrink}: "
            "the Fast pathway would have no whole number of channels"
        )
    specs = []
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        for block in nonlocal_at[i]:
            if not 0 <= block < num_blocks:
                raise ValueError(
                    f"NONLOCAL.LOCATION puts a non-local block after block {block} of stage {i} (res{i + 2}), "
                    f"which has blocks 0 to {num_blocks - 1} at RESNET.DEPTH={depth}"
                )
        used = min(num_temporal[i], num_blocks)
        repeated = [kernels[i][block % len(kernels[i])] for block in range(used)]
        stem_or_stage = width if i == 0 else width * 2 ** (i + 1)
        specs.append(
            StageSpec(
                dim_in=stem_or_stage // shrink + lateral[i],
                dim_out=width * 2 ** (i + 2) // shrink,
                dim_inner=groups * width * 2**i // shrink,
                stride=strides[i],
                dilation=dilations[i],
                groups=groups,
                kernels=(*repeated, *[1] * (num_blocks - used)),
                nonlocal_at=tuple(nonlocal_at[i]),
                nonlocal_pool=tuple(nonlocal_pool[i]),
                nonlocal_group=nonlocal_group[i],
            )
        )
    return specs


def pathway_column(rows: Sequence[Sequence], pathway: int, key: str) -> list:
    """Entry ``pathway`` of each of the four stages' lists; a list of one serves all pathways."""
    if len(rows) != 4 or any(len(row) != 1 and len(row) <= pathway for row in rows):
        raise ValueError(f"{key}={rows}: needs four lists (res2 to res5), each with one entry per pathway")
    return [row[0] if len(row) == 1 else row[pathway] for row in rows]


def build_plans(cfg) -> list[dict]:
    """What MODEL.ARCH, RESNET.* and NONLOCAL.* say about each pathway: keyword arguments of ``plan_stages``."""
    plans = []
    for pathway, row in enumerate(TEMPORAL_KERNELS[cfg.MODEL.ARCH]):
        column = partial(pathway_column, pathway=pathway)
        plans.append(
            {
                "depth": cfg.RESNET.DEPTH,
                "width": cfg.RESNET.WIDTH_PER_GROUP,
                "kernels": row.stages,
                "num_temporal": column(cfg.RESNET.NUM_BLOCK_TEMP_KERNEL, key="RESNET.NUM_BLOCK_TEMP_KERNEL"),
                "strides": column(cfg.RESNET.SPATIAL_STRIDES, key="RESNET.SPATIAL_STRIDES"),
                "dilations": column(cfg.RESNET.SPATIAL_DILATIONS, key="RESNET.SPATIAL_DILATIONS"),
                "groups": cfg.RESNET.NUM_GROUPS,
                "nonlocal_at": column(cfg.NONLOCAL.LOCATION, key="NONLOCAL.LOCATION"),
                "nonlocal_pool": column(cfg.NONLOCAL.POOL, key="NONLOCAL.POOL"),
                "nonlocal_group": column(cfg.NONLOCAL.GROUP, key="NONLOCAL.GROUP"),
            }
        )
    return plans


def build_head_spec(cfg) -> HeadSpec:
    """The head for clips of DATA.NUM_FRAMES frames and DATA.TRAIN_CROP_SIZE pixels.

    A ContrastiveModel pools the whole map. CONTRASTIVE.* say whether MLPs classify.
    """
    rows = TEMPORAL_KERNELS[cfg.MODEL.ARCH]
    frames = [cfg.DATA.NUM_FRAMES // row.pool for row in rows]
    if len(rows) == 2:
        frames[0] //= cfg.SLOWFAST.ALPHA
    side = cfg.DATA.TRAIN_CROP_SIZE // 32
    if cfg.DETECTION.ENABLE:
        windows = tuple((t, 1, 1) for t in frames)
    elif cfg.MULTIGRID.SHORT_CYCLE or cfg.MULTIGRID.LONG_CYCLE:
        windows = tuple(None for _ in frames)
    else:
        windows = tuple((t, side, side) for t in frames)
    if any(window is not None and min(window) < 1 for window in windows):
        raise ValueError(
            f"the head would pool over windows {windows} (t, h, w): DATA.NUM_FRAMES={cfg.DATA.NUM_FRAMES} must leave a "
            f"frame after temporal pooling and DATA.TRAIN_CROP_SIZE={cfg.DATA.TRAIN_CROP_SIZE} must be at least 32"
        )
    if cfg.MODEL.MODEL_NAME == "ContrastiveModel":
        windows = tuple(None for _ in frames)
    contrastive = cfg.CONTRASTIVE
    depths = (contrastive.NUM_MLP_LAYERS, *contrastive.PREDICTOR_DEPTHS)
    mlp, *predictors = [MLPSpec(depth, contrastive.MLP_DIM, build_mlp_norm(cfg)) for depth in depths]
    roi = (cfg.DETECTION.ROI_XFORM_RESOLUTION, cfg.DETECTION.SPATIAL_SCALE_FACTOR, cfg.DETECTION.ALIGNED)
    return HeadSpec(
        num_classes=cfg.MODEL.NUM_CLASSES,
        windows=windows,
        dropout=cfg.MODEL.DROPOUT_RATE,
        act=cfg.MODEL.HEAD_ACT,
        detach=cfg.MODEL.DETACH_FINAL_FC,
        roi=roi if cfg.DETECTION.ENABLE else None,
        mlp=mlp if mlp.num_layers != 1 else None,
        predictors=tuple(predictors),
    )


class BottleneckTransform(nn.Module):
    """T x 1 x 1, 1 x 3 x 3, 1 x 1 x 1 convolutions, each with its norm."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        dim_inner: int,
        kernel: int,
        stride: int,
        dilation: int,
        groups: int,
        stride_1x1: bool,
        norm: Norm,
        inplace_relu: bool,
    ):
        super().__init__()
        stride_a, stride_b = (stride, 1) if stride_1x1 else (1, stride)
        self.a = Conv3d(
            dim_in, dim_inner, (kernel, 1, 1), (1, stride_a, stride_a), padding=(kernel // 2, 0, 0), bias=False
        )
        self.a_bn = norm(dim_inner)
        self.a_relu = nn.ReLU(inplace=inplace_relu)
        self.b = Conv3d(
            dim_inner,
            dim_inner,
            (1, 3, 3),
            (1, stride_b, stride_b),
            padding=(0, dilation, dilation),
            dilation=(1, dilation, dilation),
            groups=groups,
            bias=False,
        )
        self.b_bn = norm(dim_inner)
        self.b_relu = nn.ReLU(inplace=inplace_relu)
        self.c = mark_final(Conv3d(dim_inner, dim_out, 1, bias=False))
        self.c_bn = mark_final(norm(dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        x = self.a_relu(self.a_bn(self.a(x)))
        x = self.b_relu(self.b_bn(self.b(x)))
        return self.c_bn(self.c(x))


class BasicTransform(nn.Module):
    """T x 3 x 3 and 1 x 3 x 3 convolutions, each with its norm. Groups and ``dim_inner`` do not apply."""

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        dim_inner: int,
        kernel: int,
        stride: int,
        dilation: int,
        groups: int,
        stride_1x1: bool,
        norm: Norm,
        inplace_relu: bool,
    ):
        super().__init__()
        self.a = Conv3d(dim_in, dim_out, (kernel, 3, 3), (1, stride, stride), padding=(kernel // 2, 1, 1), bias=False)
        self.a_bn = norm(dim_out)
        self.a_relu = nn.ReLU(inplace=inplace_relu)
        self.b = mark_final(
            Conv3d(
                dim_out,
                dim_out,
                (1, 3, 3),
                padding=(0, dilation, dilation),
                dilation=(1, dilation, dilation),
                bias=False,
            )
        )
        self.b_bn = mark_final(norm(dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        x = self.a_relu(self.a_bn(self.a(x)))
        return self.b_bn(self.b(x))


TRANSFORMS = {"bottleneck_transform": BottleneckTransform, "basic_transform": BasicTransform}


@dataclass(frozen=True)
class BlockOptions:
    """What all residual blocks of a network share."""

    transform: str = "bottleneck_transform"
    stride_1x1: bool = False
    inplace_relu: bool = True
    nonlocal_instantiation: str = "softmax"
    norm: Norm = nn.BatchNorm3d

    def __post_init__(self):
        if self.transform not in TRANSFORMS:
            raise ValueError(f"RESNET.TRANS_FUNC={self.transform!r}: allowed are {', '.join(TRANSFORMS)}")


class ResBlock(nn.Module):
    """``relu(shortcut(x) + transform(x))``; the shortcut is a convolution where shape or stride change."""

    def __init__(self, dim_in: int, spec: StageSpec, *, kernel: int, stride: int, options: BlockOptions):
        super().__init__()
        if dim_in != spec.dim_out or stride != 1:
            self.branch1 = Conv3d(dim_in, spec.dim_out, 1, (1, stride, stride), bias=False)
            self.branch1_bn = options.norm(spec.dim_out)
        else:
            self.branch1 = None
        self.branch2 = TRANSFORMS[options.transform](
            dim_in,
            spec.dim_out,
            dim_inner=spec.dim_inner,
            kernel=kernel,
            stride=stride,
            dilation=spec.dilation,
            groups=spec.groups,
            stride_1x1=options.stride_1x1,
            norm=options.norm,
            inplace_relu=options.inplace_relu,
        )
        self.relu = nn.ReLU(inplace=options.inplace_relu)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        shortcut = x if self.branch1 is None else self.branch1_bn(self.branch1(x))
        return self.relu(self.branch2(x).add_(shortcut))


class ResStage(nn.Module):
    """The blocks ``pathway{p}_res{i}`` of one stage, and ``pathway{p}_nonlocal{i}`` after some of them."""

    def __init__(self, specs: Sequence[StageSpec], options: BlockOptions):
        super().__init__()
        self.specs = tuple(specs)
        for p, spec in enumerate(self.specs):
            for i, kernel in enumerate(spec.kernels):
                first = i == 0
                block = ResBlock(
                    spec.dim_in if first else spec.dim_out,
                    spec,
                    kernel=kernel,
                    stride=spec.stride if first else 1,
                    options=options,
                )
                self.add_module(f"pathway{p}_res{i}", block)
                if i in spec.nonlocal_at:
                    attention = Nonlocal(
                        spec.dim_out,
                        spec.dim_out // 2,
                        pool=spec.nonlocal_pool,
                        instantiation=options.nonlocal_instantiation,
                        norm=options.norm,
                    )
                    self.add_module(f"pathway{p}_nonlocal{i}", attention)

    def forward(self, pathways: list[Tensor]) -> list[Tensor]:
        """One [B, C, T, H, W] per pathway -> one [B, dim_out, T, H / stride, W / stride] per pathway."""
        outputs = []
        for p, (x, spec) in enumerate(zip(pathways, self.specs, strict=True)):
            for i in range(len(spec.kernels)):
                x = getattr(self, f"pathway{p}_res{i}")(x)
                if i in spec.nonlocal_at:
                    x = _in_time_groups(getattr(self, f"pathway{p}_nonlocal{i}"), x, spec.nonlocal_group)
            outputs.append(x)
        return outputs


def _in_time_groups(block: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Apply ``block`` to ``groups`` consecutive pieces of the clip, each of T / groups frames, on its own."""
    if groups == 1:
        return block(x)
    batch, frames = x.shape[0], x.shape[2]
    if frames % groups:
        raise ValueError(f"NONLOCAL.GROUP={groups} does not divide the {frames} frames at this stage")
    pieces = (
        x.unflatten(2, (groups, frames // groups)).transpose(1, 2).flatten(0, 1)
    )  # [B, C, T, ..] -> [B*G, C, t, ..]
    y = block(pieces)
    return y.unflatten(0, (batch, groups)).transpose(1, 2).flatten(2, 3)  # [B*G, C, t, ..] -> [B, C, T, ..]


class ResNetBasicStem(nn.Module):
    """T x 7 x 7 convolution of stride 2 in space, norm, ReLU, 3 x 3 max pooling of stride 2."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, norm: Norm):
        super().__init__()
        self.conv = Conv3d(dim_in, dim_out, (kernel, 7, 7), (1, 2, 2), padding=(kernel // 2, 3, 3), bias=False)
        self.bn = norm(dim_out)
        self.relu = nn.ReLU(inplace=True)
        self.pool_layer = MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, C, T, H / 4, W / 4]."""
        return self.pool_layer(self.relu(self.bn(self.conv(x))))


class VideoModelStem(nn.Module):
    """One stem per pathway, ``pathway{p}_stem``."""

    def __init__(self, dims_in: Sequence[int], dims_out: Sequence[int], kernels: Sequence[int], *, norm: Norm):
        super().__init__()
        self.num_pathways = len(dims_out)
        for p, sizes in enumerate(zip(dims_in, dims_out, kernels, strict=True)):
            self.add_module(f"pathway{p}_stem", ResNetBasicStem(*sizes, norm=norm))

    def forward(self, pathways: list[Tensor]) -> list[Tensor]:
        """One [B, 3, T, H, W] per pathway -> one [B, C, T, H / 4, W / 4] per pathway."""
        return [getattr(self, f"pathway{p}_stem")(x) for p, x in enumerate(pathways)]


@MODEL_REGISTRY.register()
class ResNet(nn.Module):
    """Residual networks over one clip.

    2D and C2D see frames one by one, I3D inflates kernels in time (Carreira and Zisserman,
    https://arxiv.org/abs/1705.07750; non-local variants: https://arxiv.org/abs/1711.07971), Slow only in its last
    two stages (Feichtenhofer et al., https://arxiv.org/abs/1812.03982). Images [B, C, H, W] count as one frame.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        *,
        head: HeadSpec,
        in_channels: int = 3,
        stem_kernel: int = 1,
        temporal_pool: int = 1,
        options: BlockOptions | None = None,
        fc_init_std: float = 0.01,
        zero_final_norm: bool = False,
        zero_final_conv: bool = False,
        checkpoint_early: bool = False,
        conv_backend: str = "auto",
    ):
        super().__init__()
        options = options or BlockOptions()
        res2, res3, res4, res5 = stages
        self.temporal_pool = temporal_pool
        self.checkpoint_early = checkpoint_early
        self.s1 = VideoModelStem([in_channels], [res2.dim_in], [stem_kernel], norm=options.norm)
        self.s2 = ResStage([res2], options)
        if temporal_pool > 1:
            self.pathway0_pool = MaxPool3d((temporal_pool, 1, 1), (temporal_pool, 1, 1))
        self.s3 = ResStage([res3], options)
        self.s4 = ResStage([res4], options)
        self.s5 = ResStage([res5], options)
        self.head = head.make([res5.dim_out])
        init_weights(self, fc_std=fc_init_std, zero_final_norm=zero_final_norm, zero_final_conv=zero_final_conv)
        set_conv_backend(self, conv_backend)

    @classmethod
    def from_cfg(cls, cfg) -> "ResNet":
        """The network that MODEL.*, RESNET.* and NONLOCAL.* describe, for clips of DATA.NUM_FRAMES frames."""
        (kernels,) = temporal_kernels(cfg.MODEL.ARCH, 1)
        (plan,) = build_plans(cfg)
        return cls(
            plan_stages(**plan),
            head=build_head_spec(cfg),
            in_channels=cfg.DATA.INPUT_CHANNEL_NUM[0],
            stem_kernel=kernels.stem,
            temporal_pool=kernels.pool,
            options=BlockOptions(
                transform=cfg.RESNET.TRANS_FUNC,
                stride_1x1=cfg.RESNET.STRIDE_1X1,
                inplace_relu=cfg.RESNET.INPLACE_RELU,
                nonlocal_instantiation=cfg.NONLOCAL.INSTANTIATION,
                norm=build_norm(cfg),
            ),
            fc_init_std=cfg.MODEL.FC_INIT_STD,
            zero_final_norm=cfg.RESNET.ZERO_INIT_FINAL_BN,
            zero_final_conv=cfg.RESNET.ZERO_INIT_FINAL_CONV,
            checkpoint_early=cfg.MODEL.ACT_CHECKPOINT,
            conv_backend=cfg.MODEL.CONV_BACKEND,
        )

    def forward(self, clips: Tensor | Sequence[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, H, W] or images [B, C, H, W] (or a list of that one tensor) -> logits or scores [B, K].

        Detection networks take ``boxes`` [R, 5] and give [R, K].
        """
        x = as_pathways(clips, 1)
        x = maybe_checkpointed(self.s1, x, enabled=self.checkpoint_early)
        x = maybe_checkpointed(self.s2, x, enabled=self.checkpoint_early)
        if self.temporal_pool > 1:
            x = [self.pathway0_pool(x[0])]
        x = self.s5(self.s4(self.s3(x)))
        return self.head(x) if boxes is None else self.head(x, boxes)
