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
_READERS = {
    "SLOWFAST": ("SlowFast", "PTVSlowFast"),
    "X3D": ("X3D", "PTVX3D"),
    "MVIT": _TRANSFORMERS,
    "RESNET": ("ResNet", "SlowFast", "X3D", "PTVResNet", "PTVSlowFast", "PTVX3D", "PTVCSN", "PTVR2plus1D"),
}
_GRID = ("RESNET.SPATIAL_STRIDES", "RESNET.SPATIAL_DILATIONS", "RESNET.NUM_BLOCK_TEMP_KERNEL")
_PTV = (
    *("MODEL.DROPCONNECT_RATE", "MODEL.FC_INIT_STD", "MODEL.ACT_CHECKPOINT", "MODEL.CONV_BACKEND"),
    *("RESNET.ZERO_INIT_FINAL_CONV", "RESNET.INPLACE_RELU"),  # the last norm of each block starts at 0
)
# What a network does not read of the sections that it knows.
_UNREAD = {
    "ResNet": ("MODEL.DROPCONNECT_RATE",),
    "SlowFast": ("MODEL.DROPCONNECT_RATE", "RESNET.STRIDE_1X1", "RESNET.INPLACE_RELU"),
    "X3D": (
        *("RESNET.DEPTH", "RESNET.WIDTH_PER_GROUP", "RESNET.INPLACE_RELU", "RESNET.ZERO_INIT_FINAL_CONV"),
        *("RESNET.SPATIAL_STRIDES", "RESNET.NUM_BLOCK_TEMP_KERNEL"),
    ),
    "MViT": ("MODEL.DROPCONNECT_RATE", "MODEL.FC_INIT_STD", "NONLOCAL.LOCATION"),
    "MaskMViT": (
        *("MODEL.DROPCONNECT_RATE", "MODEL.FC_INIT_STD", "MODEL.HEAD_ACT", "MODEL.DETACH_FINAL_FC"),
        *("MVIT.HEAD_INIT_SCALE", "MVIT.USE_MEAN_POOLING", "NONLOCAL.LOCATION"),
    ),
    "TorchVisionResNet": (
        *("MODEL.DROPCONNECT_RATE", "MODEL.FC_INIT_STD", "MODEL.ACT_CHECKPOINT", "MODEL.CONV_BACKEND"),
        "NONLOCAL.LOCATION",
    ),
    "PTVResNet": (*_PTV, "RESNET.NUM_BLOCK_TEMP_KERNEL"),
    "PTVSlowFast": _PTV,
    "PTVX3D": (*_PTV, *_GRID, "RESNET.DEPTH", "RESNET.WIDTH_PER_GROUP", "RESNET.NUM_GROUPS"),
    "PTVCSN": (*_PTV, *_GRID, "RESNET.NUM_GROUPS"),
    "PTVR2plus1D": (*_PTV, *_GRID),
    "PTVMViT": (*_PTV, "MVIT.LAYER_SCALE_INIT_VALUE", "MVIT.HEAD_INIT_SCALE"),
}
_VIDEO_SETS = {"kinetics", "folders", "shards", "ssv2", "charades", "ava"}  # ours; a user's own may read any key
_BACKBONES = {"slowfast": "SlowFast", "x3d": "X3D", "mvit": "MViT"}  # MODEL.ARCH in a ContrastiveModel; else ResNet


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
    name, network = cfg.MODEL.MODEL_NAME, _network(cfg)
    off = {
        "MIXUP.": (cfg.MIXUP.ENABLE, "MIXUP.ENABLE is off"),
        "MASK.": (cfg.MASK.ENABLE, "MASK.ENABLE is off"),
        "DETECTION.": (cfg.DETECTION.ENABLE, "DETECTION.ENABLE is off"),
        "MVIT.REV.": (cfg.MVIT.REV.ENABLE, "MVIT.REV.ENABLE is off"),
        "AUG.MASK_": (cfg.AUG.GEN_MASK_LOADER or cfg.MASK.ENABLE, "AUG.GEN_MASK_LOADER and MASK.ENABLE are off"),
        "AUG.RE_": (cfg.AUG.ENABLE, "AUG.ENABLE is off"),
        "AUG.AA_TYPE": (cfg.AUG.ENABLE, "AUG.ENABLE is off"),
        "WANDB.": (cfg.WANDB.ENABLE, "WANDB.ENABLE is off"),
    }
    if network in _UNREAD:
        reason = f"{network} does not read it"
        off |= {f"{section}.": (network in readers, reason) for section, readers in _READERS.items()}
        off |= dict.fromkeys(_UNREAD[network], (False, reason))
        off["CONTRASTIVE."] = (name == "ContrastiveModel", f"MODEL.MODEL_NAME is {name}")
    in_mlp = _mlp_keys(cfg, network) if name != "ContrastiveModel" else ()
    return {
        key: reason
        for prefix, (acts, reason) in off.items()
        for key in keys
        if not acts and key.startswith(prefix) and key != f"{prefix}ENABLE" and key not in in_mlp
    }


def _network(cfg: CfgNode) -> str:
    """The network whose keys count: that inside, for contrastive learning."""
    name = cfg.MODEL.MODEL_NAME
    return _BACKBONES.get(cfg.MODEL.ARCH, "ResNet") if name == "ContrastiveModel" else name


def _mlp_keys(cfg: CfgNode, network: str) -> tuple[str, ...]:
    """Keys of contrastive learning that shape the classifier of ``network`` too: an MLP instead of a linear layer."""
    if network not in ("ResNet", "SlowFast", "MViT") or cfg.DETECTION.ENABLE:
        return ()
    keys = ["NUM_MLP_LAYERS"]
    has_mlp = cfg.CONTRASTIVE.NUM_MLP_LAYERS != 1
    if network != "MViT":
        keys.append("PREDICTOR_DEPTHS")
        has_mlp = has_mlp or bool(cfg.CONTRASTIVE.PREDICTOR_DEPTHS)
    if has_mlp:
        keys += ["MLP_DIM", "BN_MLP"]
        if network != "MViT" and cfg.CONTRASTIVE.BN_MLP:
            keys.append("BN_SYNC_MLP")
    return tuple(f"CONTRASTIVE.{key}" for key in keys)


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

    network, mvit = _network(cfg), cfg.MVIT
    if network == "X3D":
        unless(not cfg.X3D.CHANNELWISE_3x3x3, "X3D.CHANNELWISE_3x3x3 has each channel by itself", "RESNET.NUM_GROUPS")
    if network in _TRANSFORMERS:
        unless(mvit.USE_ABS_POS, "MVIT.USE_ABS_POS is off", "MVIT.SEP_POS_EMBED")
        has_relative = mvit.REL_POS_SPATIAL or mvit.REL_POS_TEMPORAL
        unless(has_relative, "MVIT.REL_POS_SPATIAL and MVIT.REL_POS_TEMPORAL are off", "MVIT.REL_POS_ZERO_INIT")
        follows = mvit.POOL_KV_STRIDE_ADAPTIVE is None or not mvit.POOL_KV_STRIDE
        unless(follows, "MVIT.POOL_KV_STRIDE_ADAPTIVE holds for all blocks", "MVIT.POOL_KV_STRIDE")
        unless(not mvit.REV.ENABLE, "MVIT.REV.ENABLE: its blocks have no such scale", "MVIT.LAYER_SCALE_INIT_VALUE")
        unless(not cfg.DETECTION.ENABLE, "DETECTION.ENABLE: boxes are pooled", "MVIT.USE_MEAN_POOLING")
    has_classifier = network != "MaskMViT" or not cfg.MODEL.DROPOUT_RATE
    unless(has_classifier, "MaskMViT has no classifier", "MODEL.DROPOUT_RATE")
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
    keys = ("TRAIN.CHECKPOINT_KEEP_BEST", "TRAIN.CHECKPOINT_BEST_METRIC")
    unless(train.CHECKPOINT_KEEP, "TRAIN.CHECKPOINT_KEEP is 0: all are kept", *keys)
    reason = "it compares with the five losses before, and LOG_PERIOD is the number of those that are held"
    unless(cfg.LOG_PERIOD >= 5, reason, "TRAIN.KILL_LOSS_EXPLOSION_FACTOR")
    datasets = {name.lower() for name in (train.DATASET, cfg.TEST.DATASET)}
    unless(datasets - _VIDEO_SETS, "only the recipe of ImageNet has it", "AUG.COLOR_JITTER")
    unless(datasets != {"ssv2"}, "a clip of SSv2 is spread over its video", "DATA.SAMPLING_RATE")
    unless(train.MIXED_PRECISION, "TRAIN.MIXED_PRECISION is off", "TRAIN.MIXED_PRECISION_TYPE")
    several = cfg.NUM_GPUS * cfg.NUM_SHARDS > 1 or distributed.get_world_size() > 1
    keys = ("MODEL.FP16_ALLREDUCE", "MODEL.BF16_ALLREDUCE", "MODEL.FSDP")
    unless(several, "there is one process (NUM_GPUS, NUM_SHARDS)", *keys)
    unless(cfg.NUM_GPUS, "on the CPU processes talk by gloo", "DIST_BACKEND")
    return idle
