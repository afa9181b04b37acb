"""Contrastive models: the original's names and numbers, and each method's rules on tiny backbones."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch.nn import functional as F

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.models.contrastive import (
    BYOL,
    ContrastiveStep,
    InstanceMemory,
    MoCo,
    SimCLR,
    SwAV,
    instance_logits,
    nt_xent,
    sinkhorn,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "models_contrastive"
STEPS = json.loads((GOLDEN / "steps.json").read_text())
VALUES = np.load(GOLDEN / "steps.npz")
QUICK = ("swav", "moco_symmetric_off_seq")
STATE_DICTS = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))


@pytest.mark.parametrize("config", STATE_DICTS)
def test_state_dict_has_the_original_names_shapes_and_order(config):
    entry = STATE_DICTS[config]
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / config, entry["opts"]))
    found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
    assert found == entry["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == entry["params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == entry["trainable"]
    assert all(name.startswith("backbone_hist.") for name, p in model.named_parameters() if not p.requires_grad)


def run_step(model, views, epoch, index=None):
    """One update's gradients: the losses of its parts, and their logits."""
    step = ContrastiveStep(views, torch.arange(len(views[0])) if index is None else index)
    model.begin(step, epoch)
    results = [model(step, part) for part in model.parts(len(views))]
    for result in results:
        result.total.backward()
    model.finish(step)
    return [result.total.item() for result in results], [result.logits for result in results]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in STEPS]
)
def test_one_step_equals_the_original(name):
    entry = STEPS[name]
    model = build_model(load_cfg(ROOT / entry["config"], [*entry["opts"], "MODEL.CONV_BACKEND", "native"]))
    views = [fill_input(f"ssl:{name}:clip{i}", (4, 3, 8, 64, 64)) for i in range(entry["clips"])]
    fill_model(model, entry["gain"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(views[0]), torch.from_numpy(VALUES[f"{name}|feature"]), rtol=1e-4, atol=1e-5)

    fill_model(model, entry["gain"]).train()
    losses, logits = run_step(model, views, entry["epoch"])
    loss = sum(losses) / (2 * len(views)) if model.sequential else sum(losses)
    assert loss == pytest.approx(entry["loss"], rel=1e-3, abs=1e-5)
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(entry["grad_norm"], rel=2e-3)
    if f"{name}|preds" in VALUES:
        flat = torch.cat(logits).flatten()
        assert [len(flat) // 33, 33] == entry["preds_shape"]
        places = np.linspace(0, len(flat) - 1, min(512, len(flat))).astype(int)
        torch.testing.assert_close(flat[places], torch.from_numpy(VALUES[f"{name}|preds"]), rtol=1e-3, atol=1e-3)
    state = model.state_dict()
    for key, sums in entry["buffers"].items():
        found = [state[key].double().sum().item(), state[key].double().abs().sum().item()]
        assert found == pytest.approx(sums, rel=1e-5, abs=2e-3), key
    if entry["hist_first"] is not None:
        assert model.momentum_at(entry["epoch"]) == pytest.approx(entry["momentum"], abs=1e-12)
        first = next(model.backbone_hist.parameters())
        assert first.sum().item() == pytest.approx(entry["hist_first"], abs=1e-4)


# ---------------------------------------------------------------- rules, on a backbone of one linear layer


class Tiny(nn.Module):
    """Clips [B, 3, 1, 1, 1] to features [B, 4]; with ``predictor`` also what it makes of them."""

    def __init__(self, predictor=False):
        super().__init__()
        self.head = nn.Module()
        self.head.projection = nn.Linear(3, 4)
        self.head.predictors = nn.ModuleList([nn.Linear(4, 4)] * predictor)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, clips):
        features = self.norm(self.head.projection(clips.flatten(1)))
        answers = [predictor(features) for predictor in self.head.predictors]
        return [features, *answers] if answers else features


def views_of(count, batch=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, 1, 1, 1, generator=generator) for _ in range(count)]


def make_moco(**options):
    torch.manual_seed(0)
    options = {"momentum": 0.9, "queue_length": 12, "dim": 4, "temperature": 0.5, **options}
    return MoCo(Tiny(), **options).train()


def test_the_key_encoder_takes_over_the_weights_once_and_then_follows():
    model = make_moco()
    weight, slow = model.backbone.head.projection.weight, model.backbone_hist.head.projection.weight
    with torch.no_grad():
        slow.zero_()
    model.follow(0.0)
    assert torch.equal(slow, weight)
    before = slow.clone()
    with torch.no_grad():
        weight.add_(1.0)
    model.follow(0.0)
    torch.testing.assert_close(slow, 0.9 * before + 0.1 * weight)
    assert model.iter.item() == 2
    assert not slow.requires_grad


def test_momentum_grows_to_one():
    model = make_moco(annealed_over=10, momentum=0.8)
    assert [model.momentum_at(epoch) for epoch in (0, 5, 10)] == pytest.approx([0.8, 0.9, 1.0])
    assert make_moco(momentum=0.8).momentum_at(10) == 0.8


def test_keys_enter_the_queue_in_turn():
    model, views = make_moco(queue_length=10, multi_view_queue=True, sequential=True), views_of(2)
    with torch.no_grad():
        model.queue_x.zero_()
    step = ContrastiveStep(views, torch.arange(4))
    model.begin(step, 0.0)
    model.finish(step)
    assert torch.equal(model.queue_x[:8], torch.cat(step.keys))
    assert not model.queue_x[8:].any()
    model.finish(step)  # 16 keys went into 10 places
    assert model.ptr.item() == 6
    assert torch.equal(model.queue_x, torch.cat([*step.keys, *step.keys])[[10, 11, 12, 13, 14, 15, 6, 7, 8, 9]])


def test_without_several_views_only_the_first_keys_enter_the_queue():
    model = make_moco(sequential=False)
    step = ContrastiveStep(views_of(3), torch.arange(4))
    model.begin(step, 0.0)
    assert step.keyed == [1, 2]
    model.finish(step)
    assert model.ptr.item() == 4
    assert torch.equal(model.queue_x[:4], step.keys[0])


def test_more_keys_than_places_leave_the_last():
    model = make_moco(queue_length=3)
    step = ContrastiveStep(views_of(2), torch.arange(4))
    model.begin(step, 0.0)
    model.finish(step)
    assert sorted(model.queue_x.tolist()) == sorted(step.keys[0][1:].tolist())


def test_one_pass_for_all_keys_normalises_them_together():
    together, apart = make_moco(sequential=False), make_moco(sequential=True)
    views = views_of(3)
    keys = together.make_keys(views)
    encoder = together.backbone_hist
    expected = F.normalize(encoder(torch.cat(views)), dim=1).chunk(3)
    torch.testing.assert_close(torch.stack(keys), torch.stack(expected))
    expected = [F.normalize(apart.backbone_hist(view), dim=1) for view in views]
    torch.testing.assert_close(torch.stack(apart.make_keys(views)), torch.stack(expected))
    assert not torch.allclose(torch.stack(keys), torch.stack(expected))


def test_instance_logits_by_hand():
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    logits = instance_logits(query, [key, query], torch.tensor([[0.5, -1.0]]), 0.5)
    torch.testing.assert_close(logits, torch.tensor([[1.2, 1.0, -2.0], [2.0, 1.0, -2.0]]))


def test_nt_xent_by_its_formula():
    first, second = (F.normalize(view.flatten(1), dim=1) for view in views_of(2, batch=3))
    rows, total = torch.cat([first, second]), 0.0
    for i in range(6):
        partner = (i + 3) % 6
        others = sum(math.exp(float(rows[i] @ rows[j]) / 0.2) for j in range(6) if j != i)
        total -= math.log(math.exp(float(rows[i] @ rows[partner]) / 0.2) / others)
    assert nt_xent(first, second, 0.2).item() == pytest.approx(total / 6, rel=1e-5)


def test_sinkhorn_uses_prototypes_evenly():
    scores = torch.rand(8, 4, generator=torch.Generator().manual_seed(1)) * 0.2
    codes = sinkhorn(scores, iterations=50)
    torch.testing.assert_close(codes.sum(1), torch.ones(8))
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 2.0), rtol=1e-3, atol=1e-3)
    assert torch.equal(sinkhorn(torch.zeros(2, 2)), torch.full((2, 2), 0.5))


def test_byol_sums_both_directions_of_two_views():
    torch.manual_seed(0)
    options = {"momentum": 0.9, "queue_length": 4, "dim": 4, "temperature": 0.5}
    model = BYOL(Tiny(predictor=True), **options).train()
    views = views_of(2)
    (loss,), _ = run_step(model, views, 0.0)
    predicted = [F.normalize(model.backbone(view)[1], dim=1) for view in views]
    joint = torch.cat(views)  # keys are made in one pass; the key encoder is a copy in step 0
    keys = F.normalize(model.backbone(joint)[0], dim=1).chunk(2)
    expected = -sum((predicted[i] * keys[1 - i]).sum(1).mean() for i in (0, 1)) / 0.5
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"3 views.*CONTRASTIVE.SEQUENTIAL"):
        model.parts(3)
    with pytest.raises(ValueError, match=r"PREDICTOR_DEPTHS asks for 0"):
        BYOL(Tiny(), **options)


def make_swav(**options):
    torch.manual_seed(0)
    return SwAV(Tiny(), dim=4, temperature=0.1, **options).train()


def test_swav_views_tell_the_clusters_of_the_other():
    model, views = make_swav(), views_of(3)
    step = ContrastiveStep(views, torch.arange(4))
    model.begin(step, 0.0)
    found = model(step, (0, 1, 2)).total.item()
    torch.testing.assert_close(model.swav_prototypes.weight.norm(dim=1), torch.ones(1000))
    scores = [model.swav_prototypes(F.normalize(model.backbone(view), dim=1)) for view in views]
    expected = 0.0
    for target in (0, 1):
        codes = sinkhorn(scores[target])
        others = [scores[view] for view in range(3) if view != target]
        expected += sum(-(codes * F.log_softmax(other / 0.1, 1)).sum(1).mean() for other in others).item() / 2 / 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_swav_prototypes_rest_in_the_first_epoch():
    model = make_swav()
    run_step(model, views_of(2), 0.5)
    weight = model.swav_prototypes.weight
    model.drop_gradients(1.01)
    assert weight.grad.any()
    model.drop_gradients(1.0)
    assert weight.grad is None


def test_swav_queue_joins_once_it_is_full():
    model, views = make_swav(queue_length=8), views_of(2)
    with torch.no_grad():
        features = F.normalize(model.backbone(views[0]), dim=1)
        scores = model.swav_prototypes(features)
        plain = model.codes(scores, features, 0, 14.9)
        assert not model.queue_swav.any()
        assert torch.equal(plain, sinkhorn(scores))
        assert torch.equal(model.codes(scores, features, 0, 15.0), plain)  # empty
        assert torch.equal(model.codes(scores, features.flip(0), 0, 15.0), plain)  # half full
        queued = torch.cat([features.flip(0), features])
        assert torch.equal(model.queue_swav[0], queued)
        assert not model.queue_swav[1].any()
        expected = sinkhorn(torch.cat([scores, model.swav_prototypes(queued)]))[:4]
        torch.testing.assert_close(model.codes(scores, features, 0, 15.0), expected)


def test_sequence_takes_neighbours():
    model = SimCLR(Tiny(), temperature=0.1, sequential=True)
    assert model.parts(4) == make_swav(sequential=True).parts(4) == [(0, 1), (1, 2), (2, 3)]
    assert SimCLR(Tiny(), temperature=0.1).parts(4) == [(0, 1)]
    assert make_swav().parts(3) == [(0, 1, 2)]
    assert make_moco(sequential=True).parts(3) == [(0,), (1,), (2,)]


def test_the_memory_moves_towards_what_was_seen():
    torch.manual_seed(0)
    model = InstanceMemory(Tiny(), dim=4, length=9, num_negatives=5, rate=0.25, temperature=0.5).train()
    before, (view,) = model.memory.memory.clone(), views_of(1)
    index = torch.tensor([7, 0, 3, 2])
    torch.manual_seed(5)
    (loss,), (logits,) = run_step(model, [view], 0.0, index)
    query = F.normalize(model.backbone(view), dim=1)
    torch.manual_seed(5)
    drawn = torch.randint(9, (4, 5))
    wrong = torch.stack([query[i] @ before[drawn[i]].T for i in range(4)])
    expected = torch.cat([(query * before[index]).sum(1, keepdim=True), wrong], 1) / 0.5
    torch.testing.assert_close(logits, expected.detach())
    assert loss == pytest.approx(F.cross_entropy(expected, torch.zeros(4, dtype=torch.int64)).item(), rel=1e-5)
    moved = F.normalize(0.75 * before[index] + 0.25 * query, dim=1).detach()
    torch.testing.assert_close(model.memory.memory[index], moved)
    untouched = [1, 4, 5, 6, 8]
    assert torch.equal(model.memory.memory[untouched], before[untouched])


# ---------------------------------------------------------------- from a configuration

SMALL = [
    *("MODEL.MODEL_NAME", "ContrastiveModel", "MODEL.ARCH", "slow", "MODEL.NUM_CLASSES", 8, "CONTRASTIVE.DIM", 8),
    *("MODEL.HEAD_ACT", "none", "MODEL.LOSS_FUNC", "contrastive_loss", "CONTRASTIVE.LENGTH", 10, "NUM_GPUS", 0),
    *("RESNET.DEPTH", 18, "RESNET.TRANS_FUNC", "basic_transform", "RESNET.WIDTH_PER_GROUP", 8),
    *("RESNET.NUM_BLOCK_TEMP_KERNEL", [[2], [2], [2], [2]], "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32),
    *("DATA.INPUT_CHANNEL_NUM", [3], "CONTRASTIVE.QUEUE_LEN", 16, "MODEL.DROPOUT_RATE", 0.0, "CONTRASTIVE.T", 0.1),
]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["CONTRASTIVE.TYPE", "self"], r"CONTRASTIVE.TYPE='self': allowed are moco, byol, simclr, swav, mem"),
        (["CONTRASTIVE.TYPE", "moco", "MODEL.ARCH", "r2d"], r"MODEL.ARCH='r2d' with a ContrastiveModel"),
        (["CONTRASTIVE.DIM", 9], r"CONTRASTIVE.DIM=9 and MODEL.NUM_CLASSES=8"),
        (["MODEL.HEAD_ACT", "softmax"], r"HEAD_ACT='softmax'"),
        (["CONTRASTIVE.TYPE", "byol"], r"PREDICTOR_DEPTHS asks for 0"),
        (["CONTRASTIVE.SEQUENTIAL", True], r"CONTRASTIVE.SEQUENTIAL=True with CONTRASTIVE.TYPE='mem'"),
        (["CONTRASTIVE.INTERP_MEMORY", True], r"CONTRASTIVE.INTERP_MEMORY=True"),
        (
            ["MODEL.ARCH", "x3d", "CONTRASTIVE.NUM_MLP_LAYERS", 2],
            r"CONTRASTIVE.NUM_MLP_LAYERS=2: with MODEL.ARCH='x3d'",
        ),
        (["CONTRASTIVE.NUM_MLP_LAYERS", 0], r"an MLP of 0 layers"),
    ],
)
def test_what_cannot_be_names_its_key(opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(load_cfg(None, [*SMALL, *opts]))


@pytest.mark.parametrize(
    ("arch", "opts"),
    [
        ("c2d", []),
        ("slowfast", ["MODEL.MODEL_NAME", "ContrastiveModel", "SLOWFAST.ALPHA", 4, "SLOWFAST.BETA_INV", 2]),
        ("x3d", ["RESNET.TRANS_FUNC", "x3d_transform", "X3D.WIDTH_FACTOR", 1.0, "X3D.DIM_C1", 8]),
        ("mvit", ["MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.MLP_DIM", 16]),
    ],
)
def test_every_family_can_be_the_backbone(arch, opts):
    if arch == "slowfast":
        opts = [*opts, "DATA.INPUT_CHANNEL_NUM", [3, 3], "RESNET.NUM_BLOCK_TEMP_KERNEL", [[1, 1]] * 4]
        opts = [*opts, "RESNET.SPATIAL_STRIDES", [[1, 1], [2, 2], [2, 2], [2, 2]], "NONLOCAL.LOCATION", [[[], []]] * 4]
        opts = [*opts, "RESNET.SPATIAL_DILATIONS", [[1, 1]] * 4, "NONLOCAL.GROUP", [[1, 1]] * 4]
        opts = [*opts, "NONLOCAL.POOL", [[[1, 1, 1], [1, 1, 1]]] * 4]
    model = build_model(load_cfg(None, [*SMALL, "MODEL.ARCH", arch, "CONTRASTIVE.TYPE", "simclr", *opts]))
    views = [torch.randn(2, 3, 4, 32, 32) for _ in range(2)]
    losses, _ = run_step(model.train(), views, 0.0)
    assert math.isfinite(losses[0])
    assert all(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model.knn_mem.features[:2].norm(dim=1), torch.ones(2))
    assert model.eval()(views[0]).shape == (2, 8)


def test_mlps_start_by_the_rule_of_xavier():
    model = build_model(load_cfg(None, [*SMALL, "CONTRASTIVE.TYPE", "simclr", "CONTRASTIVE.NUM_MLP_LAYERS", 2]))
    for layer in (model.backbone.head.projection.projection[0], model.backbone.head.projection.projection[2]):
        bound = math.sqrt(3 / layer.in_features)
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
        assert not layer.bias.any()


def test_a_classifier_may_be_an_mlp_too():
    opts = [*SMALL, "MODEL.MODEL_NAME", "ResNet", "CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.MLP_DIM", 8]
    model = build_model(load_cfg(None, [*opts, "CONTRASTIVE.BN_MLP", True]))
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 8)
    assert model.eval()(torch.randn(2, 3, 4, 64, 64)).shape == (2, 8)  # several positions


def test_synchronised_norms_reach_the_mlps():
    opts = ["CONTRASTIVE.TYPE", "simclr", "CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.BN_MLP", True]
    opts += ["CONTRASTIVE.BN_SYNC_MLP", True, "BN.NUM_SYNC_DEVICES", 4, "BN.NORM_TYPE", "sync_batchnorm"]
    model = build_model(load_cfg(None, [*SMALL, *opts]))
    norm = model.backbone.head.projection.projection[1]
    assert type(norm).__name__ == "GroupSyncBatchNorm1d"
    assert norm.num_sync_devices == 4


def test_precise_batch_norm_sees_every_view():
    model = SimCLR(Tiny(), temperature=0.1).train()
    features = model(views_of(3))
    assert len(features) == 3
    assert model.backbone.norm.num_batches_tracked == 3
