"""Every fault ends in survival with the exact result, or in a prompt error that names its cause and loses nothing.

Kills and signals of one process are in test_resume.py. pytest tests/engine/test_faults.py
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from faults import (
    PATIENCE,
    Fault,
    Launched,
    differences,
    fill_the_disk,
    final_state,
    hang,
    kill_a_worker,
    lose_patience,
    poison_the_loss,
    read_error,
    run_job,
    terminate,
    terminate_all,
)

from slowfast.checkpoint import list_positions, load_checkpoint
from slowfast.config.load import save_cfg
from slowfast.engine import train
from slowfast.engine.interrupt import EXIT_CODE, name_hung, where

STEP = "slowfast.engine.train:train_step"
# Four steps in each of two epochs, saved after each of them.
OPTIONS = ("TRAIN.BATCH_SIZE", 3, "SOLVER.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_PERIOD_STEPS", 1, "TRAIN.EVAL_PERIOD", 2)
PAIR = (*OPTIONS, "TRAIN.BATCH_SIZE", 4, "TRAIN.EVAL_PERIOD", 9)  # for two processes: three steps each


@pytest.fixture(scope="module")
def unbroken(tiny_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert run_job(partial(train, tiny_of(out, *OPTIONS))) == 0
    return out


@pytest.fixture
def job(tiny_of, tmp_path):
    return partial(train, tiny_of(tmp_path, *OPTIONS))


def message(folder):
    return (folder / "error.txt").read_text().splitlines()[-1]


def is_good(path):
    return all(value.isfinite().all() for value in load_checkpoint(path)["model_state"].values())


def test_full_disk_is_named_and_the_checkpoint_before_it_stays(unbroken, job, tmp_path):
    assert run_job(job, [Fault("torch:save", 3, fill_the_disk)]) == 1
    assert "checkpoint_epoch_00000_step_0000003.pyth could not be written: File too large" in message(tmp_path)
    assert [position for position, _ in list_positions(tmp_path)] == [(0, 1), (0, 2)]
    assert run_job(job) == 0
    assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(unbroken, job, tmp_path):
    assert run_job(job, [Fault(STEP, 4, terminate)]) == EXIT_CODE
    (_, before), (_, newest) = list_positions(tmp_path)
    Path(newest).write_bytes(Path(newest).read_bytes()[:-100])
    assert run_job(job) == 0
    log = (tmp_path / "stdout.log").read_text()
    assert f"passed over: {newest}" in log
    assert f"continuing {before} at epoch 1 after 3 steps" in log
    assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_passed_over(unbroken, job, tmp_path):
    assert run_job(job, [Fault(STEP, 4, terminate)]) == EXIT_CODE
    assert run_job(job, [Fault("torch:load", 1, read_error)]) == 0
    assert "step_0000004.pyth cannot be read (OSError" in (tmp_path / "stdout.log").read_text()
    assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_named_and_not_saved(unbroken, job, tmp_path):
    assert run_job(job, [Fault(STEP, 6, poison_the_loss)]) == 1
    assert "epoch 2, step 2: the loss is nan" in message(tmp_path)
    positions = list_positions(tmp_path)
    assert positions[-1][0] == (1, 1)
    assert all(is_good(path) for _, path in positions)
    assert run_job(job) == 0
    assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_signal_to_the_whole_group_lets_the_workers_finish_the_step(unbroken, tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *OPTIONS, "DATA_LOADER.NUM_WORKERS", 2))
    assert run_job(job, [Fault(STEP, 2, terminate_all)]) == EXIT_CODE
    assert list_positions(tmp_path)[-1][0] == (0, 2)
    assert run_job(job) == 0
    assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_killed_loader_worker_costs_one_video_at_most(unbroken, tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *OPTIONS, "DATA_LOADER.NUM_WORKERS", 2))
    code = run_job(job, [Fault(STEP, 2, kill_a_worker)])
    if code == 0:  # a video that the worker was reading when it died counts as bad and is reported
        assert (tmp_path / "bad_videos.csv").exists() or differences(unbroken, tmp_path) == []
    else:
        assert "worker" in message(tmp_path)
        assert run_job(job) == 0
        assert differences(unbroken, tmp_path) == []


@pytest.mark.slow
def test_a_hung_rank_is_named(tiny_of, tmp_path):
    job = partial(train, tiny_of(tmp_path, *PAIR, "TRAIN.HANG_MINUTES", 20.0))
    assert run_job(Launched(job, 2, 1, [Fault(STEP, 3, hang)], [Fault(STEP, 3, lose_patience)])) == 1
    log = (tmp_path / "stdout.log").read_text()
    assert "no progress for TRAIN.HANG_MINUTES=0.2: rank 1 hangs" in log
    assert "rank 1: training for" in log
    assert list_positions(tmp_path)[-1][0] == (0, 2)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tiny_of, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_job(Launched(partial(train, tiny_of(whole, *PAIR)), 2)) == 0
    job = partial(train, tiny_of(broken, *PAIR, "TRAIN.CHECKPOINT_PERIOD_STEPS", 0))
    assert run_job(Launched(job, 2, 1, [Fault(STEP, 2, terminate)])) == EXIT_CODE
    assert [position for position, _ in list_positions(broken)] == [(0, 3)]  # told at the end of step 2, done after 3
    assert run_job(Launched(job, 2)) == 0
    assert differences(whole, broken) == []


@pytest.mark.slow
def test_torchrun_starts_again_after_a_killed_rank(tiny_of, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_job(Launched(partial(train, tiny_of(whole, *PAIR)), 2)) == 0
    save_cfg(tiny_of(broken, *PAIR), tmp_path / "job.yaml")
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(tests / "fault_job.py"), str(tmp_path / "job.yaml"), "1", "5"]
    paths = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at epoch 2 after 1 steps" in (broken / "stdout.log").read_text()
    assert differences(whole, broken) == []


# ---------------------------------------------------------------- parts


def life(beats, *, waits=False, doing="training"):
    return {"beats": beats, "age": 60.0, "doing": doing, "place": "train_step (train.py:1)", "waits": waits}


@pytest.mark.parametrize(
    ("lives", "silent", "named"),
    [
        ({0: life(7, waits=True), 1: life(7)}, [], "rank 1 hangs"),
        ({0: life(7), 1: life(6, doing="waiting for data")}, [], "rank 1 hangs"),
        ({0: life(9, waits=True), 1: life(8, waits=True), 2: life(12)}, [], "rank 2 hangs"),
        ({0: life(7), 1: life(7)}, [], "rank 0 and rank 1 hang"),
        ({0: life(7, waits=True), 1: life(5), 2: None}, [2], "rank 2 hangs"),
    ],
)
def test_who_hangs(lives, silent, named):
    text = name_hung(lives, silent)
    assert text.splitlines()[0] == named
    assert len(text.splitlines()) == 1 + len(lives)


def test_a_process_in_a_backward_pass_waits_for_others():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            seen.append(where(sys._getframe()))
            return grad

    Look.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert seen[0][1] is True
    assert where(sys._getframe())[1] is False


def test_a_hurt_job_can_fail(unbroken, tmp_path):
    """The comparison that all of this rests on sees a single bit."""
    state = final_state(unbroken)
    assert len(state) > 100
    changed = torch.load(unbroken / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    name = next(iter(changed["model_state"]))
    changed["model_state"][name].view(torch.int32)[(0,) * changed["model_state"][name].ndim] ^= 1
    (tmp_path / "checkpoints").mkdir()
    torch.save(changed, tmp_path / "checkpoints/checkpoint_epoch_00002.pyth")
    (tmp_path / "json_stats.log").write_text((unbroken / "json_stats.log").read_text())
    assert differences(unbroken, tmp_path) == [f"/model_state/{name}"]
