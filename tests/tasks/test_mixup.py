"""Mixup and CutMix against recorded numbers, and their rules."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast.config import load_cfg
from slowfast.evaluation.metrics import topks_correct
from slowfast.models import build_model
from slowfast.solver import build_optimizer, lr_at, set_lr
from slowfast.tasks import Classification, build_task
from slowfast.tasks.losses import get_loss
from slowfast.tasks.mixup import Mix, Mixup, cutmix, merge_targets, mix_clips, soft_targets

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/tasks/mixup.json").read_text())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draws(count=400, size=(20, 30), **options):
    mixup = Mixup(5, **options)
    return [mixup.draw(*size) for _ in range(count)]


def test_soft_targets_equal_the_golden_ones():
    for step in GOLDEN["mixed"]:
        targets = soft_targets(torch.tensor(step["labels"]), 7, step["share"], 0.1)
        torch.testing.assert_close(targets, torch.tensor(step["soft_labels"]), rtol=0, atol=1e-7)
        assert targets.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def test_loss_and_errors_of_mixed_batches_equal_the_golden_ones():
    for step in GOLDEN["mixed"]:
        if "scores" not in step:
            continue
        scores, targets = torch.tensor(step["scores"]), torch.tensor(step["soft_labels"])
        assert get_loss("soft_cross_entropy")(scores, targets).item() == pytest.approx(step["loss"], rel=1e-6)
        correct = topks_correct(*merge_targets(scores, targets), (1, 5))
        errors = [100 * (1 - right.item() / 4) for right in correct]
        assert errors == [step["top1_err"], step["top5_err"]]


def test_labels_are_smoothed_without_mixing_too():
    assert soft_targets(torch.tensor([1]), 4, smoothing=0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]


def test_clips_blend_with_those_in_reverse_order():
    clips = torch.tensor([0.0, 10.0, 50.0]).reshape(3, 1, 1, 1, 1).expand(3, 2, 4, 6, 8)
    mixed = mix_clips(clips, Mix(0.75))
    assert mixed.flatten(1).unique(dim=1)[:, 0].tolist() == [12.5, 10.0, 37.5]  # the middle one stays
    assert clips[0].max() == 0  # what was given stays too


def test_a_box_of_the_partner_is_pasted_into_every_frame():
    clips = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1).expand(2, 3, 4, 6, 8)
    mix = cutmix(0.5, (1, 7), 6, 8)
    assert mix.box == (0, 5, 3, 8)  # sides int(6 * 0.707) and int(8 * 0.707), cut at the top and on the right
    assert mix.share == pytest.approx(1 - 9 / 48)
    mixed = mix_clips(clips, mix)
    assert (mixed[0] == 2).sum() == 9 * 3 * 4
    assert (mixed[0, :, :, 0:3, 5:8] == 2).all()
    assert (mixed[1, :, :, 0:3, 5:8] == 1).all()
    assert mixed.mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx([2 - mix.share, 1 + mix.share])


def test_extreme_boxes_keep_all_or_nothing():
    assert cutmix(1.0, (3, 3), 6, 8) == (1.0, (3, 3, 3, 3))
    assert cutmix(0.0, (3, 4), 6, 8) == (0.0, (0, 0, 6, 8))


def test_shares_follow_their_distribution():
    shares = np.array([mix.share for mix in draws(cutmix_alpha=0.0)])
    assert shares.mean() == pytest.approx(0.5, abs=0.06)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)  # of Beta(0.8, 0.8)
    assert all(mix.box is None for mix in draws(50, cutmix_alpha=0.0))
    assert all(mix.box is not None for mix in draws(50, alpha=0.0))


def test_batches_are_mixed_and_cut_with_their_probabilities():
    kinds = draws(probability=0.5, switch_probability=0.25)
    assert 165 < sum(mix == Mix(1.0) for mix in kinds) < 235
    assert 30 < sum(mix.box is not None for mix in kinds) < 75
    assert draws(20, probability=0.0) == [Mix(1.0)] * 20


def test_boxes_reach_every_edge_and_tell_their_share():
    boxes = draws(alpha=0.0)
    for share, (top, left, bottom, right) in boxes:
        assert 0 <= top <= bottom <= 20
        assert 0 <= left <= right <= 30
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 600)
    assert {0} <= {mix.box[0] for mix in boxes}
    assert {20} <= {mix.box[2] for mix in boxes}


def test_draws_depend_on_the_seed_of_torch_alone():
    first = draws(10)
    torch.manual_seed(0)
    assert draws(10) == first
    torch.manual_seed(1)
    assert draws(10) != first


def test_a_clip_alone_stays_and_its_label_is_smoothed():
    clips = torch.rand(1, 3, 2, 8, 8)
    mixup = Mixup(4)
    for _ in range(10):
        mixed, targets = mixup(clips, torch.tensor([2]))
        assert torch.equal(mixed, clips)
        torch.testing.assert_close(targets, soft_targets(torch.tensor([2]), 4, smoothing=0.1))


def test_only_classes_that_were_mixed_are_merged():
    scores = torch.tensor([[1.0, 2.0, 4.0, 0.0]] * 3)
    targets = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.025, 0.025, 0.025, 0.925], [0.0, 0.45, 0.55, 0.0]])
    merged, labels = merge_targets(scores, targets)
    assert labels.tolist() == [0, 3, 2]
    assert merged.tolist() == [[3, 0, 4, 0], [1, 2, 4, 0], [1, 0, 6, 0]]
    assert merge_targets(scores[:, :1], targets[:, :1])[1].tolist() == [0, 0, 0]


@pytest.mark.slow
def test_five_mixed_steps_follow_the_original(monkeypatch):
    cfg = load_cfg(str(ROOT / GOLDEN["config"]), GOLDEN["opts"])
    model = fill_model(build_model(cfg), GOLDEN["gain"]).double().train()
    optimizer, task = build_optimizer(model, cfg), build_task(cfg)
    shares = iter([step["share"] for step in GOLDEN["mixed"]])
    monkeypatch.setattr(Mixup, "draw", lambda *_: Mix(next(shares)))
    for number, (step, expected) in enumerate(zip(GOLDEN["mixed"], GOLDEN["float64"], strict=True)):
        clips = fill_input(f"train:mvitv2_mixup_soft_ce:step{number}", tuple(GOLDEN["input_shape"])).double()
        batch = SimpleNamespace(clips=clips, labels=torch.tensor(step["labels"]))
        epoch = GOLDEN["first_epoch"] + number / len(GOLDEN["mixed"])
        set_lr(optimizer, lr_at(cfg, epoch))
        optimizer.zero_grad()
        result = task.loss(model, batch, epoch)
        result.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), cfg.SOLVER.CLIP_GRAD_L2NORM or float("inf"))
        optimizer.step()
        assert result.total.item() == pytest.approx(expected["loss"], rel=1e-6)
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-6)
        assert {key: value.item() for key, value in result.errors.items()} == {
            key: expected[key] for key in ("top1_err", "top5_err")
        }


class Mean(nn.Module):
    """Logits from the mean of each clip."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.seen = None

    def forward(self, clips):
        self.seen = clips
        return clips.mean(dim=(1, 2, 3, 4))[:, None] * self.weight


def test_the_task_mixes_in_training_only():
    task = build_task(load_cfg(None, ["MIXUP.ENABLE", True, "MODEL.LOSS_FUNC", "soft_cross_entropy"]))
    assert task.mixup == Mixup(400)
    task = Classification(get_loss("soft_cross_entropy"), num_classes=3, mixup=Mixup(3, cutmix_alpha=0.0))
    clips, labels = torch.rand(4, 3, 2, 6, 6), torch.tensor([0, 1, 2, 0])
    model, batch = Mean(), SimpleNamespace(clips=clips, labels=labels)
    torch.manual_seed(3)
    result = task.loss(model, batch, epoch=0.0)
    torch.manual_seed(3)
    mixed, targets = task.mixup(clips, labels)
    assert torch.equal(model.seen, mixed)
    expected = get_loss("cross_entropy")(model(mixed), targets)
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(result.errors) == {"top1_err", "top5_err"}
    result.total.backward()
    assert model.weight.grad is not None
    task.predict(model, batch)
    assert torch.equal(model.seen, clips)


def test_a_single_clip_for_each_process_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        build_task(load_cfg(None, ["MIXUP.ENABLE", True, "TRAIN.BATCH_SIZE", 1]))
    assert "no partner" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MIXUP.ALPHA", 0.0, "MIXUP.CUTMIX_ALPHA", 0.0], r"MIXUP.ALPHA=0.0 and MIXUP.CUTMIX_ALPHA=0.0"),
        (["MIXUP.ALPHA", -1.0], r"MIXUP.ALPHA=-1.0"),
        (["MIXUP.PROB", 1.5], r"MIXUP.PROB=1.5"),
        (["MIXUP.LABEL_SMOOTH_VALUE", 2.0], r"MIXUP.LABEL_SMOOTH_VALUE=2.0"),
        (["DATA.MULTI_LABEL", True], "DATA.MULTI_LABEL"),
    ],
)
def test_wrong_options_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        build_task(load_cfg(None, ["MIXUP.ENABLE", True, *opts]))
