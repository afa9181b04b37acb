"""A job that is killed or stopped anywhere ends, started again, as if nothing had happened: to the last bit.

pytest tests/engine/test_resume.py
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from faults import EVERYTHING_RANDOM, Fault, differences, final_state, kill, records, run_job, terminate, user_signal

from slowfast import engine
from slowfast.checkpoint import list_positions
from slowfast.engine import train
from slowfast.engine.interrupt import EXIT_CODE

TRAIN = "slowfast.engine.train:"


@pytest.fixture(scope="module")
def unbroken(tiny_of, tmp_path_factory):
    """The folder of a training that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken")
    assert run_job(partial(train, tiny_of(out, *EVERYTHING_RANDOM))) == 0
    assert [record["_type"] for record in records(out)] == ["train_epoch", "val_epoch"] * 2
    return out


PREDICT = "slowfast.tasks.classification:Classification.predict"
PRECISE_BN = "fvcore.nn.precise_bn:update_bn_stats"
# Where one and the same training is killed, one after another: each start goes on to the next place. More places, drawn
# at random, are in benchmarks/faults.py.
KILLS = {
    "at the start": Fault(TRAIN + "build_run", 1, kill),
    "in the first step": Fault(TRAIN + "train_step", 1, kill),
    "while its second checkpoint is written": Fault("torch:save", 2, kill),
    "in the evaluation": Fault(PREDICT, 2, kill),
    "in a step of the second epoch": Fault(TRAIN + "train_step", 4, kill),
    "in precise BN": Fault(PRECISE_BN, 1, kill),
    "in the last evaluation": Fault("slowfast.evaluation.metrics:TopK.compute", 1, kill),
}
# Where it is told to stop, and what it has saved then: whole epochs, and steps of the next.
STOPS = {
    "training": (Fault(TRAIN + "train_step", 3, terminate), (0, 3)),
    "precise BN": (Fault(PRECISE_BN, 1, terminate), (0, 6)),
    "validation": (Fault(PREDICT, 1, terminate), (1, None)),
    "training, by SIGUSR1": (Fault(TRAIN + "train_step", 3, user_signal), (1, 3)),
}


def ends_like(unbroken, job, folder):
    """Whether ``job``, started once more, ends with the bits of ``unbroken`` and leaves nothing else."""
    assert run_job(job) == 0
    assert not list(folder.glob("checkpoints/*step*"))
    assert not list(folder.glob("checkpoints/.*"))
    return differences(unbroken, folder) == []


def test_a_killed_training_ends_with_the_same_bits(unbroken, tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM))
    assert run_job(job, [Fault(TRAIN + "train_step", 10, kill)]) == -9
    assert ends_like(unbroken, job, tmp_path)


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(unbroken, tiny_of, tmp_path):
    job, positions = partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM)), []
    for place, fault in KILLS.items():
        assert run_job(job, [fault]) == -9, place
        positions.append([position for position, _ in list_positions(tmp_path)][-1:])
    assert positions == [[], [], [(0, 2)], [(1, None)], [(1, 2)], [(1, 4)], [(2, None)]]
    assert ends_like(unbroken, job, tmp_path)


def test_a_signal_saves_within_one_step_and_asks_to_be_started_again(unbroken, tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM, "TRAIN.CHECKPOINT_PERIOD_STEPS", 0))
    fault, position = STOPS["training"]
    assert run_job(job, [fault]) == EXIT_CODE == 75
    assert list_positions(tmp_path)[-1][0] == position
    assert "the same command continues" in (tmp_path / "stdout.log").read_text()
    assert ends_like(unbroken, job, tmp_path)


@pytest.mark.slow
def test_a_signal_saves_within_one_step_in_every_phase(unbroken, tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM, "TRAIN.CHECKPOINT_PERIOD_STEPS", 0))
    for phase, (fault, position) in STOPS.items():
        assert run_job(job, [fault]) == EXIT_CODE, phase
        assert list_positions(tmp_path)[-1][0] == position, phase
    assert ends_like(unbroken, job, tmp_path)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_without_a_checkpoint_before_it_saves_first(tiny_of, tmp_path):
    rare = (*EVERYTHING_RANDOM, "TRAIN.CHECKPOINT_PERIOD", 5, "TRAIN.CHECKPOINT_PERIOD_STEPS", 0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_job(partial(train, tiny_of(whole, *rare))) == 0
    job = partial(train, tiny_of(broken, *rare))
    stop = Fault("slowfast.tasks.classification:Classification.predict", 1, terminate)
    assert run_job(job, [stop]) == EXIT_CODE
    assert [position for position, _ in list_positions(broken)] == [(1, 0)]
    assert run_job(job) == 0
    assert differences(whole, broken) == []


@pytest.mark.slow
def test_a_stopped_test_is_done_again(unbroken, tiny_of, tmp_path):
    weights = ("TEST.CHECKPOINT_FILE_PATH", str(unbroken / "checkpoints/checkpoint_epoch_00002.pyth"))
    job = partial(engine.test, tiny_of(tmp_path / "a", *EVERYTHING_RANDOM, *weights))
    stop = Fault("slowfast.tasks.classification:Classification.predict", 2, terminate)
    assert run_job(job, [stop]) == EXIT_CODE
    assert not (tmp_path / "a/test_2x3.jsonl").exists()
    assert run_job(job) == 0
    assert run_job(partial(engine.test, tiny_of(tmp_path / "b", *EVERYTHING_RANDOM, *weights))) == 0
    assert (tmp_path / "a/test_2x3.jsonl").read_text() == (tmp_path / "b/test_2x3.jsonl").read_text()


OTHER_KINDS = {
    "sub-batch norm": ("BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", 2),
    "MViT with stochastic depth, AdamW, bf16": (
        *("SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.BASE_LR", 1e-3, "TRAIN.MIXED_PRECISION", True),
        *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "MVIT.NUM_HEADS", 2),
        *("MVIT.DROPPATH_RATE", 0.3, "MVIT.DROPOUT_RATE", 0.1, "MVIT.PATCH_KERNEL", [3, 7, 7]),
        *("MVIT.PATCH_STRIDE", [2, 4, 4], "MVIT.PATCH_PADDING", [1, 3, 3], "MVIT.POOL_KVQ_KERNEL", [1, 1, 1]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_networks_and_optimizers_resume_as_exactly(kind, tiny_of, tmp_path):
    options = (*EVERYTHING_RANDOM, *OTHER_KINDS[kind])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_job(partial(train, tiny_of(whole, *options))) == 0
    job = partial(train, tiny_of(broken, *options))
    assert run_job(job, [Fault(TRAIN + "train_step", 10, kill)]) == -9
    assert run_job(job) == 0
    assert differences(whole, broken) == []


@pytest.mark.slow
def test_what_is_kept(tiny_of, tmp_path):
    options = (*EVERYTHING_RANDOM, "SOLVER.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_KEEP", 1, "TRAIN.CHECKPOINT_KEEP_BEST", 1)
    assert run_job(partial(train, tiny_of(tmp_path, *options))) == 0
    errors = [record["top1_err"] for record in records(tmp_path) if record["_type"] == "val_epoch"]
    best = errors.index(min(errors)) + 1
    assert [position for position, _ in list_positions(tmp_path)] == sorted({(best, None), (4, None)})


@pytest.mark.slow
def test_minutes_are_those_of_a_clock_that_does_not_jump(tiny_of, tmp_path, monkeypatch):
    import time

    jumps = iter(range(10**9, -(10**9), -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    train(tiny_of(tmp_path, *EVERYTHING_RANDOM, "DATA_LOADER.NUM_WORKERS", 0, "TRAIN.CHECKPOINT_PERIOD_MINUTES", 60.0))
    log = (tmp_path / "stdout.log").read_text()
    assert log.count("saving ") == 2 + 4  # two epochs, and steps 2 and 4 of each


@pytest.mark.slow
def test_minutes_save_too(tiny_of, tmp_path):
    options = ("DATA_LOADER.NUM_WORKERS", 0, "TRAIN.CHECKPOINT_PERIOD_STEPS", 0)
    train(
        tiny_of(tmp_path, *EVERYTHING_RANDOM, *options, "SOLVER.MAX_EPOCH", 1, "TRAIN.CHECKPOINT_PERIOD_MINUTES", 1e-9)
    )
    log = (tmp_path / "stdout.log").read_text()
    assert log.count("saving ") == 5 + 1  # every step but the last, which the epoch's own checkpoint follows


@pytest.mark.slow
def test_a_checkpoint_of_the_original_is_resumed(unbroken, tiny_of, tmp_path):
    """The same keys as the original writes; the second epoch is trained from it."""
    ours = torch.load(unbroken / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
    assert ours.pop("class_names") == ["dark", "bright", "striped"]
    assert list(ours) == ["epoch", "model_state", "optimizer_state", "cfg"]
    path = tmp_path / "checkpoints/checkpoint_epoch_00001.pyth"
    path.parent.mkdir()
    torch.save(ours, path, _use_new_zipfile_serialization=False)  # as PyTorch before 1.6 wrote it
    assert run_job(partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM))) == 0
    state = final_state(unbroken)
    assert all(torch.equal(value, state[name]) for name, value in final_state(tmp_path).items())


@pytest.mark.slow
def test_another_number_of_steps_is_said_to_be_not_exact(tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM))
    assert run_job(job, [Fault(TRAIN + "train_step", 4, terminate)]) == EXIT_CODE
    assert run_job(partial(train, tiny_of(tmp_path, *EVERYTHING_RANDOM, "TRAIN.BATCH_SIZE", 4))) == 0
    assert "going on after 2 of them" in (tmp_path / "stdout.log").read_text()
    assert len(records(Path(tmp_path))) == 4
