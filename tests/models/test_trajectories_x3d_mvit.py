"""Five optimisation steps of the original in float64, number for number, for X3D and MViT."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fill import fill_input, fill_model
from small_run import bare_run

from slowfast.config import load_cfg
from slowfast.engine.train import train_step
from slowfast.models import build_model

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/models_x3d_mvit/train.json.gz").read_bytes()))
# Adam moves a parameter whose true gradient is zero by normalised rounding noise: keys' biases, and their norms'.
NOISE = ("qkv.bias", "norm_k.bias")


def make_run(cfg, gain):
    model = fill_model(build_model(cfg), gain).double().train()
    return bare_run(cfg, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_five_steps_follow_the_original(name):
    golden = GOLDEN[name]
    run = make_run(load_cfg(None, golden["opts"]), golden["gain"])
    adaptive = "Adam" in type(run.optimizer).__name__
    start = {key: value.clone() for key, value in run.network.named_parameters()}
    for step, (labels, expected) in enumerate(zip(golden["labels"], golden["steps"], strict=True)):
        clips = fill_input(f"train:{name}:step{step}", tuple(golden["input_shapes"][0])).double()
        batch = SimpleNamespace(clips=clips, labels=torch.tensor(labels), index=torch.arange(4), bad=[])
        epoch = golden["cur_epoch"] + step / golden["steps_per_epoch"]
        scalars = train_step(run, batch, epoch, step)
        rate = run.optimizer.param_groups[-1]["lr"] / run.optimizer.param_groups[-1].get("layer_decay", 1.0)
        assert rate == pytest.approx(expected["lr"], rel=1e-9)
        for key in ("loss", "grad_norm", "top1_err", "top5_err"):
            if expected.get(key) is not None and key in scalars:
                assert scalars[key].item() == pytest.approx(expected[key], rel=1e-6), f"{key} of step {step}"
    state = run.network.state_dict()
    for key, (total, absolute) in golden["final_state"].items():
        value = state[key].double()
        noise = 1e-4 if adaptive and key.endswith(NOISE) else 1e-6
        assert value.abs().sum().item() == pytest.approx(absolute, rel=noise, abs=1e-9), key
        assert value.sum().item() == pytest.approx(total, rel=noise, abs=noise * absolute), key
    for key, moved in golden["update_abs_sum"].items():
        if not (adaptive and key.endswith(NOISE)):
            assert (state[key] - start[key]).abs().sum().item() == pytest.approx(moved, rel=1e-6, abs=1e-12), key
