"""SlowFast: a Slow pathway that sees few frames in many channels, a Fast one that sees many in few."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.heads import HeadSpec
from slowfast.models.layers import Conv3d, init_weights, maybe_checkpointed, set_conv_backend
from slowfast.models.norm import Norm, build_norm
from slowfast.models.pathways import as_pathways, slow_indices
from slowfast.models.resnet import (
    BlockOptions,
    ResStage,
    StageSpec,
    VideoModelStem,
    build_head_spec,
    build_plans,
    plan_stages,
    temporal_kernels,
)


def lateral_dims(width: int, beta_inv: int, ratio: int) -> list[int]:
    """Channels that the lateral connections add to the Slow pathway before res2 to res5."""
    if beta_inv < 1 or width % beta_inv:
        raise ValueError(
            f"RESNET.WIDTH_PER_GROUP={width} is not a multiple of SLOWFAST.BETA_INV={beta_inv}: "
            "the Fast pathway would have no whole number of channels"
        )
    return [ratio * width * factor // beta_inv for factor in (1, 4, 8, 16)]


class FuseFastToSlow(nn.Module):
    """Lateral connection: a time-strided convolution of the Fast features, concatenated to the Slow ones."""

    def __init__(self, dim_fast: int, dim_lateral: int, *, kernel: int, alpha: int, norm: Norm):
        super().__init__()
        self.conv_f2s = Conv3d(
            dim_fast, dim_lateral, (kernel, 1, 1), (alpha, 1, 1), padding=(kernel // 2, 0, 0), bias=False
        )
        self.bn = norm(dim_lateral)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, pathways: list[Tensor]) -> list[Tensor]:
        """Slow [B, C, T / alpha, H, W] and fast [B, D, T, H, W] -> slow with dim_lateral more channels, fast."""
        slow, fast = pathways
        return [torch.cat([slow, self.relu(self.bn(self.conv_f2s(fast)))], dim=1), fast]


@MODEL_REGISTRY.register()
class SlowFast(nn.Module):
    """SlowFast networks (Feichtenhofer, Fan, Malik, He; https://arxiv.org/abs/1812.03982).

    A clip tensor is cut into its pathways here; RESNET.STRIDE_1X1 and RESNET.INPLACE_RELU do not apply, as in the
    original.
    """

    def __init__(
        self,
        stages: Sequence[tuple[StageSpec, StageSpec]],
        *,
        alpha: int,
        head: HeadSpec,
        in_channels: Sequence[int] = (3, 3),
        stem_dims: Sequence[int],
        stem_kernels: Sequence[int] = (1, 5),
        fusion_kernel: int = 5,
        options: BlockOptions | None = None,
        fc_init_std: float = 0.01,
        zero_final_norm: bool = False,
        zero_final_conv: bool = False,
        checkpoint_early: bool = False,
        conv_backend: str = "auto",
    ):
        super().__init__()
        options = options or BlockOptions()
        self.alpha = alpha
        self.checkpoint_early = checkpoint_early
        self.s1 = VideoModelStem(in_channels, stem_dims, stem_kernels, norm=options.norm)
        dim_slow, dim_fast = stem_dims
        for i, (slow, fast) in enumerate(stages):
            fuse = FuseFastToSlow(
                dim_fast, slow.dim_in - dim_slow, kernel=fusion_kernel, alpha=alpha, norm=options.norm
            )
            self.add_module(f"s{i + 1}_fuse", fuse)
            self.add_module(f"s{i + 2}", ResStage([slow, fast], options))
            dim_slow, dim_fast = slow.dim_out, fast.dim_out
        self.head = head.make([dim_slow, dim_fast])
        init_weights(self, fc_std=fc_init_std, zero_final_norm=zero_final_norm, zero_final_conv=zero_final_conv)
        set_conv_backend(self, conv_backend)

    @classmethod
    def from_cfg(cls, cfg) -> "SlowFast":
        """The network that MODEL.*, RESNET.*, NONLOCAL.* and SLOWFAST.* describe, for DATA.NUM_FRAMES frames."""
        width, beta_inv, alpha = cfg.RESNET.WIDTH_PER_GROUP, cfg.SLOWFAST.BETA_INV, cfg.SLOWFAST.ALPHA
        kernels = temporal_kernels(cfg.MODEL.ARCH, 2)
        lateral = lateral_dims(width, beta_inv, cfg.SLOWFAST.FUSION_CONV_CHANNEL_RATIO)
        slow_indices(cfg.DATA.NUM_FRAMES, alpha)  # refuses an uneven clip
        channels = cfg.DATA.INPUT_CHANNEL_NUM
        slow, fast = build_plans(cfg)
        stages = zip(plan_stages(**slow, lateral=lateral), plan_stages(**fast, shrink=beta_inv), strict=True)
        return cls(
            list(stages),
            alpha=alpha,
            head=build_head_spec(cfg),
            in_channels=channels if len(channels) == 2 else [channels[0], channels[0]],
            stem_dims=(width, width // beta_inv),
            stem_kernels=[row.stem for row in kernels],
            fusion_kernel=cfg.SLOWFAST.FUSION_KERNEL_SZ,
            options=BlockOptions(
                transform=cfg.RESNET.TRANS_FUNC,
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
        """Clips [B, C, T, H, W], or the list [slow, fast], -> logits or scores [B, K].

        Detection networks take ``boxes`` [R, 5] and give [R, K].
        """
        x = as_pathways(clips, 2, self.alpha)
        x = maybe_checkpointed(self.s1, x, enabled=self.checkpoint_early)
        x = maybe_checkpointed(self.s2, self.s1_fuse(x), enabled=self.checkpoint_early)
        x = self.s3(self.s2_fuse(x))
        x = self.s4(self.s3_fuse(x))
        x = self.s5(self.s4_fuse(x))
        return self.head(x) if boxes is None else self.head(x, boxes)
