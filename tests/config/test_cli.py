"""Command lines as users type them become files, options and machines; mistakes end in one line and code 2."""

import json
import subprocess
import sys

import pytest

from slowfast.config import Args, ConfigError, load_jobs, parse_args


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--cfg A.yaml", Args(("A.yaml",))),
        ("--cfg=A.yaml", Args(("A.yaml",))),
        ("--cfg A.yaml B.yml", Args(("A.yaml", "B.yml"))),
        ("--cfg A.yaml NUM_GPUS 0", Args(("A.yaml",), ("NUM_GPUS", "0"))),
        ("--cfg A.yaml --opts NUM_GPUS 0", Args(("A.yaml",), ("NUM_GPUS", "0"))),
        ("--cfg A.yaml --opts NUM_GPUS=0 TASK x", Args(("A.yaml",), ("NUM_GPUS=0", "TASK", "x"))),
        ("--opts NUM_GPUS 0 --cfg A.yaml", Args(("A.yaml",), ("NUM_GPUS", "0"))),
        ("--cfg A.yaml B.yaml OUTPUT_DIR c.yaml", Args(("A.yaml", "B.yaml"), ("OUTPUT_DIR", "c.yaml"))),
        ("--cfg A.yaml --opts DEMO.DETECTRON2_CFG c.yaml", Args(("A.yaml",), ("DEMO.DETECTRON2_CFG", "c.yaml"))),
        ("--cfg A.conf NUM_GPUS 0", Args(("A.conf",), ("NUM_GPUS", "0"))),
        ("--cfg A.yaml CONTRASTIVE.DELTA_CLIPS_MIN -inf", Args(("A.yaml",), ("CONTRASTIVE.DELTA_CLIPS_MIN", "-inf"))),
        ("--cfg A.yaml DEMO.WEBCAM -1 DEMO.FPS 25", Args(("A.yaml",), ("DEMO.WEBCAM", "-1", "DEMO.FPS", "25"))),
        ("--shard_id 1 --num_shards 2 --cfg A.yaml", Args(("A.yaml",), (), 1, 2)),
        ("--cfg A.yaml --shard_id=1 B.yaml --num_shards=2", Args(("A.yaml", "B.yaml"), (), 1, 2)),
        ("--cfg A.yaml TASK x --num_shards 2 RNG_SEED 3", Args(("A.yaml",), ("TASK", "x", "RNG_SEED", "3"), None, 2)),
        ("--cfg A.yaml --init_method tcp://10.0.0.1:1", Args(("A.yaml",), init_method="tcp://10.0.0.1:1")),
    ],
)
def test_line_is_read_as(line, expected):
    assert parse_args(line.split()) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "no config file"),
        ("NUM_GPUS 0", "no config file"),
        ("--cfg --opts NUM_GPUS 0", "no config file"),
        ("--cfg A.yaml --shards 2", "--shards"),
        ("--cfg A.yaml --num_shards two", "invalid int value: 'two'"),
        ("--cfg A.yaml --num_shards", "expected one argument"),
    ],
)
def test_wrong_line_ends_with_one_line_and_code_2(line, says, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(line.split())
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_help_shows_examples_and_flags(capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for part in ("examples:", "--cfg", "--opts", "--num_shards", "--shard_id", "--init_method", "KEY=VALUE"):
        assert part in text


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("NUM_SHARDS: 4\nSHARD_ID: 3\nSOLVER:\n  BASE_LR_SCALE_NUM_SHARDS: True\n")
    return str(path)


def test_machines_of_the_file_stay_unless_asked_otherwise(path):
    (cfg,) = Args((path,)).load()
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, cfg.SOLVER.BASE_LR) == (4, 3, 0.4)
    (cfg,) = Args((path,), ("NUM_SHARDS", "8")).load()
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, cfg.SOLVER.BASE_LR) == (8, 3, 0.8)
    (cfg,) = Args((path,), ("NUM_SHARDS", "8"), shard_id=1, num_shards=2).load()
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, cfg.SOLVER.BASE_LR) == (2, 1, 0.2)
    (cfg,) = Args((path,), shard_id=0).load()
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID) == (4, 0)


def test_each_file_is_a_job_with_the_same_options(path, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("RNG_SEED: 5\n")
    args, cfgs = load_jobs(["--cfg", path, str(other), "TASK", "x"])
    assert args == Args((path, str(other)), ("TASK", "x"))
    assert [(cfg.TASK, cfg.NUM_SHARDS, cfg.RNG_SEED) for cfg in cfgs] == [("x", 4, 1), ("x", 1, 5)]


def test_option_without_value_does_not_swallow_the_machines(path):
    with pytest.raises(ConfigError, match="TASK has no value"):
        Args((path,), ("TASK",), shard_id=0, num_shards=1).load()


def test_config_error_ends_with_one_line_and_code_2(path, capsys):
    with pytest.raises(SystemExit) as end:
        load_jobs(["--cfg", path, "SOLVER.BASELR", "1"])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--opts: unknown key SOLVER.BASELR; did you mean SOLVER.BASE_LR?" in err


@pytest.mark.parametrize("line", ["--help", "--cfg nowhere.yaml", ""])
def test_help_and_errors_need_no_torch(line):
    code = f"""
import json, sys
from slowfast.config import load_jobs
try:
    load_jobs({line.split()!r})
except SystemExit as end:
    print()
    print(json.dumps([end.code, sorted({{"torch", "torchvision", "numpy", "av"}} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0 if "help" in line else 2, []]


def test_check_takes_no_value(path):
    for line in (["--check", "--cfg", path, "TASK", "x"], ["--cfg", path, "--check", "TASK", "x"]):
        args = parse_args(line)
        assert (args.cfg_files, args.opts, args.check) == ((path,), ("TASK", "x"), True)
    assert not parse_args(["--cfg", path]).check
