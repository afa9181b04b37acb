"""Files, inheritance and options become one checked, frozen tree; whatever is wrong is named."""

import logging
import math

import pytest

from slowfast.config import ConfigError, dump_cfg, get_cfg, load_cfg, save_cfg
from slowfast.config.defaults import flatten
from slowfast.config.load import scale_rates


def get(cfg, key):
    return flatten(cfg)[key]


@pytest.fixture
def write(tmp_path):
    """Writes a file into the test's folder and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def error_of(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_cfg(*args, **kwargs)
    return str(caught.value)


def test_without_arguments_the_defaults_come_back_frozen():
    cfg = load_cfg()
    assert cfg == get_cfg()
    assert cfg.is_frozen()
    assert cfg.MODEL.is_frozen()


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("SOLVER.WARMUP_EPOCHS", 34, 34.0),
        ("SOLVER.WARMUP_EPOCHS", "34", 34.0),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.CLIP_GRAD_L2NORM", 1, 1.0),
        ("SOLVER.CLIP_GRAD_L2NORM", "None", None),
        ("AUG.COLOR_JITTER", "None", None),
        ("DATA.PATH_TO_DATA_DIR", None, None),
        ("MVIT.PATCH_KERNEL", "(3, 7, 7)", [3, 7, 7]),
        ("MVIT.POOL_KVQ_KERNEL", (3, 3, 3), [3, 3, 3]),
        ("MVIT.DIM_MUL", ((1, 2.0), (3, 2.0)), [[1, 2.0], [3, 2.0]]),
        ("SOLVER.BETAS", [0.9, 0.95], (0.9, 0.95)),
        ("CONTRASTIVE.DELTA_CLIPS_MIN", "-inf", -math.inf),
        ("CONTRASTIVE.DELTA_CLIPS_MAX", ".inf", math.inf),
        ("TRAIN.ENABLE", "False", False),
        ("TRAIN.ENABLE", "false", False),
        ("TASK", "2", "2"),
        ("TASK", "'ssl'", "ssl"),
        ("OUTPUT_DIR", "runs/(1, 2)", "runs/(1, 2)"),
        ("NUM_GPUS", "0", 0),
    ],
)
def test_value_becomes_the_type_of_its_key(key, given, value):
    got = get(load_cfg(opts=[key, given]), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (["SOLVER.BASE_LR", "high"], ["--opts", "SOLVER.BASE_LR", "'high'", "a string", "expected a float", "0.1"]),
        (["SOLVER.MAX_EPOCH", "1.5"], ["SOLVER.MAX_EPOCH", "'1.5'", "expected an int"]),
        (["TRAIN.ENABLE", 1], ["TRAIN.ENABLE", "an int", "expected a bool"]),
        (["NUM_GPUS", True], ["NUM_GPUS", "a bool", "expected an int"]),
        (["SOLVER.BASE_LR", True], ["SOLVER.BASE_LR", "a bool", "expected a float"]),
        (["MODEL.ARCH", 5], ["MODEL.ARCH", "an int", "expected a string"]),
        (["DATA.MEAN", 0.45], ["DATA.MEAN", "a float", "expected a list"]),
        (["SOLVER.CLIP_GRAD_VAL", "much"], ["SOLVER.CLIP_GRAD_VAL", "expected a float"]),
        (["MODEL", "SlowFast"], ["MODEL is a section"]),
    ],
)
def test_wrong_type_says_where_key_value_and_expected(opts, says):
    message = error_of(opts=opts)
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("solver.base_lr", "SOLVER.BASE_LR"),
        ("TRAIN.BASE_LR", "SOLVER.BASE_LR"),
        ("DATA.NUM_CLASSES", "MODEL.NUM_CLASSES"),
        ("TRIAN.ENABLE", "TRAIN.ENABLE"),
        ("NUM_GPU", "NUM_GPUS"),
        ("TENSORBOARD.HISTOGRAM.TOP_K", "TENSORBOARD.HISTOGRAM.TOPK"),
        ("CONTRASTIVE.SWAV_QUEUE_LEN", "CONTRASTIVE.SWAV_QEUE_LEN"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest, write):
    assert f"--opts: unknown key {key}; did you mean {nearest}?" in error_of(opts=[key, 1])
    path = write("wrong.yaml", f"{key}: 1\n")
    assert f"{path}: unknown key {key}; did you mean {nearest}?" in error_of(path)


def test_key_below_a_value_and_key_like_no_other():
    assert "SOLVER.BASE_LR takes a value" in error_of(opts=["SOLVER.BASE_LR.START", 1])
    assert "register_keys" in error_of(opts=["FOO.BAR", 1])


@pytest.mark.parametrize(
    "opts",
    [
        ["NUM_GPUS", 0, "SOLVER.BASE_LR", 0.5],
        ["NUM_GPUS=0", "SOLVER.BASE_LR=0.5"],
        ["NUM_GPUS=0", "SOLVER.BASE_LR", "0.5"],
        ("SOLVER.BASE_LR", 7, "NUM_GPUS=0", "SOLVER.BASE_LR", "0.5"),
    ],
)
def test_options_come_as_pairs_or_with_an_equals_sign(opts):
    cfg = load_cfg(opts=opts)
    assert (cfg.NUM_GPUS, cfg.SOLVER.BASE_LR) == (0, 0.5)


def test_value_may_hold_an_equals_sign():
    assert load_cfg(opts=["OUTPUT_DIR=a=b"]).OUTPUT_DIR == "a=b"
    assert load_cfg(opts=["OUTPUT_DIR", "a=b"]).OUTPUT_DIR == "a=b"


def test_option_without_value_is_named():
    assert "SOLVER.BASE_LR has no value" in error_of(opts=["NUM_GPUS", 0, "SOLVER.BASE_LR"])
    assert "got 3" in error_of(opts=[3, "NUM_GPUS"])


def test_options_win_over_the_file_and_later_files_over_earlier(write):
    first = write("a.yaml", "NUM_GPUS: 4\nSOLVER:\n  BASE_LR: 0.2\n")
    second = write("b.yaml", "NUM_GPUS: 2\n")
    cfg = load_cfg([first, second], ["SOLVER.MAX_EPOCH", 3])
    assert (cfg.NUM_GPUS, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH) == (2, 0.2, 3)
    assert load_cfg(str(first), ["NUM_GPUS", 1]).NUM_GPUS == 1


def test_bases_are_relative_to_the_file_and_may_be_several_and_nested(write):
    write("_base/deep.yaml", "RNG_SEED: 7\nDATA:\n  NUM_FRAMES: 4\n  SAMPLING_RATE: 16\n")
    write("_base/data.yaml", "_BASE_: deep.yaml\nDATA:\n  NUM_FRAMES: 8\n")
    write("_base/solver.yaml", "SOLVER:\n  BASE_LR: 0.3\n  MAX_EPOCH: 5\nDATA:\n  TRAIN_CROP_SIZE: 160\n")
    path = write("set/job.yaml", "_BASE_: [../_base/data.yaml, ../_base/solver.yaml]\nSOLVER:\n  MAX_EPOCH: 6\n")
    cfg = load_cfg(path)
    assert (cfg.RNG_SEED, cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TRAIN_CROP_SIZE) == (7, 8, 16, 160)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH) == (0.3, 6)


def test_error_in_a_base_names_the_base(write):
    base = write("base.yaml", "SOLVER:\n  BASE_LR: soon\n")
    assert error_of(write("job.yaml", "_BASE_: base.yaml\n")).startswith(f"{base}: SOLVER.BASE_LR")


def test_missing_base_names_the_file_that_wants_it(write):
    write("bases.yaml", "")
    path = write("job.yaml", "_BASE_: base.yaml\n")
    message = error_of(path)
    assert "base.yaml: no such config file" in message
    assert f"(named by _BASE_ in {path}); did you mean bases.yaml?" in message


def test_bases_in_a_circle_are_named(write):
    write("a.yaml", "_BASE_: b.yaml\n")
    write("b.yaml", "_BASE_: a.yaml\n")
    assert "_BASE_ goes in a circle" in error_of(write("job.yaml", "_BASE_: a.yaml\n"))


def test_missing_file_names_its_neighbours(write, tmp_path):
    write("SLOWFAST_8x8_R50.yaml", "")
    message = error_of(tmp_path / "SLOWFAST_8x8_R5.yaml")
    assert "no such config file" in message
    assert "did you mean SLOWFAST_8x8_R50.yaml?" in message
    assert "nowhere does not exist" in error_of(tmp_path / "nowhere" / "a.yaml")
    assert "cannot be read" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SOLVER:\n  BASE_LR: 0.1\n   MAX_EPOCH: 3\n", "bad.yaml, line 3"),
        ("DATA:\n  MEAN: [0.45, 0.45\nNUM_GPUS: 1\n", "bad.yaml, line 3"),
        ("- NUM_GPUS\n", "holds a list"),
        ("SOLVER: 3\n", "SOLVER is a section"),
        ("_BASE_: [3]\n", "_BASE_ = [3], expected the name of a file"),
    ],
)
def test_text_that_is_no_config_is_located(text, says, write):
    assert says in error_of(write("bad.yaml", text))


def test_empty_files_and_sections_change_nothing(write):
    assert load_cfg(write("empty.yaml", "")) == get_cfg()
    assert load_cfg(write("hollow.yaml", "SOLVER:\n  # BASE_LR: 3\nDATA: {}\n")) == get_cfg()


def test_last_of_duplicate_keys_wins(write):
    assert load_cfg(write("twice.yaml", "SOLVER:\n  BASE_LR: 1.0\n  BASE_LR: 2.0\n")).SOLVER.BASE_LR == 2.0


def test_quirks_of_published_files_load(write):
    text = (
        "AUG:\n  COLOR_JITTER: None\nSOLVER:\n  BASE_LR: 1e-4\n  WARMUP_EPOCHS: 34\nMVIT:\n  PATCH_KERNEL: (3, 7, 7)\n"
    )
    text += 'TRAIN:\n  CHECKPOINT_CLEAR_NAME_PATTERN: ("backbone.",)\nDATA:\n  PATH_TO_DATA_DIR:\n'
    cfg = load_cfg(write("quirks.yaml", text))
    assert (cfg.AUG.COLOR_JITTER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_EPOCHS) == (None, 1e-4, 34.0)
    assert cfg.MVIT.PATCH_KERNEL == [3, 7, 7]
    assert cfg.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN == ("backbone.",)
    assert cfg.DATA.PATH_TO_DATA_DIR is None


def test_keys_that_published_files_carry_in_vain_are_ignored_with_a_warning(write, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("slowfast"), "propagate", True)  # a job's set-up in another test ends it
    path = write("stray.yaml", "PREFETCH:\n  NUM_LOADERS: 3\n  ENABLE: True\nTENSORBOARD:\n  MODEL_VIS:\n    TOPK: 2\n")
    with caplog.at_level(logging.WARNING, logger="slowfast"):
        assert load_cfg(path) == get_cfg()
    assert f"{path}: PREFETCH.NUM_LOADERS is ignored" in caplog.text
    assert "TENSORBOARD.MODEL_VIS.TOPK is ignored" in caplog.text
    assert "TOPK_PREDS" in caplog.text


@pytest.mark.parametrize(
    ("opts", "keys"),
    [
        (["NUM_GPUS", 8, "TRAIN.BATCH_SIZE", 12], ["TRAIN.BATCH_SIZE=12", "NUM_GPUS=8"]),
        (["NUM_GPUS", 3, "TRAIN.BATCH_SIZE", 12, "TEST.BATCH_SIZE", 8], ["TEST.BATCH_SIZE=8", "NUM_GPUS=3"]),
        (["NUM_GPUS", -1], ["NUM_GPUS=-1"]),
        (["NUM_SHARDS", 2, "SHARD_ID", 2], ["SHARD_ID=2", "NUM_SHARDS=2"]),
        (["SHARD_ID", -1], ["SHARD_ID=-1"]),
        (["NUM_SHARDS", 0], ["NUM_SHARDS=0"]),
        (["RESNET.WIDTH_PER_GROUP", 6, "RESNET.NUM_GROUPS", 4], ["RESNET.WIDTH_PER_GROUP=6", "RESNET.NUM_GROUPS=4"]),
        (["RESNET.NUM_GROUPS", 0], ["RESNET.NUM_GROUPS=0"]),
        (["TRAIN.CHECKPOINT_TYPE", "tf"], ["TRAIN.CHECKPOINT_TYPE='tf'", "pytorch", "caffe2"]),
        (["TEST.CHECKPOINT_TYPE", "tf"], ["TEST.CHECKPOINT_TYPE='tf'"]),
        (["BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", -1], ["BN.NUM_BATCHES_PRECISE=-1"]),
    ],
)
def test_values_that_cannot_go_together_are_refused(opts, keys):
    message = error_of(opts=opts)
    assert all(key in message for key in keys), message


def test_values_that_can_go_together_are_not():
    load_cfg(opts=["NUM_GPUS", 0, "TRAIN.BATCH_SIZE", 7, "TEST.BATCH_SIZE", 3])
    load_cfg(opts=["BN.NUM_BATCHES_PRECISE", -1])
    load_cfg(opts=["NUM_SHARDS", 2, "SHARD_ID", 1, "RESNET.NUM_GROUPS", 32])


RATES = ["SOLVER.BASE_LR", 0.1, "SOLVER.WARMUP_START_LR", 0.01, "SOLVER.COSINE_END_LR", 0.0001]
SCALE = ["SOLVER.BASE_LR_SCALE_NUM_SHARDS", True]


@pytest.mark.parametrize(
    ("opts", "factor"),
    [(["NUM_SHARDS", 8, *SCALE], 8), (["NUM_SHARDS", 1, *SCALE], 1), (["NUM_SHARDS", 8], 1), (SCALE, 1)],
)
def test_rates_are_scaled_by_machines_once(opts, factor, write, tmp_path):
    lines = "".join(f"{key}: {value}\n" for key, value in zip(opts[::2], opts[1::2]))
    by_file = load_cfg(write("job.yaml", lines), RATES)
    assert by_file.SOLVER.BASE_LR == 0.1  # a file alone gives the tree it writes down
    for cfg in (load_cfg(opts=[*RATES, *opts]), scale_rates(by_file)):
        assert scale_rates(cfg) == cfg
        rates = (cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_START_LR, cfg.SOLVER.COSINE_END_LR)
        assert rates == pytest.approx((0.1 * factor, 0.01 * factor, 0.0001 * factor))
        save_cfg(cfg, tmp_path / "dumped.yaml")
        assert load_cfg(tmp_path / "dumped.yaml") == cfg


def test_saved_tree_loads_back_equal(tmp_path):
    pairs = {
        "TASK": "1e-4",
        "OUTPUT_DIR": "a: b # c",
        "SOLVER.BETAS": (0.9, 0.95),
        "SOLVER.BASE_LR": 1e-05,
        "SOLVER.CLIP_GRAD_L2NORM": 2,
        "MVIT.DIM_MUL": ((1, 2.0),),
        "AUG.COLOR_JITTER": None,
        "CONTRASTIVE.DELTA_CLIPS_MAX": 3,
        "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": ["a.", "b."],
    }
    cfg = load_cfg(opts=[item for pair in pairs.items() for item in pair])
    path = tmp_path / "new" / "folder" / "config.yaml"
    save_cfg(cfg, path)
    again = load_cfg(path)
    assert again == cfg
    assert {key: type(value) for key, value in flatten(again).items()} == {
        key: type(value) for key, value in flatten(cfg).items()
    }
    assert dump_cfg(again) == dump_cfg(cfg) == path.read_text()
