"""From a configuration to a data set and its loader. New data sets register here by name."""

from __future__ import annotations

import logging
import multiprocessing
import os
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset

from slowfast.datasets.containment import ClipLoader
from slowfast.datasets.samplers import CycleStep, EvalBatchSampler, TrainBatchSampler, share
from slowfast.datasets.sources import check_decoder
from slowfast.utils import distributed
from slowfast.utils.registry import Registry
from slowfast.utils.signals import heed_only_parent

logger = logging.getLogger(__name__)

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(name: str, cfg: CfgNode, split: str) -> Dataset:
    """The data set ``name`` (in any case: ``kinetics``, ``Kinetics``) for split train, val or test."""
    _check_split(split)
    entry = DATASET_REGISTRY.get(name.capitalize())
    return entry.from_cfg(cfg, split) if hasattr(entry, "from_cfg") else entry(cfg, split)


def build_loader(cfg: CfgNode, split: str) -> ClipLoader:
    """A loader of ``Batch`` for split train, val or test.

    ``TRAIN.BATCH_SIZE`` (also for val) and ``TEST.BATCH_SIZE`` count the clips of one machine and are divided
    by its processes. Before each pass, ``loader.batch_sampler.set_epoch(epoch)``. The data set is asked by
    ``Request`` and answers with a ``Sample``; if its rows are views of videos, ``num_views`` says how many of each, and
    if they are better read in an order of its own, ``train_sampler`` gives the sampler.
    """
    _check_split(split)
    dataset = build_dataset(cfg.TEST.DATASET if split == "test" else cfg.TRAIN.DATASET, cfg, split)
    if hasattr(dataset, "as_bytes"):
        dataset.as_bytes = True
    key, size = ("TEST", cfg.TEST.BATCH_SIZE) if split == "test" else ("TRAIN", cfg.TRAIN.BATCH_SIZE)
    processes = distributed.get_local_world_size() if distributed.is_initialized() else max(1, cfg.NUM_GPUS)
    batch_size = _clips_per_process(f"{key}.BATCH_SIZE", size, processes)
    workers = _num_workers(cfg.DATA_LOADER.NUM_WORKERS, processes)
    ranks = {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
    if split == "train":
        cycle = build_short_cycle(cfg, batch_size) if cfg.MULTIGRID.SHORT_CYCLE else batch_size
        if hasattr(dataset, "train_sampler"):
            sampler = dataset.train_sampler(cycle, num_workers=workers, seed=cfg.RNG_SEED, **ranks)
        else:
            sampler = TrainBatchSampler(len(dataset), cycle, seed=cfg.RNG_SEED, **ranks)
    else:
        views = getattr(dataset, "num_views", 1)
        videos = len(dataset) // views
        first, last = share(videos, ranks["rank"], ranks["world_size"])
        workers = min(workers, last - first)
        sampler = EvalBatchSampler(videos, views, batch_size, num_workers=workers, **ranks)
    return ClipLoader(
        dataset,
        sampler,
        num_workers=workers,
        pin_memory=cfg.DATA_LOADER.PIN_MEMORY and cfg.NUM_GPUS > 0 and torch.cuda.is_available(),
        timeout_s=cfg.DATA_LOADER.VIDEO_TIMEOUT,
        worker_init_fn=_init_worker,
        start_method="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    )


def build_short_cycle(cfg: CfgNode, batch_size: int) -> list[CycleStep]:
    """The batches of a short cycle around ``batch_size`` full crops per process: smaller crops, as many pixels.

    Crops are those of the full shape (``MULTIGRID.DEFAULT_S``) times ``MULTIGRID.SHORT_CYCLE_FACTORS``, so in a phase
    of small crops some steps are alike.
    """
    crop, full = cfg.DATA.TRAIN_CROP_SIZE, cfg.MULTIGRID.DEFAULT_S or cfg.DATA.TRAIN_CROP_SIZE
    steps = []
    for factor in cfg.MULTIGRID.SHORT_CYCLE_FACTORS:
        if not 0 < factor <= 1:
            raise ValueError(f"MULTIGRID.SHORT_CYCLE_FACTORS={list(cfg.MULTIGRID.SHORT_CYCLE_FACTORS)}: not in (0, 1]")
        more = max(round((crop / (factor * full)) ** 2), 1)
        steps.append(CycleStep(batch_size * more, min(round(factor * full), crop)))
    return [*steps, CycleStep(batch_size)]


def build_clip_options(cfg: CfgNode, split: str) -> dict[str, Any]:
    """Arguments of ``ClipDataset`` that every data set takes from the configuration alike.

    A test looks at ``TEST.NUM_ENSEMBLE_VIEWS`` x ``TEST.NUM_SPATIAL_CROPS`` views, validation at the centre one.
    """
    _check_split(split)
    test = cfg.TEST
    check_decoder(cfg.DATA.VIDEO_DECODER)
    if split == "test" and test.NUM_ENSEMBLE_VIEWS < 1:
        raise ValueError(f"TEST.NUM_ENSEMBLE_VIEWS={test.NUM_ENSEMBLE_VIEWS} is not 1 or more")
    return {
        "seed": cfg.RNG_SEED,
        "views": (test.NUM_ENSEMBLE_VIEWS, test.NUM_SPATIAL_CROPS) if split == "test" else None,
        "centre": split == "val" and not cfg.DATA.VAL_RANDOM_VIEW,
        "skip_bad": test.SKIP_BAD_VIDEOS,
        "threads": 0 if cfg.DATA_LOADER.ENABLE_MULTI_THREAD_DECODE else 1,
        "decoder": cfg.DATA.VIDEO_DECODER,
        "upright": cfg.DATA.AUTOROTATE,
        "repeat_first": cfg.DATA.DUMMY_LOAD,
    }


def _check_split(split: str) -> None:
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} is not one of train, val, test")


def _clips_per_process(key: str, size: int, processes: int) -> int:
    """The share of one process of ``size`` clips, which the option ``key`` gives."""
    if size < processes:
        raise ValueError(
            f"{key}={size} is less than one clip for each of the {processes} processes (NUM_GPUS): raise it"
        )
    if size % processes:
        logger.warning("%s %d over %d processes: %d clips each", key, size, processes, size // processes)
    return size // processes


def _num_workers(asked: int, processes: int) -> int:
    """Workers of one process: as many as asked for, at most the processor cores that it has to itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = max(1, cores // processes)
    if asked > own:
        logger.info("DATA_LOADER.NUM_WORKERS %d: %d are used, one for each processor core", asked, own)
    return min(asked, own)


def _init_worker(worker: int) -> None:
    """One thread per worker: the workers themselves are what uses the cores."""
    torch.set_num_threads(1)
    heed_only_parent()
