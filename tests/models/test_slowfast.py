import pytest
import torch
from fill import fill_model

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.slowfast import lateral_dims

SMALL = [
    *("MODEL.NUM_CLASSES", 5, "DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32),
    *("RESNET.DEPTH", 18, "RESNET.WIDTH_PER_GROUP", 8, "RESNET.TRANS_FUNC", "basic_transform", "SLOWFAST.ALPHA", 4),
]


def small_cfg(*opts):
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *opts])
    return cfg


def clips(size=32):
    return torch.randn(2, 3, 8, size, size, generator=torch.Generator().manual_seed(0))


def test_lateral_channels_are_ratio_times_those_of_the_fast_pathway():
    assert lateral_dims(64, beta_inv=8, ratio=2) == [16, 64, 128, 256]
    assert lateral_dims(32, beta_inv=4, ratio=1) == [8, 32, 64, 128]


def test_a_config_of_single_entries_serves_both_pathways():
    model = build_model(small_cfg())
    assert model.s3.pathway0_res0.branch2.a.stride == model.s3.pathway1_res0.branch2.a.stride == (1, 2, 2)


@pytest.mark.parametrize("transform", ["bottleneck_transform", "basic_transform"])
def test_every_parameter_learns(transform):
    model = build_model(small_cfg("RESNET.TRANS_FUNC", transform))
    logits = model(clips())
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None for p in model.parameters())


def test_uneven_clip_length_names_both_keys():
    with pytest.raises(ValueError, match=r"DATA.NUM_FRAMES=10 is not a multiple of SLOWFAST.ALPHA=4"):
        build_model(small_cfg("DATA.NUM_FRAMES", 10))


def test_width_that_leaves_no_fast_channels_names_both_keys():
    with pytest.raises(ValueError, match=r"RESNET.WIDTH_PER_GROUP=4 is not a multiple of SLOWFAST.BETA_INV=8"):
        build_model(small_cfg("RESNET.WIDTH_PER_GROUP", 4))


def test_arch_of_one_pathway_names_the_key():
    with pytest.raises(ValueError, match=r"MODEL.ARCH='slow' is no architecture of 2 pathway.*allowed are slowfast"):
        build_model(small_cfg("MODEL.ARCH", "slow"))


def test_one_tensor_in_a_list_is_refused():
    with pytest.raises(ValueError, match=r"2 pathway\(s\) but was given 1"):
        build_model(small_cfg())([clips()])


def test_detection_without_boxes_is_refused_and_with_boxes_scores_each():
    model = build_model(small_cfg("DETECTION.ENABLE", True, "MODEL.HEAD_ACT", "sigmoid")).eval()
    boxes = torch.tensor([[0.0, 1, 1, 20, 20], [1, 0, 0, 31, 31], [1, 5, 5, 9, 30]])
    with torch.no_grad():
        scores = model(clips(), boxes)
    assert scores.shape == (3, 5)
    assert bool(((scores > 0) & (scores < 1)).all())
    with pytest.raises(ValueError, match="given boxes but classifies whole clips"):
        build_model(small_cfg())(clips(), boxes)
    with pytest.raises(ValueError, match=r"needs boxes"):
        model(clips())


def test_activation_checkpointing_changes_no_gradient():
    nets = [
        fill_model(build_model(small_cfg("MODEL.ACT_CHECKPOINT", on, "MODEL.DROPOUT_RATE", 0.0)))
        for on in (False, True)
    ]
    for net in nets:
        net(clips()).square().mean().backward()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["sub_batchnorm", "sync_batchnorm", "sync_batchnorm_apex"])
def test_every_norm_builds_and_trains_in_one_process(norm):
    model = build_model(small_cfg("BN.NORM_TYPE", norm, "BN.NUM_SPLITS", 2, "BN.NUM_SYNC_DEVICES", 4))
    model(clips()).sum().backward()
    assert model.s1_fuse.bn.weight.grad is not None


def test_both_backends_train_alike():
    nets = [
        fill_model(build_model(small_cfg("MODEL.CONV_BACKEND", backend, "MODEL.DROPOUT_RATE", 0.0))).double()
        for backend in ("auto", "native")
    ]
    for net in nets:
        net(clips().double()).square().mean().backward()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_network_compiles_without_graph_breaks():
    model = build_model(small_cfg("MODEL.DROPOUT_RATE", 0.0)).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(clips()), model(clips()), rtol=1e-4, atol=1e-5)
