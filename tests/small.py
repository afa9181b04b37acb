"""Small inputs for the networks and tasks of our configuration files."""

from pathlib import Path

import torch

from slowfast.config import load_cfg
from slowfast.datasets.batch import Batch
from slowfast.tasks.base import task_name

ROOT = Path(__file__).parents[1]


def small(name: str) -> list:
    """Options that make the input of a file small and keep what it builds."""
    cfg = load_cfg(ROOT / name)
    image = cfg.DATA.NUM_FRAMES == 1 or "imagenet" in cfg.TRAIN.DATASET.lower()
    frames = 1 if image else 8
    if cfg.MODEL.ARCH == "slowfast" or "SlowFast" in cfg.MODEL.MODEL_NAME:
        frames = max(frames, cfg.SLOWFAST.ALPHA)
    opts = ["DATA.NUM_FRAMES", frames, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64]
    opts += ["DATA.TRAIN_JITTER_SCALES", [64, 64], "NUM_GPUS", 0, "TRAIN.BATCH_SIZE", 2]
    if task_name(cfg) == "Contrastive":
        opts += ["CONTRASTIVE.QUEUE_LEN", 8, "CONTRASTIVE.LENGTH", 16]
    else:
        opts += ["MODEL.NUM_CLASSES", 7]
    if task_name(cfg) == "Detection":
        opts += ["AVA.ANNOTATION_DIR", "", "AVA.LABEL_MAP_FILE", "", "AVA.EXCLUSION_FILE", ""]
    return opts


def batch_for(cfg, task: str) -> Batch:
    """Two random samples of what ``task`` learns from."""
    generator = torch.Generator().manual_seed(0)
    size = (2, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
    clip = torch.randn(size, generator=generator)
    batch = Batch(clip, torch.tensor([1, 5]), torch.tensor([0, 1]))
    if task == "Detection":
        batch.boxes = torch.tensor([[0, 4.0, 4.0, 40.0, 60.0], [1, 10.0, 0.0, 60.0, 50.0], [1, 0.0, 0.0, 63.0, 63.0]])
        batch.labels = (torch.rand(3, cfg.MODEL.NUM_CLASSES, generator=generator) > 0.5).float()
    elif cfg.DATA.MULTI_LABEL:
        batch.labels = (torch.rand(2, cfg.MODEL.NUM_CLASSES, generator=generator) > 0.5).float()
    elif task == "Contrastive":
        batch.clips = [torch.randn(size, generator=generator) for _ in range(cfg.DATA.TRAIN_CROP_NUM_TEMPORAL)]
    elif task == "Masked" and cfg.AUG.GEN_MASK_LOADER:
        batch.mask = torch.rand(2, *cfg.AUG.MASK_WINDOW_SIZE, generator=generator) > 0.5
    return batch
