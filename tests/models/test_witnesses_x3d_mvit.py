"""Options of MViT against an independent witness: the same weights, renamed, through pytorchvideo, in float64.

The published networks are compared in tests/tools/test_parity.py.

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
