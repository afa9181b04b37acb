"""docs/monitoring.md says what is so: its keys, tags, files and options exist."""

import re
from pathlib import Path

from slowfast.config import get_cfg
from slowfast.config.cli import parse_args
from slowfast.config.defaults import flatten
from slowfast.visualization.tensorboard import scalars_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "monitoring.md").read_text()


def test_every_key_is_one_and_has_this_default():
    keys = flatten(get_cfg())
    rows = re.findall(r"^\| `(WANDB\.\w+)` \| (\S+) \|", TEXT, re.MULTILINE)
    assert {key for key, _ in rows} == {key for key in keys if key.startswith("WANDB.")}
    assert [text.strip('"') for _, text in rows] == [str(keys[key]) for key, _ in rows]
    assert set(re.findall(r"\b(?:TRAIN|DATA_LOADER|TENSORBOARD|WANDB)\.[A-Z_]+\b", TEXT)) <= keys.keys()


def test_every_file_is_there():
    files = re.findall(r"(?:configs|tools|docs)/[\w/]+\.(?:yaml|py|md)", TEXT)
    assert len(files) >= 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_tag_is_written():
    numbers = ("loss", "lr", "top1_err", "top5_err", "clips_per_s", "data_wait", "gpu_mem_gb", "ram_gb", "map")
    record = dict.fromkeys(numbers, 1.0)
    written = scalars_of({"_type": "train_iter_", **record}) | scalars_of({"_type": "val_epoch", **record})
    named = set(re.findall(r"`((?:Train|Val)/\w+)`", TEXT))
    assert len(named) >= 11
    assert named <= written.keys()


def test_the_command_of_a_preflight_reads():
    command = re.search(r"^python tools/run_net\.py (.+--check.+)$", TEXT, re.MULTILINE)[1]
    args = parse_args(command.split())
    assert args.check
    assert args.load()[0].TRAIN.BATCH_SIZE == 8
