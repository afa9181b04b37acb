"""X3D: the original's names, shapes and outputs; the plan; what acts that did not."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.parts import DropPath, round_width
from slowfast.models.x3d import X3D, SqueezeExcite, X3DHeadSpec, plan_x3d

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "models_x3d_mvit"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS = {name: entry for name, entry in _STORED["configs"].items() if "X3D" in name}
STATE_DICTS = _STORED["state_dicts"]
FORWARD = {name: e for name, e in json.loads((GOLDEN / "forward.json").read_text()).items() if "X3D" in e["config"]}
OUTPUTS = np.load(GOLDEN / "forward.npz")


def make_cfg(config, opts=()):
    cfg = get_cfg()
    cfg.merge_from_list(CONFIGS[config]["opts"] + list(opts))
    return cfg


def small_cfg(*opts):
    small = ["X3D.WIDTH_FACTOR", 1.0, "X3D.DEPTH_FACTOR", 1.0, "X3D.DIM_C5", 32, "DATA.NUM_FRAMES", 4]
    crop = ["DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5]
    return make_cfg("configs/Kinetics/X3D_S.yaml", [*small, *crop, *opts])


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(make_cfg(config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if FORWARD[n]["seconds"] > 0.5 else []) for n in FORWARD]
)
def test_eval_output_equals_the_original(name, backend):
    entry = FORWARD[name]
    model = build_model(make_cfg(entry["config"], [*entry["opts"], "MODEL.CONV_BACKEND", backend]))
    fill_model(model, entry["gain"]).eval()
    with torch.no_grad():
        scores = model(fill_input(entry["input_tag"], tuple(entry["frames_shape"])))
    torch.testing.assert_close(scores, torch.from_numpy(OUTPUTS[name.replace("/", "|")]), rtol=1e-4, atol=1e-6)


def test_widths_are_rounded_as_in_the_original():
    for width, factor, minimum, divisor, expected in json.loads((GOLDEN / "geometry.json").read_text())["round_width"][
        "rows"
    ]:
        assert round_width(width, factor, minimum=minimum, divisor=divisor) == expected


@pytest.mark.parametrize(
    ("depth", "blocks", "dims"),
    [(2.2, [3, 5, 11, 7], [24, 48, 96, 192]), (5.0, [5, 10, 25, 15], [24, 48, 96, 192])],
)
def test_plan_of_the_paper(depth, blocks, dims):
    plan = plan_x3d(width_factor=2.0, depth_factor=depth, bottleneck_factor=2.25)
    assert [len(spec.kernels) for spec in plan] == blocks
    assert [spec.dim_out for spec in plan] == dims
    assert [spec.dim_in for spec in plan] == [24, *dims[:3]]
    assert [spec.dim_inner for spec in plan] == [54, 108, 216, 432]
    assert all(spec.groups == spec.dim_inner and spec.stride == 2 for spec in plan)


def test_scale_res2_doubles_all_stages():
    plan = plan_x3d(width_factor=2.0, scale_res2=True)
    assert [spec.dim_out for spec in plan] == [48, 96, 192, 384]
    assert plan[0].dim_in == 24


def test_plan_names_the_key_of_a_wrong_value():
    with pytest.raises(ValueError, match=r"X3D\.DEPTH_FACTOR=0"):
        plan_x3d(depth_factor=0)
    with pytest.raises(ValueError, match=r"NONLOCAL\.LOCATION .* res2 has blocks 0 to 0"):
        plan_x3d(nonlocal_at=[1])


def test_squeeze_excite_scales_channels_by_their_gate():
    gate = SqueezeExcite(4)
    assert gate.fc1.weight.shape == (8, 4, 1, 1, 1)
    with torch.no_grad():
        gate.fc1.weight.zero_()
        gate.fc1.bias.fill_(1.0)
        gate.fc2.weight.zero_()
        gate.fc2.weight[2] = 1.0  # the third gate sees 8 ones
        gate.fc2.bias.zero_()
    x = torch.ones(1, 4, 1, 2, 2)
    expected = torch.tensor([0.5, 0.5, 1 / (1 + math.exp(-8)), 0.5])
    torch.testing.assert_close(gate(x)[0, :, 0, 0, 0], expected)


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 2, 3))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (y.flatten(1).std(1) == 0).all()
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(y), y)
    with pytest.raises(ValueError, match=r"1\.0"):
        DropPath(1.0)


def test_drop_connect_acts_and_grows_with_the_stage():
    model = build_model(small_cfg("MODEL.DROPCONNECT_RATE", 0.5))
    rates = [getattr(model, f"s{i}").pathway0_res0.drop.rate for i in (2, 3, 4, 5)]
    assert rates == pytest.approx([0.2, 0.3, 0.4, 0.5])
    block = fill_model(model).s5.pathway0_res1.train()
    torch.manual_seed(0)
    x = torch.rand(64, 96, 1, 2, 2)
    unchanged = (block(x) == x).flatten(1).all(1).float().mean().item()
    assert 0.3 < unchanged < 0.7


def test_initialisation_has_the_statistics_of_the_original():
    torch.manual_seed(0)
    model = build_model(make_cfg("configs/Kinetics/X3D_S.yaml"))
    block = model.s5.pathway0_res2.branch2
    for conv, fan_out in ((block.a, 432), (block.b, 432 * 27), (block.c, 192), (model.head.lin_5, 2048)):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert not block.se.fc1.bias.any()
    assert not block.c_bn.weight.any()  # RESNET.ZERO_INIT_FINAL_BN is on
    assert (block.b_bn.weight == 1).all()
    assert model.head.projection.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.projection.bias.any()


def test_larger_crop_is_averaged_in_eval_and_listed_in_training():
    model = build_model(small_cfg())
    fill_model(model)
    clips = fill_input("x3d:larger", (2, 3, 4, 64, 64))
    assert model(clips).shape == (2, 4 * 5)
    scores = model.eval()(clips)
    assert scores.shape == (2, 5)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


def test_list_of_one_clip_gives_what_the_clip_gives():
    model = fill_model(build_model(small_cfg())).eval()
    clips = fill_input("x3d:list", (1, 3, 4, 32, 32))
    assert torch.equal(model([clips]), model(clips))


def test_nonlocal_blocks_follow_the_blocks_of_res2_in_every_stage():
    opts = ["NONLOCAL.LOCATION", [[[0]], [[]], [[]], [[]]], "NONLOCAL.GROUP", [[2], [1], [1], [1]]]
    model = build_model(small_cfg("NONLOCAL.POOL", [[[1, 2, 2]]] * 4, *opts, "NONLOCAL.INSTANTIATION", "softmax"))
    assert [hasattr(getattr(model, f"s{i}"), "pathway0_nonlocal0") for i in (2, 3, 4, 5)] == [True] * 4
    assert model(fill_input("x3d:nonlocal", (1, 3, 4, 64, 64)).clone()).shape == (1, 20)


def kept_in_training(model, clips):
    """Bytes that a training step keeps for its backward pass, and the gradients."""
    kept = {}  # address -> the memory there, which stays in use until all are counted

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(clips).square().sum()
    size = sum(storage.nbytes() for storage in kept.values())
    return size, torch.autograd.grad(loss, list(model.parameters()))


def test_gate_and_swish_are_computed_again_and_not_kept():
    clips = fill_input("x3d:again", (2, 3, 4, 64, 64)).double()
    size, grads = {}, {}
    for backend in ("auto", "native"):
        model = build_model(small_cfg("MODEL.CONV_BACKEND", backend, "MODEL.DROPOUT_RATE", 0.0))
        size[backend], grads[backend] = kept_in_training(fill_model(model).double().train(), clips)
    assert size["auto"] < 0.9 * size["native"]
    for a, b in zip(*grads.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("part", ["se", "b_relu", "c"])
def test_who_looks_into_a_block_sees_every_part(part):
    model = fill_model(build_model(small_cfg("MODEL.DROPOUT_RATE", 0.0))).train()
    clips = fill_input("x3d:hook", (2, 3, 4, 32, 32))
    loss = model(clips).square().sum()
    seen = []
    looked_into = getattr(model.s3.pathway0_res0.branch2, part)
    handle = looked_into.register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
    torch.testing.assert_close(model(clips).square().sum(), loss)
    assert len(seen) == 1
    handle.remove()
    looked_into.register_forward_hook(lambda *args: torch.zeros_like(args[2]))
    assert not torch.isclose(model(clips).square().sum(), loss)


def test_an_activation_of_ones_own_acts():
    model = fill_model(build_model(small_cfg("MODEL.DROPOUT_RATE", 0.0))).train()
    clips = fill_input("x3d:own", (2, 3, 4, 32, 32))
    loss = model(clips).square().sum()
    model.s3.pathway0_res0.branch2.b_relu = nn.ReLU()
    assert not torch.isclose(model(clips).square().sum(), loss)


def test_checkpointed_stages_give_the_same_gradients():
    clips = fill_input("x3d:checkpoint", (2, 3, 4, 32, 32))
    grads = []
    for enabled in (False, True):
        model = fill_model(build_model(small_cfg("MODEL.ACT_CHECKPOINT", enabled, "MODEL.DROPOUT_RATE", 0.0)))
        model.train()(clips).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_detach_stops_the_gradient_below_the_classifier():
    model = build_model(small_cfg("MODEL.DETACH_FINAL_FC", True)).train()
    model(torch.rand(2, 3, 4, 32, 32)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "head.projection.weight",
        "head.projection.bias",
    ]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DETECTION.ENABLE", True], r"DETECTION\.ENABLE=True .* no head for boxes"),
        (["MODEL.ARCH", "slow"], r"MODEL\.ARCH='slow' .* 'x3d'"),
        (["RESNET.TRANS_FUNC", "basic_transform"], r"RESNET\.TRANS_FUNC='basic_transform' .* 'x3d_transform'"),
        (["MODEL.HEAD_ACT", "relu"], r"MODEL\.HEAD_ACT='relu'"),
    ],
)
def test_what_x3d_cannot_do_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(small_cfg(*opts))


def test_boxes_are_refused():
    with pytest.raises(ValueError, match="given boxes but classifies whole clips"):
        build_model(small_cfg())(torch.zeros(1, 3, 4, 32, 32), torch.zeros(1, 5))


def test_network_from_plain_values():
    model = X3D(plan_x3d(), head=X3DHeadSpec(num_classes=3, dim=16, norm_features=True))
    assert isinstance(model.head.lin_5_bn, nn.BatchNorm3d)
    assert model.eval()(torch.rand(1, 3, 2, 32, 32)).shape == (1, 3)


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    model = fill_model(build_model(small_cfg())).eval()
    clips = fill_input("x3d:compile", (1, 3, 4, 32, 32))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clips), model(clips))
