"""MViT and ViT: the original's names, shapes and outputs; the plan; positions; what acts that did not."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from slowfast.config import get_cfg, load_cfg
from slowfast.models import build_model
from slowfast.models.attention import BlockOptions
from slowfast.models.mvit import (
    MViT,
    PatchEmbed,
    PatchSpec,
    TokenHead,
    TokenHeadSpec,
    plan_blocks,
    resize_positions,
)
from slowfast.models.parts import Mlp, MLPHead, sincos_table
from slowfast.models.summary import plain_forms
from slowfast.solver import build_optimizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "models_x3d_mvit"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS = {name: entry for name, entry in _STORED["configs"].items() if "X3D" not in name}
STATE_DICTS = _STORED["state_dicts"]
FORWARD = {name: e for name, e in json.loads((GOLDEN / "forward.json").read_text()).items() if "X3D" not in e["config"]}
OUTPUTS = np.load(GOLDEN / "forward.npz")
GEOMETRY = json.loads((GOLDEN / "geometry.json").read_text())
OPTIMIZERS = json.loads(gzip.decompress((GOLDEN / "optim.json.gz").read_bytes()))

V1 = "configs/Kinetics/MVIT_B_16x4_CONV.yaml"
V2 = "configs/Kinetics/MVITv2_S_16x4.yaml"


def make_cfg(config, opts=()):
    cfg = get_cfg()
    cfg.merge_from_list(CONFIGS[config]["opts"] + list(opts))
    return cfg


def small_cfg(config, *opts):
    """A network of three blocks and few channels for clips of 4 x 32 x 32."""
    size = ["DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5]
    mul = ["MVIT.DIM_MUL", [[1, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0]], "MVIT.DEPTH", 3, "MVIT.EMBED_DIM", 16]
    strides = ["MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [1, 1, 2, 2]], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 2, 2]]
    patch = ["MVIT.PATCH_PADDING", [1, 3, 3], "MVIT.DROPPATH_RATE", 0.0, "MODEL.DROPOUT_RATE", 0.0]
    return make_cfg(config, [*size, *mul, *strides, *patch, *opts])


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(make_cfg(config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == CONFIGS[config]["frozen"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("config:") else []) for n in FORWARD]
)
def test_eval_output_equals_the_original(name):
    entry = FORWARD[name]
    model = build_model(make_cfg(entry["config"], entry["opts"]))
    fill_model(model, entry["gain"]).eval()
    clips = fill_input(entry["input_tag"], tuple(entry["frames_shape"]))
    if entry["reverse_input_channel"]:
        clips = clips.flip(1)
    with torch.no_grad():
        scores = model(clips)
    torch.testing.assert_close(scores, torch.from_numpy(OUTPUTS[name.replace("/", "|")]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameter_groups_equal_the_original(name):
    golden = OPTIMIZERS[name]
    cfg = load_cfg(None, golden["opts"])
    with torch.device("meta"):
        model = build_model(cfg)
        optimizer = build_optimizer(model, cfg)
    names = {param: name for name, param in model.named_parameters()}
    assert type(optimizer).__name__ == golden["optimizer_class"]
    assert len(optimizer.param_groups) == len(golden["groups"])
    for group, expected in zip(optimizer.param_groups, golden["groups"], strict=True):
        assert [names[param] for param in group["params"]] == expected["params"]
        assert group["weight_decay"] == expected["weight_decay"]
        assert group["layer_decay"] == pytest.approx(expected["layer_decay"], rel=1e-12)


# ------------------------------ the plan ------------------------------


def test_plan_of_mvit_b():
    plan = plan_blocks(
        16,
        dim=96,
        heads=1,
        grid=(8, 56, 56),
        dim_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        head_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        pool_q_stride=[[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kernel=[3, 3, 3],
        drop_path=0.2,
    )
    assert [spec.dim for spec in plan] == [96] + [192] * 2 + [384] * 11 + [768] * 2
    assert [spec.dim_out for spec in plan] == [192] * 2 + [384] * 11 + [768] * 3  # one block early, in its MLP
    assert [spec.heads for spec in plan] == [1] + [2] * 2 + [4] * 11 + [8] * 2
    assert [spec.grid[1] for spec in plan] == [56] * 2 + [28] * 2 + [14] * 11 + [7]
    assert [spec.stride_kv[1] for spec in plan] == [8] + [4] * 2 + [2] * 11 + [1] * 2  # a block's own stride counts
    assert [spec.kernel_q for spec in plan] == [(3, 3, 3) if i in (1, 3, 14) else None for i in range(16)]
    assert plan[15].kernel_kv == (3, 3, 3)
    assert [plan[i].drop_path for i in (0, 5, 15)] == pytest.approx([0.0, 0.2 * 5 / 15, 0.2])


def test_plan_of_mvit_v2_widens_in_attention():
    plan = plan_blocks(
        3,
        dim=96,
        heads=1,
        grid=(8, 56, 56),
        dim_mul=[[1, 2.0]],
        head_mul=[[1, 2.0]],
        pool_q_stride=[[0, 1, 1, 1], [1, 1, 2, 2]],
        dim_mul_in_att=True,
    )
    assert [(spec.dim, spec.dim_out, spec.heads) for spec in plan] == [(96, 96, 1), (96, 192, 2), (192, 192, 2)]
    assert [spec.kernel_q for spec in plan] == [None, (1, 3, 3), None]  # nothing to pool, stride + 1, not listed


def test_plan_of_an_odd_grid_keeps_the_published_table_sizes():
    """MViTv2-L at 312 pixels: pooling rounds up, the tables were sized rounding down."""
    plan = plan_blocks(
        4, dim=8, heads=1, grid=(20, 78, 78), pool_q_stride=[[i, 1, 2, 2] for i in range(3)], pool_kernel=[3, 3, 3]
    )
    assert [spec.grid[1] for spec in plan] == [78, 39, 20, 10]
    assert [spec.size[1] for spec in plan] == [78, 39, 19, 9]


def test_a_mlp_of_the_last_block_may_widen():
    plan = plan_blocks(2, dim=8, heads=1, grid=(1, 4, 4), dim_mul=[[2, 1.5]])
    assert [spec.dim_out for spec in plan] == [8, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pool_q_stride": [[3, 1, 2, 2]]},
            r"MVIT\.POOL_Q_STRIDE has the entry \[3, 1, 2, 2\].* from 0 to 2 and then 3",
        ),
        ({"pool_kv_stride": [[0, 2, 2]]}, r"MVIT\.POOL_KV_STRIDE has the entry"),
        ({"dim_mul": [[5, 2.0]]}, r"MVIT\.DIM_MUL has the entry"),
        ({"head_mul": [[1, 0.0]]}, r"MVIT\.HEAD_MUL has the entry"),
        ({"grid": (1, 0, 0)}, r"no tokens are left at block 0"),
    ],
)
def test_plan_names_the_key_of_a_wrong_value(options, message):
    with pytest.raises(ValueError, match=message):
        plan_blocks(3, **{"dim": 8, "heads": 1, "grid": (1, 4, 4), **options})


@pytest.mark.parametrize("config", [name for name in GEOMETRY["feature_geometry"] if name in CONFIGS])
def test_feature_sizes_and_strides(config):
    with torch.device("meta"):
        model = build_model(make_cfg(config))
    assert model.feat_size == GEOMETRY["feature_geometry"][config]["feat_size"]
    assert model.feat_stride == GEOMETRY["feature_geometry"][config]["feat_stride"]


# ------------------------------ patches and positions ------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_patches_that_do_not_overlap_are_a_matrix_product(flat):
    kernel = (1, 4, 4) if flat else (2, 4, 4)
    embed = PatchEmbed(PatchSpec(dim=6, kernel=kernel, stride=kernel, padding=(0, 0, 0), flat=flat)).double()
    x = torch.rand(2, 3, 1 if flat else 5, 9, 8, dtype=torch.float64)
    tokens, grid = embed(x)
    plain = embed.proj(x.squeeze(2)).unsqueeze(2) if flat else embed.proj(x)
    assert grid == tuple(plain.shape[2:])
    torch.testing.assert_close(tokens, plain.flatten(2).transpose(1, 2))


def test_a_clip_without_a_patch_is_refused():
    with pytest.raises(ValueError, match=r"MVIT\.PATCH_KERNEL=\(2, 4, 4\)"):
        PatchEmbed(PatchSpec(dim=6, kernel=(2, 4, 4), stride=(2, 4, 4), padding=(0, 0, 0)))(torch.rand(1, 3, 1, 8, 8))


def test_fixed_positions_equal_the_original():
    table = torch.tensor(GEOMETRY["sincos"])
    assert not table[0].any()  # of the class token
    torch.testing.assert_close(sincos_table(48, (2, 3, 3)), table[1:], rtol=0, atol=1e-7)


def test_fixed_positions_are_frozen_and_added_once():
    opts = ["MVIT.USE_FIXED_SINCOS_POS", True, "MVIT.SEP_POS_EMBED", False]
    model = build_model(small_cfg(V1, *opts)).eval()
    assert not model.pos_embed.requires_grad
    assert not model.pos_embed[0, 0].any()
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos_table(16, (2, 8, 8)))
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    clips = torch.rand(1, 3, 4, 32, 32)
    model(clips)
    bare, _ = model.patch_embed(clips)
    torch.testing.assert_close(seen[0][0, 1:] - bare[0], sincos_table(16, (2, 8, 8)))


def test_fixed_positions_of_another_grid_are_those_of_a_network_built_for_it():
    opts = ["MVIT.USE_FIXED_SINCOS_POS", True, "MVIT.SEP_POS_EMBED", False]
    model = build_model(small_cfg(V1, *opts)).eval()
    larger = build_model(small_cfg(V1, *opts, "DATA.NUM_FRAMES", 8, "DATA.TEST_CROP_SIZE", 64))
    table = model.position_table((4, 16, 16))
    assert table.shape == (1, 1 + 4 * 16 * 16, 16)
    assert not table[0, 0].any()
    torch.testing.assert_close(table[0, 1:], sincos_table(16, (4, 16, 16)))
    own = larger.position_table(tuple(larger.patch_dims))
    torch.testing.assert_close(model.position_table(tuple(larger.patch_dims)), own)


@pytest.mark.parametrize("crop", [16, 28])
def test_small_clips_leave_one_token_along_an_axis(crop):
    """Tables of relative positions are sized rounding down; they have one entry at least."""
    strides = ["MVIT.POOL_Q_STRIDE", [[i, 1, 2, 2] for i in range(3)], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]]
    size = ["DATA.TRAIN_CROP_SIZE", crop, "DATA.TEST_CROP_SIZE", crop]
    model = build_model(small_cfg(V2, *strides, *size)).eval()
    assert model.blocks[2].attn.rel_pos_h.shape[0] == 1
    assert model(torch.rand(1, 3, 4, crop, crop)).isfinite().all()


@pytest.mark.parametrize(
    ("crop", "opts", "message"),
    [
        (32, ["MVIT.POOL_KVQ_KERNEL", [1, 2, 2]], r"\[1, 1, 1\] make \(2, 9, 9\) .* has \(2, 8, 8\): change MVIT"),
        (36, ["MVIT.POOL_Q_STRIDE", [[1, 1, 3, 3]]], r"\[1, 3, 3\] make \(2, 3, 3\) .* has \(2, 4, 4\): change MVIT"),
    ],
)
def test_queries_and_their_shortcut_must_have_one_grid(crop, opts, message):
    cfg = small_cfg(V1, *opts, "DATA.TRAIN_CROP_SIZE", crop)
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_positions_of_another_grid():
    """Values that grow linearly along each axis. Twice the rows lie a quarter to each side of an old one, where the
    cubic kernel (a = -0.75) weighs four neighbours by -0.105, 0.879, 0.262 and -0.035: 0.297 rows away."""
    t, h, w = torch.meshgrid(torch.arange(2.0), torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.stack([t, h, w], dim=-1).flatten(0, 2)[None]
    assert resize_positions(table, (2, 8, 8), (2, 8, 8)) is table
    new = resize_positions(table, (2, 8, 8), (4, 16, 8))[0].unflatten(0, (4, 16, 8))
    torch.testing.assert_close(new[:, 0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))
    expected = [2 - 0.296875, 2 + 0.296875, 3 - 0.296875, 3 + 0.296875]
    assert new[0, 4:8, 3, 1].tolist() == pytest.approx(expected)
    torch.testing.assert_close(new[0, 5, :, 2], torch.arange(8.0))


@pytest.mark.parametrize("config", [V1, V2])
@pytest.mark.parametrize("separate", [True, False])
def test_another_resolution_and_length_equals_a_network_with_resized_tables(config, separate):
    small = fill_model(build_model(small_cfg(config, "MVIT.SEP_POS_EMBED", separate))).eval()
    opts = ["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 48, "MVIT.SEP_POS_EMBED", separate]
    large = build_model(small_cfg(config, *opts)).eval()
    old, new = small.patch_dims, large.patch_dims
    assert (old, new) == ((2, 8, 8), (4, 12, 12))
    state = {name: t.clone() for name, t in small.state_dict().items()}
    for name, target in large.state_dict().items():
        if "rel_pos" in name:
            table = state[name].t()[None]
            state[name] = nn.functional.interpolate(table, size=len(target), mode="linear")[0].t()
        elif name == "pos_embed_spatial":
            state[name] = resize_positions(state[name], (1, 8, 8), (1, 12, 12))
        elif name == "pos_embed_temporal":
            state[name] = resize_positions(state[name], (2, 1, 1), (4, 1, 1))
        elif name == "pos_embed":
            state[name] = torch.cat([state[name][:, :1], resize_positions(state[name][:, 1:], old, new)], dim=1)
    large.load_state_dict(state)
    clips = fill_input("mvit:resolution", (1, 3, 8, 48, 48))
    with torch.no_grad():
        torch.testing.assert_close(small(clips), large(clips))


# ------------------------------ the network ------------------------------


def test_initialisation_has_the_statistics_of_the_original():
    torch.manual_seed(0)
    model = build_model(small_cfg(V2, "MVIT.EMBED_DIM", 96, "MVIT.HEAD_INIT_SCALE", 0.5, "MODEL.NUM_CLASSES", 50))
    block = model.blocks[1]
    for weight in (block.attn.qkv.weight, block.attn.pool_k.weight, block.mlp.fc2.weight, block.attn.rel_pos_h):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (block.attn.qkv.bias == 0.02).all()
    assert (block.attn.norm_q.bias == 0.02).all()
    assert (block.norm1.weight == 1).all()
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not (model.patch_embed.proj.bias == 0.02).any()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.head.projection.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (model.head.projection.bias == 0.01).all()
    zero = build_model(small_cfg(V2, "MVIT.REL_POS_ZERO_INIT", True))
    assert not any(p.any() for name, p in zero.named_parameters() if "rel_pos" in name)


def test_what_does_not_decay():
    model = build_model(small_cfg(V1, "MVIT.REL_POS_SPATIAL", True, "MVIT.ZERO_DECAY_POS_CLS", True))
    positions = {"pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"}
    assert model.no_weight_decay() == {"cls_token", "rel_pos_h", "rel_pos_w", *positions}
    assert build_model(small_cfg(V1, "MVIT.ZERO_DECAY_POS_CLS", False)).no_weight_decay() == set()


def test_training_gives_logits_and_eval_scores():
    model = fill_model(build_model(small_cfg(V1)))
    clips = fill_input("mvit:modes", (2, 3, 4, 32, 32))
    logits = model(clips)
    torch.testing.assert_close(model.eval()(clips), logits.softmax(-1))
    torch.testing.assert_close(model([clips]), model(clips))


def test_images_may_have_a_time_axis():
    shape = ["DATA.TRAIN_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5, "MVIT.DEPTH", 1, "MVIT.EMBED_DIM", 16]
    growth = ["MVIT.DIM_MUL", [], "MVIT.HEAD_MUL", [], "MVIT.POOL_Q_STRIDE", [], "MVIT.POOL_KV_STRIDE", [[0, 1, 4, 4]]]
    cfg = make_cfg("configs/ImageNet/MVITv2_T.yaml", [*shape, *growth])
    model = fill_model(build_model(cfg)).eval()
    images = fill_input("mvit:images", (2, 3, 32, 32))
    assert model.patch_embed.proj.weight.ndim == 4
    assert torch.equal(model(images), model(images.unsqueeze(2)))


@pytest.mark.parametrize("config", [V1, V2])
def test_checkpointed_blocks_give_the_same_gradients_under_the_same_names(config):
    clips = fill_input("mvit:checkpoint", (2, 3, 4, 32, 32))
    results = []
    for enabled in (False, True):
        opts = ["MODEL.ACT_CHECKPOINT", enabled, "MVIT.DROPPATH_RATE", 0.5, "MVIT.DROPOUT_RATE", 0.2]
        model = fill_model(build_model(small_cfg(config, *opts))).train()
        torch.manual_seed(0)
        model(clips).square().sum().backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    assert list(results[0]) == list(results[1])
    for name, grad in results[0].items():
        torch.testing.assert_close(results[1][name], grad)


def test_every_parameter_gets_a_gradient():
    for config in (V1, V2):
        opts = ["MVIT.NORM_STEM", True, "MVIT.LAYER_SCALE_INIT_VALUE", 0.1, "MVIT.SEPARATE_QKV", True]
        model = fill_model(build_model(small_cfg(config, *opts))).train()
        model(fill_input("mvit:gradient", (2, 3, 4, 32, 32))).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_layer_scale_acts():
    model = build_model(small_cfg(V2, "MVIT.LAYER_SCALE_INIT_VALUE", 0.25))
    assert model.blocks[1].gamma_1.shape == (32,)  # the width that attention changes to
    assert (model.blocks[2].gamma_2 == 0.25).all()


def test_mean_pooling_leaves_out_the_class_token_and_normalises_the_mean():
    model = fill_model(build_model(small_cfg(V1, "MVIT.USE_MEAN_POOLING", True))).eval()
    clips = fill_input("mvit:mean", (2, 3, 4, 32, 32))
    tokens, grid = model.features(clips)
    assert grid == (2, 4, 4)
    torch.testing.assert_close(model(clips), model.head(model.norm(tokens[:, 1:].mean(1))))


def test_detach_stops_the_gradient_below_the_classifier():
    model = build_model(small_cfg(V1, "MODEL.DETACH_FINAL_FC", True)).train()
    model(torch.rand(2, 3, 4, 32, 32)).sum().backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None]
    assert names == ["head.projection.weight", "head.projection.bias"]


def test_head_may_be_an_mlp():
    opts = ["CONTRASTIVE.NUM_MLP_LAYERS", 3, "CONTRASTIVE.MLP_DIM", 24, "CONTRASTIVE.BN_MLP", True]
    model = build_model(small_cfg(V1, *opts, "MVIT.HEAD_INIT_SCALE", 0.0))
    names = [name for name, _ in model.head.named_parameters()]
    first = ["0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias"]
    assert names == [f"projection.projection.{name}" for name in first]
    assert not model.head.projection.projection[-1].weight.any()
    assert model(torch.rand(2, 3, 4, 32, 32)).shape == (2, 5)
    plain = MLPHead(4, 8, 2, num_layers=2)
    assert [name for name, _ in plain.named_parameters()] == [
        "projection.0.weight",
        "projection.0.bias",
        "projection.2.weight",
        "projection.2.bias",
    ]


def test_head_without_activation_gives_logits():
    head = TokenHead(4, TokenHeadSpec(num_classes=3, act="none")).eval()
    x = torch.rand(2, 4)
    assert torch.equal(head(x), head.projection(x))


def test_plain_vit_from_plain_values():
    plan = plan_blocks(2, dim=16, heads=2, grid=(2, 2, 2))
    patch = PatchSpec(dim=16, kernel=(2, 16, 16), stride=(2, 16, 16), padding=(0, 0, 0))
    model = MViT(
        plan, patch=patch, head=TokenHeadSpec(3), options=BlockOptions(has_cls=True), positions="joint", norm_stem=True
    )
    assert not any("pool" in name for name in model.state_dict())
    assert model.eval()(torch.rand(1, 3, 4, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="positions='learnt': allowed are none, joint, separate, sincos"):
        MViT(plan, patch=patch, head=TokenHeadSpec(3), positions="learnt")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MVIT.REV.ENABLE", True], r"MVIT\.REV\.ENABLE=True knows no class token"),
        (["MASK.ENABLE", True], r"MASK\.ENABLE=True .*'MaskMViT'"),
        (["MVIT.NORM", "batchnorm"], r"MVIT\.NORM='batchnorm'"),
        (["MVIT.PATCH_2D", True], r"MVIT\.PATCH_KERNEL=\[3, 7, 7\] with MVIT\.PATCH_2D=True: needed are 2"),
        (["MVIT.USE_FIXED_SINCOS_POS", True], r"MVIT\.SEP_POS_EMBED=True: needed are True and False"),
        (["MODEL.HEAD_ACT", "relu"], r"MODEL\.HEAD_ACT='relu'"),
    ],
)
def test_what_mvit_cannot_do_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(small_cfg(V1, *opts))


def test_detection_pools_the_tokens_of_each_box():
    """Boxes of one cell each of 8 x 8 pixels: the score of a box is that of the mean over time of its token."""
    opts = ["DETECTION.ENABLE", True, "DETECTION.SPATIAL_SCALE_FACTOR", 8, "MODEL.HEAD_ACT", "sigmoid"]
    resolution = ["DETECTION.ROI_XFORM_RESOLUTION", 1, "DETECTION.ALIGNED", True]
    model = fill_model(build_model(small_cfg(V1, *opts, *resolution))).eval()
    assert [name for name in model.state_dict() if "head" in name] == ["head.projection.weight", "head.projection.bias"]
    clips = fill_input("mvit:boxes", (2, 3, 4, 32, 32))
    boxes = torch.tensor([[0, 8.0, 16.0, 16.0, 24.0], [1, 0.0, 0.0, 8.0, 8.0], [1, 24.0, 24.0, 32.0, 32.0]])
    with torch.no_grad():
        tokens, grid = model.features(clips)
        assert grid == (2, 4, 4)
        cells = model.norm(tokens)[:, 1:].unflatten(1, grid).mean(1)  # [B, h, w, D]
        expected = model.head.projection(torch.stack([cells[0, 2, 1], cells[1, 0, 0], cells[1, 3, 3]])).sigmoid()
        torch.testing.assert_close(model(clips, boxes), expected)
    assert model.train()(clips, boxes).min() > 0  # activated in training too
    with pytest.raises(ValueError, match="given boxes but classifies whole clips"):
        build_model(small_cfg(V1))(clips, boxes)
    with pytest.raises(ValueError, match="needs boxes"):
        model(clips)


@pytest.mark.parametrize("config", [V1, V2])
@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MVIT.SEPARATE_QKV", True],
        ["MVIT.POOL_FIRST", True],
        ["MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [2, 1, 2, 2]], "MVIT.DIM_MUL", [[2, 2.0]], "MVIT.HEAD_MUL", [[2, 2.0]]],
    ],
)
def test_the_last_block_leaves_out_what_the_class_token_does_not_need(config, opts):
    model = fill_model(build_model(small_cfg(config, *opts, "MVIT.DROPPATH_RATE", 0.0))).double().train()
    clips = fill_input("mvit:last", (2, 3, 4, 32, 32)).double()
    tokens, grid = model.features(clips)
    some, same_grid = model.features(clips, only_cls=True)
    assert some.shape[1] == (1 if "MVIT.POOL_FIRST" not in opts else tokens.shape[1])
    assert grid == same_grid
    torch.testing.assert_close(some[:, 0], tokens[:, 0], rtol=1e-12, atol=1e-12)
    slope = fill_input("mvit:slope", tuple(tokens[:, 0].shape)).double()
    leaves = [param for name, param in model.named_parameters() if not name.startswith(("head", "norm"))]
    expected, found = (torch.autograd.grad((x[:, 0] * slope).sum(), leaves) for x in (tokens, some))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_last_block_keeps_all_tokens_where_someone_needs_them():
    clips = fill_input("mvit:last", (2, 3, 4, 32, 32))
    model = fill_model(build_model(small_cfg(V1))).eval()
    expected, sizes = model(clips), []

    def size(*opts, look=False):
        other = fill_model(build_model(small_cfg(V1, *opts))).train()
        if look:
            other.blocks[-1].mlp.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
        return other.features(clips, only_cls=True)[0].shape[1]

    assert size() == 1
    assert size(look=True) == sizes[0] > 1
    assert size("MVIT.DROPOUT_RATE", 0.1) > 1
    with plain_forms(model):
        assert model.features(clips, only_cls=True)[0].shape[1] > 1
        torch.testing.assert_close(model(clips), expected)


class MixingMlp(Mlp):
    def forward(self, x):
        return super().forward(x + x.mean(1, keepdim=True))


class OwnFeatures(MViT):
    def features(self, x):
        tokens, grid = super().features(x)
        return tokens + 1.0, grid


@pytest.mark.parametrize("part", ["mlp", "sequential", "attend", "forward", "block"])
def test_parts_that_someone_replaced_get_all_tokens(part):
    clips = fill_input("mvit:last", (2, 3, 4, 32, 32))
    model = fill_model(build_model(small_cfg(V1))).eval()
    block = model.blocks[-1]
    if part == "mlp":
        block.mlp.__class__ = MixingMlp
    elif part == "sequential":
        block.mlp = nn.Sequential(nn.LayerNorm(block.norm2.normalized_shape[0]), block.mlp)
    elif part == "attend":
        plain = block.attn.attend
        block.attn.attend = lambda q, *args: 2.0 * plain(q, *args)
    elif part == "forward":
        plain = block.attn.qkv.forward
        block.attn.qkv.forward = lambda x: plain(x).roll(1, dims=1)
    else:
        model.blocks[-1] = Wrapped(block)
    with torch.no_grad():
        tokens, _ = model.features(clips, only_cls=True)
        assert tokens.shape[1] > 1
        torch.testing.assert_close(model(clips), model.head(model.norm(model.features(clips)[0][:, 0])))


class Wrapped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, grid):
        return self.block(x, grid)


def test_a_derived_network_may_have_features_of_its_own():
    clips = fill_input("mvit:last", (2, 3, 4, 32, 32))
    model = fill_model(build_model(small_cfg(V1))).eval()
    expected = model.head(model.norm(model.features(clips)[0][:, 0] + 1.0))
    model.__class__ = OwnFeatures
    torch.testing.assert_close(model(clips), expected)


def test_fake_tensors_pass():
    model = build_model(small_cfg(V2, "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4])).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.zeros(2, 3, 4, 32, 32)).shape == (2, 5)


def test_images_have_one_frame():
    patch = ["MVIT.PATCH_KERNEL", [7, 7], "MVIT.PATCH_STRIDE", [4, 4], "MVIT.PATCH_PADDING", [3, 3]]
    with pytest.raises(ValueError, match=r"set DATA\.NUM_FRAMES 1 instead of 4"):
        build_model(small_cfg(V1, "MVIT.PATCH_2D", True, *patch))


@pytest.mark.parametrize("config", [V1, V2])
def test_half_precision_stays_close(config):
    model = fill_model(build_model(small_cfg(config))).eval()
    clips = fill_input("mvit:half", (2, 3, 4, 32, 32))
    with torch.no_grad():
        scores = model(clips)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(clips).float(), scores, rtol=0, atol=0.01)
        torch.testing.assert_close(model.bfloat16()(clips.bfloat16()).float(), scores, rtol=0, atol=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.float().train()(clips).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("config", [V1, V2])
def test_compiles_without_a_graph_break(config):
    model = fill_model(build_model(small_cfg(config))).train()
    clips = fill_input("mvit:compile", (2, 3, 4, 32, 32))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(clips).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(clips).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], msg=name)
