"""The command that people type: pytest tests/tools/test_run_net.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_NET = ROOT / "tools" / "run_net.py"


def run(*arguments, cwd=None, launcher=(), **environment):
    return subprocess.run(
        [sys.executable, *launcher, str(RUN_NET), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=900,
    )


@pytest.fixture
def job(tmp_path):
    """A YAML of a tiny job on a few motion videos, and the folder it writes to."""
    from slowfast.datasets.motion import MotionSpec, write_dataset

    data, out = tmp_path / "data", tmp_path / "out"
    sizes = {"train_per_class": 3, "val_per_class": 1, "test_per_class": 2, "frames": 16, "width": 48, "height": 48}
    spec = MotionSpec(classes=("move_left", "move_right", "zoom_in"), **sizes)
    write_dataset(data, spec, workers=1)
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
TRAIN: {{DATASET: kinetics, BATCH_SIZE: 4, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1}}
TEST: {{DATASET: kinetics, BATCH_SIZE: 4, NUM_ENSEMBLE_VIEWS: 2}}
DATA:
  PATH_TO_DATA_DIR: {data}
  PATH_PREFIX: {data}
  NUM_FRAMES: 4
  SAMPLING_RATE: 2
  TRAIN_JITTER_SCALES: [32, 32]
  TRAIN_CROP_SIZE: 32
  TEST_CROP_SIZE: 32
  INPUT_CHANNEL_NUM: [3]
MODEL: {{MODEL_NAME: ResNet, ARCH: slow, NUM_CLASSES: 3}}
RESNET: {{DEPTH: 18, TRANS_FUNC: basic_transform, WIDTH_PER_GROUP: 8, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}}
SOLVER: {{BASE_LR: 0.01, MAX_EPOCH: 1}}
TENSORBOARD: {{ENABLE: True}}
DATA_LOADER: {{NUM_WORKERS: 1}}
NUM_GPUS: 0
OUTPUT_DIR: {out}
"""
    )
    return path, out


@pytest.mark.slow
def test_one_command_trains_tests_and_reports_from_any_folder(job, tmp_path):
    path, out = job
    inside = ("TENSORBOARD.MODEL_VIS.ENABLE", True, "TENSORBOARD.MODEL_VIS.MAX_CLIPS", 1)
    result = run("--cfg", path, "SOLVER.MAX_EPOCH", 2, *inside, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Top-1" in result.stdout or "top-1" in result.stdout.lower()
    for name in ("config.yaml", "stdout.log", "json_stats.log", "test_2x3.jsonl", "report.html", "runs-kinetics"):
        assert (out / name).exists(), name
    assert str(out / "report.html") in result.stdout
    assert str(out / "visualization" / "index.html") in result.stdout
    assert "how the classes fared" in result.stderr
    assert len(list((out / "checkpoints").iterdir())) == 2
    again = run("--cfg", path, "--opts", "TRAIN.ENABLE", "False", f"OUTPUT_DIR={out}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "checkpoint_epoch_00002.pyth" in again.stderr


@pytest.mark.slow
def test_torchrun_gives_the_same_test_result(job, tmp_path):
    path, out = job
    assert run("--cfg", path).returncode == 0
    weights = out / "checkpoints" / "checkpoint_epoch_00001.pyth"
    options = ("TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", weights, "OUTPUT_DIR", tmp_path / "two")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = run("--cfg", path, *options, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two/test_2x3.jsonl").read_text() == (out / "test_2x3.jsonl").read_text()


@pytest.mark.slow
def test_torchrun_trains_and_then_tests(job):
    path, out = job
    result = run("--cfg", path, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (out / "test_2x3.jsonl").read_text().splitlines()]
    assert {line["views"] for line in lines} == {6}
    assert result.stdout.count("report:") == 1  # one process speaks for all


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cfg", "nowhere.yaml"), "nowhere.yaml"),
        (("--cfg", "configs/Kinetics/SLOWFAST_8x8_R50.yaml", "SOLVER.BASE_LRR", "0.1"), "SOLVER.BASE_LR"),
        (("--cfg", "configs/Kinetics/SLOWFAST_8x8_R50.yaml", "NUM_GPUS", "many"), "NUM_GPUS"),
        ((), "--cfg"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(arguments, message):
    result = run(*arguments, cwd=ROOT)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_no_job_at_all_is_said_with_the_keys_of_each():
    off = ("TRAIN.ENABLE", False, "TEST.ENABLE", False, "TENSORBOARD.ENABLE", True)
    result = run("--cfg", "configs/Kinetics/SLOWFAST_8x8_R50.yaml", *off, cwd=ROOT)
    assert result.returncode == 1
    assert "configs/Kinetics/SLOWFAST_8x8_R50.yaml: nothing to do" in result.stderr
    for key in ("TRAIN", "TEST", "DEMO", "TENSORBOARD.MODEL_VIS", "TENSORBOARD.WRONG_PRED_VIS"):
        assert f"{key}.ENABLE" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_data_set_is_one_line(tmp_path):
    options = ("NUM_GPUS", 0, "OUTPUT_DIR", tmp_path / "out", "DATA.PATH_TO_DATA_DIR", tmp_path / "none")
    result = run("--cfg", ROOT / "configs/Kinetics/SLOWFAST_8x8_R50.yaml", *options)
    assert result.returncode == 1
    assert "train.csv" in result.stderr
    assert "Traceback" not in result.stderr
