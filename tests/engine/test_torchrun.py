"""Two torchrun agents on one machine, as two machines would be."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slowfast.checkpoint import load_checkpoint
from slowfast.config.load import save_cfg

ROOT = Path(__file__).parents[2]


def start_agent(port, config, log, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    command += ["--max-restarts", str(restarts), str(ROOT / "tools/run_net.py"), "--cfg", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=env, start_new_session=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def agents(tiny, tmp_path):
    """A function that runs a job under two agents to its end, and gives its output folder and their exit codes."""
    running = []

    def run(*opts, restarts=0, meanwhile=lambda folder: None):
        cfg = tiny(*opts, "TEST.ENABLE", False, "TRAIN.BATCH_SIZE", 3, "TRAIN.HANG_MINUTES", 0.0)
        config, port = tmp_path / "job.yaml", free_port()
        save_cfg(cfg, config)
        logs = [tmp_path / f"agent{number}.log" for number in range(2)]
        running.extend(start_agent(port, config, log, restarts) for log in logs)
        meanwhile(Path(cfg.OUTPUT_DIR))
        codes = [agent.wait(timeout=1200) for agent in running]
        assert codes == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
        return Path(cfg.OUTPUT_DIR)

    yield run
    for agent in running:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)


def wait_for(condition, seconds=1200):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def epochs_of(folder, kind):
    lines = (folder / "json_stats.log").read_text().splitlines()
    records = [json.loads(line.partition("json_stats: ")[2]) for line in lines]
    return [record["epoch"] for record in records if record["_type"] == kind]


@pytest.mark.slow
def test_a_killed_rank_of_two_agents_is_started_anew_and_the_job_ends(agents):
    def kill_one(folder):
        # The rank that does not write: found by its environment, once the first checkpoint is there.
        wait_for(lambda: any((folder / "checkpoints").glob("*.pyth")))
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"RANK=1" in environment and b"run_net.py" in command and str(folder.parent).encode() in command:
                os.kill(int(process.name), signal.SIGKILL)
                return
        raise AssertionError("rank 1 is not running")

    folder = agents("SOLVER.MAX_EPOCH", 4, restarts=2, meanwhile=kill_one)
    assert epochs_of(folder, "train_epoch") == ["1/4", "2/4", "3/4", "4/4"]
    assert epochs_of(folder, "val_epoch") == ["1/4", "2/4", "3/4", "4/4"]
    assert load_checkpoint(folder / "checkpoints/checkpoint_epoch_00004.pyth")["epoch"] == 3
