"""Reversible networks: the original's names and outputs, and a backward pass that keeps nothing and loses nothing."""

import gc
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from fill import fill_input, fill_model
from torch import nn

from slowfast.config import get_cfg, load_cfg
from slowfast.models import build_model
from slowfast.models.attention import BlockOptions
from slowfast.models.mvit import plan_blocks
from slowfast.models.reversible import ReversibleBackbone, ReversibleSpec, StageTransition, TwoStreamFusion
from slowfast.solver import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models_reversible"
_STORED = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
CONFIGS, STATE_DICTS = _STORED["configs"], _STORED["state_dicts"]
FORWARD = json.loads((GOLDEN / "forward.json").read_text())
OUTPUTS = np.load(GOLDEN / "forward.npz")
OPTIMIZERS = json.loads(gzip.decompress((GOLDEN / "optim.json.gz").read_bytes()))

MVIT, VIT = "configs/ImageNet/REV_MVIT_B_16_CONV.yaml", "configs/ImageNet/REV_VIT_S.yaml"
VIDEO = "configs/Kinetics/REV_MVIT_B_16x4_CONV.yaml"
SMALL = [
    *["DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5, "MVIT.EMBED_DIM", 16],
    *["MVIT.DEPTH", 5, "MVIT.DIM_MUL", [[1, 2.0], [3, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0], [3, 2.0]]],
    *["MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2], [3, 1, 2, 2]], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]],
    *["MVIT.REV.BUFFER_LAYERS", [1, 3], "MODEL.DROPOUT_RATE", 0.0, "MVIT.DROPPATH_RATE", 0.0],
]

VIT_SMALL = ["MVIT.REV.BUFFER_LAYERS", [], "MVIT.DIM_MUL", [], "MVIT.HEAD_MUL", [], "MVIT.POOL_Q_STRIDE", []]
VIT_SMALL += ["MVIT.NUM_HEADS", 2, "MVIT.POOL_KV_STRIDE_ADAPTIVE", None]


def make_cfg(opts):
    cfg = get_cfg()
    cfg.merge_from_list(list(opts))
    return cfg


def small_model(config, *opts):
    frames = ["DATA.NUM_FRAMES", 4] if config == VIDEO else []
    return build_model(load_cfg(ROOT / config, [*SMALL, *frames, *opts]))


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / config))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == STATE_DICTS[CONFIGS[config]["state_dict"]]
    assert sum(p.numel() for p in model.parameters()) == CONFIGS[config]["params"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("config:") else []) for n in FORWARD]
)
def test_eval_output_equals_the_original(name):
    entry = FORWARD[name]
    model = fill_model(build_model(make_cfg(entry["opts"])), entry["gain"])
    clips = fill_input(entry["input_tag"], tuple(entry["frames_shape"]))
    expected = torch.from_numpy(OUTPUTS[name.replace("/", "|")])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(clips), expected, rtol=1e-4, atol=1e-6)
    if not name.startswith("config:"):  # the training path, without what is random there
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
        scores = model.train()(clips).detach().softmax(-1)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameter_groups_equal_the_original(name):
    golden, cfg = OPTIMIZERS[name], load_cfg(ROOT / name)
    with torch.device("meta"):
        model = build_model(cfg)
        optimizer = build_optimizer(model, cfg)
    names = {param: name for name, param in model.named_parameters()}
    for group, expected in zip(optimizer.param_groups, golden["groups"], strict=True):
        assert [names[param] for param in group["params"]] == expected["params"]
        assert group["weight_decay"] == expected["weight_decay"]


# ------------------------------ the backward pass ------------------------------


def gradients(model, clips, *, plain, monkeypatch, dtype=None):
    """Loss and gradients of one step, by plain autograd or the reversible way, from the same random draws."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    with monkeypatch.context() as patch, torch.autocast("cpu", dtype, enabled=dtype is not None):
        if plain:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
        loss = model(clips).float().log_softmax(-1)[:, 0].mean() if dtype else model(clips).log_softmax(-1)[:, 0].mean()
    loss.backward()
    after = torch.rand(3)
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, after


DROPS = ["MVIT.DROPOUT_RATE", 0.3, "MVIT.DROPPATH_RATE", 0.4]


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        (MVIT, []),
        (MVIT, DROPS),
        (VIDEO, [*DROPS, "MODEL.ACT_CHECKPOINT", True]),
        (MVIT, [*DROPS, "MVIT.REV.RES_PATH", "max", "MVIT.REV.RESPATH_FUSE", "avg"]),
        (VIDEO, [*DROPS, "MVIT.REV.PRE_Q_FUSION", "ln+concat_linear_0.5_0.2", "MVIT.POOL_FIRST", True]),
    ],
)
def test_gradients_equal_those_of_plain_autograd(config, opts, monkeypatch):
    model = fill_model(small_model(config, *opts)).double().train()
    clips = fill_input("reversible", (6, 3, 1 if config == MVIT else 4, 32, 32)).double()
    loss, expected, after = gradients(model, clips, plain=True, monkeypatch=monkeypatch)
    other_loss, found, other_after = gradients(model, clips, plain=False, monkeypatch=monkeypatch)
    torch.testing.assert_close(other_loss, loss, rtol=1e-13, atol=0)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12, msg=name)
    assert torch.equal(after, other_after)  # the generator goes on as if nothing had been drawn again


def test_gradients_under_autocast_are_those_of_plain_autograd_under_autocast(monkeypatch):
    """To the rounding of bf16, 1/256: rebuilt streams differ in float32, so a branch may round the other way."""
    model = fill_model(small_model(MVIT, "MVIT.DROPOUT_RATE", 0.1)).train()
    clips = fill_input("reversible", (6, 3, 1, 32, 32))
    _, expected, _ = gradients(model, clips, plain=True, monkeypatch=monkeypatch, dtype=torch.bfloat16)
    _, found, _ = gradients(model, clips, plain=False, monkeypatch=monkeypatch, dtype=torch.bfloat16)
    total = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        assert found[name].dtype == grad.dtype
        assert (found[name] - grad).norm() <= 0.02 * grad.norm() + 1e-3 * total, name


def test_frozen_parameters_get_no_gradient_and_change_no_other(monkeypatch):
    model = fill_model(small_model(MVIT)).double().train()
    for name, param in model.named_parameters():
        param.requires_grad_("mlp" not in name and "patch_embed" not in name and name != "pos_embed")
    clips = fill_input("reversible", (2, 3, 1, 32, 32)).double()
    _, expected, _ = gradients(model, clips, plain=True, monkeypatch=monkeypatch)
    _, found, _ = gradients(model, clips, plain=False, monkeypatch=monkeypatch)
    for name, grad in expected.items():
        assert (found[name] is None) == (grad is None) == (not model.get_parameter(name).requires_grad)
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_a_second_backward_pass_gives_the_same():
    model = fill_model(small_model(MVIT)).double().train()
    loss = model(fill_input("reversible", (2, 3, 1, 32, 32)).double()).square().sum()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss.backward()
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, 2 * once[name])


def kept_memory(model, x, grid):
    """Bytes and count of what the backward pass keeps: saved tensors, and tensors that Python holds on to."""
    saved = []
    gc.collect()
    gc.freeze()  # leaves what there is out of the list below
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        y, _ = model(x, grid)
    loss = y.sum()
    gc.collect()
    alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    gc.unfreeze()
    held = sum(o.nbytes for o in alive if o is not y and o is not loss)
    loss.backward()
    return len(saved), sum(saved), held


@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_kept_memory_does_not_grow_with_depth(drop, monkeypatch):
    """With dropout each block keeps two states of the generator (5 kB each on the CPU), however large the clip."""
    found, plain = {}, {}
    x = torch.rand(2, 64, 32)
    for depth in (2, 6):
        plan = plan_blocks(depth, dim=32, heads=2, grid=(1, 8, 8), drop_path=drop)
        model = ReversibleBackbone(plan, BlockOptions(dropout=drop), ReversibleSpec()).train()
        found[depth] = kept_memory(model, x, (1, 8, 8))
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            plain[depth] = kept_memory(model, x, (1, 8, 8))
    assert found[2][:2] == found[6][:2]
    assert found[2][1] <= 2 * x.nbytes  # the two streams that the last block gives
    assert found[6][2] - found[2][2] <= (4 * 11_000 if drop else 0)
    assert plain[6][1] > 2.5 * plain[2][1] > 25 * found[2][1]


def test_stochastic_depth_leaves_out_both_branches_of_the_same_samples():
    plan = plan_blocks(2, dim=16, heads=2, grid=(1, 2, 2), drop_path=0.5)
    block = ReversibleBackbone(plan, BlockOptions(), ReversibleSpec()).train().layers[1]
    torch.manual_seed(0)
    x1, x2 = torch.rand(32, 4, 16), torch.rand(32, 4, 16)
    y1, y2 = block(x1, x2, (1, 2, 2))
    same = (y1 == x1).flatten(1).all(1)
    assert torch.equal(same, (y2 == x2).flatten(1).all(1))
    assert 5 < same.sum() < 27
    f = block.F(x2, (1, 2, 2))[0]
    torch.testing.assert_close(y1[~same], (x1 + 2 * f)[~same])  # 1 / (1 - 0.5)


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(fill_model(small_model(MVIT)).double().train())
    clips = fill_input("reversible", (4, 3, 1, 32, 32)).double()[2 * rank : 2 * rank + 2]
    for _ in range(2):  # the second time with rebuilt buckets
        model.zero_grad()
        model(clips).log_softmax(-1)[:, 0].mean().backward()
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    model = fill_model(small_model(MVIT)).double().train()
    model(fill_input("reversible", (4, 3, 1, 32, 32)).double()).log_softmax(-1)[:, 0].mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, param in model.named_parameters():
            torch.testing.assert_close(found[name], param.grad, rtol=1e-9, atol=1e-12)


# ------------------------------ fusion, transitions, errors ------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("add", [4.0, 6.0]), ("avg", [2.0, 3.0]), ("max", [3.0, 4.0]), ("min", [1.0, 2.0]), ("concat", [1, 2, 3, 4.0])],
)
def test_fusion_of_two_streams(mode, expected):
    fuse = TwoStreamFusion(mode, 4)
    assert fuse(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).flatten().tolist() == expected
    assert fuse.dim_out == len(expected)


def test_fusion_by_an_mlp_is_residual():
    fuse = TwoStreamFusion("ln+concat_linear_1.5_0.1", 4).eval()
    norm, mlp = fuse.fuse_fn
    assert (norm.eps, mlp.fc1.out_features, mlp.drop.p) == (1e-5, 6, 0.1)
    x = torch.rand(1, 2, 4)
    torch.testing.assert_close(fuse(x), x + mlp.fc2(nn.functional.gelu(mlp.fc1(norm(x)))))
    assert TwoStreamFusion("concat_linear", 4).fuse_fn.fc1.out_features == 4


@pytest.mark.parametrize("mode", ["conv", "avg", "max", "conv_unshared"])
def test_shortcut_of_a_transition_is_pooled_as_queries_are(mode):
    plan = plan_blocks(
        2, dim=8, heads=2, grid=(1, 4, 4), dim_mul=[[1, 2.0]], pool_q_stride=[[1, 1, 2, 2]], dim_mul_in_att=True
    )
    options = BlockOptions(mode=mode, pool_first=mode == "conv_unshared", dim_mul_in_att=True)
    transition = StageTransition(plan[1], options, ReversibleSpec((1,))).eval()
    x, grid = transition(torch.rand(2, 16, 16), (1, 4, 4))
    assert (x.shape, grid) == ((2, 4, 16), (1, 2, 2))
    by_max = StageTransition(plan[1], options, ReversibleSpec((1,), shortcut="max")).eval()
    tokens = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 8)
    nn.init.eye_(by_max.res_proj.weight), nn.init.zeros_(by_max.res_proj.bias)
    assert by_max.shortcut(tokens, (1, 4, 4))[0, :, 0].tolist() == [5.0, 7.0, 13.0, 15.0]  # 3 x 3 windows, stride 2


def test_evaluation_lets_gradients_through_to_every_layer():
    """In evaluation blocks are plain, so hooks on a layer inside see its gradient (Grad-CAM)."""
    model = fill_model(small_model(MVIT)).eval()
    seen = []
    model.rev_backbone.layers[4].F.attn.proj.register_full_backward_hook(lambda m, i, o: seen.append(o[0]))
    model(torch.rand(1, 3, 1, 32, 32))[0, 0].backward()
    assert seen[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MVIT.CLS_EMBED_ON", True], r"set MVIT\.CLS_EMBED_ON False"),
        (["MVIT.REV.BUFFER_LAYERS", [1]], r"block 3 changes the width or the grid .* MVIT\.REV\.BUFFER_LAYERS=\[1\]"),
        (["MVIT.REV.BUFFER_LAYERS", [1, 3, 9]], r"MVIT\.REV\.BUFFER_LAYERS has \[9\]: blocks are numbered 0 to 4"),
        (["MVIT.REV.RES_PATH", "min"], r"MVIT\.REV\.RES_PATH='min': allowed are conv, max"),
        (["MVIT.REV.RESPATH_FUSE", "mul"], r"MVIT\.REV\.RESPATH_FUSE='mul': allowed are add, avg"),
        (["MVIT.REV.PRE_Q_FUSION", "linear"], r"MVIT\.REV\.PRE_Q_FUSION='linear'"),
        (["DETECTION.ENABLE", True], r"DETECTION\.ENABLE=True: a reversible network"),
    ],
)
def test_what_a_reversible_network_cannot_do_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        small_model(MVIT, *opts)


@pytest.mark.parametrize("config", [MVIT, VIT, VIDEO])
def test_a_step_of_training_lowers_the_loss(config):
    model = small_model(VIT, *VIT_SMALL) if config == VIT else small_model(config)
    model.train()
    torch.manual_seed(0)
    clips, labels = torch.rand(4, 3, 4 if config == VIDEO else 1, 32, 32), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
