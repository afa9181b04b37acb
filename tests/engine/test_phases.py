"""Multigrid training as phases: the schedule of the original, number for number."""

import json
from pathlib import Path

import pytest

from slowfast.config import load_cfg
from slowfast.datasets.build import build_short_cycle
from slowfast.datasets.samplers import TrainBatchSampler
from slowfast.datasets.transforms.presets import build_clip_transform
from slowfast.engine.phases import choose_norm, long_cycle_schedule, milestones_of, training_phases
from slowfast.engine.run import Plan
from slowfast.solver import lr_at

ROOT = Path(__file__).parents[2]
CASES = [case for case in json.loads((ROOT / "tests/golden/engine/multigrid.json").read_text()) if "error" not in case]
SLOWFAST = ROOT / "configs/Kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml"


def name_of(case):
    return " ".join(map(str, [Path(case["config"]).stem, *case["overrides"]]))


def phases_of(case):
    return training_phases(load_cfg(ROOT / case["config"], ["NUM_GPUS", 8, *case["overrides"]]))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_shapes_and_norms_equal_the_original(case):
    phases = phases_of(case)
    assert [phase.first_epoch for phase in phases] == [stage["epoch"] for stage in case["stages"]]
    ends = [phase.last_epoch + 1 for phase in phases]
    assert ends == [phase.first_epoch for phase in phases[1:]] + [case["solver"]["MAX_EPOCH"]]
    for phase, stage in zip(phases, case["stages"], strict=True):
        tree = phase.cfg
        assert tree.is_frozen()
        found = {
            "epoch": phase.first_epoch,
            "BATCH_SIZE": tree.TRAIN.BATCH_SIZE,
            "NUM_FRAMES": tree.DATA.NUM_FRAMES,
            "TRAIN_CROP_SIZE": tree.DATA.TRAIN_CROP_SIZE,
            "LONG_CYCLE_SAMPLING_RATE": tree.MULTIGRID.LONG_CYCLE_SAMPLING_RATE,
            **{key: tree.BN[key] for key in ("NORM_TYPE", "NUM_SPLITS", "NUM_SYNC_DEVICES")},
        }
        assert found == {key: value for key, value in stage.items() if key != "short_cycle"}
        defaults = {key: tree.MULTIGRID[key] for key in case["defaults"]}
        assert defaults == case["defaults"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_learning_rates_equal_the_original(case):
    rates, solver = [], case["solver"]
    for phase in phases_of(case):
        assert [phase.cfg.SOLVER[key] for key in ("STEPS", "MAX_EPOCH")] == [solver["STEPS"], solver["MAX_EPOCH"]]
        assert list(phase.cfg.SOLVER.LRS) == pytest.approx(solver["LRS"], rel=1e-12)
        rates += [lr_at(phase.cfg, epoch) for epoch in phase.epochs()]
    assert rates == pytest.approx(case["lr_at_each_epoch"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_checkpoints_and_evaluations_fall_on_the_same_epochs(case):
    saved, evaluated = [], []
    for phase in phases_of(case):
        plan = Plan.from_cfg(phase.cfg, phase.milestones)
        saved += [epoch for epoch in phase.epochs() if plan.checkpoint_due(epoch)]
        evaluated += [epoch for epoch in phase.epochs() if plan.evaluation_due(epoch)]
    assert (saved, evaluated) == (case["checkpoint_epochs"], case["eval_epochs"])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_short_cycle_equals_the_original(case):
    for phase, stage in zip(phases_of(case), case["stages"], strict=True):
        golden, tree = stage["short_cycle"], phase.cfg
        batch_size = tree.TRAIN.BATCH_SIZE // 8
        assert batch_size == golden["loader_batch_size"]
        cycle = build_short_cycle(tree, batch_size)
        assert [size for size, _ in cycle] == golden["sampler_batch_sizes"]
        sampler = TrainBatchSampler(1000, cycle)
        # NOTE: the original divides by the mean batch, which counts a last batch that cannot be filled.
        real = len(list(sampler))
        assert len(sampler) == real
        assert golden["len_for_dataset_1000"] - real in (0, 1)
        transform, first, rows = build_clip_transform(tree, "train"), 0, []
        for number in range(9):
            size, crop = cycle[number % 3]
            crop = crop or tree.DATA.TRAIN_CROP_SIZE
            rows.append([size, number % 3, crop, first, transform.short_side(crop)])
            first += size
        assert rows == golden["first9"]


def test_the_long_cycle_works_alone():
    # The original fails here: with one crop per shape, epochs go in proportion to its batch: 8, 4, 2 and 1.
    phases = training_phases(load_cfg(SLOWFAST, ["MULTIGRID.SHORT_CYCLE", False]))
    first = phases[:4]
    assert [phase.cfg.TRAIN.BATCH_SIZE for phase in first] == [512, 256, 128, 64]
    lengths = [len(phase.epochs()) for phase in first]
    assert lengths[0] / lengths[1] == pytest.approx(2, rel=0.05)
    assert lengths[1] / lengths[2] == pytest.approx(2, rel=0.05)
    assert phases[-1].last_epoch + 1 == round(239 * 1.5)


def test_the_cpu_is_one_process():
    phases = training_phases(load_cfg(SLOWFAST, ["NUM_GPUS", 0]))
    assert (phases[0].cfg.BN.NORM_TYPE, phases[0].cfg.BN.NUM_SPLITS) == ("sub_batchnorm", 64)


def test_a_cosine_gets_the_rate_of_each_batch():
    opts = ["SOLVER.LR_POLICY", "cosine", "SOLVER.BASE_LR", 0.1, "SOLVER.STEPS", [0, 100], "SOLVER.MAX_EPOCH", 200]
    opts += ["SOLVER.WARMUP_EPOCHS", 0.0, "SOLVER.COSINE_END_LR", 0.0]
    phases = training_phases(load_cfg(SLOWFAST, opts))
    assert [phase.cfg.SOLVER.BASE_LR for phase in phases] == pytest.approx([0.8, 0.4, 0.2, 0.1])
    assert lr_at(phases[0].cfg, 0.0) == pytest.approx(0.8)
    assert lr_at(phases[-1].cfg, phases[-1].cfg.SOLVER.MAX_EPOCH) == pytest.approx(0.0)


def test_without_multigrid_there_is_one_phase_with_the_very_configuration():
    cfg = load_cfg(None, ["SOLVER.MAX_EPOCH", 7])
    (phase,) = training_phases(cfg)
    assert phase.cfg is cfg
    assert (list(phase.epochs()), list(phase.epochs(5)), phase.milestones) == (list(range(7)), [5, 6], None)


def test_epochs_of_a_schedule_are_in_proportion_to_batches_by_hand():
    # Shapes of batch 4 and 1 (half the crop; full): 10 epochs before the last step split 4 : 1, that is 8 and 2. They
    # save updates by (4 + 1) / 2, so the last 5 epochs become 5 / 2.5 * 1 = 2. In all 12, stretched to 15 by 1.25.
    schedule = long_cycle_schedule(
        frames=8,
        crop=64,
        long_factors=[(1, 0.5), (1, 1)],
        short_factors=(),
        steps=[0, 10],
        max_epoch=15,
        epoch_factor=1.0,
    )
    assert [(step, *shape, end) for step, shape, end in schedule] == [
        (0, 4, 8, 32, 10),
        (0, 1, 8, 64, 12),  # 12.5, half to even
        (1, 1, 8, 64, 15),
    ]


def test_milestones_are_even_and_end_with_the_last_epoch():
    assert sorted(milestones_of(10, 20, 3)) == [11, 15, 19]
    assert sorted(milestones_of(0, 2, 3)) == [0, 1]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (8, {"NORM_TYPE": "batchnorm"}),
        (2, {"NORM_TYPE": "sync_batchnorm", "NUM_SYNC_DEVICES": 4}),
        (32, {"NORM_TYPE": "sub_batchnorm", "NUM_SPLITS": 4}),
        (28, {"NORM_TYPE": "sub_batchnorm", "NUM_SPLITS": 2}),  # 3 would leave a rest
    ],
)
def test_statistics_come_from_about_the_base_size(batch, expected):
    assert choose_norm(batch, 8) == expected


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.STEPS", []], r"SOLVER.STEPS=\[\]: MULTIGRID.LONG_CYCLE runs one cycle per learning-rate step"),
        (["SOLVER.MAX_EPOCH", 100], r"end before SOLVER.MAX_EPOCH=100"),
        (["MULTIGRID.LONG_CYCLE_FACTORS", [(0.001, 1)]], r"LONG_CYCLE_FACTORS: \(0.001, 1\) leaves nothing"),
        (["MULTIGRID.EPOCH_FACTOR", 0], "EPOCH_FACTOR=0.0 is not above 0"),
        (["MASK.ENABLE", True], "MULTIGRID.SHORT_CYCLE and MULTIGRID.LONG_CYCLE and masks of one size"),
        (["DETECTION.ENABLE", True], "DETECTION.ENABLE needs boxes of whole ones"),
    ],
)
def test_what_cannot_be_a_schedule_names_its_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        training_phases(load_cfg(SLOWFAST, opts))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*multigrid.yaml")), ids=lambda path: path.stem)
def test_every_published_multigrid_recipe_makes_phases(path):
    phases = training_phases(load_cfg(path))
    assert len(phases) >= (3 if path.parent.name == "Motion" else 5)
    assert phases[0].first_epoch == 0
