"""Every key that concerns training acts, or its user is told that it does not."""

import ast
from pathlib import Path

import pytest

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten
from slowfast.config.effects import NEVER, idle_keys

ROOT = Path(__file__).parents[2]
SECTIONS = ("SOLVER", "TRAIN", "BN", "MODEL", "MULTIGRID", "MIXUP", "DATA_LOADER", "AUG", "DATA", "CONTRASTIVE", "MASK")
SECTIONS += ("RESNET", "X3D", "SLOWFAST", "NONLOCAL", "MVIT", "DETECTION", "AVA", "SSV2", "WANDB")
PLAIN = ("NUM_GPUS", "NUM_SHARDS", "SHARD_ID", "OUTPUT_DIR", "RNG_SEED", "LOG_PERIOD", "LOG_MODEL_INFO", "DIST_BACKEND")


def names_read():
    """Attributes and strings in the package and its tools, without the two files that only list keys."""
    names = set()
    for path in [*(ROOT / "slowfast").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        if path.name in ("defaults.py", "effects.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
                names.add(node.value)
                names.add(node.value.rpartition(".")[2])
    return names


READ = names_read()
KEYS = [key for key in flatten(get_cfg()) if key.split(".")[0] in SECTIONS or key in PLAIN]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_training_is_read_or_said_to_be_idle(key):
    leaf = key.rpartition(".")[2]
    # Keys that are put together: "TRAIN.CHECKPOINT_" + name, cfg.MVIT["PATCH_" + name].
    assert leaf in READ or key in NEVER, f"{key} is not read anywhere and not in NEVER"


def test_what_is_never_read_is_indeed_not_read():
    flat = flatten(get_cfg())
    assert [key for key in NEVER if key not in flat] == []
    assert [key for key in NEVER if key.rpartition(".")[2] in READ - {"DEFAULT_B"}] == []


@pytest.mark.parametrize(
    ("opts", "idle"),
    [
        ([], {}),
        (["SOLVER.STEP_SIZE", 5], {"SOLVER.STEP_SIZE": "SOLVER.STEPS and SOLVER.LRS make the steps"}),
        (["SOLVER.LRS", [1, 0.1]], {"SOLVER.LRS": "SOLVER.LR_POLICY is cosine"}),
        (["SOLVER.LRS", [1], "SOLVER.LR_POLICY", "steps_with_relative_lrs"], {}),
        (["SOLVER.GAMMA", 0.5], {"SOLVER.GAMMA": "it scales the steps of MULTIGRID.LONG_CYCLE, which is off"}),
        (["SOLVER.GAMMA", 0.5, "MULTIGRID.LONG_CYCLE", True], {}),
        (
            ["SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.NESTEROV", False],
            {"SOLVER.NESTEROV": "SOLVER.OPTIMIZING_METHOD is adamw"},
        ),
        (["BN.NUM_SPLITS", 4], {"BN.NUM_SPLITS": "BN.NORM_TYPE is batchnorm"}),
        (["BN.NUM_SPLITS", 4, "BN.NORM_TYPE", "sub_batchnorm"], {}),
        (["MODEL.MODEL_NAME", "MViT", "MODEL.FROZEN_BN", True], {"MODEL.FROZEN_BN": "MViT has no batch norm"}),
        (
            ["MULTIGRID.LONG_CYCLE", True, "TRAIN.EVAL_PERIOD", 7],
            {"TRAIN.EVAL_PERIOD": "MULTIGRID.EVAL_FREQ decides under MULTIGRID.LONG_CYCLE"},
        ),
        (["MODEL.FP16_ALLREDUCE", True], {"MODEL.FP16_ALLREDUCE": "there is one process (NUM_GPUS, NUM_SHARDS)"}),
        (["MIXUP.ALPHA", 0.3], {"MIXUP.ALPHA": "MIXUP.ENABLE is off"}),
        (["MIXUP.ALPHA", 0.3, "MIXUP.ENABLE", True], {}),
        (["AUG.MASK_RATIO", 0.9], {"AUG.MASK_RATIO": "AUG.GEN_MASK_LOADER and MASK.ENABLE are off"}),
        (["AUG.RE_PROB", 0.9], {"AUG.RE_PROB": "AUG.ENABLE is off"}),
        (["X3D.DIM_C5", 64, "MODEL.MODEL_NAME", "SlowFast"], {"X3D.DIM_C5": "SlowFast does not read it"}),
        (["X3D.DIM_C5", 64, "MODEL.MODEL_NAME", "OnesOwn"], {}),
        (["CONTRASTIVE.T", 0.5], {"CONTRASTIVE.T": "MODEL.MODEL_NAME is SlowFast"}),
        (["TRAIN.CHECKPOINT_INFLATE", True], {"TRAIN.CHECKPOINT_INFLATE": "TRAIN.CHECKPOINT_FILE_PATH is empty"}),
    ],
)
def test_idle_keys_come_with_their_reason(opts, idle):
    assert idle_keys(load_cfg(None, opts)) == idle


RECIPES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "_base"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_published_recipe_sets_a_key_of_a_section_that_is_off(path):
    reasons = [reason for reason in idle_keys(load_cfg(path)).values() if reason.endswith(("is off", "not read it"))]
    known = ("MULTIGRID.LONG_CYCLE, which is off", "BN.USE_PRECISE_STATS is off", "TRAIN.MIXED_PRECISION is off")
    assert [reason for reason in reasons if not reason.endswith(known)] == []
