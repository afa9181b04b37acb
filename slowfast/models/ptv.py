"""The names ``PTV*``: networks of the pytorchvideo package behind our configuration and our calling convention.

No network is written here. Each class asks a builder of ``pytorchvideo.models`` for logits at every position of the
pooled map; ``PTVModel`` activates and averages them. Weights, names and initialisation are the package's own, under
``model.``; pytorchvideo is imported when one of these networks is built.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import RoIAlign

from slowfast.models.build import MODEL_REGISTRY
from slowfast.models.heads import ACTIVATIONS, refuse_boxes
from slowfast.models.layers import AvgPool3d
from slowfast.models.mvit import PatchSpec, build_patch_spec
from slowfast.models.norm import build_norm
from slowfast.models.pathways import as_pathways, slow_indices
from slowfast.models.resnet import TEMPORAL_KERNELS, pathway_column, temporal_kernels
from slowfast.models.slowfast import lateral_dims

BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STAGES = 4


class PTVModel(nn.Module):
    """A network of pytorchvideo: clips in, scores out.

    ``network`` takes a clip, or the list [slow, fast], and gives logits [B, K] or [B, K, t, h, w]. In evaluation the
    logits of each position are activated, then averaged; in training they are averaged as they are. With a
    ``detection_head`` (PTVResNet and PTVSlowFast), ``network`` ends in feature maps; the scores are those of boxes and
    are activated in training too.

    The package has its own way with some things: MODEL.FC_INIT_STD, RESNET.ZERO_INIT_FINAL_BN and
    RESNET.ZERO_INIT_FINAL_CONV do not apply (the last norm of each block starts at 0), nor do MODEL.ACT_CHECKPOINT and
    MODEL.CONV_BACKEND. Keys that would give another network are refused.
    """

    num_pathways = 1
    has_roi_head = False

    def __init__(
        self, network: nn.Module, *, act: str = "softmax", alpha: int = 1, detection_head: nn.Module | None = None
    ):
        super().__init__()
        allowed = [name for name in ACTIVATIONS if detection_head is None or name != "none"]
        if act not in allowed:
            raise ValueError(f"MODEL.HEAD_ACT={act!r}: allowed are {', '.join(allowed)}")
        self.model = network
        self.detection_head = detection_head
        self.act = ACTIVATIONS[act]
        self.alpha = alpha

    @classmethod
    def from_cfg(cls, cfg) -> "PTVModel":
        """The network that the keys of its family describe."""
        check_keys(
            cls.__name__,
            [
                ("DETECTION.ENABLE", cfg.DETECTION.ENABLE, [False, cls.has_roi_head]),
                ("MODEL.DETACH_FINAL_FC", cfg.MODEL.DETACH_FINAL_FC, [False]),
                ("MULTIGRID.SHORT_CYCLE", cfg.MULTIGRID.SHORT_CYCLE, [False]),
                ("MULTIGRID.LONG_CYCLE", cfg.MULTIGRID.LONG_CYCLE, [False]),
            ],
        )
        network = with_checked_pools(cls.build_network(cfg))
        options = {"act": cfg.MODEL.HEAD_ACT, "alpha": cfg.SLOWFAST.ALPHA}
        if cfg.DETECTION.ENABLE:
            return cls(network.model, detection_head=network.detection_head, **options)
        return cls(network, **options)

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """The network itself, made by pytorchvideo."""
        raise NotImplementedError

    def forward(self, clips: Tensor | Sequence[Tensor], boxes: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, H, W], or the list of pathways, -> logits or scores [B, K].

        Detection networks take ``boxes`` [R, 5] (batch row, x1, y1, x2, y2 in clip pixels) and give [R, K].
        """
        x = self.run(as_pathways(clips, self.num_pathways, self.alpha))
        if self.detection_head is not None:
            if boxes is None:
                raise ValueError("DETECTION.ENABLE is on: the model needs boxes [R, 5] beside the clips")
            return self.act(self.detection_head(x, boxes).flatten(1))  # [R, K, 1, 1, 1] -> [R, K]
        refuse_boxes(boxes)
        x = x.reshape(*x.shape[:2], -1).transpose(1, 2)  # [B, K, ...] -> [B, positions, K]
        return (x if self.training else self.act(x)).mean(1)

    def run(self, pathways: list[Tensor]) -> Tensor:
        """What the network makes of its pathways."""
        return self.model(pathways if self.num_pathways > 1 else pathways[0])


def with_checked_pools(network: nn.Module) -> nn.Module:
    """``network`` whose average poolings say which keys make their window, where a map is too small for it."""
    pools: dict[nn.Module, AvgPool3d] = {}  # a pooling with two names stays one
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AvgPool3d:
                pool = AvgPool3d(child.kernel_size, child.stride, child.padding)
                setattr(parent, name, pools.setdefault(child, pool))
    return network


def check_keys(name: str, keys: Iterable[tuple[str, Any, Sequence]]) -> None:
    """Refuse the first key (its name, the value given, those allowed) that the network ``name`` cannot follow."""
    for key, given, allowed in keys:
        if given not in allowed:
            choice = " or ".join(dict.fromkeys(map(repr, allowed)))
            raise ValueError(
                f"{key}={given!r} with MODEL.MODEL_NAME={name!r}: allowed is {choice}; change it, or take a network "
                "that is not of pytorchvideo (SlowFast, ResNet, X3D, MViT)"
            )


def build_ptv_norm(cfg):
    """The norm of BN.* as pytorchvideo calls it; eps and momentum are those of every norm here."""
    norm = build_norm(cfg)
    return lambda num_features, eps=1e-5, momentum=0.1: norm(num_features)


def build_head(cfg, *frames: int) -> dict:
    """What all convolutional networks say about their heads, and the pooling windows for these ``frames``."""
    side = 1 if cfg.DETECTION.ENABLE else cfg.DATA.TRAIN_CROP_SIZE // 32
    windows = tuple((t, side, side) for t in frames)
    if min(side, *frames) < 1:
        raise ValueError(
            f"the head would pool over {windows} (t, h, w): DATA.NUM_FRAMES={cfg.DATA.NUM_FRAMES} or "
            f"DATA.TRAIN_CROP_SIZE={cfg.DATA.TRAIN_CROP_SIZE} is too small for MODEL.MODEL_NAME={cfg.MODEL.MODEL_NAME}"
        )
    head = {
        "model_num_class": cfg.MODEL.NUM_CLASSES,
        "dropout_rate": cfg.MODEL.DROPOUT_RATE,
        "norm": build_ptv_norm(cfg),
        "head_activation": None,
        "head_output_with_global_average": False,
    }
    head |= {"head_pool_kernel_size": windows[0]} if len(frames) == 1 else {"head_pool_kernel_sizes": windows}
    return head | build_roi_head(cfg) if cfg.DETECTION.ENABLE else head


def build_roi_head(cfg) -> dict:
    """What the builders "with_roi_head" ask beside it."""
    from pytorchvideo.models.head import create_res_roi_pooling_head

    return {
        "head": partial(create_res_roi_pooling_head, roi=partial(RoIAlign, aligned=cfg.DETECTION.ALIGNED)),
        "head_spatial_resolution": (cfg.DETECTION.ROI_XFORM_RESOLUTION,) * 2,
        "head_spatial_scale": 1.0 / cfg.DETECTION.SPATIAL_SCALE_FACTOR,
        "head_sampling_ratio": 0,
    }


def _in_space(sizes: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple((1, size, size) for size in sizes)


def _in_time(sizes: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple((size, 1, 1) for size in sizes)


def build_bottleneck_keys(cfg) -> list[tuple[str, Any, Sequence]]:
    """For ``check_keys``: what the bottlenecks of pytorchvideo cannot follow."""
    nowhere = [[[] for _ in stage] for stage in cfg.NONLOCAL.LOCATION]
    return [
        ("RESNET.TRANS_FUNC", cfg.RESNET.TRANS_FUNC, ["bottleneck_transform"]),
        ("RESNET.STRIDE_1X1", cfg.RESNET.STRIDE_1X1, [False]),
        ("RESNET.DEPTH", cfg.RESNET.DEPTH, list(BLOCKS_PER_STAGE)),
        ("NONLOCAL.LOCATION", cfg.NONLOCAL.LOCATION, [nowhere]),
    ]


@MODEL_REGISTRY.register()
class PTVResNet(PTVModel):
    """C2D, I3D and Slow of pytorchvideo.

    RESNET.NUM_BLOCK_TEMP_KERNEL does not apply, as in the original: every block of a stage follows MODEL.ARCH.
    """

    has_roi_head = True

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.resnet import create_resnet, create_resnet_with_roi_head

        check_keys("PTVResNet", [("MODEL.ARCH", cfg.MODEL.ARCH, ["c2d", "slow", "i3d"]), *build_bottleneck_keys(cfg)])
        (kernels,) = TEMPORAL_KERNELS[cfg.MODEL.ARCH]
        strides = pathway_column(cfg.RESNET.SPATIAL_STRIDES, 0, "RESNET.SPATIAL_STRIDES")
        dilations = pathway_column(cfg.RESNET.SPATIAL_DILATIONS, 0, "RESNET.SPATIAL_DILATIONS")
        create = create_resnet_with_roi_head if cfg.DETECTION.ENABLE else create_resnet
        return create(
            input_channel=cfg.DATA.INPUT_CHANNEL_NUM[0],
            model_depth=cfg.RESNET.DEPTH,
            stem_dim_out=cfg.RESNET.WIDTH_PER_GROUP,
            stem_conv_kernel_size=(kernels.stem, 7, 7),
            stem_pool=nn.MaxPool3d,
            stage1_pool=nn.MaxPool3d if kernels.pool > 1 else None,
            stage1_pool_kernel_size=(kernels.pool, 1, 1),
            stage_conv_a_kernel_size=tuple(_in_time(stage) for stage in kernels.stages),
            stage_conv_b_num_groups=(1,) * STAGES,
            stage_conv_b_dilation=_in_space(dilations),
            stage_spatial_h_stride=tuple(strides),
            stage_spatial_w_stride=tuple(strides),
            **build_head(cfg, cfg.DATA.NUM_FRAMES // kernels.pool),
        )


@MODEL_REGISTRY.register()
class PTVSlowFast(PTVModel):
    """SlowFast of pytorchvideo.

    Differs from the original where that was wrong: each stage of the Fast pathway has its own entry of
    RESNET.SPATIAL_DILATIONS.
    """

    num_pathways = 2
    has_roi_head = True

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.slowfast import create_slowfast, create_slowfast_with_roi_head

        check_keys("PTVSlowFast", build_bottleneck_keys(cfg))
        width, beta_inv, alpha = cfg.RESNET.WIDTH_PER_GROUP, cfg.SLOWFAST.BETA_INV, cfg.SLOWFAST.ALPHA
        ratio = cfg.SLOWFAST.FUSION_CONV_CHANNEL_RATIO
        rows = temporal_kernels(cfg.MODEL.ARCH, 2)
        slow_indices(cfg.DATA.NUM_FRAMES, alpha)  # refuses an uneven clip
        lateral_dims(width, beta_inv, ratio)  # refuses an uneven width
        channels = cfg.DATA.INPUT_CHANNEL_NUM

        def columns(key: str) -> list[list[int]]:
            return [pathway_column(cfg.RESNET[key], pathway, f"RESNET.{key}") for pathway in range(2)]

        kernels = [
            tuple(
                _in_time([*stage * min(used, blocks), *[1] * (blocks - used)])
                for stage, used, blocks in zip(row.stages, temporal, BLOCKS_PER_STAGE[cfg.RESNET.DEPTH], strict=True)
            )
            for row, temporal in zip(rows, columns("NUM_BLOCK_TEMP_KERNEL"), strict=True)
        ]
        create = create_slowfast_with_roi_head if cfg.DETECTION.ENABLE else create_slowfast
        return create(
            slowfast_channel_reduction_ratio=(beta_inv,),
            slowfast_conv_channel_fusion_ratio=ratio,
            slowfast_fusion_conv_kernel_size=(cfg.SLOWFAST.FUSION_KERNEL_SZ, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            input_channels=tuple(channels) if len(channels) == 2 else (channels[0], channels[0]),
            model_depth=cfg.RESNET.DEPTH,
            stem_dim_outs=(width, width // beta_inv),
            stem_conv_kernel_sizes=tuple((row.stem, 7, 7) for row in rows),
            stage_conv_a_kernel_sizes=tuple(kernels),
            stage_conv_b_num_groups=((cfg.RESNET.NUM_GROUPS,) * STAGES,) * 2,
            stage_conv_b_dilations=tuple(_in_space(column) for column in columns("SPATIAL_DILATIONS")),
            stage_spatial_strides=tuple(tuple(column) for column in columns("SPATIAL_STRIDES")),
            **build_head(cfg, cfg.DATA.NUM_FRAMES // alpha, cfg.DATA.NUM_FRAMES),
        )


@MODEL_REGISTRY.register()
class PTVX3D(PTVModel):
    """X3D of pytorchvideo. In its stem the names of the spatial and the temporal convolution are exchanged."""

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.x3d import create_x3d

        nowhere = [[[] for _ in stage] for stage in cfg.NONLOCAL.LOCATION]
        check_keys(
            "PTVX3D",
            [
                ("RESNET.TRANS_FUNC", cfg.RESNET.TRANS_FUNC, ["x3d_transform"]),
                ("RESNET.STRIDE_1X1", cfg.RESNET.STRIDE_1X1, [False]),
                ("X3D.SCALE_RES2", cfg.X3D.SCALE_RES2, [False]),
                ("X3D.CHANNELWISE_3x3x3", cfg.X3D.CHANNELWISE_3x3x3, [True]),
                ("NONLOCAL.LOCATION", cfg.NONLOCAL.LOCATION, [nowhere]),
            ],
        )
        head = build_head(cfg, cfg.DATA.NUM_FRAMES)
        del head["head_pool_kernel_size"]  # the builder has its own rule for the window, by length and side of the clip
        network = create_x3d(
            input_channel=cfg.DATA.INPUT_CHANNEL_NUM[0],
            input_clip_length=cfg.DATA.NUM_FRAMES,
            input_crop_size=cfg.DATA.TRAIN_CROP_SIZE,
            width_factor=cfg.X3D.WIDTH_FACTOR,
            depth_factor=cfg.X3D.DEPTH_FACTOR,
            stem_dim_in=cfg.X3D.DIM_C1,
            bottleneck_factor=cfg.X3D.BOTTLENECK_FACTOR,
            head_dim_out=cfg.X3D.DIM_C5,
            head_bn_lin5_on=cfg.X3D.BN_LIN5,
            inner_act=nn.SiLU,  # the same function as its own Swish, which torch.compile cannot follow
            **head,
        )
        for block in network.modules():
            if hasattr(block, "branch_fusion"):
                block.branch_fusion = torch.add  # as its own lambda, with which no network can be pickled
        return network


@MODEL_REGISTRY.register()
class PTVCSN(PTVModel):
    """Channel-separated networks (Tran, Wang, Torresani, Feiszli; https://arxiv.org/abs/1904.02811) of pytorchvideo.

    Depthwise 3 x 3 x 3 convolutions; the three later stages halve the frames. RESNET.SPATIAL_* does not apply.
    """

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.csn import create_csn

        check_keys("PTVCSN", build_bottleneck_keys(cfg))
        return create_csn(
            input_channel=cfg.DATA.INPUT_CHANNEL_NUM[0],
            model_depth=cfg.RESNET.DEPTH,
            stem_dim_out=cfg.RESNET.WIDTH_PER_GROUP,
            stem_conv_kernel_size=(3, 7, 7),
            stem_pool=nn.MaxPool3d,
            stage_conv_a_kernel_size=(1, 1, 1),
            stage_conv_b_kernel_size=(3, 3, 3),
            stage_conv_b_width_per_group=1,
            stage_spatial_stride=(1, 2, 2, 2),
            stage_temporal_stride=(1, 2, 2, 2),
            **build_head(cfg, cfg.DATA.NUM_FRAMES // 8),
        )


@MODEL_REGISTRY.register()
class PTVR2plus1D(PTVModel):
    """R(2+1)D (Tran, Wang, Torresani, Ray, LeCun, Paluri; https://arxiv.org/abs/1711.11248) of pytorchvideo.

    Bottlenecks whose 3 x 3 x 3 convolution is a spatial and a temporal one; the two last stages halve the frames.
    RESNET.SPATIAL_* does not apply.
    """

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.r2plus1d import create_r2plus1d

        check_keys(
            "PTVR2plus1D",
            [*build_bottleneck_keys(cfg), ("RESNET.NUM_GROUPS", cfg.RESNET.NUM_GROUPS, [1])],
        )
        return create_r2plus1d(
            input_channel=cfg.DATA.INPUT_CHANNEL_NUM[0],
            model_depth=cfg.RESNET.DEPTH,
            stem_dim_out=cfg.RESNET.WIDTH_PER_GROUP,
            stage_conv_b_num_groups=(1,) * STAGES,
            stage_spatial_stride=(2, 2, 2, 2),
            stage_temporal_stride=(1, 1, 2, 2),
            **build_head(cfg, cfg.DATA.NUM_FRAMES // 4),
        )


@MODEL_REGISTRY.register()
class PTVMViT(PTVModel):
    """The first version of MViT (https://arxiv.org/abs/2104.11227) of pytorchvideo.

    Differs from the original where that was wrong: an empty MVIT.POOL_KV_STRIDE is none, so that the adaptive one can
    be used, and MVIT.ZERO_DECAY_POS_CLS acts. Clips (images, with MVIT.PATCH_2D) have the length and side of training;
    positions are not resized.
    """

    zero_decay_positions = False
    patch: PatchSpec
    clip: tuple[int, int, int]  # frames, rows and columns of training

    @classmethod
    def from_cfg(cls, cfg) -> "PTVMViT":
        """The network that MVIT.* describes."""
        model = super().from_cfg(cfg)
        model.zero_decay_positions = cfg.MVIT.ZERO_DECAY_POS_CLS
        model.patch, model.clip = build_patch_spec(cfg), (cfg.DATA.NUM_FRAMES, *(cfg.DATA.TRAIN_CROP_SIZE,) * 2)
        return model

    def run(self, pathways: list[Tensor]) -> Tensor:
        """See the base class; images lose their one frame."""
        (x,) = pathways
        if self.patch.grid(x.shape[2:]) != self.patch.grid(self.clip):
            raise ValueError(
                f"a clip of {tuple(x.shape[2:])} (t, h, w) does not fit the positions of a PTVMViT for {self.clip}: "
                "give it clips of DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE (DATA.TEST_CROP_SIZE too), or take MViT, "
                "which resizes its positions"
            )
        return self.model(x.squeeze(2) if self.patch.flat else x)

    @staticmethod
    def build_network(cfg) -> nn.Module:
        """See the class."""
        from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

        mvit = cfg.MVIT
        if mvit.POOL_KV_STRIDE and mvit.POOL_KV_STRIDE_ADAPTIVE is not None:
            raise ValueError(
                f"MVIT.POOL_KV_STRIDE={mvit.POOL_KV_STRIDE} and MVIT.POOL_KV_STRIDE_ADAPTIVE="
                f"{mvit.POOL_KV_STRIDE_ADAPTIVE} exclude each other: set one of them None"
            )
        plain = ("REL_POS_SPATIAL", "REL_POS_TEMPORAL", "RESIDUAL_POOLING", "DIM_MUL_IN_ATT", "SEPARATE_QKV")
        check_keys(
            "PTVMViT",
            [
                ("MVIT.REV.ENABLE", mvit.REV.ENABLE, [False]),
                ("MASK.ENABLE", cfg.MASK.ENABLE, [False]),
                ("MVIT.NORM", mvit.NORM, ["layernorm"]),
                ("MVIT.MODE", mvit.MODE, ["conv", "avg", "max"]),
                ("MVIT.USE_ABS_POS", mvit.USE_ABS_POS, [True]),
                ("MVIT.USE_FIXED_SINCOS_POS", mvit.USE_FIXED_SINCOS_POS, [False]),
                ("MVIT.USE_MEAN_POOLING", mvit.USE_MEAN_POOLING, [False, not mvit.CLS_EMBED_ON]),
                ("CONTRASTIVE.NUM_MLP_LAYERS", cfg.CONTRASTIVE.NUM_MLP_LAYERS, [1]),
                *((f"MVIT.{key}", mvit[key], [False]) for key in plain),
            ],
        )
        patch, clip = build_patch_spec(cfg), (cfg.DATA.NUM_FRAMES, *(cfg.DATA.TRAIN_CROP_SIZE,) * 2)
        positions = tuple(n // s for n, s in zip(clip, patch.stride, strict=True))
        if patch.grid(clip) != positions or min(positions) < 1:
            raise ValueError(
                f"a clip of {clip} (t, h, w) gives {patch.grid(clip)} patches, PTVMViT has positions for {positions}: "
                "change MVIT.PATCH_KERNEL or MVIT.PATCH_PADDING (half the kernel fits), DATA.NUM_FRAMES or "
                "DATA.TRAIN_CROP_SIZE"
            )
        # NOTE: the builder computes widths with tensors, which must have values: it cannot run on the meta device.
        with torch.device("cpu"):
            network = create_multiscale_vision_transformers(
                spatial_size=cfg.DATA.TRAIN_CROP_SIZE,
                temporal_size=cfg.DATA.NUM_FRAMES,
                cls_embed_on=mvit.CLS_EMBED_ON,
                sep_pos_embed=mvit.SEP_POS_EMBED,
                depth=mvit.DEPTH,
                norm=mvit.NORM,
                input_channels=cfg.DATA.INPUT_CHANNEL_NUM[0],
                patch_embed_dim=mvit.EMBED_DIM,
                conv_patch_embed_kernel=tuple(mvit.PATCH_KERNEL),
                conv_patch_embed_stride=tuple(mvit.PATCH_STRIDE),
                conv_patch_embed_padding=tuple(mvit.PATCH_PADDING),
                enable_patch_embed_norm=mvit.NORM_STEM,
                use_2d_patch=mvit.PATCH_2D,
                num_heads=mvit.NUM_HEADS,
                mlp_ratio=mvit.MLP_RATIO,
                qkv_bias=mvit.QKV_BIAS,
                dropout_rate_block=mvit.DROPOUT_RATE,
                droppath_rate_block=mvit.DROPPATH_RATE,
                pooling_mode=mvit.MODE,
                pool_first=mvit.POOL_FIRST,
                embed_dim_mul=mvit.DIM_MUL,
                atten_head_mul=mvit.HEAD_MUL,
                pool_q_stride_size=mvit.POOL_Q_STRIDE,
                pool_kv_stride_size=mvit.POOL_KV_STRIDE or None,
                pool_kv_stride_adaptive=mvit.POOL_KV_STRIDE_ADAPTIVE,
                pool_kvq_kernel=mvit.POOL_KVQ_KERNEL,
                head_dropout_rate=cfg.MODEL.DROPOUT_RATE,
                head_activation=None,
                head_num_classes=cfg.MODEL.NUM_CLASSES,
            )
        name_pools_twice(network)
        return network.to(torch.get_default_device())

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that do not decay: positions and the class token."""
        if not self.zero_decay_positions:
            return set()
        prefix = "model.cls_positional_encoding."
        return {name for name, _ in self.named_parameters() if name.startswith(prefix)}


def name_pools_twice(network: nn.Module) -> None:
    """Give the pooling layers of MViT the second name that they have in checkpoints of the original.

    That was made with a later state of pytorchvideo than its release, in which ``pool_q`` and ``norm_q`` of a block's
    attention are also ``_attention_pool_q.pool`` and ``_attention_pool_q.norm``. The weights are the same ones.
    """
    for block in network.blocks:
        for x in "qkv":
            pool, alias = getattr(block.attn, f"pool_{x}", None), f"_attention_pool_{x}"
            if pool is not None and not hasattr(block.attn, alias):
                twin = nn.Module()
                twin.pool, twin.norm = pool, getattr(block.attn, f"norm_{x}", None)
                block.attn.add_module(alias, twin)
