import pytest
import torch
from fill import fill_model
from torch import nn

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.heads import HeadSpec
from slowfast.models.layers import Conv3d
from slowfast.models.nonlocal_block import Nonlocal
from slowfast.models.resnet import ResNet, StageSpec, _in_time_groups, plan_stages

SMALL = [
    *("MODEL.MODEL_NAME", "ResNet", "MODEL.ARCH", "slow", "MODEL.NUM_CLASSES", 5),
    *("DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32),
    *("RESNET.DEPTH", 18, "RESNET.WIDTH_PER_GROUP", 4),
]
FLAT = {
    "kernels": ((1,), (1,), (3,), (3,)),
    "num_temporal": (3, 4, 6, 3),
    "strides": (1, 2, 2, 2),
    "dilations": (1, 1, 1, 1),
}


def small_cfg(*opts):
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *opts])
    return cfg


def clips(batch=2, frames=4, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, frames, size, size, generator=generator)


def test_plan_of_the_slow_r50():
    res2, res3, res4, res5 = plan_stages(50, width=64, **FLAT)
    assert res2 == StageSpec(64, 256, 64, 1, 1, 1, (1, 1, 1))
    assert res3 == StageSpec(256, 512, 128, 2, 1, 1, (1, 1, 1, 1))
    assert res4 == StageSpec(512, 1024, 256, 2, 1, 1, (3, 3, 3, 3, 3, 3))
    assert res5 == StageSpec(1024, 2048, 512, 2, 1, 1, (3, 3, 3))


def test_plan_repeats_kernels_and_cuts_them_off():
    i3d = {**FLAT, "kernels": ((3,), (3, 1), (3, 1), (1, 3))}
    assert [spec.kernels for spec in plan_stages(50, width=8, **i3d)] == [
        (3, 3, 3),
        (3, 1, 3, 1),
        (3, 1, 3, 1, 3, 1),
        (1, 3, 1),
    ]
    few = {**i3d, "num_temporal": (1, 0, 3, 9)}
    assert [spec.kernels for spec in plan_stages(18, width=8, **few)] == [(3, 1), (1, 1), (3, 1), (1, 3)]


def test_plan_of_the_fast_pathway_and_of_groups():
    fast = plan_stages(18, width=64, shrink=8, **FLAT)
    assert [(spec.dim_in, spec.dim_out, spec.dim_inner) for spec in fast] == [
        (8, 32, 8),
        (32, 64, 16),
        (64, 128, 32),
        (128, 256, 64),
    ]
    resnext = plan_stages(50, width=4, groups=32, **FLAT)
    assert [(spec.dim_inner, spec.groups) for spec in resnext] == [(128, 32), (256, 32), (512, 32), (1024, 32)]


def test_unknown_depth_names_the_key():
    with pytest.raises(ValueError, match=r"RESNET.DEPTH=34: allowed are 18, 50, 101"):
        build_model(small_cfg("RESNET.DEPTH", 34))


def test_unknown_arch_names_the_key():
    with pytest.raises(ValueError, match=r"MODEL.ARCH='slower'.*allowed are 2d, c2d, slow_c2d, i3d, slow_i3d, slow;"):
        build_model(small_cfg("MODEL.ARCH", "slower"))
    with pytest.raises(ValueError, match=r"MODEL.ARCH='slowfast' is no architecture of 1 pathway"):
        build_model(small_cfg("MODEL.ARCH", "slowfast"))


def test_unknown_transform_names_the_key():
    with pytest.raises(
        ValueError, match=r"RESNET.TRANS_FUNC='wide': allowed are bottleneck_transform, basic_transform"
    ):
        build_model(small_cfg("RESNET.TRANS_FUNC", "wide"))


def test_non_local_block_after_a_missing_block_names_the_key():
    location = [[[]], [[2]], [[]], [[]]]
    with pytest.raises(ValueError, match=r"NONLOCAL.LOCATION .* after block 2 of stage 1 \(res3\).*blocks 0 to 1"):
        build_model(small_cfg("NONLOCAL.LOCATION", location))


def test_unknown_non_local_variant_names_the_key():
    with pytest.raises(ValueError, match=r"NONLOCAL.INSTANTIATION='gaussian': allowed are softmax, dot_product"):
        build_model(small_cfg("NONLOCAL.LOCATION", [[[0]], [[]], [[]], [[]]], "NONLOCAL.INSTANTIATION", "gaussian"))


def test_unknown_head_activation_names_the_key():
    with pytest.raises(ValueError, match=r"MODEL.HEAD_ACT='tanh': allowed are softmax, sigmoid, none"):
        build_model(small_cfg("MODEL.HEAD_ACT", "tanh"))


def test_lists_of_the_wrong_length_name_the_key():
    with pytest.raises(ValueError, match=r"RESNET.SPATIAL_STRIDES=\[\[1\], \[2\]\]: needs four lists"):
        build_model(small_cfg("RESNET.SPATIAL_STRIDES", [[1], [2]]))


def test_crop_too_small_for_the_head_names_the_key():
    with pytest.raises(ValueError, match=r"DATA.TRAIN_CROP_SIZE=16 must be at least 32"):
        build_model(small_cfg("DATA.TRAIN_CROP_SIZE", 16))


def test_clip_smaller_than_planned_is_refused_with_the_keys():
    with pytest.raises(ValueError, match=r"pooling window \(4, 1, 1\).*DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE"):
        build_model(small_cfg())(clips(frames=2))


@pytest.mark.parametrize("arch", ["slow_c2d", "slow_i3d", "i3d", "c2d", "2d", "slow"])
@pytest.mark.parametrize("transform", ["bottleneck_transform", "basic_transform"])
def test_every_arch_trains_and_evaluates(arch, transform):
    model = build_model(small_cfg("MODEL.ARCH", arch, "RESNET.TRANS_FUNC", transform))
    logits = model(clips())
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        scores = model.eval()(clips())
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


def test_image_network_takes_images():
    model = build_model(small_cfg("MODEL.ARCH", "2d", "DATA.NUM_FRAMES", 1)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model(images.unsqueeze(2)))
        assert torch.equal(model([images]), model(images))


def test_larger_map_lists_logits_in_training_and_averages_scores_in_evaluation():
    model = build_model(small_cfg("MODEL.DROPOUT_RATE", 0.0)).eval()
    with torch.no_grad():
        scores = model(clips(size=64))
        model.head.train()
        logits = model(clips(size=64))
    assert logits.shape == (2, 4 * 5)
    torch.testing.assert_close(logits.view(2, 4, 5).softmax(-1).mean(1), scores)


def test_short_cycle_pools_maps_of_any_size():
    model = build_model(small_cfg("MULTIGRID.SHORT_CYCLE", True))
    assert model(clips(size=64)).shape == (2, 5)
    assert model(clips(size=48)).shape == (2, 5)


def test_detached_classifier_leaves_the_trunk_without_gradient():
    model = build_model(small_cfg("MODEL.DETACH_FINAL_FC", True))
    model(clips()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "head.projection.weight",
        "head.projection.bias",
    ]


def test_activation_checkpointing_changes_neither_names_nor_numbers():
    cfg = small_cfg("MODEL.DROPOUT_RATE", 0.0)
    plain = fill_model(build_model(cfg))
    cfg.merge_from_list(["MODEL.ACT_CHECKPOINT", True])
    saved = fill_model(build_model(cfg))
    assert list(saved.state_dict()) == list(plain.state_dict())
    losses = [model(clips()).square().mean() for model in (plain, saved)]
    for loss in losses:
        loss.backward()
    assert torch.allclose(*losses)
    for (name, a), (_, b) in zip(plain.state_dict().items(), saved.state_dict().items(), strict=True):
        torch.testing.assert_close(b, a, msg=name)
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", ["bottleneck_transform", "basic_transform"])
def test_zero_initialised_branches_leave_the_shortcut(transform):
    last = "c" if transform == "bottleneck_transform" else "b"
    model = build_model(
        small_cfg(
            *("RESNET.TRANS_FUNC", transform, "RESNET.ZERO_INIT_FINAL_BN", True, "RESNET.ZERO_INIT_FINAL_CONV", True),
            *("NONLOCAL.LOCATION", [[[0]], [[]], [[]], [[]]], "NONLOCAL.POOL", [[[1, 2, 2]]] * 4),
        )
    )
    zero = {name for name, p in model.named_parameters() if name.endswith("weight") and not p.any()}
    expected = {
        f"s{stage}.pathway0_res{block}.branch2.{layer}.weight"
        for stage in (2, 3, 4, 5)
        for block in (0, 1)
        for layer in (last, f"{last}_bn")
    }
    assert zero == expected | {"s2.pathway0_nonlocal0.bn.weight"}


def test_sub_batch_norm_is_not_zero_initialised():
    opts = ("BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", 2, "RESNET.ZERO_INIT_FINAL_BN", True)
    model = build_model(small_cfg(*opts))
    assert bool((model.s2.pathway0_res0.branch2.c_bn.weight == 1).all())


def test_a_network_is_built_from_plain_values():
    stages = plan_stages(18, width=4, **FLAT)
    model = ResNet(stages, head=HeadSpec(num_classes=3, windows=(None,)), conv_backend="native")
    assert model(clips()).shape == (2, 3)
    assert {m.backend for m in model.modules() if isinstance(m, Conv3d)} == {"native"}


def test_both_backends_train_alike():
    nets = [
        fill_model(build_model(small_cfg("MODEL.CONV_BACKEND", b, "MODEL.DROPOUT_RATE", 0.0))).double()
        for b in ("auto", "native")
    ]
    losses = [net(clips().double()).square().sum() for net in nets]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_non_local_groups_look_at_pieces_of_the_clip():
    torch.manual_seed(0)
    block = Nonlocal(4, 2, pool=(1, 2, 2)).eval()
    x = torch.randn(2, 4, 6, 4, 4)
    pieces = [block(x[:, :, :3]), block(x[:, :, 3:])]
    torch.testing.assert_close(_in_time_groups(block, x, 2), torch.cat(pieces, dim=2))
    with pytest.raises(ValueError, match=r"NONLOCAL.GROUP=4 does not divide the 6 frames"):
        _in_time_groups(block, x, 4)


@pytest.mark.parametrize("instantiation", ["softmax", "dot_product"])
@pytest.mark.parametrize("size", [2, 6])
def test_non_local_block_equals_its_formula(instantiation, size):
    torch.manual_seed(0)
    block = Nonlocal(6, 3, pool=(1, 2, 2), instantiation=instantiation).double().eval()
    x = torch.randn(2, 6, 3, size, size, dtype=torch.float64)
    pooled = nn.functional.max_pool3d(x, (1, 2, 2))
    theta, phi, g = block.conv_theta(x).flatten(2), block.conv_phi(pooled).flatten(2), block.conv_g(pooled).flatten(2)
    weights = torch.einsum("bdn,bdm->bnm", theta, phi)
    weights = (weights * 3**-0.5).softmax(2) if instantiation == "softmax" else weights / phi.shape[2]
    expected = x + block.bn(block.conv_out(torch.einsum("bnm,bdm->bdn", weights, g).view(2, 3, 3, size, size)))
    torch.testing.assert_close(block(x), expected)
