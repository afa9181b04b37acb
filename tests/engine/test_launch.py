"""pytest tests/engine/test_launch.py"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slowfast.engine.interrupt import EXIT_CODE, SIGNALS, Interrupted
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


def sleep_without_listening():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if distributed.get_rank() == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)


def fail_on_the_second():
    distributed.barrier()  # both have met
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


@pytest.mark.slow
def test_processes_that_die_of_a_signal_before_they_listen_were_stopped_by_it():
    with pytest.raises(Interrupted):
        launch(sleep_without_listening, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_at_the_start_ends_the_command_as_later(number, processes, videos, tmp_path):
    tool = Path(__file__).resolve().parents[2] / "tools" / "run_net.py"
    options = ["DATA.PATH_TO_DATA_DIR", str(videos), "OUTPUT_DIR", str(tmp_path), "NUM_GPUS", str(processes)]
    command = [sys.executable, str(tool), "--cfg", str(tool.parents[1] / "configs/Motion/2D_R18.yaml"), *options]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(3)
    job.send_signal(number)
    assert job.wait(timeout=120) == EXIT_CODE, job.stderr.read()[-2000:]
