"""How the benchmarks of training judge what they measure: pytest tests/benchmarks/test_training_benchmarks.py"""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from slowfast.config import load_cfg
from slowfast.engine.phases import training_phases

ROOT = Path(__file__).resolve().parents[2]


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution(monkeypatch):
    interval = load("train_loop", monkeypatch).interval_of_median
    values = [float(number) for number in range(1, 11)]
    assert interval(values) == (2.0, 9.0)  # covers 97.9 %; 3 to 8 would cover 89.1 %
    assert 1 - 2 * sum(math.comb(10, k) for k in range(2)) / 2**10 == pytest.approx(0.979, abs=1e-3)
    low, high = interval([float(number) for number in range(1, 101)])
    assert (low, high) == (40.0, 61.0)


def test_both_sides_have_their_turns_and_neighbours_are_compared(monkeypatch):
    module = load("train_loop", monkeypatch)
    turns = module.Turns([], 2, lambda batch: None)
    turns.bare = [module.Times(value, 1.0) for value in (1.0, 3.0, 1.0)]
    turns.loop = [module.Times(value, 1.1) for value in (4.0, 2.0)]
    assert turns.ratios("processor") == [1.0, 2.0]
    assert turns.ratios("clock") == pytest.approx([1.1, 1.1])


def test_all_trainings_of_the_multigrid_comparison_have_the_same_epochs(monkeypatch):
    module = load("multigrid", monkeypatch)
    for epochs in (6, 9, 12):
        for name, own in module.RECIPES.values():
            phases = training_phases(load_cfg(ROOT / f"configs/Motion/{name}.yaml", [*module.schedule(epochs), *own]))
            assert phases[-1].last_epoch + 1 == epochs, (name, own)
            assert (phases[-1].cfg.DATA.NUM_FRAMES, phases[-1].cfg.DATA.TRAIN_CROP_SIZE) == (8, 64)


def test_a_training_that_guesses_or_takes_longer_does_not_hold(monkeypatch):
    module = load("multigrid", monkeypatch)
    fixed, short, both = module.FIXED, module.SHORT, module.BOTH
    minutes = {fixed: 5.0, short: 3.0, both: 2.5}
    assert module.holds({fixed: 60.0, short: 40.0, both: 10.0}, minutes, chance=8.3)
    assert not module.holds({fixed: 60.0, short: 20.0, both: 40.0}, minutes, chance=8.3)
    assert not module.holds({fixed: 60.0, short: 40.0, both: 40.0}, {**minutes, short: 5.5}, chance=8.3)
