import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.solver import build_optimizer, clip_gradients, set_lr
from slowfast.solver.lars import LARS
from slowfast.solver.optimizer import can_fuse, depth_groups, kind_groups, layer_index

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/solver/optim.json.gz").read_bytes()))


class Norm(nn.BatchNorm1d):
    """A batch norm whose parameters are set by hand."""

    def __init__(self):
        super().__init__(1, affine=False)
        del self.weight, self.bias


def skeleton(params):
    """A module tree with these parameters ``[name, axes, owned by batch norm, trainable]``, one element each."""
    norms = {name.rpartition(".")[0] for name, _, norm, _ in params if norm}
    root = nn.Module()
    for name, axes, _, trainable in params:
        *path, leaf = name.split(".")
        module = root
        for depth, part in enumerate(path, 1):
            if part not in module._modules:
                module.add_module(part, Norm() if ".".join(path[:depth]) in norms else nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(torch.zeros([1] * axes), requires_grad=bool(trainable)))
    return root


def groups_of(optimizer, model):
    names = {param: name for name, param in model.named_parameters()}
    return [[names[param] for param in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", GOLDEN)
def test_groups_equal_reference(name):
    case = GOLDEN[name]
    model = skeleton(case["params"])
    optimizer = build_optimizer(model, load_cfg(None, case["opts"]))

    assert isinstance(optimizer, LARS) == case["lars"]
    inner = optimizer.inner if case["lars"] else optimizer
    assert type(inner).__name__ == case["optimizer"]
    for key in ("lr", "weight_decay", "momentum", "dampening", "nesterov", "eps", "amsgrad"):
        assert inner.defaults.get(key) == case["defaults"].get(key), key
    assert list(inner.defaults.get("betas", ())) == case["defaults"].get("betas", [])

    wanted = [[case["params"][index][0] for index in group["params"]] for group in case["groups"]]
    assert groups_of(optimizer, model) == wanted
    for group, expected in zip(optimizer.param_groups, case["groups"], strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert group["layer_decay"] == pytest.approx(expected["layer_decay"], rel=1e-12)
        assert group.get("apply_LARS") == expected["apply_LARS"]
    for scheduled, rates in case["lr"].values():
        set_lr(optimizer, scheduled)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates, rel=1e-12)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 2, 4))
        self.conv = nn.Conv1d(2, 2, 1)
        self.bn = nn.BatchNorm1d(2)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def no_weight_decay(self):
        return {"pos_embed"}

    def forward(self, x):
        return self.norm(self.bn(self.conv(x)) + self.pos_embed)


def test_batch_norm_others_and_exempt_are_three_groups_without_frozen_ones():
    model = Small()
    groups = kind_groups(model, weight_decay=0.1, norm_weight_decay=0.2, exempt={"pos_embed"}, exempt_1d=True)
    names = {param: name for name, param in model.named_parameters()}
    assert [[names[param] for param in group["params"]] for group in groups] == [
        ["bn.weight", "bn.bias"],
        ["conv.weight"],
        ["pos_embed", "conv.bias", "norm.weight", "norm.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.1, 0.0]


def test_exempt_names_match_a_part_by_kind_but_only_the_whole_by_depth():
    model = skeleton([["blocks.0.attn.rel_pos_h", 2, 0, 1], ["blocks.0.attn.w", 2, 0, 1], ["cls_token", 3, 0, 1]])
    exempt = {"rel_pos_h", "cls_token"}
    kinds = kind_groups(model, weight_decay=0.1, norm_weight_decay=0, exempt=exempt)
    assert [(group["weight_decay"], len(group["params"])) for group in kinds] == [(0.1, 1), (0.0, 2)]
    depths = depth_groups(model, depth=1, layer_decay=0.5, weight_decay=0.1, exempt=exempt)
    assert [(g["weight_decay"], g["layer_decay"], len(g["params"])) for g in depths] == [(0.0, 0.25, 1), (0.1, 0.5, 2)]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("cls_token", 0),
        ("mask_token", 0),
        ("pos_embed_spatial", 0),
        ("patch_embed.proj.weight", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.11.mlp.fc1.bias", 12),
        ("norm.weight", 13),
        ("head.projection.weight", 13),
        ("rev_backbone.layers.3.G.norm.bias", 13),
    ],
)
def test_layer_index(name, index):
    assert layer_index(name, depth=12) == index


def test_parameter_used_twice_is_listed_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})
    model["b"] = nn.Linear(2, 2, bias=False)
    model["b"].weight = model["a"].weight
    assert sum(len(g["params"]) for g in kind_groups(model, weight_decay=0, norm_weight_decay=0)) == 1


def test_wrapped_model_has_the_same_groups(tmp_path):
    cfg = load_cfg(None, ["SOLVER.ZERO_WD_1D_PARAM", True])
    model = Small()
    wanted = groups_of(build_optimizer(model, cfg), model)
    assert groups_of(build_optimizer(torch.compile(model, backend="eager"), cfg), model) == wanted

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert groups_of(build_optimizer(wrapped, cfg), model) == wanted
    finally:
        torch.distributed.destroy_process_group()


def test_activation_checkpointing_and_compiled_blocks_do_not_change_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def decays(wrap):
        model = nn.Module()
        model.blocks = nn.ModuleList([wrap(nn.Linear(2, 2, bias=False))])
        return depth_groups(model, depth=1, layer_decay=0.5, weight_decay=0.1)[0]["layer_decay"]

    assert decays(checkpoint_wrapper) == 0.5
    assert decays(lambda block: torch.compile(block, backend="eager")) == 0.5


@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "dampening": 0.0, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.5, 0.9)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.5, 0.9), "eps": 1e-8}),
        ("mt_adamw", torch.optim.AdamW, {"betas": (0.5, 0.9), "foreach": True}),
    ],
)
def test_methods(method, kind, options):
    opts = ["SOLVER.OPTIMIZING_METHOD", method, "SOLVER.MOMENTUM", 0.8, "SOLVER.BETAS", (0.5, 0.9)]
    optimizer = build_optimizer(nn.Linear(2, 2), load_cfg(None, opts))
    assert type(optimizer) is kind
    for key, value in options.items():
        assert optimizer.param_groups[0][key] == value


def test_new_optimizer_starts_at_the_first_rate_of_the_schedule():
    cfg = load_cfg(None, ["SOLVER.WARMUP_EPOCHS", 3.0, "SOLVER.WARMUP_START_LR", 0.025])
    assert build_optimizer(nn.Linear(2, 2), cfg).param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.OPTIMIZING_METHOD", "adagrad"], "SOLVER.OPTIMIZING_METHOD='adagrad'.*sgd, adam, adamw, mt_adamw"),
        (["SOLVER.LAYER_DECAY", 1.5], r"SOLVER.LAYER_DECAY=1.5 must lie in \(0, 1\]"),
        (["SOLVER.LAYER_DECAY", 0.0], r"SOLVER.LAYER_DECAY=0.0 must lie in \(0, 1\]"),
        (["SOLVER.LAYER_DECAY", 0.5], "SOLVER.LAYER_DECAY=0.5 is for transformers.*'bn.weight'"),
        (["SOLVER.MOMENTUM", 0.0], "SOLVER.NESTEROV needs momentum.*SOLVER.MOMENTUM=0.0"),
    ],
)
def test_impossible_optimizer_names_its_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(Small(), load_cfg(None, opts))


def test_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), load_cfg())


def gradients(*values):
    params = [nn.Parameter(torch.zeros(len(value))) for value in values]
    for param, value in zip(params, values, strict=True):
        param.grad = torch.tensor(value)
    return params


def test_norm_is_measured_before_any_clipping():
    for options in ({}, {"value": 1.0}, {"l2norm": 1.0}, {"value": 0.0, "l2norm": None}):
        norm = clip_gradients([*gradients([3.0], [0.0, 4.0]), nn.Parameter(torch.zeros(2))], **options)
        assert isinstance(norm, torch.Tensor)
        assert norm.item() == pytest.approx(5.0)


def test_clipping_by_value_and_by_norm():
    a, b = gradients([3.0], [0.5, -4.0])
    clip_gradients([a, b], value=1.0, l2norm=0.1)
    assert (a.grad.tolist(), b.grad.tolist()) == ([1.0], [0.5, -1.0])
    a, b = gradients([3.0], [0.0, 4.0])
    clip_gradients([a, b], l2norm=1.0)
    assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-5)
    a, b = gradients([3.0], [0.0, 4.0])
    clip_gradients([a, b], l2norm=10.0)
    assert torch.cat([a.grad, b.grad]).tolist() == [3.0, 0.0, 4.0]


def test_norm_without_any_gradient_is_zero():
    assert clip_gradients([nn.Parameter(torch.zeros(2))], l2norm=1.0).item() == 0.0


REAL = [name for name, case in GOLDEN.items() if case["network"] in ("ResNet", "SlowFast")]


@pytest.mark.parametrize("name", REAL)
def test_groups_of_real_networks_equal_reference(name):
    case = GOLDEN[name]
    cfg = load_cfg(None, case["opts"])
    with torch.device("meta"):
        model = build_model(cfg)
    wanted = [[case["params"][index][0] for index in group["params"]] for group in case["groups"]]
    assert groups_of(build_optimizer(model, cfg), model) == wanted


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw"])
def test_a_fused_optimizer_takes_the_same_steps_and_the_state_of_another(method, monkeypatch):
    weights = []
    states = []
    for fused in (False, True):
        monkeypatch.setattr("slowfast.solver.optimizer.can_fuse", lambda *_, fused=fused: fused)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        optimizer = build_optimizer(model, load_cfg(None, ["SOLVER.OPTIMIZING_METHOD", method]))
        assert all(bool(group["fused"]) is fused for group in optimizer.param_groups)
        for step in range(3):
            model(torch.linspace(-1, 1 + step, 20).view(5, 4)).square().sum().backward()
            optimizer.step()
        weights.append([param.detach().clone() for param in model.parameters()])
        states.append(optimizer.state_dict())
        if fused:
            optimizer.load_state_dict(states[0])
            assert all(group["fused"] for group in optimizer.param_groups)
    for plain, fused in zip(*weights, strict=True):
        torch.testing.assert_close(fused, plain)


def test_only_weights_on_a_gpu_are_fused():
    groups = [{"params": list(nn.Linear(2, 2).parameters())}]
    assert not can_fuse("sgd", groups)
    on_gpu = [{"params": [SimpleNamespace(is_cuda=True, is_floating_point=lambda: True)]}]
    assert can_fuse("sgd", on_gpu)
    assert not can_fuse("mt_adamw", on_gpu)
