"""All keys of the original are there with its defaults and types, and users may add their own."""

import inspect
import json
import re
from pathlib import Path

import pytest

from slowfast.config import ConfigError, defaults, get_cfg, load_cfg, register_keys
from slowfast.config.defaults import NONE_TYPES, flatten

OURS = {
    "DATA.VAL_RANDOM_VIEW",
    "DATA.AUTOROTATE",
    "DATA.VIDEO_DECODER",
    "DATA_LOADER.VIDEO_TIMEOUT",
    "TEST.SKIP_BAD_VIDEOS",
    "TEST.REPORT",
    "MODEL.CONV_BACKEND",
    "AVA.FRAME_RATE",
    "AVA.FIRST_SECOND",
    "TRAIN.CHECKPOINT_PERIOD_STEPS",
    "TRAIN.CHECKPOINT_PERIOD_MINUTES",
    "TRAIN.CHECKPOINT_KEEP",
    "TRAIN.CHECKPOINT_KEEP_BEST",
    "TRAIN.CHECKPOINT_BEST_METRIC",
    "TRAIN.HANG_MINUTES",
    "TRAIN.ACCUMULATION_STEPS",
    "TRAIN.EMA_DECAY",
    "TRAIN.MIXED_PRECISION_TYPE",
    "MODEL.FREEZE",
    "MODEL.COMPILE",
    "MODEL.BF16_ALLREDUCE",
    "MODEL.FSDP",
    "TENSORBOARD.MODEL_VIS.MAX_CLIPS",
    "TENSORBOARD.WRONG_PRED_VIS.MAX_CLIPS",
    "WANDB.ENABLE",
    "WANDB.PROJECT",
    "WANDB.NAME",
    "WANDB.OFFLINE",
}
GOLDEN = Path(__file__).parents[1] / "golden" / "config" / "defaults.json"


@pytest.fixture(scope="module")
def original():
    infinities = {"inf": float("inf"), "-inf": float("-inf")}
    return {
        key: infinities.get(value, value) if isinstance(value, str) else value
        for key, value in json.loads(GOLDEN.read_text()).items()
    }


def test_every_key_of_the_original_is_there_and_only_ours_besides(original):
    assert len(original) == 339
    assert set(flatten(get_cfg())) - OURS == set(original)


def test_defaults_and_types_are_those_of_the_original(original):
    ours = flatten(get_cfg())
    as_json = {key: list(ours[key]) if isinstance(ours[key], tuple) else ours[key] for key in original}
    assert as_json == original
    assert {key: type(value) for key, value in as_json.items()} == {key: type(v) for key, v in original.items()}


def test_every_key_has_a_comment():
    lines = inspect.getsource(defaults).splitlines()
    keys = {
        match[1]: lines[i - 1] for i, line in enumerate(lines) if (match := re.match(r"_C\.([\w.]+) = (?!Cfg)", line))
    }
    assert set(keys) == set(flatten(get_cfg()))
    assert [key for key, above in keys.items() if not re.match(r"# .{4,}", above)] == []


def test_a_copy_does_not_touch_the_defaults():
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES = 3
    cfg.DATA.MEAN.append(1.0)
    assert get_cfg().MODEL.NUM_CLASSES == 400
    assert len(get_cfg().DATA.MEAN) == 3


def test_keys_that_are_none_have_a_type(original):
    assert {key for key, value in original.items() if value is None} == set(NONE_TYPES)


@pytest.fixture
def own_keys(monkeypatch):
    """Keys registered in a test are gone after it."""
    monkeypatch.setattr(defaults, "_C", get_cfg())


def test_own_keys_load_from_files_and_options(own_keys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("MYNET:\n  WIDTH: 96\n  STEM:\n    KERNEL: (3, 3)\n")
    with pytest.raises(ConfigError, match=r"unknown key MYNET\.WIDTH"):
        load_cfg(path)
    for _ in range(2):  # a module may be imported twice
        register_keys({"MYNET": {"WIDTH": 64, "NAME": "", "STEM": {"KERNEL": [1, 1]}}, "MODEL": {"GATES": 2.0}})
    cfg = load_cfg(path, ["MYNET.NAME", "first", "MODEL.GATES", 3])
    assert (cfg.MYNET.WIDTH, cfg.MYNET.NAME, cfg.MYNET.STEM.KERNEL, cfg.MODEL.GATES) == (96, "first", [3, 3], 3.0)
    with pytest.raises(ConfigError, match=r"MYNET\.WIDTH = 'wide'.*expected an int"):
        load_cfg(path, ["MYNET.WIDTH", "wide"])


@pytest.mark.parametrize(
    ("tree", "clash"),
    [
        ({"SOLVER": {"BASE_LR": 0.5}}, "SOLVER.BASE_LR"),
        ({"SOLVER": 3}, "SOLVER."),
        ({"NUM_GPUS": {"PER_NODE": 3}}, "NUM_GPUS"),
    ],
)
def test_own_keys_never_change_what_is_there(own_keys, tree, clash):
    with pytest.raises(ConfigError, match=f"collides with the key {clash}"):
        register_keys(tree)
    assert get_cfg() == load_cfg()
