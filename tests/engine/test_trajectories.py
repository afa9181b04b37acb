"""Five optimisation steps of the original in float64, number for number: pytest tests/engine/test_trajectories.py"""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from small_run import bare_run

from slowfast.config import load_cfg
from slowfast.engine.train import train_step
from slowfast.evaluation.ava import Boxes, GroundTruth
from slowfast.models import build_model
from slowfast.models.norm import aggregate_sub_bn_stats
from slowfast.tasks import Detection

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/engine/train.json.gz").read_bytes()))
QUICK = ("slow_linear_detach_fc",)
SET_UPS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in GOLDEN]


def make_run(cfg, gain):
    model = fill_model(build_model(cfg), gain).double().train()
    return bare_run(cfg, model, task=boxes_task(cfg) if cfg.DETECTION.ENABLE else None)


def boxes_task(cfg):
    """Detection without ground truth, which training does not look at."""
    empty = Boxes(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
    return Detection(GroundTruth([], empty, {1: "a"}), num_classes=cfg.MODEL.NUM_CLASSES)


@pytest.mark.parametrize("name", SET_UPS)
def test_five_steps_follow_the_original(name):
    golden = GOLDEN[name]
    cfg = load_cfg(None, golden["opts"])
    run = make_run(cfg, golden["gain"])
    frames, size = golden["input_shapes"][-1][2], golden["input_shapes"][-1][3:]
    for step, (labels, expected) in enumerate(zip(golden["labels"], golden["steps"], strict=True)):
        clips = fill_input(f"train:{name}:step{step}", (4, 3, frames, *size)).double()
        if cfg.DATA.REVERSE_INPUT_CHANNEL:
            clips = clips.flip(1)
        batch = SimpleNamespace(clips=clips, labels=torch.tensor(labels), index=torch.arange(4), bad=[])
        if golden.get("boxes") is not None:
            batch.boxes, batch.labels = torch.tensor(golden["boxes"]).double(), batch.labels.double()
        epoch = golden["cur_epoch"] + step / golden["steps_per_epoch"]
        scalars = train_step(run, batch, epoch, step)
        if expected:  # clipping by value stopped the original after its first step, before a record of it
            assert run.optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"], rel=1e-9)
        for key in ("loss", "grad_norm", "top1_err", "top5_err"):
            if expected.get(key) is not None and key in scalars:
                assert scalars[key].item() == pytest.approx(expected[key], rel=1e-6), f"{key} of step {step}"
    aggregate_sub_bn_stats(run.network)
    state = run.network.state_dict()
    for key, (total, absolute) in golden["final_state"].items():
        value = state[key].double()
        assert value.abs().sum().item() == pytest.approx(absolute, rel=1e-6, abs=1e-9), key
        assert value.sum().item() == pytest.approx(total, rel=1e-6, abs=1e-6 * absolute), key


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    from slowfast.engine.train import NonFiniteLossError

    golden = GOLDEN["slow_linear_detach_fc"]
    run = make_run(load_cfg(None, golden["opts"]), golden["gain"])
    before = {name: value.clone() for name, value in run.network.named_parameters()}
    clips = torch.full((2, 3, 8, 64, 64), float("nan"), dtype=torch.float64)
    batch = SimpleNamespace(clips=clips, labels=torch.tensor([0, 1]), index=torch.arange(2), bad=[])
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        train_step(run, batch, 0.0, 0)
    for name, value in run.network.named_parameters():
        assert torch.equal(value, before[name])
