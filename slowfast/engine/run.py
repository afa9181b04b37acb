"""A run: the objects of one training, built from a configuration and wrapped for their device.

Distribution, mixed precision and memory format are put around the network here; ``models/`` knows none of it.
"""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from slowfast.checkpoint import Start, load_weights
from slowfast.datasets import build_loader
from slowfast.engine.conv_check import warn_of_convolutions
from slowfast.engine.ema import WeightAverage
from slowfast.engine.freezing import freeze_parameters
from slowfast.engine.launch import get_device
from slowfast.engine.parallel import Wrapping, is_sharded, put_together, wrap_model
from slowfast.models import build_model
from slowfast.models.norm import aggregate_sub_bn_stats
from slowfast.solver import build_optimizer, carry_state, lr_at
from slowfast.tasks import Task, build_task
from slowfast.utils import distributed
from slowfast.utils.memory import keep_freed_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """How the forward pass computes: ``dtype`` None is plain fp32."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        """The context of forward pass and loss."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)


@dataclass(frozen=True)
class Plan:
    """The numbers of the loop: how long, how often, how hard to clip. Periods count epochs, except ``log_period``."""

    max_epoch: int
    log_period: int
    checkpoint_period: int
    eval_period: int
    seed: int
    clip_value: float | None
    clip_norm: float | None
    explosion_factor: float
    freeze_bn: bool
    precise_bn_batches: int = 0
    milestones: frozenset[int] | None = None
    accumulation: int = 1

    @classmethod
    def from_cfg(cls, cfg, milestones: frozenset[int] | None = None) -> "Plan":
        """The plan that ``cfg`` describes; ``milestones`` as in ``Phase``."""
        return cls(
            max_epoch=cfg.SOLVER.MAX_EPOCH,
            log_period=max(cfg.LOG_PERIOD, 1),
            checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
            eval_period=cfg.TRAIN.EVAL_PERIOD,
            seed=cfg.RNG_SEED,
            clip_value=cfg.SOLVER.CLIP_GRAD_VAL,
            clip_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
            explosion_factor=cfg.TRAIN.KILL_LOSS_EXPLOSION_FACTOR,
            freeze_bn=cfg.MODEL.FROZEN_BN,
            precise_bn_batches=cfg.BN.NUM_BATCHES_PRECISE if cfg.BN.USE_PRECISE_STATS else 0,
            milestones=milestones,
            accumulation=cfg.TRAIN.ACCUMULATION_STEPS,
        )

    def checkpoint_due(self, epoch: int) -> bool:
        """Whether a checkpoint follows ``epoch`` (0-based): every period, and the last one."""
        return self._due(epoch, self.checkpoint_period)

    def evaluation_due(self, epoch: int) -> bool:
        """Whether an evaluation follows ``epoch`` (0-based): every period, and the last one."""
        return self._due(epoch, self.eval_period)

    def _due(self, epoch: int, period: int) -> bool:
        if self.milestones is not None:
            return epoch in self.milestones
        return epoch + 1 == self.max_epoch or (epoch + 1) % period == 0


@dataclass
class Run:
    """Everything that one training moves: the network as the loop calls it, its optimizer, its data, its clock."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    task: Task
    plan: Plan
    device: torch.device
    precision: Precision
    train_loader: DataLoader
    val_loader: DataLoader
    schedule: Callable[[float], float]
    """Learning rate at a fractional epoch."""
    average: WeightAverage | None = None
    """The moving average of the weights, which is evaluated where there is one."""

    def averaged(self) -> AbstractContextManager:
        """Within it the network has the weights that are evaluated, and each process all of them."""
        if self.is_sharded:
            return put_together(self.network)
        return nullcontext() if self.average is None else self.average.applied()

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole network."""
        return is_sharded(self.network)

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside network, optimizer and scaler."""
        return {} if self.average is None else {"ema_state": self.average.state_dict()}

    def load_extra_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Take back what ``extra_state`` gave; without it, an average begins with the weights as they are now."""
        if self.average is not None and "ema_state" in checkpoint:
            self.average.load_state_dict(checkpoint["ema_state"])
        elif self.average is not None:
            self.average.restart()

    @property
    def network(self) -> nn.Module:
        """The bare network, for evaluation and saving."""
        return distributed.unwrap(self.model)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the network, which are looked for once: each step asks for them."""
        return list(self.network.parameters())


def choose_precision(mixed: bool, device: torch.device, kind: str = "auto") -> Precision:
    """fp32 unless ``mixed``; of ``kind`` "auto", bf16 where the device has it and fp16 on older GPUs.

    fp16 needs the gradient scaler.
    """
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if kind not in ("auto", *kinds):
        raise ValueError(f"TRAIN.MIXED_PRECISION_TYPE={kind!r} is unknown; choose one of auto, {', '.join(kinds)}")
    if not mixed:
        return Precision(device.type, None)
    if kind != "auto":
        return Precision(device.type, kinds[kind])
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(device.type, torch.bfloat16 if has_bf16 else torch.float16)


def build_run(cfg, previous: Run | None = None, milestones: frozenset[int] | None = None) -> Run:
    """Network, optimizer, task and loaders of ``cfg`` on this process's device, wrapped for distribution.

    Weights and the states of optimizer and gradient scaler are those of ``previous``, where that is given: in
    memory, with batch norm turned into the kind that ``cfg`` asks for. ``milestones`` as in ``Phase``.
    """
    device = get_device()
    share_cores(cfg.DATA_LOADER.NUM_WORKERS)
    if device.type == "cpu":
        keep_freed_memory()
    log_device(device)
    train_loader, val_loader = build_loader(cfg, "train"), build_loader(cfg, "val")
    torch.manual_seed(cfg.RNG_SEED)
    network, task = build_model(cfg).to(device), build_task(cfg)
    frozen = freeze_parameters(network, cfg.MODEL.FREEZE)
    if frozen:
        logger.info(f"MODEL.FREEZE: {len(frozen)} of {len(list(network.parameters()))} parameters do not learn")
    task.prepare(network, lambda: train_loader.dataset)
    precision = choose_precision(cfg.TRAIN.MIXED_PRECISION, device, cfg.TRAIN.MIXED_PRECISION_TYPE)
    if previous is None:
        warn_of_convolutions(device, precision.dtype)
    run = Run(
        model=wrap_model(network, Wrapping.from_cfg(cfg)),
        optimizer=build_optimizer(network, cfg),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.dtype is torch.float16),
        task=task,
        plan=Plan.from_cfg(cfg, milestones),
        device=device,
        precision=precision,
        train_loader=train_loader,
        val_loader=val_loader,
        schedule=partial(lr_at, cfg),
        average=WeightAverage(network, cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY else None,
    )
    if previous is not None:
        move_weights(previous, run)
        carry_state(previous.optimizer, previous.network, run.optimizer, run.network)
        run.scaler.load_state_dict(previous.scaler.state_dict())
    return run


def move_weights(source: Run, target: Run) -> None:
    """The weights of one phase, and their average, to the next. Sub-batch statistics are merged before."""
    aggregate_sub_bn_stats(source.network)
    load_weights(target.network, source.network.state_dict())
    if source.average is not None and target.average is not None:
        with source.average.applied(), target.average.applied():
            aggregate_sub_bn_stats(source.network)
            load_weights(target.network, source.network.state_dict())
        target.average.updates = source.average.updates


def share_cores(workers: int) -> None:
    """On the CPU, leave the loader workers their cores: threads that are kept waiting cost more than they bring."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // distributed.get_local_world_size()
    torch.set_num_threads(max(1, min(torch.get_num_threads(), own - workers)))


def log_device(device: torch.device) -> None:
    """Say on what, and on how many processes, this job computes."""
    on_gpu = device.type == "cuda"
    what = torch.cuda.get_device_name(device) if on_gpu else f"CPU ({torch.get_num_threads()} compute threads)"
    logger.info(f"computing on {distributed.get_world_size()} x {what}, PyTorch {torch.__version__}")


def log_start(start: Start) -> None:
    """Say where the weights come from, and what did not fit."""
    logger.info(start.note)
    if start.report is not None and not start.report.complete:
        logger.warning(start.report.table())


def log_summary(network: nn.Module, *, frames: int, crop_size: int, boxes: bool = False) -> None:
    """Say how large the network is and what one clip of ``frames`` square frames costs (main process only).

    With ``boxes``, what it costs to score one box in it.
    """
    if not distributed.is_main_process():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a function when imported
        from slowfast.models.summary import summarize
    name, params = type(network).__name__, sum(parameter.numel() for parameter in network.parameters())
    device = next(network.parameters()).device
    inputs = [torch.zeros(1, 3, frames, crop_size, crop_size, device=device)]
    if boxes:
        inputs.append(torch.tensor([[0.0, 0.0, 0.0, crop_size - 1, crop_size - 1]], device=device))
    try:
        cost = f"{summarize(network, *inputs).gflops:.3f} GFLOPs"
    except (RuntimeError, TypeError, ValueError) as error:  # a user's own model need not be traceable
        cost = f"operations not counted ({error})"
    logger.info(f"{name}: {params / 1e6:.3f} M parameters, {cost} for a clip of {frames} frames, {crop_size} px")
