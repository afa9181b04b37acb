"""Facts that several parts need to agree on, as pure functions of the tree."""

from fvcore.common.config import CfgNode


def num_views(cfg: CfgNode, split: str) -> int:
    """Rows of the data set per video: temporal clips times spatial crops in testing, 1 in ``train`` and ``val``."""
    return cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS if split == "test" else 1


def processes_per_machine(cfg: CfgNode) -> int:
    """Processes that share a batch on this machine: one per GPU, and a single one on the CPU."""
    return max(1, cfg.NUM_GPUS)
