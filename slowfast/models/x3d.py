"""X3D: small networks of depthwise 3-D convolutions. Plan first (``plan_x3d``), then build."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slowfast.models import conv_passes
from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.depthwise import DepthwiseConv3d
from slowfast.models.heads import ACTIVATIONS, average_pool, refuse_boxes
from slowfast.models.layers import Conv3d, init_weights, mark_final, maybe_checkpointed, set_conv_backend
from slowfast.models.nonlocal_block import Nonlocal
from slowfast.models.norm import Norm, build_norm
from slowfast.models.parts import drop_path, is_untouched, round_width
from slowfast.models.pathways import as_pathways
from slowfast.models.resnet import ResStage, StageSpec

STEM_KERNEL = 5  # in time
BLOCK_KERNEL = 3  # in time, in every block
BLOCKS_PER_STAGE = (1, 2, 5, 3)  # before DEPTH_FACTOR


def plan_x3d(
    *,
    stem_width: int = 12,
    width_factor: float = 1.0,
    depth_factor: float = 1.0,
    bottleneck_factor: float = 1.0,
    scale_res2: bool = False,
    channelwise: bool = True,
    groups: int = 1,
    dilations: Sequence[int] = (1, 1, 1, 1),
    nonlocal_at: Sequence[int] = (),
    nonlocal_pool: Sequence[int] = (1, 1, 1),
    nonlocal_group: int = 1,
) -> list[StageSpec]:
    """The four stages, res2 to res5; the width of the stem is ``dim_in`` of the first.

    Widths double from stage to stage, rounded to multiples of 8 *before* ``width_factor`` applies.
    """
    for key, value in (
        ("DIM_C1", stem_width),
        ("DEPTH_FACTOR", depth_factor),
        ("BOTTLENECK_FACTOR", bottleneck_factor),
    ):
        if value <= 0:
            raise ValueError(f"X3D.{key}={value}: must be positive")
    widths = [round_width(stem_width, 2, divisor=8) if scale_res2 else stem_width]
    for _ in range(3):
        widths.append(round_width(widths[-1], 2, divisor=8))
    dims = [round_width(width, width_factor) for width in (stem_width, *widths)]
    specs = []
    for i, base in enumerate(BLOCKS_PER_STAGE):
        num_blocks = math.ceil(depth_factor * base)
        inner = int(bottleneck_factor * dims[i + 1])
        for block in nonlocal_at:
            if not 0 <= block < num_blocks:
                raise ValueError(
                    f"NONLOCAL.LOCATION puts a non-local block after block {block} of every stage, but res{i + 2} has "
                    f"blocks 0 to {num_blocks - 1} at X3D.DEPTH_FACTOR={depth_factor}"
                )
        specs.append(
            StageSpec(
                dim_in=dims[i],
                dim_out=dims[i + 1],
                dim_inner=inner,
                stride=2,
                dilation=dilations[i],
                groups=inner if channelwise else groups,
                kernels=(BLOCK_KERNEL,) * num_blocks,
                nonlocal_at=tuple(nonlocal_at),
                nonlocal_pool=tuple(nonlocal_pool),
                nonlocal_group=nonlocal_group,
            )
        )
    return specs


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels. (https://arxiv.org/abs/1709.01507)"""

    def __init__(self, dim: int, ratio: float = 1 / 16):
        super().__init__()
        squeezed = round_width(dim, ratio, minimum=8, divisor=8)
        self.fc1 = Conv3d(dim, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = Conv3d(squeezed, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> same."""
        return x * self.gate(x)

    def gate(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> what each channel is multiplied with, [B, C, 1, 1, 1]."""
        mean = x.mean((2, 3, 4), keepdim=True)
        return self.fc2(self.relu(self.fc1(mean))).sigmoid()


class X3DTransform(nn.Module):
    """1 x 1 x 1, depthwise T x 3 x 3, 1 x 1 x 1 convolutions; a channel gate and Swish after the middle one."""

    def __init__(
        self, dim_in: int, spec: StageSpec, *, kernel: int, stride: int, gated: bool, stride_1x1: bool, norm: Norm
    ):
        super().__init__()
        stride_a, stride_b = (stride, 1) if stride_1x1 else (1, stride)
        self.a = Conv3d(dim_in, spec.dim_inner, 1, (1, stride_a, stride_a), bias=False)
        self.a_bn = norm(spec.dim_inner)
        self.a_relu = nn.ReLU(inplace=True)
        geometry = {
            "kernel_size": (kernel, 3, 3),
            "stride": (1, stride_b, stride_b),
            "padding": (kernel // 2, spec.dilation, spec.dilation),
            "dilation": (1, spec.dilation, spec.dilation),
        }
        if spec.groups == spec.dim_inner:
            self.b = DepthwiseConv3d(spec.dim_inner, **geometry)
        else:
            self.b = Conv3d(spec.dim_inner, spec.dim_inner, groups=spec.groups, bias=False, **geometry)
        self.b_bn = norm(spec.dim_inner)
        self.se = SqueezeExcite(spec.dim_inner) if gated else nn.Identity()
        self.b_relu = nn.SiLU()
        self.c = Conv3d(spec.dim_inner, spec.dim_out, 1, bias=False)
        self.c_bn = mark_final(norm(spec.dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        x = self.a_relu(self.a_bn(self.a(x)))
        return self.c_bn(self.project(self.b_bn(self.b(x))))

    def project(self, x: Tensor) -> Tensor:
        """Gate, Swish and last convolution, [B, dim_inner, T, H, W] -> [B, dim_out, T, H, W].

        In training on a CPU, what lies between them is not kept but computed again in the backward pass.
        """
        if self._can_compute_again(x):
            gate = self.se.gate(x) if isinstance(self.se, SqueezeExcite) else None
            return conv_passes.convolve_swished_points(x, gate, self.c.weight)
        return self.c(self.b_relu(self.se(x)))

    def _can_compute_again(self, x: Tensor) -> bool:
        """Whether the parts are the ones that are put here, and the last is computed as ``convolve_points``."""
        gate = SqueezeExcite if isinstance(self.se, SqueezeExcite) else nn.Identity
        is_ours = is_untouched(self.se, gate) and is_untouched(self.b_relu, nn.SiLU) and is_untouched(self.c, Conv3d)
        is_points = is_ours and self.c.backend == "auto" and self.c.bias is None
        return is_points and conv_passes.can_split(x, self.c.weight)


class X3DBlock(nn.Module):
    """``relu(shortcut(x) + transform(x))``; in training the transform of a sample is left out at ``drop_rate``."""

    def __init__(
        self,
        dim_in: int,
        spec: StageSpec,
        *,
        kernel: int,
        stride: int,
        gated: bool,
        stride_1x1: bool = False,
        drop_rate: float = 0.0,
        norm: Norm = nn.BatchNorm3d,
    ):
        super().__init__()
        if dim_in != spec.dim_out or stride != 1:
            self.branch1 = Conv3d(dim_in, spec.dim_out, 1, (1, stride, stride), bias=False)
            self.branch1_bn = norm(spec.dim_out)
        else:
            self.branch1 = None
        self.branch2 = X3DTransform(
            dim_in, spec, kernel=kernel, stride=stride, gated=gated, stride_1x1=stride_1x1, norm=norm
        )
        self.drop = drop_path(drop_rate)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, dim_out, T, H / stride, W / stride]."""
        shortcut = x if self.branch1 is None else self.branch1_bn(self.branch1(x))
        return self.relu(self.drop(self.branch2(x)).add_(shortcut))


class X3DStage(ResStage):
    """A residual stage of ``X3DBlock``s, every other one gated, from the first on."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        stride_1x1: bool = False,
        drop_rate: float = 0.0,
        nonlocal_instantiation: str = "softmax",
        norm: Norm = nn.BatchNorm3d,
    ):
        nn.Module.__init__(self)  # the blocks of the parent are other ones; how they run is the same
        self.specs = (spec,)
        for i, kernel in enumerate(spec.kernels):
            block = X3DBlock(
                spec.dim_out if i else spec.dim_in,
                spec,
                kernel=kernel,
                stride=1 if i else spec.stride,
                gated=i % 2 == 0,
                stride_1x1=stride_1x1,
                drop_rate=drop_rate,
                norm=norm,
            )
            self.add_module(f"pathway0_res{i}", block)
            if i in spec.nonlocal_at:
                attention = Nonlocal(
                    spec.dim_out,
                    spec.dim_out // 2,
                    pool=spec.nonlocal_pool,
                    instantiation=nonlocal_instantiation,
                    norm=norm,
                )
                self.add_module(f"pathway0_nonlocal{i}", attention)


class X3DStem(nn.Module):
    """1 x 3 x 3 convolution of stride 2 in space, depthwise convolution in time, norm, ReLU."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, norm: Norm):
        super().__init__()
        self.conv_xy = Conv3d(dim_in, dim_out, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1), bias=False)
        self.conv = Conv3d(dim_out, dim_out, (kernel, 1, 1), padding=(kernel // 2, 0, 0), groups=dim_out, bias=False)
        self.bn = norm(dim_out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, C, T, H / 2, W / 2]."""
        return self.relu(self.bn(self.conv(self.conv_xy(x))))


@dataclass(frozen=True)
class X3DHeadSpec:
    """What stands on the last feature map."""

    num_classes: int
    dim: int = 2048  # of the features before the classifier
    window: tuple[int, int, int] | None = None  # average pooling (t, h, w); None: the whole map
    norm_features: bool = False  # batch norm on these features
    dropout: float = 0.0
    act: str = "softmax"
    detach: bool = False  # no gradient below the classifier
    norm: Norm = nn.BatchNorm3d

    def __post_init__(self):
        if self.act not in ACTIVATIONS:
            raise ValueError(f"MODEL.HEAD_ACT={self.act!r}: allowed are {', '.join(ACTIVATIONS)}")


class X3DHead(nn.Module):
    """1 x 1 x 1 convolution, average pooling, a wide layer and a linear classifier.

    A map larger than the pooling window (testing at a larger crop than training) keeps several positions: in
    evaluation each is classified and activated, then they are averaged; in training their logits are listed one
    after the other.
    """

    def __init__(self, dim_in: int, dim_inner: int, spec: X3DHeadSpec):
        super().__init__()
        self.window = spec.window
        self.detach = spec.detach
        self.act = ACTIVATIONS[spec.act]
        self.conv_5 = Conv3d(dim_in, dim_inner, 1, bias=False)
        self.conv_5_bn = spec.norm(dim_inner)
        self.conv_5_relu = nn.ReLU(inplace=True)
        self.lin_5 = Conv3d(dim_inner, spec.dim, 1, bias=False)
        if spec.norm_features:
            self.lin_5_bn = spec.norm(spec.dim)
        else:
            self.lin_5_bn = nn.Identity()
        self.lin_5_relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(spec.dropout)
        self.projection = nn.Linear(spec.dim, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, K] scores, or in training logits [B, positions * K]."""
        x = self.conv_5_relu(self.conv_5_bn(self.conv_5(x)))
        x = average_pool(x, self.window)
        x = self.lin_5_relu(self.lin_5_bn(self.lin_5(x)))
        x = self.dropout(x.permute(0, 2, 3, 4, 1))  # [B, C, t, h, w] -> [B, t, h, w, C]
        if self.detach:
            x = x.detach()
        x = self.projection(x)
        if not self.training:
            x = self.act(x).mean((1, 2, 3))
        return x.flatten(1)


def build_head_spec(cfg) -> X3DHeadSpec:
    """The head for clips of DATA.NUM_FRAMES frames and DATA.TRAIN_CROP_SIZE pixels."""
    side, multigrid = math.ceil(cfg.DATA.TRAIN_CROP_SIZE / 32), cfg.MULTIGRID
    return X3DHeadSpec(
        num_classes=cfg.MODEL.NUM_CLASSES,
        dim=cfg.X3D.DIM_C5,
        window=None if multigrid.SHORT_CYCLE or multigrid.LONG_CYCLE else (cfg.DATA.NUM_FRAMES, side, side),
        norm_features=cfg.X3D.BN_LIN5,
        dropout=cfg.MODEL.DROPOUT_RATE,
        act=cfg.MODEL.HEAD_ACT,
        detach=cfg.MODEL.DETACH_FINAL_FC,
        # NOTE: as in the original, whose checkpoints have the names of plain batch norm here.
        norm=nn.BatchNorm3d if cfg.BN.NORM_TYPE == "sub_batchnorm" else build_norm(cfg),
    )


@MODEL_REGISTRY.register()
class X3D(nn.Module):
    """X3D: Expanding Architectures for Efficient Video Recognition (Feichtenhofer, https://arxiv.org/abs/2004.04730).

    Differs from the original where that ignored a key: MODEL.DROPCONNECT_RATE acts (growing from 2/5 of its value in
    res2 to all of it in res5), and so do MODEL.DETACH_FINAL_FC, MODEL.ACT_CHECKPOINT (first two stages) and
    MULTIGRID.SHORT_CYCLE (the head pools the whole map). NONLOCAL.* of res2 applies to every stage, and
    RESNET.SPATIAL_STRIDES, RESNET.NUM_BLOCK_TEMP_KERNEL and RESNET.INPLACE_RELU do not apply, as in the original.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        *,
        head: X3DHeadSpec,
        in_channels: int = 3,
        stride_1x1: bool = False,
        drop_rate: float = 0.0,
        nonlocal_instantiation: str = "softmax",
        norm: Norm = nn.BatchNorm3d,
        fc_init_std: float = 0.01,
        zero_final_norm: bool = False,
        checkpoint_early: bool = False,
        conv_backend: str = "auto",
    ):
        super().__init__()
        self.checkpoint_early = checkpoint_early
        self.s1 = nn.Sequential(
            OrderedDict(pathway0_stem=X3DStem(in_channels, stages[0].dim_in, STEM_KERNEL, norm=norm))
        )
        for i, spec in enumerate(stages):
            stage = X3DStage(
                spec,
                stride_1x1=stride_1x1,
                drop_rate=drop_rate * (i + 2) / 5,
                nonlocal_instantiation=nonlocal_instantiation,
                norm=norm,
            )
            self.add_module(f"s{i + 2}", stage)
        self.head = X3DHead(stages[-1].dim_out, stages[-1].dim_inner, head)
        init_weights(self, fc_std=fc_init_std, zero_final_norm=zero_final_norm)
        set_conv_backend(self, conv_backend)

    @classmethod
    def from_cfg(cls, cfg) -> "X3D":
        """The network that X3D.* and MODEL.* describe, for clips of DATA.NUM_FRAMES frames."""
        for key, given, allowed in (
            ("MODEL.ARCH", cfg.MODEL.ARCH, "x3d"),
            ("RESNET.TRANS_FUNC", cfg.RESNET.TRANS_FUNC, "x3d_transform"),
        ):
            if given != allowed:
                raise ValueError(f"{key}={given!r} with MODEL.MODEL_NAME='X3D': allowed is {allowed!r}")
        if cfg.DETECTION.ENABLE:
            raise ValueError(
                "DETECTION.ENABLE=True with MODEL.MODEL_NAME='X3D': X3D has no head for boxes; set DETECTION.ENABLE "
                "False or choose SlowFast or ResNet"
            )
        return cls(
            plan_x3d(
                stem_width=cfg.X3D.DIM_C1,
                width_factor=cfg.X3D.WIDTH_FACTOR,
                depth_factor=cfg.X3D.DEPTH_FACTOR,
                bottleneck_factor=cfg.X3D.BOTTLENECK_FACTOR,
                scale_res2=cfg.X3D.SCALE_RES2,
                channelwise=cfg.X3D.CHANNELWISE_3x3x3,
                groups=cfg.RESNET.NUM_GROUPS,
                dilations=[row[0] for row in cfg.RESNET.SPATIAL_DILATIONS],
                nonlocal_at=cfg.NONLOCAL.LOCATION[0][0],
                nonlocal_pool=cfg.NONLOCAL.POOL[0][0],
                nonlocal_group=cfg.NONLOCAL.GROUP[0][0],
            ),
            head=build_head_spec(cfg),
            in_channels=cfg.DATA.INPUT_CHANNEL_NUM[0],
            stride_1x1=cfg.RESNET.STRIDE_1X1,
            drop_rate=cfg.MODEL.DROPCONNECT_RATE,
            nonlocal_instantiation=cfg.NONLOCAL.INSTANTIATION,
            norm=build_norm(cfg),
            fc_init_std=cfg.MODEL.FC_INIT_STD,
            zero_final_norm=cfg.RESNET.ZERO_INIT_FINAL_BN,
            checkpoint_early=cfg.MODEL.ACT_CHECKPOINT,
            conv_backend=cfg.MODEL.CONV_BACKEND,
        )

    def forward(self, clips: Tensor | Sequence[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, H, W], or a list of that one tensor, -> logits or scores [B, K]; ``boxes`` are refused."""
        refuse_boxes(boxes)
        x = self.s1(as_pathways(clips, 1)[0])
        x = maybe_checkpointed(self.s2, [x], enabled=self.checkpoint_early)
        x = maybe_checkpointed(self.s3, x, enabled=self.checkpoint_early)
        x = self.s5(self.s4(x))
        return self.head(x[0])
