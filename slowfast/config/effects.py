"""Keys that were set but change nothing, and why: said at the start of a job instead of left to be found out."""

from typing import Any

from fvcore.common.config import CfgNode

from slowfast.config.defaults import flatten, get_cfg
from slowfast.utils import distributed

# Nothing has ever read these, in the original either.
NEVER = {
    "SOLVER.STEP_SIZE": "SOLVER.STEPS and SOLVER.LRS make the steps",
    "SOLVER.WARMUP_FACTOR": "SOLVER.WARMUP_EPOCHS and SOLVER.WARMUP_START_LR make the warm-up",
    "MODEL.SINGLE_PATHWAY_ARCH": "a network cuts its pathways itself",
    "MULTIGRID.DEFAULT_B": "the schedule takes it from TRAIN.BATCH_SIZE",
    "AUG.RE_SPLIT": "random erasing has no splits",
    "DATA.DECODING_SHORT_SIZE": "frames are decoded at the scale that is needed",
    "DATA.IN22K_TRAINVAL": "lists say what is trained on",
    "DATA.LOADER_CHUNK_OVERALL_SIZE": "the whole list is held in little memory, without chunks",
    "DATA.SKIP_ROWS": "the whole list is held in little memory, without chunks",
    "CONTRASTIVE.SIMCLR_DIST_ON": "clips of all processes are compared with one another in any case",
}
_MULTIGRID = ("EPOCH_FACTOR", "SHORT_CYCLE_FACTORS", "LONG_CYCLE_FACTORS", "BN_BASE_SIZE", "EVAL_FREQ")
_LOADING = ("TYPE", "INFLATE", "EPOCH_RESET", "CLEAR_NAME_PATTERN", "IN_INIT")
_TRANSFORMERS = ("MViT", "MaskMViT", "PTVMViT")
# Sections that only some networks read; networks that are not named here, a user's own among them, may read any.
_NETWORKS = ("ResNet", "SlowFast", "X3D", "MViT", "MaskMViT")
_READERS = {
    "SLOWFAST": ("SlowFast",),
    "X3D": ("X3D",),
    "MVIT": ("MViT", "MaskMViT"),
}


def idle_keys(cfg: CfgNode) -> dict[str, str]:
    """Keys of training that differ from their default and have no effect in ``cfg``, with the reason."""
    defaults, given = flatten(get_cfg()), flatten(cfg)
    reasons = {**NEVER, **_conditional(cfg)}
    reasons |= _switched_off(cfg, list(defaults))
    return {key: reason for key, reason in reasons.items() if _differs(given.get(key), defaults[key])}


def _differs(one: Any, two: Any) -> bool:
    plain = [list(value) if isinstance(value, list | tuple) else value for value in (one, two)]
    return plain[0] != plain[1]


def _switched_off(cfg: CfgNode, keys: list[str]) -> dict[str, str]:
    """Reasons of keys whose whole section is off, or belongs to another network."""
    name = cfg.MODEL.MODEL_NAME
    off = {
        "MIXUP.": (cfg.MIXUP.ENABLE, "MIXUP.ENABLE is off"),
        "MASK.": (cfg.MASK.ENABLE, "MASK.ENABLE is off"),
        "DETECTION.": (cfg.DETECTION.ENABLE, "DETECTION.ENABLE is off"),
        "CONTRASTIVE.": (name == "ContrastiveModel", f"MODEL.MODEL_NAME is {name}"),
        "AUG.MASK_": (cfg.AUG.GEN_MASK_LOADER or cfg.MASK.ENABLE, "AUG.GEN_MASK_LOADER and MASK.ENABLE are off"),
        "AUG.RE_": (cfg.AUG.ENABLE, "AUG.ENABLE is off"),
        "AUG.AA_TYPE": (cfg.AUG.ENABLE, "AUG.ENABLE is off"),
        "WANDB.": (cfg.WANDB.ENABLE, "WANDB.ENABLE is off"),
    }
    if name in _NETWORKS:
        off |= {f"{section}.": (name in readers, f"{name} does not read it") for section, readers in _READERS.items()}
    return {
        key: reason
        for prefix, (acts, reason) in off.items()
        for key in keys
        if not acts and key.startswith(prefix) and not key.endswith(".ENABLE")
    }


def _conditional(cfg: CfgNode) -> dict[str, str]:
    """Reasons that depend on the other keys, whether or not the key was set."""
    solver, train, norm, multigrid = cfg.SOLVER, cfg.TRAIN, cfg.BN, cfg.MULTIGRID
    cycles = multigrid.SHORT_CYCLE or multigrid.LONG_CYCLE
    is_cosine, is_sgd = solver.LR_POLICY == "cosine", solver.OPTIMIZING_METHOD == "sgd"
    idle: dict[str, str] = {}

    def unless(acts: Any, reason: str, *keys: str) -> None:
        if not acts:
            idle.update(dict.fromkeys(keys, reason))

    unless(multigrid.LONG_CYCLE, "it scales the steps of MULTIGRID.LONG_CYCLE, which is off", "SOLVER.GAMMA")
    policy = f"SOLVER.LR_POLICY is {solver.LR_POLICY}"
    unless(not is_cosine, policy, "SOLVER.LRS")
    unless(not is_cosine or multigrid.LONG_CYCLE, policy, "SOLVER.STEPS")
    unless(is_cosine, policy, "SOLVER.COSINE_END_LR", "SOLVER.COSINE_AFTER_WARMUP")
    unless(solver.WARMUP_EPOCHS, "SOLVER.WARMUP_EPOCHS is 0", "SOLVER.WARMUP_START_LR", "SOLVER.COSINE_AFTER_WARMUP")
    method = f"SOLVER.OPTIMIZING_METHOD is {solver.OPTIMIZING_METHOD}"
    unless(is_sgd, method, "SOLVER.MOMENTUM", "SOLVER.DAMPENING", "SOLVER.NESTEROV")
    unless(not is_sgd, method, "SOLVER.BETAS")
    unless(not solver.CLIP_GRAD_VAL, "SOLVER.CLIP_GRAD_VAL goes before it", "SOLVER.CLIP_GRAD_L2NORM")
    unless(cfg.NUM_SHARDS > 1, "NUM_SHARDS is 1", "SOLVER.BASE_LR_SCALE_NUM_SHARDS")

    if cfg.MODEL.MODEL_NAME in _TRANSFORMERS:
        keys = ("NORM_TYPE", "NUM_SPLITS", "NUM_SYNC_DEVICES", "GLOBAL_SYNC", "WEIGHT_DECAY", "NUM_BATCHES_PRECISE")
        unless(False, f"{cfg.MODEL.MODEL_NAME} has no batch norm", *(f"BN.{key}" for key in keys), "MODEL.FROZEN_BN")
    elif multigrid.LONG_CYCLE:
        unless(False, "MULTIGRID.LONG_CYCLE chooses it", "BN.NORM_TYPE", "BN.NUM_SPLITS")
    else:
        kind = f"BN.NORM_TYPE is {norm.NORM_TYPE}"
        unless(norm.NORM_TYPE == "sub_batchnorm", kind, "BN.NUM_SPLITS")
        unless(norm.NORM_TYPE == "sync_batchnorm", kind, "BN.NUM_SYNC_DEVICES", "BN.GLOBAL_SYNC")
    unless(norm.USE_PRECISE_STATS, "BN.USE_PRECISE_STATS is off", "BN.NUM_BATCHES_PRECISE")

    off = "MULTIGRID.SHORT_CYCLE and MULTIGRID.LONG_CYCLE are off"
    unless(cycles, off, *(f"MULTIGRID.{key}" for key in _MULTIGRID))
    unless(multigrid.SHORT_CYCLE or not cycles, "MULTIGRID.SHORT_CYCLE is off", "MULTIGRID.SHORT_CYCLE_FACTORS")
    if multigrid.SHORT_CYCLE and not multigrid.LONG_CYCLE:
        keys = [f"MULTIGRID.{key}" for key in ("LONG_CYCLE_FACTORS", "BN_BASE_SIZE", "EVAL_FREQ")]
        unless(False, "MULTIGRID.LONG_CYCLE is off", *keys)
    if multigrid.LONG_CYCLE:
        reason = "MULTIGRID.EVAL_FREQ decides under MULTIGRID.LONG_CYCLE"
        unless(False, reason, "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD")

    unless(
        train.CHECKPOINT_FILE_PATH, "TRAIN.CHECKPOINT_FILE_PATH is empty", *(f"TRAIN.CHECKPOINT_{k}" for k in _LOADING)
    )
    unless(train.MIXED_PRECISION, "TRAIN.MIXED_PRECISION is off", "TRAIN.MIXED_PRECISION_TYPE")
    several = cfg.NUM_GPUS * cfg.NUM_SHARDS > 1 or distributed.get_world_size() > 1
    keys = ("MODEL.FP16_ALLREDUCE", "MODEL.BF16_ALLREDUCE", "MODEL.FSDP")
    unless(several, "there is one process (NUM_GPUS, NUM_SHARDS)", *keys)
    unless(cfg.NUM_GPUS, "on the CPU processes talk by gloo", "DIST_BACKEND")
    return idle
