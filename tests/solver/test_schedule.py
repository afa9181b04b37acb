import json
from pathlib import Path

import pytest

from slowfast.config import load_cfg
from slowfast.solver import lr_at
from slowfast.solver.schedule import learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/solver/lr.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_schedule_equals_reference(name):
    case = GOLDEN[name]
    cfg = load_cfg(None, case["opts"])
    assert [lr_at(cfg, epoch) for epoch in case["epochs"]] == pytest.approx(case["lr"], rel=1e-9, abs=1e-12)


def test_warmup_is_a_line_to_what_the_policy_says_at_its_end():
    common = {
        "policy": "steps_with_relative_lrs",
        "base_lr": 1.0,
        "max_epoch": 9,
        "steps": [0, 2],
        "relative_lrs": [1, 0.5],
    }
    warm = {"warmup_epochs": 4, "warmup_start_lr": 0.1}
    rates = [learning_rate(epoch, **common, **warm) for epoch in (0, 1, 2, 4, 8)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.5])


def test_a_step_at_the_last_epoch_is_never_reached_and_needs_no_rate():
    """configs/contrastive_ssl/finetune_ava_*.yaml list the end of training among their steps."""
    steps = {"policy": "steps_with_relative_lrs", "base_lr": 1.0, "max_epoch": 4, "steps": [0, 2, 4]}
    assert [learning_rate(epoch, **steps, relative_lrs=[1, 0.5]) for epoch in (0, 2, 3.9, 4)] == [1, 0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="one relative rate per step"):
        learning_rate(0, **{**steps, "max_epoch": 5}, relative_lrs=[1, 0.5])


def test_number_of_shards_scales_the_whole_schedule_where_asked():
    opts = ["SOLVER.BASE_LR", 0.1, "SOLVER.WARMUP_EPOCHS", 4.0, "SOLVER.COSINE_END_LR", 0.001, "NUM_SHARDS", 8]
    plain = load_cfg(None, opts)
    scaled = load_cfg(None, [*opts, "SOLVER.BASE_LR_SCALE_NUM_SHARDS", True])
    for epoch in (0.0, 1.5, 4.0, 100.0, 300.0):
        assert lr_at(scaled, epoch) == pytest.approx(8 * lr_at(plain, epoch))


STEPS = "steps_with_relative_lrs"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.LR_POLICY", "linear"], r"SOLVER.LR_POLICY='linear'.*cosine, steps_with_relative_lrs"),
        (["SOLVER.COSINE_END_LR", 0.1], "SOLVER.COSINE_END_LR=0.1 must be below SOLVER.BASE_LR=0.1"),
        (
            ["SOLVER.COSINE_AFTER_WARMUP", True, "SOLVER.WARMUP_EPOCHS", 10.0, "SOLVER.MAX_EPOCH", 10],
            "SOLVER.MAX_EPOCH=10 .* SOLVER.WARMUP_EPOCHS=10.0",
        ),
        (["SOLVER.LR_POLICY", STEPS], "SOLVER.STEPS=.* must begin with 0"),
        (["SOLVER.LR_POLICY", STEPS, "SOLVER.STEPS", [3, 6], "SOLVER.LRS", [1, 0.1]], "must begin with 0"),
        (["SOLVER.LR_POLICY", STEPS, "SOLVER.STEPS", [0, 6, 5], "SOLVER.LRS", [1, 1, 1]], "must not decrease"),
        (
            ["SOLVER.LR_POLICY", STEPS, "SOLVER.STEPS", [0, 6], "SOLVER.LRS", [1]],
            "SOLVER.LRS=.* has 1 entries for the 2 of SOLVER.STEPS",
        ),
    ],
)
def test_impossible_schedule_names_its_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        lr_at(load_cfg(None, opts), 1.0)


def test_surplus_relative_rates_of_published_recipes_are_accepted():
    rate = learning_rate(9, policy=STEPS, base_lr=2.0, max_epoch=9, steps=[0, 4], relative_lrs=[1, 0.5, 0.25])
    assert rate == 1.0
