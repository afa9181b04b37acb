"""Training, read top to bottom: ``train`` (the job), ``train_epoch``, ``train_step``.

A step is a function of (seed, epoch, step, rank): the random generator is set from these numbers before each
one, so dropout and its like need no saved state, and a resumed run draws what the unbroken one would have drawn.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from slowfast.checkpoint import Start, StartPlan, carry_out, plan_training
from slowfast.checkpoint.start import last_trained_epoch
from slowfast.config.effects import idle_keys
from slowfast.config.load import scale_rates
from slowfast.engine.accumulation import in_parts
from slowfast.engine.course import Course, build_course
from slowfast.engine.epoch_log import BestErrors, EpochLog, NonFiniteLossError
from slowfast.engine.evaluate import evaluate
from slowfast.engine.freezing import hold_still
from slowfast.engine.interrupt import Interrupted, Watch, Wish, dead_workers_named
from slowfast.engine.output import BadVideoLog, build_names_file, build_recorder, epoch_of, read_records, rewind
from slowfast.engine.parallel import keep_gradients_local
from slowfast.engine.phases import phase_of, training_phases
from slowfast.engine.prefetch import DeviceMover
from slowfast.engine.run import Run, build_run, log_start, log_summary
from slowfast.engine.saving import Saver, build_saver
from slowfast.engine.stats import Record, Recorder, StepTimer, gpu_memory, host_memory
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
    course: Course


def train(cfg) -> dict[str, float]:
    """Train as ``cfg`` says and return the numbers of the last evaluation.

    Leaves in ``OUTPUT_DIR``: config.yaml, class_names.json (where the data name their classes), stdout.log,
    json_stats.log, checkpoints/, bad_videos.csv (if any were met) and, where asked for, a TensorBoard log. With
    ``TRAIN.AUTO_RESUME`` it continues from the newest checkpoint there.
    """
    cfg = scale_rates(cfg)
    results: dict[str, float] = {}
    watching = Watch(hang_minutes=cfg.TRAIN.HANG_MINUTES)
    with watching as watch, dead_workers_named(), closing(build_recorder(cfg)) as recorder:
        for key, reason in idle_keys(cfg).items():
            logger.warning(f"{key} has no effect: {reason}")
        phases = training_phases(cfg)
        start_plan = build_start_plan(cfg)
        current = phase_of(phases, last_trained_epoch(start_plan)) if len(phases) > 1 else phases[0]
        run = build_run(current.cfg, milestones=current.milestones)
        if cfg.LOG_MODEL_INFO:
            size, boxes = cfg.DATA.TRAIN_CROP_SIZE, cfg.DETECTION.ENABLE
            log_summary(run.network, frames=cfg.DATA.NUM_FRAMES, crop_size=size, boxes=boxes)
        started = carry_out(start_plan, run.network, run.optimizer, run.scaler)
        log_start(started)
        run.load_extra_state(started.checkpoint)
        first = first_epoch(run, started, cfg.OUTPUT_DIR, rewind_logs=cfg.TRAIN.AUTO_RESUME)
        records = read_records(cfg.OUTPUT_DIR)
        with build_saver(cfg, records, build_names_file(cfg)) as saver:
            saver.started_at(started.epoch, started.step)
            best, bad_videos = BestErrors(records, before_epoch=started.epoch), BadVideoLog(cfg.OUTPUT_DIR)
            desk = Desk(recorder, bad_videos, best, saver, watch, build_course(phases, run.train_loader, records))
            for phase in phases:
                if phase is not current and phase.epochs(first):
                    run, current = build_run(phase.cfg, previous=run, milestones=phase.milestones), phase
                for epoch in phase.epochs(first):
                    save_due, evaluation_due = run.plan.checkpoint_due(epoch), run.plan.evaluation_due(epoch)
                    if epoch >= started.epoch:
                        log = train_epoch(run, epoch, desk, started if epoch == started.epoch else None)
                        if save_due or evaluation_due:
                            refresh_bn(run, epoch, desk, log)
                        bad_videos.flush("train", epoch)
                    if epoch >= started.epoch and save_due:
                        saver.save_epoch(run, epoch)
                    if evaluation_due:
                        results = validate(run, epoch, desk)
            saver.finish()
    return results


def build_start_plan(cfg) -> StartPlan:
    """Which file the training that ``cfg`` describes starts from."""
    return plan_training(
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


def first_epoch(run: Run, started: Start, output_dir: str, *, rewind_logs: bool) -> int:
    """The epoch to begin with, and the logs cut back to it.

    That is the one before ``started.epoch`` where its evaluation is still to be done, because the job was stopped in
    it or because all epochs are trained; its training and its checkpoint are then left out.
    """
    finished = started.epoch >= run.plan.max_epoch
    if distributed.is_main_process() and rewind_logs:
        rewind(output_dir, started.epoch, evaluate_again=finished)
    evaluated = {epoch_of(record) for record in read_records(output_dir) if record.get("_type") == "val_epoch"}
    stopped_in_evaluation = started.resumed and 0 < started.epoch not in evaluated and not started.step
    return distributed.all_gather_objects(started.epoch - bool(finished or stopped_in_evaluation))[0]


def train_epoch(run: Run, epoch: int, desk: Desk, started: Start | None = None) -> EpochLog:
    """One pass over the training set: a step per batch, a line per ``log_period`` steps, a record at the end.

    ``started``, for the first epoch of a resumed training, says how many of its steps are done.
    """
    run.model.train()
    hold_still(run.network, all_batch_norms=run.plan.freeze_bn)
    move = DeviceMover(run.device)
    steps = len(run.train_loader)
    log = EpochLog(run, epoch, steps, desk.recorder, desk.course)
    first_step = 0
    if started is not None and started.step:
        first_step = same_place(started, steps, run.train_loader.batch_sampler.layout())
        log.load_state(started.checkpoint["log"])
        desk.bad_videos.load_state(started.checkpoint["bad_videos"])
    run.train_loader.batch_sampler.set_epoch(epoch, first_step)
    bar = progress(run.train_loader, f"epoch {epoch + 1}/{run.plan.max_epoch}", done=first_step)
    desk.watch.beat("waiting for data")
    for step, batch in enumerate(bar, start=first_step):
        desk.watch.beat("training")
        desk.bad_videos.add(batch.bad)
        batch = move(batch)
        log.timer.data_ready()
        seed_step(run.plan.seed, epoch, step)
        try:
            scalars = train_step(run, batch, epoch + step / steps, step)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"epoch {epoch + 1}, step {step + 1}: {error}. {describe(run, batch)}") from None
        log.add(step, scalars, clips=len(batch))
        due, wish = desk.saver.step_done(), desk.watch.agree(desk.saver.wish())
        is_last = step + 1 == steps and run.plan.checkpoint_due(epoch)
        if wish is Wish.STOP:
            desk.watch.answer()
        if wish is Wish.STOP or ((due or wish is Wish.SAVE) and not is_last):
            save_within_epoch(run, epoch, step + 1, desk, log)
        if wish is Wish.STOP:
            desk.watch.stop()
        desk.watch.beat("waiting for data")
    log.finish()
    return log


def same_place(started: Start, steps: int, layout: list[int]) -> int:
    """How many of the ``steps`` of this epoch, whose order has this ``layout``, were done by the resumed training."""
    position = started.checkpoint["position"]
    before = position["steps"]
    if before == steps:
        if position.get("layout", layout) != layout:
            logger.warning(
                f"{started.path} was saved within an epoch that went through the clips in another order (of shards, "
                "that depends on the number of processes and loader workers): some come twice in this epoch, and some "
                "not at all"
            )
        return started.step
    place = started.step * steps // before
    logger.warning(
        f"{started.path} was saved after {started.step} of {before} steps, and an epoch now has {steps} (another list "
        f"or number of clips per step): going on after {place} of them, which is near but not exact"
    )
    return place


def save_within_epoch(run: Run, epoch: int, step: int, desk: Desk, log: EpochLog) -> None:
    """A checkpoint after ``step`` steps of ``epoch``, with what the logs need to go on."""
    progress = {"log": log.state(), "bad_videos": desk.bad_videos.state()}
    desk.saver.save_step(run, epoch, step, len(run.train_loader), progress)


def train_step(run: Run, batch: Any, epoch: float, step: int) -> dict[str, Tensor]:
    """One update at fractional ``epoch``; scalars for the log, on the device.

    ``NonFiniteLossError`` is raised before the weights are touched.
    """
    set_lr(run.optimizer, run.schedule(epoch))
    run.optimizer.zero_grad(set_to_none=True)
    scalars: dict[str, Tensor] = {}
    for micro_batch, share, is_last in in_parts(batch, run.plan.accumulation):
        with nullcontext() if is_last else keep_gradients_local(run.model):
            part_scalars = add_gradients(run, micro_batch, epoch, share)
        scalars = {name: scalars.get(name, 0.0) + value * share for name, value in part_scalars.items()}
    run.scaler.unscale_(run.optimizer)
    scalars["grad_norm"] = clip_gradients(run.parameters, value=run.plan.clip_value, l2norm=run.plan.clip_norm)
    if run.task.after_backward(run.model, epoch, step):
        run.scaler.step(run.optimizer)
        if run.average is not None:
            run.average.update()
    run.scaler.update()
    return scalars


def add_gradients(run: Run, batch: Any, epoch: float, share: float) -> dict[str, Tensor]:
    """Forward and backward pass of ``batch``, whose loss counts by ``share``; scalars for the log."""
    scalars: dict[str, Tensor] = {}
    for part in run.task.split(run.model, batch):
        with run.precision.autocast():
            result = run.task.loss(run.model, part, epoch)
        loss = ValueOnHost(result.total)
        run.scaler.scale(result.total * share if share != 1.0 else result.total).backward()
        if not math.isfinite(loss.read()):
            raise NonFiniteLossError(f"the loss is {loss.read()} (weights are as before this step)")
        scalars = {"loss": result.total.detach(), **result.parts, **result.errors}
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
    # NOTE: torch.manual_seed gives the same, but where CUDA was never used it notes down a stack each time.
    torch.default_generator.manual_seed(int(state[0]) >> 1)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(state[0]) >> 1)


def refresh_bn(run: Run, epoch: int, desk: Desk, log: EpochLog) -> None:
    """Bring batch-norm statistics up to the current weights, and their average, before they are saved or evaluated.

    A signal stops it; what is saved then are the statistics from before.
    """
    try:
        renew_statistics(run, epoch, desk)
        if run.average is not None:
            with run.averaged():
                renew_statistics(run, epoch, desk)
    except Interrupted:
        save_within_epoch(run, epoch, len(run.train_loader), desk, log)
        raise


def renew_statistics(run: Run, epoch: int, desk: Desk) -> None:
    """Statistics of sub-batch norm are merged; afterwards all processes have the same ones.

    With ``precise_bn_batches`` the population statistics of that many fresh batches per process replace the running
    ones (fvcore's precise BN), put together over processes; otherwise they are those of the first process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a function when imported
        from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

    batches = min(run.plan.precise_bn_batches, len(run.train_loader))
    run.network.train()
    hold_still(run.network, all_batch_norms=run.plan.freeze_bn)
    norms = get_bn_modules(run.network) if batches else []
    if norms:
        buffers = dict(run.network.named_buffers())
        before = {name: value.clone() for name, value in buffers.items()}
        run.train_loader.batch_sampler.set_epoch(run.plan.max_epoch + epoch)
        bar = progress(run.train_loader, "precise BN", total=batches)
        try:
            drawn = _batches(run, epoch, desk.watch.over(bar, batches, "precise BN"))
            update_bn_stats(_Forward(run.network, run.task), drawn, batches)
        except Interrupted:
            put_back(run.network, buffers)
            for name, value in buffers.items():
                value.copy_(before[name])
            raise
        put_back(run.network, buffers)
        for norm in norms:
            pool_statistics(norm)
    aggregate_sub_bn_stats(run.network)
    if distributed.get_world_size() > 1:
        for buffer in run.network.buffers():
            distributed.broadcast(buffer)


def put_back(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Give ``network`` its own ``buffers`` again, with the values of those that have taken their place.

    fvcore replaces the statistics by new tensors; the average of the weights, for one, holds on to the old ones.
    """
    for name, value in list(network.named_buffers()):
        if value is not buffers[name]:
            buffers[name].copy_(value)
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner)._buffers[leaf] = buffers[name]


def pool_statistics(norm: nn.Module) -> None:
    """Mean and variance of a batch norm over the samples of all processes, each of which saw equally many."""
    if distributed.get_world_size() == 1:
        return
    mean, square = norm.running_mean.clone(), norm.running_var + norm.running_mean.square()
    distributed.all_reduce_mean(mean)
    distributed.all_reduce_mean(square)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(square - mean.square())


def _batches(run: Run, epoch: int, batches: Iterable[Any]) -> Iterator[Any]:
    for step, batch in enumerate(batches):
        seed_step(run.plan.seed, run.plan.max_epoch + epoch, step)
        yield batch.to(run.device)


class _Forward(nn.Module):
    """A network that takes whole batches: the task knows what of them it wants."""

    def __init__(self, network: nn.Module, task: Any) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, batch: Any) -> Any:
        return self.task.forward(self.network, batch)


def validate(run: Run, epoch: int, desk: Desk) -> dict[str, float]:
    """Evaluate the validation set, record the result and return it.

    A signal stops it: then the training is saved as it is after ``epoch``, and resuming begins with this evaluation.
    """
    if not run.task.evaluates:
        return {}
    timer = StepTimer()
    header: Record = {"_type": "val_iter", "epoch": f"{epoch + 1}/{run.plan.max_epoch}"}
    try:
        with run.averaged():
            metric = evaluate(
                run.network,
                run.val_loader,
                run.task,
                run.task.metric("val", run.val_loader.dataset),
                device=run.device,
                recorder=desk.recorder,
                on_bad=desk.bad_videos.add,
                name="validate",
                header=header,
                log_period=run.plan.log_period,
                watch=desk.watch,
            )
    except Interrupted:
        desk.saver.save_step(run, epoch + 1, 0, len(run.train_loader), {})
        raise
    desk.bad_videos.flush("val", epoch)
    timer.step_done()
    desk.course.evaluation = timer.step
    results = metric.compute()
    memory = {"time_diff": timer.step, "gpu_mem": gpu_memory(run.device), "RAM": host_memory()}
    desk.recorder.write({**header, "_type": "val_epoch", **memory, **results, **desk.best.update(results)}, epoch)
    desk.saver.evaluated(epoch, results)
    return results


def progress(loader: Any, name: str, *, total: int | None = None, done: int = 0) -> tqdm:
    """A bar over ``loader``, which begins after ``done`` steps, on the terminal of the main process.

    It is silent on the others and in a pipe.
    """
    hidden = None if distributed.is_main_process() else True
    return tqdm(loader, desc=name, unit="step", leave=False, disable=hidden, total=total or len(loader), initial=done)


def describe(run: Run, batch: Any) -> str:
    """The videos of ``batch``, for an error message."""
    records = run.train_loader.dataset.records
    paths = [str(records[row].path) for row in batch.index.tolist()]
    return "The batch: " + ", ".join(paths)
