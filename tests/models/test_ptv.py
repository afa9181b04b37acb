"""The networks of pytorchvideo behind our configuration, against what the original's wrappers gave."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.models.ptv import PTVModel
from slowfast.solver import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models_ptv"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS, STATE_DICTS = _STORED["configs"], _STORED["state_dicts"]
FORWARD = json.loads((GOLDEN / "forward.json").read_text())
OUTPUTS = np.load(GOLDEN / "forward.npz")
SLOW = "variant:ptv_slow"
SLOWFAST = "variant:ptv_slowfast"


def make_cfg(name, *opts):
    """The small network recorded as ``name``."""
    return load_cfg(ROOT / FORWARD[name]["config"], [*FORWARD[name]["opts"], *opts])


def make_clips(name):
    entry = FORWARD[name]
    clips = fill_input(entry["input_tag"], tuple(entry["frames_shape"]))
    return clips.flip(1) if entry["reverse_input_channel"] else clips


def make_model(name, *opts):
    return fill_model(build_model(make_cfg(name, *opts)), FORWARD[name]["gain"]).eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]
    assert {p.device.type for p in model.parameters()} == {"meta"}


def _cases():
    return [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("config:") else []) for n in FORWARD]


@pytest.mark.parametrize("name", _cases())
def test_eval_output_equals_the_original(name):
    boxes = [torch.tensor(FORWARD[name]["boxes"])] if "boxes" in FORWARD[name] else []
    with torch.no_grad():
        scores = make_model(name)(make_clips(name), *boxes)
    expected = torch.from_numpy(OUTPUTS[name.replace("/", "|")])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_list_of_pathways_gives_what_the_clip_gives():
    model, clips = make_model(SLOWFAST), make_clips(SLOWFAST)
    pathways = [clips[:, :, index] for index in FORWARD[SLOWFAST]["pack_indices"]]
    with torch.no_grad():
        assert torch.equal(model(pathways), model(clips))
        assert len(pathways) == 2
        assert pathways[0].shape == (2, 3, 4, 64, 64)  # the network did not write into the list


class Positions(nn.Module):
    """Gives its input back as if it were logits."""

    def forward(self, x):
        return x


def test_positions_are_activated_then_averaged_in_evaluation_and_averaged_in_training():
    logits = torch.tensor([[1.0, 3.0], [2.0, 0.0]]).reshape(1, 2, 1, 1, 2)  # class k at two positions
    model = PTVModel(Positions(), act="softmax")
    assert torch.equal(model.train()(logits), torch.tensor([[2.0, 1.0]]))
    first, second = torch.tensor([1.0, 2.0]).softmax(0), torch.tensor([3.0, 0.0]).softmax(0)
    torch.testing.assert_close(model.eval()(logits), ((first + second) / 2)[None])
    assert torch.equal(PTVModel(Positions(), act="none").eval()(logits), torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("name", [n for n in FORWARD if n.startswith("variant:") and "boxes" not in FORWARD[n]])
def test_every_network_trains(name):
    cfg = make_cfg(name, "SOLVER.BASE_LR", 0.001)
    model = build_model(cfg).train()
    optimizer = build_optimizer(model, cfg)
    logits = model(make_clips(name))
    assert logits.shape == (2, 11)
    nn.functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    optimizer.step()


def test_last_norm_of_each_block_starts_at_zero():
    model = build_model(make_cfg(SLOW))
    assert all(block.branch2.norm_c.weight.eq(0).all() for block in model.model.blocks[1].res_blocks)
    assert all(block.branch2.norm_b.weight.eq(1).all() for block in model.model.blocks[1].res_blocks)


def test_each_stage_of_each_pathway_has_its_own_dilation():
    dilations = [[1, 1], [1, 2], [2, 4], [3, 5]]
    with torch.device("meta"):
        model = build_model(make_cfg(SLOWFAST, "RESNET.SPATIAL_DILATIONS", dilations))
    found = [
        [pathway.res_blocks[1].branch2.conv_b.dilation[2] for pathway in stage.multipathway_blocks]
        for stage in model.model.blocks[1:5]
    ]
    assert found == dilations


def test_temporal_kernels_of_slowfast_stop_after_the_given_number_of_blocks():
    with torch.device("meta"):
        model = build_model(make_cfg(SLOWFAST, "RESNET.NUM_BLOCK_TEMP_KERNEL", [[3, 3], [4, 4], [2, 1], [3, 3]]))
    slow, fast = model.model.blocks[3].multipathway_blocks
    assert [block.branch2.conv_a.kernel_size[0] for block in slow.res_blocks] == [3, 3, 1, 1, 1, 1]
    assert [block.branch2.conv_a.kernel_size[0] for block in fast.res_blocks] == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("norm_type", ["sub_batchnorm", "sync_batchnorm"])
def test_norms_of_the_configuration_are_used(norm_type):
    opts = ["BN.NORM_TYPE", norm_type, "BN.NUM_SPLITS", 2, "BN.NUM_SYNC_DEVICES", 1]
    model = build_model(make_cfg(SLOW, *opts)).train()
    plain = build_model(make_cfg(SLOW))
    assert model(make_clips(SLOW)).shape == (2, 11)
    kinds = {type(module).__name__ for module in model.modules() if hasattr(module, "running_mean")}
    assert kinds == ({"BatchNorm3d"} if norm_type == "sub_batchnorm" else {"GroupSyncBatchNorm3d"})
    assert any("split_bn" in name for name in model.state_dict()) == (norm_type == "sub_batchnorm")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


# ---------------------------------------------------------------- detection

DETECTION = ["DETECTION.ENABLE", True, "DETECTION.SPATIAL_SCALE_FACTOR", 32, "MODEL.HEAD_ACT", "sigmoid"]


@pytest.mark.parametrize("name", [SLOW, SLOWFAST])
def test_boxes_are_scored_one_by_one_and_activated_in_training_too(name):
    model = make_model(name, *DETECTION)
    clips = make_clips(name)
    boxes = torch.tensor([[0, 3.5, 5.25, 40.0, 60.75], [1, 30.0, 10.0, 50.5, 31.25], [1, 0.0, 0.0, 63.0, 63.0]])
    with torch.no_grad():
        scores = model(clips, boxes)
        alone = model(clips[1:], torch.tensor([[0, 30.0, 10.0, 50.5, 31.25]]))
    torch.testing.assert_close(scores[1:2], alone, rtol=1e-4, atol=1e-6)
    assert (scores[1] - scores[2]).abs().max() > 1e-3
    scores = model.train()(clips, boxes)
    assert scores.shape == (3, 11)
    assert ((scores > 0) & (scores < 1)).all()
    nn.functional.binary_cross_entropy(scores, torch.zeros(3, 11)).backward()
    assert model.detection_head.proj.weight.grad.abs().sum() > 0


def test_detection_without_boxes_is_refused():
    with pytest.raises(ValueError, match=r"DETECTION.ENABLE is on: the model needs boxes"):
        make_model(SLOW, *DETECTION)(make_clips(SLOW))


# ---------------------------------------------------------------- MViT

MVIT = "variant:ptv_mvit"


def test_empty_list_of_strides_is_none():
    model = make_model(MVIT, "MVIT.POOL_KV_STRIDE", [])
    with torch.no_grad():
        assert torch.equal(model(make_clips(MVIT)), make_model(MVIT)(make_clips(MVIT)))


def test_strides_by_list_equal_the_adaptive_ones():
    listed = [[0, 1, 4, 4], [1, 1, 2, 2], [2, 1, 2, 2], [3, 1, 1, 1]]
    model = make_model(MVIT, "MVIT.POOL_KV_STRIDE", listed, "MVIT.POOL_KV_STRIDE_ADAPTIVE", None)
    with torch.no_grad():
        assert torch.equal(model(make_clips(MVIT)), make_model(MVIT)(make_clips(MVIT)))


def test_second_names_of_the_pools_are_the_same_weights():
    attention = make_model(MVIT).model.blocks[1].attn
    assert attention._attention_pool_q.pool.weight is attention.pool_q.weight
    assert attention._attention_pool_k.norm.bias is attention.norm_k.bias


def test_few_frames_are_averaged_too():
    model = make_model(MVIT, "MVIT.MODE", "avg", "DATA.NUM_FRAMES", 4)
    side = FORWARD[MVIT]["frames_shape"][-1]
    assert model(torch.zeros(1, 3, 4, side, side)).shape == (1, 11)


IMAGES = ["DATA.NUM_FRAMES", 1, "MVIT.PATCH_2D", True, "MVIT.PATCH_KERNEL", [7, 7], "MVIT.PATCH_STRIDE", [4, 4]]
IMAGES += ["MVIT.PATCH_PADDING", [3, 3], "DATA.TRAIN_CROP_SIZE", 64]


def test_images_are_classified_and_train():
    model = build_model(make_cfg(MVIT, *IMAGES))
    images = fill_input("ptv:images", (2, 3, 64, 64))
    model.train()(images).sum().backward()
    assert model.model.patch_embed.patch_model.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model(images.unsqueeze(2)))


def test_a_clip_of_another_size_is_refused_with_its_keys():
    clips = make_clips(MVIT)
    with pytest.raises(ValueError, match=r"does not fit the positions .*DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE"):
        make_model(MVIT)(clips[:, :, :, :32, :32])


@pytest.mark.parametrize("name", ["variant:ptv_slow", "variant:ptv_x3d", "variant:ptv_csn", "variant:ptv_r2plus1d"])
def test_a_clip_smaller_than_the_window_of_the_head_is_refused_with_its_keys(name):
    with pytest.raises(ValueError, match=r"smaller than the pooling window .*DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE"):
        make_model(name)(make_clips(name)[:, :, :, :32, :32])


def test_boxes_for_a_classifier_are_refused():
    with pytest.raises(ValueError, match=r"given boxes but classifies whole clips: set DETECTION\.ENABLE True"):
        make_model(SLOW)(make_clips(SLOW), torch.zeros(1, 5))


@pytest.mark.parametrize("decays", [True, False])
def test_positions_decay_only_where_asked(decays):
    model = build_model(make_cfg(MVIT, "MVIT.ZERO_DECAY_POS_CLS", not decays))
    exempt = model.no_weight_decay()
    prefix = "model.cls_positional_encoding."
    names = {"cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"}
    assert exempt == (set() if decays else {prefix + name for name in names})


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        (SLOW, ["RESNET.STRIDE_1X1", True], r"RESNET.STRIDE_1X1=True .*'PTVResNet': allowed is False"),
        (SLOW, ["RESNET.TRANS_FUNC", "basic_transform"], "TRANS_FUNC='basic_transform' .*'bottleneck_transform'"),
        (SLOW, ["MODEL.ARCH", "slowfast"], "MODEL.ARCH='slowfast' .*allowed is 'c2d' or 'slow' or 'i3d'"),
        (SLOW, ["RESNET.DEPTH", 34], "RESNET.DEPTH=34 .*allowed is 50 or 101 or 152"),
        (SLOW, ["NONLOCAL.LOCATION", [[[]], [[1]], [[]], [[]]]], "NONLOCAL.LOCATION="),
        (SLOW, ["DETECTION.ENABLE", True, "MODEL.HEAD_ACT", "none"], "'none': allowed are softmax, sigmoid$"),
        (SLOW, ["MULTIGRID.SHORT_CYCLE", True], "MULTIGRID.SHORT_CYCLE=True .*'PTVResNet'"),
        (SLOW, ["MODEL.HEAD_ACT", "relu"], "MODEL.HEAD_ACT='relu': allowed are softmax, sigmoid, none"),
        (SLOW, ["DATA.TRAIN_CROP_SIZE", 31], "DATA.TRAIN_CROP_SIZE=31 is too small"),
        (SLOWFAST, ["RESNET.STRIDE_1X1", True], "RESNET.STRIDE_1X1=True .*'PTVSlowFast'"),
        (SLOWFAST, ["MODEL.ARCH", "slow"], "MODEL.ARCH='slow' .*allowed are slowfast"),
        (SLOWFAST, ["DATA.NUM_FRAMES", 18], "DATA.NUM_FRAMES=18 is not a multiple of SLOWFAST.ALPHA=4"),
        (SLOWFAST, ["SLOWFAST.BETA_INV", 7], "not a multiple of SLOWFAST.BETA_INV=7"),
        ("variant:ptv_x3d", ["RESNET.TRANS_FUNC", "bottleneck_transform"], "allowed is 'x3d_transform'"),
        ("variant:ptv_x3d", ["X3D.SCALE_RES2", True], "X3D.SCALE_RES2=True .*'PTVX3D'"),
        ("variant:ptv_csn", ["DATA.NUM_FRAMES", 4], "DATA.NUM_FRAMES=4 .*too small for MODEL.MODEL_NAME=PTVCSN"),
        ("variant:ptv_r2plus1d", ["RESNET.NUM_GROUPS", 2], "RESNET.NUM_GROUPS=2 .*'PTVR2plus1D': allowed is 1"),
        (
            "variant:ptv_r2plus1d",
            ["DETECTION.ENABLE", True],
            "DETECTION.ENABLE=True .*'PTVR2plus1D': allowed is False;",
        ),
        (MVIT, ["MVIT.REL_POS_SPATIAL", True], "MVIT.REL_POS_SPATIAL=True .*'PTVMViT'"),
        (
            MVIT,
            ["MVIT.POOL_KV_STRIDE", [[0, 1, 2, 2]]],
            "POOL_KV_STRIDE=.*POOL_KV_STRIDE_ADAPTIVE=.*exclude each other",
        ),
        (MVIT, ["MVIT.USE_MEAN_POOLING", True], "MVIT.USE_MEAN_POOLING=True"),
        (MVIT, ["MVIT.PATCH_2D", True, "DATA.NUM_FRAMES", 1], r"MVIT.PATCH_KERNEL=\[3, 7, 7\].*needed are 2 numbers"),
        (MVIT, [*IMAGES, "DATA.NUM_FRAMES", 4], "MVIT.PATCH_2D is for images: set DATA.NUM_FRAMES 1"),
        (MVIT, ["DATA.TRAIN_CROP_SIZE", 66], "positions for .*change MVIT.PATCH_KERNEL or MVIT.PATCH_PADDING"),
        (SLOW, ["MODEL.DETACH_FINAL_FC", True], "MODEL.DETACH_FINAL_FC=True .*'PTVResNet': allowed is False"),
    ],
)
def test_keys_that_cannot_be_followed_are_refused(name, opts, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(make_cfg(name, *opts))
