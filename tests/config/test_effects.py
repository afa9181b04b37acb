"""Every key that concerns training acts, or its user is told that it does not."""

import ast
from pathlib import Path

import pytest

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten
from slowfast.config.effects import _UNREAD, NEVER, idle_keys

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
        (["TRAIN.CHECKPOINT_KEEP_BEST", 1], {"TRAIN.CHECKPOINT_KEEP_BEST": "TRAIN.CHECKPOINT_KEEP is 0: all are kept"}),
        (["TRAIN.CHECKPOINT_KEEP_BEST", 1, "TRAIN.CHECKPOINT_KEEP", 2], {}),
        (["TRAIN.KILL_LOSS_EXPLOSION_FACTOR", 3.0], {}),
        (["AUG.COLOR_JITTER", 0.3], {"AUG.COLOR_JITTER": "only the recipe of ImageNet has it"}),
        (["AUG.COLOR_JITTER", 0.3, "TRAIN.DATASET", "imagenet"], {}),
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
        (["CONTRASTIVE.T", 0.5, "MODEL.MODEL_NAME", "OnesOwn"], {}),
        (["CONTRASTIVE.MLP_DIM", 64], {"CONTRASTIVE.MLP_DIM": "MODEL.MODEL_NAME is SlowFast"}),
        (["CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.MLP_DIM", 64, "CONTRASTIVE.BN_MLP", True], {}),
        (["CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.BN_MLP", True, "CONTRASTIVE.BN_SYNC_MLP", True], {}),
        (["CONTRASTIVE.NUM_MLP_LAYERS", 2, "MODEL.MODEL_NAME", "MViT"], {}),
        (
            ["CONTRASTIVE.BN_SYNC_MLP", True, "CONTRASTIVE.NUM_MLP_LAYERS", 2, "MODEL.MODEL_NAME", "MViT"],
            {"CONTRASTIVE.BN_SYNC_MLP": "MODEL.MODEL_NAME is MViT"},
        ),
        (
            ["CONTRASTIVE.NUM_MLP_LAYERS", 2, "MODEL.MODEL_NAME", "X3D"],
            {"CONTRASTIVE.NUM_MLP_LAYERS": "MODEL.MODEL_NAME is X3D"},
        ),
        (
            ["CONTRASTIVE.NUM_MLP_LAYERS", 2, "DETECTION.ENABLE", True],
            {"CONTRASTIVE.NUM_MLP_LAYERS": "MODEL.MODEL_NAME is SlowFast"},
        ),
        (["TRAIN.CHECKPOINT_INFLATE", True], {"TRAIN.CHECKPOINT_INFLATE": "TRAIN.CHECKPOINT_FILE_PATH is empty"}),
    ],
)
def test_idle_keys_come_with_their_reason(opts, idle):
    assert idle_keys(load_cfg(None, opts)) == idle


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("SlowFast", "RESNET.STRIDE_1X1", True, "SlowFast does not read it"),
        ("SlowFast", "RESNET.INPLACE_RELU", False, "SlowFast does not read it"),
        ("ResNet", "RESNET.STRIDE_1X1", True, None),
        ("ResNet", "MODEL.DROPCONNECT_RATE", 0.5, "ResNet does not read it"),
        ("X3D", "MODEL.DROPCONNECT_RATE", 0.5, None),
        ("X3D", "RESNET.DEPTH", 101, "X3D does not read it"),
        ("X3D", "RESNET.NUM_GROUPS", 2, "X3D.CHANNELWISE_3x3x3 has each channel by itself"),
        ("X3D", "RESNET.ZERO_INIT_FINAL_CONV", True, "X3D does not read it"),
        ("PTVX3D", "MODEL.DROPCONNECT_RATE", 0.5, "PTVX3D does not read it"),
        ("PTVX3D", "X3D.DIM_C5", 64, None),
        ("PTVX3D", "MVIT.DEPTH", 2, "PTVX3D does not read it"),
        ("PTVResNet", "MODEL.ACT_CHECKPOINT", True, "PTVResNet does not read it"),
        ("PTVResNet", "RESNET.NUM_BLOCK_TEMP_KERNEL", [[2], [2], [2], [2]], "PTVResNet does not read it"),
        ("PTVSlowFast", "RESNET.NUM_BLOCK_TEMP_KERNEL", [[2], [2], [2], [2]], None),
        ("PTVSlowFast", "SLOWFAST.ALPHA", 4, None),
        ("PTVCSN", "RESNET.NUM_GROUPS", 2, "PTVCSN does not read it"),
        ("PTVR2plus1D", "RESNET.NUM_GROUPS", 2, None),
        ("PTVR2plus1D", "RESNET.SPATIAL_STRIDES", [[1], [1], [1], [1]], "PTVR2plus1D does not read it"),
        ("PTVMViT", "MVIT.LAYER_SCALE_INIT_VALUE", 0.1, "PTVMViT does not read it"),
        ("PTVMViT", "MVIT.HEAD_INIT_SCALE", 0.1, "PTVMViT does not read it"),
        ("MViT", "MVIT.LAYER_SCALE_INIT_VALUE", 0.1, None),
        ("MViT", "MVIT.HEAD_INIT_SCALE", 0.1, None),
        ("MViT", "MVIT.REV.RES_PATH", "max", "MVIT.REV.ENABLE is off"),
        ("MViT", "MVIT.REL_POS_ZERO_INIT", True, "MVIT.REL_POS_SPATIAL and MVIT.REL_POS_TEMPORAL are off"),
        ("ResNet", "MVIT.REV.ENABLE", True, "ResNet does not read it"),
        ("MViT", "MVIT.REV.ENABLE", True, None),
        ("MViT", "NONLOCAL.LOCATION", [[[1]], [[]], [[]], [[]]], "MViT does not read it"),
        ("MViT", "RESNET.DEPTH", 101, "MViT does not read it"),
        ("MViT", "MODEL.FC_INIT_STD", 0.1, "MViT does not read it"),
        ("MaskMViT", "MVIT.HEAD_INIT_SCALE", 0.1, "MaskMViT does not read it"),
        ("MaskMViT", "MODEL.DROPOUT_RATE", 0.2, "MaskMViT has no classifier"),
        ("TorchVisionResNet", "RESNET.DEPTH", 101, "TorchVisionResNet does not read it"),
        ("TorchVisionResNet", "MODEL.CONV_BACKEND", "native", "TorchVisionResNet does not read it"),
        ("OnesOwn", "MODEL.DROPCONNECT_RATE", 0.5, None),
    ],
)
def test_each_network_says_what_it_does_not_read(name, key, value, reason):
    assert idle_keys(load_cfg(None, ["MODEL.MODEL_NAME", name, key, value])).get(key) == reason


@pytest.mark.parametrize(
    ("opts", "key", "reason"),
    [
        (["MVIT.REV.ENABLE", True], "MVIT.LAYER_SCALE_INIT_VALUE", "MVIT.REV.ENABLE: its blocks have no such scale"),
        (["MVIT.USE_ABS_POS", False], "MVIT.SEP_POS_EMBED", "MVIT.USE_ABS_POS is off"),
        (["DETECTION.ENABLE", True], "MVIT.USE_MEAN_POOLING", "DETECTION.ENABLE: boxes are pooled"),
    ],
)
def test_keys_of_a_transformer_may_hide_one_another(opts, key, reason):
    value = 0.1 if key.endswith("VALUE") else True
    assert idle_keys(load_cfg(None, ["MODEL.MODEL_NAME", "MViT", key, value])).get(key) is None
    assert idle_keys(load_cfg(None, ["MODEL.MODEL_NAME", "MViT", key, value, *opts])).get(key) == reason


def test_contrastive_learning_reads_what_the_network_inside_reads():
    opts = ["MODEL.MODEL_NAME", "ContrastiveModel", "MODEL.ARCH", "slow", "SLOWFAST.ALPHA", 4, "CONTRASTIVE.T", 0.5]
    assert idle_keys(load_cfg(None, opts)) == {"SLOWFAST.ALPHA": "ResNet does not read it"}


def test_every_network_of_the_registry_is_listed():
    models = pytest.importorskip("slowfast.models")
    assert set(_UNREAD) == {name for name, _ in models.MODEL_REGISTRY} - {"ContrastiveModel"}


RECIPES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "_base"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_published_recipe_sets_a_key_of_a_section_that_is_off(path):
    reasons = [reason for reason in idle_keys(load_cfg(path)).values() if reason.endswith(("is off", "not read it"))]
    known = [
        *("MVIT.USE_ABS_POS is off", "MULTIGRID.LONG_CYCLE, which is off", "BN.USE_PRECISE_STATS is off"),
        "TRAIN.MIXED_PRECISION is off",
    ]
    assert [reason for reason in reasons if not reason.endswith(tuple(known))] == []
