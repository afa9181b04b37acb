"""Training, read top to bottom: ``train`` (the job), ``train_epoch``, ``train_step``.

A step is a function of (seed, epoch, step, rank): the random generator is set from these numbers before each
one, so dropout and its like need no saved state, and a resumed run draws what the unbroken one would have drawn.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast.checkpoint import checkpoint_path, save_checkpoint
from slowfast.checkpoint.start import carry_out, last_trained_epoch, plan_training
from slowfast.config.load import dump_cfg, scale_rates
from slowfast.engine.evaluate import evaluate
from slowfast.engine.output import BadVideoLog, build_recorder, read_records
from slowfast.engine.phases import phase_of, training_phases
from slowfast.engine.run import Run, build_run, log_start, log_summary
from slowfast.engine.stats import Record, Recorder, StepBuffer, StepTimer, Window, eta, gpu_memory, host_memory
from slowfast.models.norm import aggregate_sub_bn_stats
from slowfast.solver import clip_gradients, set_lr
from slowfast.utils import distributed

logger = logging.getLogger(__name__)


@dataclass
class Desk:
    """Where a training writes, saves, and is told to stop."""

    recorder: Recorder
    bad_videos: BadVideoLog
    best: BestErrors
    saver: Saver
    watch: Watch


def train(cfg) -> dict[str, float]:
    """Train as ``cfg`` says and return the numbers of the last evaluation.

    Leaves in ``OUTPUT_DIR``: config.yaml, stdout.log, json_stats.log, checkpoints/, bad_videos.csv (if any were met)
    and, where asked for, a TensorBoard log. With ``TRAIN.AUTO_RESUME`` it continues from the newest checkpoint there.
    """
    cfg = scale_rates(cfg)
    recorder = build_recorder(cfg)
    with Watch(hang_minutes=cfg.TRAIN.HANG_MINUTES) as watch, dead_workers_named(), closing(recorder):
        return _train(cfg, recorder, watch)


def _train(cfg, recorder: Recorder, watch: Watch) -> dict[str, float]:
    phases = training_phases(cfg)
    start_plan = plan_training(
        cfg.OUTPUT_DIR,
        task=cfg.TASK,
        auto_resume=cfg.TRAIN.AUTO_RESUME,
        initial_path=cfg.TRAIN.CHECKPOINT_FILE_PATH,
        initial_type=cfg.TRAIN.CHECKPOINT_TYPE,
        inflate=cfg.TRAIN.CHECKPOINT_INFLATE,
        epoch_reset=cfg.TRAIN.CHECKPOINT_EPOCH_RESET,
        clear_patterns=cfg.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN,
        image_init=cfg.TRAIN.CHECKPOINT_IN_INIT,
    )
    current = phase_of(phases, last_trained_epoch(start_plan)) if len(phases) > 1 else phases[0]
    run = build_run(current.cfg, milestones=current.milestones)
    if cfg.LOG_MODEL_INFO:
        log_summary(run.network, frames=cfg.DATA.NUM_FRAMES, crop_size=cfg.DATA.TRAIN_CROP_SIZE)
    started = carry_out(start_plan, run.network, run.optimizer, run.scaler)
    log_start(started)
    start = started.epoch
    bad_videos = BadVideoLog(cfg.OUTPUT_DIR)
    best = BestErrors(read_records(cfg.OUTPUT_DIR), before_epoch=start)
    results: dict[str, float] = {}
    if start >= run.plan.max_epoch:
        results = validate(run, start - 1, recorder, bad_videos, best)
    for phase in phases:
        if phase is not current and phase.epochs(start):
            run, current = build_run(phase.cfg, previous=run, milestones=phase.milestones), phase
        for epoch in phase.epochs(start):
            train_epoch(run, epoch, recorder, bad_videos)
            save_due, evaluation_due = run.plan.checkpoint_due(epoch), run.plan.evaluation_due(epoch)
            if save_due or evaluation_due:
                refresh_bn(run, epoch, precise_batches=cfg.BN.NUM_BATCHES_PRECISE if cfg.BN.USE_PRECISE_STATS else 0)
            if save_due:
                save(run, epoch, checkpoint_path(cfg.OUTPUT_DIR, epoch, cfg.TASK), dump_cfg(cfg))
            if evaluation_due:
                results = validate(run, epoch, recorder, bad_videos, best)
    recorder.close()
    return results


def train_epoch(run: Run, epoch: int, recorder: Recorder, bad_videos: BadVideoLog) -> None:
    """One pass over the training set: a step per batch, a line per ``log_period`` steps, a record at the end."""
    run.model.train()
    if run.plan.freeze_bn:
        freeze_bn(run.network)
    run.train_loader.batch_sampler.set_epoch(epoch)
    steps = len(run.train_loader)
    log = EpochLog(run, epoch, steps, recorder)
    for step, batch in enumerate(progress(run.train_loader, f"epoch {epoch + 1}/{run.plan.max_epoch}")):
        bad_videos.add(batch.bad)
        batch = batch.to(run.device)
        log.timer.data_ready()
        seed_step(run.plan.seed, epoch, step)
        try:
            scalars = train_step(run, batch, epoch + step / steps, step)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"epoch {epoch + 1}, step {step + 1}: {error}. {describe(run, batch)}") from None
        log.add(step, scalars, clips=len(batch))
    log.finish()
    bad_videos.flush("train", epoch)


def train_step(run: Run, batch: Any, epoch: float, step: int) -> dict[str, Tensor]:
    """One update at fractional ``epoch``; scalars for the log, on the device.

    ``NonFiniteLossError`` is raised before the weights are touched.
    """
    set_lr(run.optimizer, run.schedule(epoch))
    run.optimizer.zero_grad(set_to_none=True)
    scalars: dict[str, Tensor] = {}
    for part in run.task.split(run.model, batch):
        with run.precision.autocast():
            result = run.task.loss(run.model, part, epoch)
        loss = ValueOnHost(result.total)
        run.scaler.scale(result.total).backward()
        if not math.isfinite(loss.read()):
            raise NonFiniteLossError(f"the loss is {loss.read()} (weights are as before this step)")
        scalars = {"loss": result.total.detach(), **result.parts, **result.errors}
    run.scaler.unscale_(run.optimizer)
    parameters = [parameter for parameter in run.network.parameters() if parameter.grad is not None]
    scalars["grad_norm"] = clip_gradients(parameters, value=run.plan.clip_value, l2norm=run.plan.clip_norm)
    if run.task.after_backward(run.model, epoch, step):
        run.scaler.step(run.optimizer)
    run.scaler.update()
    return scalars


class ValueOnHost:
    """A scalar on its way to the host: the copy runs while the device works on what was queued after it."""

    def __init__(self, value: Tensor) -> None:
        self.event = None
        if value.is_cuda:
            self.value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self.value.copy_(value.detach(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.value = value.detach()

    def read(self) -> float:
        """The number, waiting for its copy and for nothing later."""
        if self.event is not None:
            self.event.synchronize()
        return float(self.value)


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Set torch's generator from (seed, epoch, step, rank)."""
    state = np.random.SeedSequence([seed, epoch, step, distributed.get_rank()]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]) >> 1)


def freeze_bn(network: nn.Module) -> None:
    """Use, and keep, the stored statistics of every 3-D batch norm; its weight and bias still learn."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()


def refresh_bn(run: Run, epoch: int, *, precise_batches: int) -> None:
    """Bring batch-norm statistics up to the current weights before they are saved or evaluated.

    With ``precise_batches`` the population statistics of that many fresh batches replace the running ones (fvcore's
    precise BN). Statistics of sub-batch norm are merged in any case.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a function when imported
        from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

    batches = min(precise_batches, len(run.train_loader))
    if batches and get_bn_modules(run.network):
        run.network.train()
        if run.plan.freeze_bn:
            freeze_bn(run.network)
        run.train_loader.batch_sampler.set_epoch(run.plan.max_epoch + epoch)
        update_bn_stats(run.network, _clips(run, progress(run.train_loader, "precise BN", total=batches)), batches)
    aggregate_sub_bn_stats(run.network)


def _clips(run: Run, batches: Iterator[Any]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch.to(run.device).clips


def validate(run: Run, epoch: int, recorder: Recorder, bad_videos: BadVideoLog, best: "BestErrors") -> dict[str, float]:
    """Evaluate the validation set, record the result and return it."""
    timer = StepTimer()
    header: Record = {"_type": "val_iter", "epoch": f"{epoch + 1}/{run.plan.max_epoch}"}
    metric = evaluate(
        run.network,
        run.val_loader,
        run.task,
        run.task.metric("val", run.val_loader.dataset),
        device=run.device,
        recorder=recorder,
        on_bad=bad_videos.add,
        name="validate",
        header=header,
        log_period=run.plan.log_period,
    )
    bad_videos.flush("val", epoch)
    timer.step_done()
    results = metric.compute()
    memory = {"time_diff": timer.step, "gpu_mem": gpu_memory(run.device), "RAM": host_memory()}
    recorder.write({**header, "_type": "val_epoch", **memory, **results, **best.update(results)}, epoch)
    return results


def progress(loader: Any, name: str, total: int | None = None) -> tqdm:
    """A bar over ``loader`` on the terminal of the main process; silent elsewhere and in a pipe."""
    hidden = None if distributed.is_main_process() else True
    return tqdm(loader, desc=name, unit="step", leave=False, disable=hidden, total=total or len(loader))


def describe(run: Run, batch: Any) -> str:
    """The videos of ``batch``, for an error message."""
    records = run.train_loader.dataset.records
    paths = [str(records[row].path) for row in batch.index.tolist()]
    return "The batch: " + ", ".join(paths)
