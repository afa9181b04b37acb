"""pytest tests/engine/test_launch.py"""

import os

import pytest
import torch

from slowfast.engine.launch import launch
from slowfast.utils import distributed


def describe_process():
    mine = torch.tensor([float(distributed.get_rank() + 1)])
    ragged = torch.arange(distributed.get_rank() + 1)
    return {
        "rank": distributed.get_rank(),
        "world": distributed.get_world_size(),
        "local_world": distributed.get_local_world_size(),
        "sum": float(distributed.all_reduce_sum(mine)),
        "ragged": [part.tolist() for part in distributed.all_gather_ragged(ragged)],
        "objects": distributed.all_gather_objects(distributed.get_rank() * 10),
    }


def fail_on_the_second():
    if distributed.get_rank() == 1:
        raise ValueError("rank one gives up")


def test_one_process_needs_no_group():
    result = launch(describe_process, processes=0)
    assert (result["rank"], result["world"], result["sum"], result["ragged"]) == (0, 1, 1.0, [[0]])


@pytest.mark.slow
def test_two_processes_see_each_other():
    result = launch(describe_process, processes=2)
    assert result == {
        "rank": 0,
        "world": 2,
        "local_world": 2,
        "sum": 3.0,
        "ragged": [[0], [0, 1]],
        "objects": [0, 10],
    }


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_is_shown():
    with pytest.raises(Exception, match="rank one gives up"):
        launch(fail_on_the_second, processes=2)


def test_several_machines_need_an_address():
    with pytest.raises(ValueError, match="--init_method"):
        launch(describe_process, processes=1, num_shards=2)


def test_the_environment_is_left_alone():
    before = dict(os.environ)
    launch(describe_process, processes=1)
    assert dict(os.environ) == before
