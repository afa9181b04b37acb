"""Independent witnesses: the same weights, renamed, through torchvision and pytorchvideo, in float64.

Outputs and the gradients of every weight and of the clip must agree.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model

from slowfast.config import load_cfg
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]

TORCHVISION_NAMES = [
    (r"^pos_embed_class$", "pos_encoding.class_pos"),
    (r"^pos_embed_(spatial|temporal)$", r"pos_encoding.\1_pos"),
    (r"^cls_token$", "pos_encoding.class_token"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"\.attn\.proj\.", ".attn.project.0."),
    (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
    (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
    (r"^head\.projection\.", "head.1."),
]
PYTORCHVIDEO_NAMES = [
    (r"^s1\.pathway0_stem\.conv_xy\.", "blocks.0.conv.conv_t."),  # the names are swapped there
    (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv.conv_xy."),
    (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    (r"^s(\d)\.pathway0_res(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.res_blocks.{m[2]}."),
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.b_bn\.", ".branch2.norm_b.0."),
    (r"\.branch2\.([ac])_bn\.", r".branch2.norm_\1."),
    (r"\.branch2\.se\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.branch2\.se\.fc2\.", ".branch2.norm_b.1.block.2."),
    (r"^head\.conv_5\.", "blocks.5.pool.pre_conv."),
    (r"^head\.conv_5_bn\.", "blocks.5.pool.pre_norm."),
    (r"^head\.lin_5\.", "blocks.5.pool.post_conv."),
    (r"^head\.projection\.", "blocks.5.proj."),
]
PYTORCHVIDEO_MVIT_NAMES = [
    (r"^(cls_token|pos_embed\w*)$", r"cls_positional_encoding.\1"),
    (r"^patch_embed\.proj\.", "patch_embed.patch_model."),
    (r"^norm\.", "norm_embed."),
    (r"^head\.projection\.", "head.proj."),
]


def renamed(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def compare(ours, theirs, rules, clips, *, extra=()):
    """Give ``theirs`` our weights, then compare outputs and all gradients; ``extra`` are names that only we have."""
    state = {renamed(name, rules): value for name, value in ours.state_dict().items() if name not in extra}
    target = theirs.state_dict()
    assert set(state) == set(target)
    theirs.load_state_dict({name: value.reshape(target[name].shape) for name, value in state.items()})
    grads, outputs = [], []
    for model in (ours, theirs):
        x = clips.clone().requires_grad_()
        outputs.append(model(x))
        (outputs[-1] * fill_input("witness:slope", tuple(outputs[-1].shape)).double()).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()} | {"clips": x.grad})
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-12)
    assert outputs[0].std() > 0
    for name, grad in grads[0].items():
        if name not in extra:
            other = grads[1][renamed(name, rules)].reshape(grad.shape)
            largest = float(other.abs().max())
            torch.testing.assert_close(grad, other, rtol=1e-8, atol=1e-9 * max(largest, 1e-6), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "builder"), [("MVIT_B_16x4_CONV.yaml", "mvit_v1_b"), ("MVITv2_S_16x4.yaml", "mvit_v2_s")]
)
def test_torchvision_agrees_on_mvit(config, builder, monkeypatch):
    from torchvision.models.video import mvit

    class Small(mvit.MViT):
        """Any of torchvision's networks for clips of 8 x 64 x 64."""

        def __init__(self, **options):
            super().__init__(**{**options, "spatial_size": (64, 64), "temporal_size": 8})

    monkeypatch.setattr(mvit, "MViT", Small)
    theirs = getattr(mvit, builder)(stochastic_depth_prob=0.0, dropout=0.0, num_classes=7).double().train()
    opts = ["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 7]
    opts += ["MVIT.DROPPATH_RATE", 0.0, "MODEL.DROPOUT_RATE", 0.0]
    ours = fill_model(build_model(load_cfg(ROOT / "configs" / "Kinetics" / config, opts))).double().train()
    compare(ours, theirs, TORCHVISION_NAMES, fill_input(f"witness:{builder}", (2, 3, 8, 64, 64)).double())


@pytest.mark.slow
@pytest.mark.parametrize("config", ["X3D_XS.yaml", "X3D_S.yaml", "X3D_M.yaml", "X3D_L.yaml"])
def test_pytorchvideo_agrees_on_x3d(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.x3d import create_x3d
    opts = ["DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 7]
    cfg = load_cfg(ROOT / "configs" / "Kinetics" / config, opts)
    ours = fill_model(build_model(cfg)).double().eval()
    theirs = create_x3d(
        input_clip_length=4,
        input_crop_size=64,
        model_num_class=7,
        width_factor=cfg.X3D.WIDTH_FACTOR,
        depth_factor=cfg.X3D.DEPTH_FACTOR,
        bottleneck_factor=cfg.X3D.BOTTLENECK_FACTOR,
    )
    # There the first shortcut, which keeps the number of channels, has no norm: make ours do nothing.
    norm = ours.s2.pathway0_res0.branch1_bn
    with torch.no_grad():
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        for value in (norm.bias, norm.running_mean):
            value.zero_()
        norm.running_var.fill_(1)
    extra = [f"s2.pathway0_res0.branch1_bn.{name}" for name in norm.state_dict()]
    clips = fill_input("witness:x3d", (2, 3, 4, 64, 64)).double()
    compare(ours, theirs.double().eval(), PYTORCHVIDEO_NAMES, clips, extra=extra)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opts", "options"),
    [
        ({}, {}),
        ({"CLS_EMBED_ON": False}, {"cls_embed_on": False}),
        ({"SEP_POS_EMBED": False}, {"sep_pos_embed": False}),
        ({"POOL_FIRST": True}, {"pool_first": True}),
        ({"MODE": "avg"}, {"pooling_mode": "avg"}),
        ({"MODE": "max", "POOL_FIRST": True}, {"pooling_mode": "max", "pool_first": True}),
    ],
)
def test_pytorchvideo_agrees_on_mvit(opts, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers
    growth = [[1, 2.0], [3, 2.0]]
    strides = [[1, 1, 2, 2], [3, 1, 2, 2]]
    theirs = create_multiscale_vision_transformers(
        spatial_size=64,
        temporal_size=8,
        depth=4,
        patch_embed_dim=32,
        embed_dim_mul=growth,
        atten_head_mul=growth,
        pool_q_stride_size=strides,
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
        conv_patch_embed_padding=(1, 3, 3),
        head_dropout_rate=0.0,
        head_num_classes=7,
        **options,
    )
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6  # the norms after pooling have 1e-5 there, unlike the original and torchvision
    shape = ["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 7]
    small = {
        "DEPTH": 4,
        "EMBED_DIM": 32,
        "DIM_MUL": growth,
        "HEAD_MUL": growth,
        "POOL_Q_STRIDE": strides,
        "POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
        "DROPPATH_RATE": 0.0,
        "SEPARATE_QKV": True,
    }
    keys = [item for key, value in (small | opts).items() for item in (f"MVIT.{key}", value)]
    config = ROOT / "configs" / "Kinetics" / "MVIT_B_16x4_CONV.yaml"
    ours = build_model(load_cfg(config, [*shape, *keys, "MODEL.DROPOUT_RATE", 0.0]))
    clips = fill_input("witness:mvit", (2, 3, 8, 64, 64)).double()
    compare(fill_model(ours).double().train(), theirs.double().train(), PYTORCHVIDEO_MVIT_NAMES, clips)
