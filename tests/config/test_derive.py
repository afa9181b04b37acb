"""Derived facts follow from the tree."""

import pytest

from slowfast.config import load_cfg
from slowfast.config.derive import num_views, processes_per_machine


@pytest.mark.parametrize(("split", "views"), [("train", 1), ("val", 1), ("test", 12)])
def test_only_testing_has_several_views(split, views):
    assert num_views(load_cfg(opts=["TEST.NUM_ENSEMBLE_VIEWS", 4, "TEST.NUM_SPATIAL_CROPS", 3]), split) == views


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (8, 8)])
def test_cpu_counts_as_one_process(gpus, processes):
    assert processes_per_machine(load_cfg(opts=["NUM_GPUS", gpus])) == processes
