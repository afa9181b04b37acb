"""How far a training is, and what is left of it: pytest tests/engine/test_course.py"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slowfast.config import load_cfg
from slowfast.datasets.build import build_short_cycle
from slowfast.datasets.samplers import TrainBatchSampler
from slowfast.engine.course import Course, build_clip_size, build_course
from slowfast.engine.epoch_log import EpochLog
from slowfast.engine.phases import training_phases
from slowfast.engine.stats import eta

ROOT = Path(__file__).parents[2]
MULTIGRID = ROOT / "configs/Motion/SLOWFAST_R18_multigrid.yaml"
ROWS = 1200


class Loader:
    """As long as the loader of ``ROWS`` videos that ``cfg`` describes."""

    num_workers = 1

    def __init__(self, cfg):
        size = cfg.TRAIN.BATCH_SIZE
        cycle = build_short_cycle(cfg, size) if cfg.MULTIGRID.SHORT_CYCLE else size
        self.batch_sampler, self.dataset = TrainBatchSampler(ROWS, cycle), range(ROWS)

    def __len__(self):
        return len(self.batch_sampler)


class Tape:
    def __init__(self):
        self.places, self.left = [], []

    def write(self, record, step, *, keep=True, for_sinks=None):
        if record["_type"] == "train_iter_":
            self.places.append(step)
            self.left.append(record["eta"])


def test_what_is_left_by_hand():
    # Two epochs of half the pixels, two whole ones; evaluations after the second and the fourth.
    course = Course(100, (4.0, 4.0, 8.0, 8.0), frozenset({1, 3}), evaluation=5.0)
    pace = {"computing": 10.0, "waiting": 2.0}
    assert course.seconds_left(0, 0.0, like=0, **pace) == 10 * 6 + 2 * 4 + 5 * 2
    assert course.seconds_left(1, 0.5, like=1, **pace) == 10 * 4.5 + 2 * 2.5 + 5 * 2
    assert course.seconds_left(3, 0.25, like=3, **pace) == 10 * 0.75 + 2 * 0.75 + 5
    assert course.seconds_left(0, 0.0, like=3, **pace) == 10 * 3 + 2 * 4 + 5 * 2
    assert course.seconds_left(3, 1.0, like=3, computing=10.0, waiting=2.0) == 5
    assert [course.place(1, 0.0), course.place(1, 0.5), course.place(3, 1.0)] == [100, 150, 400]


def test_clips_of_a_short_cycle_are_smaller_on_average():
    cfg = training_phases(load_cfg(MULTIGRID, ["MULTIGRID.LONG_CYCLE", False]))[0].cfg
    # Of 64 pixels: four times as many clips of 32, twice as many of 45, and the whole ones.
    assert build_clip_size(cfg) == pytest.approx(8 * (64 * 32**2 + 32 * 45**2 + 16 * 64**2) / (64 + 32 + 16))
    assert build_clip_size(load_cfg(ROOT / "configs/Motion/SLOWFAST_R18.yaml")) == 8 * 64**2


def test_without_multigrid_the_axis_counts_steps():
    cfg = load_cfg(ROOT / "configs/Motion/SLOWFAST_R18.yaml", ["SOLVER.MAX_EPOCH", 8, "TRAIN.EVAL_PERIOD", 4])
    records = [{"_type": "val_epoch", "epoch": "4/8", "time_diff": 7.5}, {"_type": "train_epoch", "epoch": "5/8"}]
    course = build_course(training_phases(cfg), Loader(cfg), records)
    assert course == Course(75, (8 * 64.0**2,) * 8, frozenset({3, 7}), 7.5)
    assert [course.place(2, (step + 1) / 75) for step in range(75)] == list(range(151, 226))


@pytest.mark.parametrize("cycles", [(True, True), (True, False), (False, True)], ids=["both", "short", "long"])
def test_axis_and_time_left_go_evenly_through_all_phases(cycles, monkeypatch):
    """Where a step takes as long as its pixels and clips ask for, the first estimate is the right one."""
    per_pixel, decoding = 1e-6, 0.004
    short, long = cycles
    phases = training_phases(load_cfg(MULTIGRID, ["MULTIGRID.SHORT_CYCLE", short, "MULTIGRID.LONG_CYCLE", long]))
    course = build_course(phases, Loader(phases[0].cfg))
    assert course.steps == 75
    assert build_course(phases, Loader(phases[-1].cfg)) == course  # wherever it is resumed
    optimizer, tape, spent, clock = SimpleNamespace(param_groups=[{"lr": 0.1}]), Tape(), [], 0.0
    for phase in phases:
        loader = Loader(phase.cfg)
        plan = SimpleNamespace(log_period=3, max_epoch=len(course.pixels), explosion_factor=0.0)
        run = SimpleNamespace(plan=plan, device=torch.device("cpu"), optimizer=optimizer, train_loader=loader)
        for epoch in phase.epochs():
            log = EpochLog(run, epoch, len(loader), tape, course)
            monkeypatch.setattr(log.timer, "step_done", lambda: None)
            for step, requests in enumerate(loader.batch_sampler):
                crop = requests[0].crop_size or phase.cfg.DATA.TRAIN_CROP_SIZE
                log.timer.data = len(requests) * decoding
                log.timer.step = log.timer.data + len(requests) * phase.cfg.DATA.NUM_FRAMES * crop**2 * per_pixel
                clock += log.timer.step
                log.add(step, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}, clips=len(requests))
                if (step + 1) % 3 == 0:
                    spent.append(clock)
    assert all(one < two for one, two in zip(tape.places, tape.places[1:], strict=False))
    assert tape.places[-1] == pytest.approx(75 * len(course.pixels), abs=3)
    assert phases[-1].last_epoch + 1 == len(course.pixels)
    left = [seconds_of(text) for text in tape.left]
    assert len(left) == len(spent) > 20
    # An epoch leaves out what fills no batch: it may be some steps of a short cycle shorter than it counts for.
    for past, estimate in zip(spent, left, strict=True):
        assert estimate == pytest.approx(clock - past, rel=0.12, abs=3.0)


def seconds_of(text):
    days, _, time = text.rpartition(", ")
    hours, minutes, seconds = map(int, time.split(":"))
    return 86400 * int(days.split()[0] if days else 0) + 3600 * hours + 60 * minutes + seconds


def test_times_are_read_back():
    assert [seconds_of(eta(value)) for value in (59.9, 90000.0, -1.0)] == [59, 90000, 0]
