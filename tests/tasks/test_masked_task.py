"""The masked task: its loss and parts, a reproducible evaluation, and five steps that follow the original."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fill import fill_input, fill_model
from small_run import bare_run
from torch import nn

from slowfast.config import get_cfg, load_cfg
from slowfast.engine.train import train_step
from slowfast.models import build_model
from slowfast.tasks import build_task
from slowfast.tasks.losses import multi_mse
from slowfast.tasks.masked import Masked

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads(gzip.decompress((ROOT / "tests/golden/models_masked/train.json.gz").read_bytes()))
MAE = ROOT / "configs/masked_ssl/k400_VIT_B_16x4_MAE_PT.yaml"


class Guess(nn.Module):
    """Predicts 0 for targets drawn at random: the square of the draw, and a constant target of 2 at half weight."""

    def forward(self, clips, mask):
        draw = torch.rand(1)
        return [torch.zeros(1), torch.zeros(3)], [(draw, 1.0), (torch.full((3,), 2.0), 0.5)]


def batch(first_row=0, clips=2):
    return SimpleNamespace(clips=torch.zeros(clips, 3, 1, 8, 8), mask=None, index=torch.arange(clips) + first_row)


def test_multi_mse_weighs_each_error():
    total, parts = multi_mse([torch.zeros(2), torch.zeros(3)], [(torch.tensor([1.0, 3.0]), 0.5), (torch.ones(3), 1.0)])
    assert [part.item() for part in parts] == [5.0, 1.0]
    assert total.item() == 3.5


def test_loss_has_a_part_for_each_prediction():
    result = Masked().loss(Guess(), batch(), 0.0)
    assert result.parts.keys() == {"loss_0", "loss_1"}
    assert result.total.item() == pytest.approx(result.parts["loss_0"].item() + 2.0)
    assert not result.errors  # nothing is classified


def test_evaluation_draws_the_same_masks_for_the_same_rows():
    task, metric = Masked(), Masked().metric("val", None)
    torch.manual_seed(5)
    first = task.predict(Guess(), batch(0))
    after = torch.rand(1)
    torch.manual_seed(6)
    assert torch.equal(task.predict(Guess(), batch(0)), first)
    assert not torch.equal(task.predict(Guess(), batch(2)), first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # training goes on as if nothing had been drawn
    assert first.shape == (2,)
    metric.update(torch.tensor([1.0, 1.0, 1.0]), None)
    metric.update(torch.tensor([5.0]), None)
    metric.reduce()
    assert metric.compute() == {"loss": 2.0}
    with pytest.raises(ValueError, match="mean loss of no clips"):
        Masked().metric("test", None).compute()


def test_the_loss_of_an_evaluation_does_not_depend_on_how_clips_are_batched():
    opts = ["MVIT.DEPTH", 2, "MASK.PRETRAIN_DEPTH", [1], "MVIT.EMBED_DIM", 32, "MVIT.NUM_HEADS", 2, "NUM_GPUS", 0]
    cfg = load_cfg(MAE, [*opts, "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64])
    model = build_model(cfg).eval()
    clips = fill_input("masked", (4, 3, 4, 64, 64))

    def loss(*parts):
        metric = Masked().metric("val", None)
        for rows in parts:
            given = SimpleNamespace(clips=clips[list(rows)], mask=None, index=torch.tensor(rows))
            with torch.no_grad():
                metric.update(Masked().predict(model, given), None)
        metric.reduce()
        return metric.compute()["loss"]

    assert loss([0, 1, 2, 3]) == pytest.approx(loss([2, 0], [1], [3]), rel=1e-6)
    assert loss([0, 1]) != pytest.approx(loss([0, 2]), rel=1e-6)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.MODEL_NAME", "MViT"], r"pre-training needs MaskMViT"),
        (["MODEL.LOSS_FUNC", "mse"], r"MODEL\.LOSS_FUNC='mse' .* multi_mse"),
        (["MIXUP.ENABLE", True], r"MIXUP\.ENABLE mixes labelled clips"),
        (["MASK.MAE_RND_MASK", False], r"nothing makes masks: set AUG\.GEN_MASK_LOADER"),
    ],
)
def test_what_does_not_fit_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        build_task(load_cfg(MAE, opts))


@pytest.mark.parametrize("name", GOLDEN)
def test_five_steps_follow_the_original(name):
    """In single precision, as recorded; noise between two runs of the original is 1e-7."""
    golden = GOLDEN[name]
    cfg = get_cfg()
    cfg.merge_from_list(golden["opts"])
    model = build_model(cfg)
    filters = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("hogs.")}
    fill_model(model, golden["gain"]).load_state_dict(filters, strict=False)
    run = bare_run(cfg, model.train())
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    clip_shape, _, mask_shape = golden["input_shapes"]
    for step, (mask, expected) in enumerate(zip(golden["masks"], golden["steps"], strict=True)):
        clips = fill_input(f"train:{name}:step{step}", tuple(clip_shape))
        cells = torch.tensor([int(cell) for cell in mask]).view(mask_shape).bool()
        given = SimpleNamespace(clips=clips, mask=cells, index=torch.arange(4), bad=[])
        scalars = train_step(run, given, golden["cur_epoch"] + step / golden["steps_per_epoch"], step)
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"], rel=1e-9)
        assert scalars["loss"].item() == pytest.approx(expected["loss"], rel=1e-4)
        assert scalars["grad_norm"].item() == pytest.approx(expected["grad_norm"], rel=1e-4)
    state = model.state_dict()
    for key, (total, absolute) in golden["final_state"].items():
        assert state[key].double().abs().sum().item() == pytest.approx(absolute, rel=1e-4, abs=1e-6), key
        assert state[key].double().sum().item() == pytest.approx(total, rel=1e-4, abs=1e-3 * absolute), key
    for key, moved in golden["update_abs_sum"].items():
        if not key.endswith(("qkv.bias", "norm_k.bias")):  # their true gradient is partly zero: rounding noise
            assert (state[key] - start[key]).abs().sum().item() == pytest.approx(moved, rel=2e-3, abs=1e-9), key
