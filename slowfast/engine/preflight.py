"""A preflight: everything about a job that can be looked at before it begins. Nothing is trained, nothing written.

The real data sets, loaders, network and steps are used, on a network that is thrown away; the findings themselves are
made by ``slowfast.engine.preflight_checks``.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil
import torch
from torch import nn

import slowfast
from slowfast.checkpoint import carry_out
from slowfast.checkpoint.io import CheckpointError
from slowfast.checkpoint.start import build_test_plan
from slowfast.config.effects import idle_keys
from slowfast.config.load import scale_rates
from slowfast.datasets import build_dataset, build_loader
from slowfast.datasets.check import build_data_check
from slowfast.engine import preflight_checks as checks
from slowfast.engine.conv_check import check_convolutions, remedy
from slowfast.engine.course import Course, build_course
from slowfast.engine.demo import build_detector_name, build_given_boxes, build_stream, build_style
from slowfast.engine.epoch_log import NonFiniteLossError
from slowfast.engine.launch import get_device, under_torchrun
from slowfast.engine.phases import training_phases
from slowfast.engine.preflight_checks import Found, Recipe
from slowfast.engine.preflight_steps import (
    Pace,
    checkpoint_bytes,
    estimate_memory,
    measure_evaluation,
    measure_steps,
)
from slowfast.engine.run import Run, build_run, choose_precision
from slowfast.engine.stats import data_advice, eta, own_cores
from slowfast.engine.train import build_start_plan
from slowfast.models import build_model
from slowfast.tasks import Task, build_task
from slowfast.visualization.live import CAMERA, is_live

# What is wrong with a configuration shows as one of these.
_WRONG = (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Preflight:
    """All findings, in the order they were made."""

    found: tuple[Found, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not any(one.level == "problem" for one in self.found)

    def table(self) -> str:
        """The findings below the names of their topics, and how many of them are problems."""
        parts = []
        topics = list(dict.fromkeys(one.topic for one in self.found))
        in_order = sorted(self.found, key=lambda one: topics.index(one.topic))
        for topic, group in groupby(in_order, key=lambda one: one.topic):
            parts.append("\n".join([topic, *(one.lines() for one in group)]))
        counts = {level: sum(one.level == level for one in self.found) for level in ("problem", "warning")}
        parts.append(", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items()))
        return "\n".join(parts)


def build_preflight(cfg, *, published: Recipe | None = None, init_method: str | None = None) -> Preflight:
    """Look at the job that ``cfg`` describes, from packages and paths to the pace of its first steps.

    Several processes are looked at by one of them, with its share of the batch. ``published`` is the batch and rate of
    the file before options changed them. Takes a minute or so; leaves nothing in ``OUTPUT_DIR``.
    """
    cfg = scale_rates(cfg)
    found: list[Found] = []
    with warnings_kept() as said:
        found += build_environment(cfg, init_method)
        found += checks.check_idle(idle_keys(cfg))
        found += build_label_findings(cfg)
        only_watches = cfg.DEMO.ENABLE and not cfg.TRAIN.ENABLE and not cfg.TEST.ENABLE
        data = [] if only_watches else build_data_findings(cfg)
        found += data
        if any(one.level == "problem" and one.text.startswith("list") for one in data):
            found.append(Found("steps", "note", "not tried: the lists cannot be read"))
        elif cfg.TRAIN.ENABLE:
            found += build_training(cfg, published)
        elif only_watches:
            found += build_weights(cfg)[0]
        else:
            found += build_testing(cfg)
        if cfg.DEMO.ENABLE:
            found += build_demo_findings(cfg)
    found += [Found("log", "warning", text) for text in dict.fromkeys(said)]
    return Preflight(tuple(found))


@contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """Collect what the package warns of, instead of showing it between the lines of the table."""
    said: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # What is said of convolutions is a finding of its own.
            if not record.name.endswith("conv_check"):
                said.append(record.getMessage())

    logger, keeper = logging.getLogger("slowfast"), Keeper(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(keeper)
    try:
        yield said
    finally:
        logger.removeHandler(keeper)
        logger.propagate = propagated


def build_environment(cfg, init_method: str | None) -> list[Found]:
    """Packages, devices, processes, workers."""
    optional = {"wandb": cfg.WANDB.ENABLE, "tensorboard": cfg.TENSORBOARD.ENABLE}
    packages = checks.PACKAGES | {name: name for name, asked in optional.items() if asked}
    found = [*checks.check_packages(packages), *checks.check_import_path(sys.path, Path(slowfast.__file__).parent)]
    visible, cores = torch.cuda.device_count(), os.cpu_count() or 1
    names = [torch.cuda.get_device_name(index) for index in range(visible)]
    found += checks.check_devices(cfg.NUM_GPUS, visible, names, torch.version.cuda, cores)
    device = get_device()
    precision = choose_precision(cfg.TRAIN.MIXED_PRECISION, device, cfg.TRAIN.MIXED_PRECISION_TYPE)
    if device.type == "cuda" and precision.dtype is not None:
        problems = check_convolutions(device, precision.dtype)
        found += [Found("environment", "problem", text, remedy(precision.dtype)) for text in problems]
        if not problems:
            found.append(Found("environment", "ok", f"cuDNN {torch.backends.cudnn.version()}, {precision.dtype}"))
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else None
    found += checks.check_processes(
        cfg.NUM_SHARDS, init_method, launched_by_torchrun=under_torchrun(), num_gpus=cfg.NUM_GPUS, local=local
    )
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    found += checks.check_workers(cfg.DATA_LOADER.NUM_WORKERS, local or max(cfg.NUM_GPUS, 1), usable, free)
    return found


def build_label_findings(cfg) -> list[Found]:
    """Whether loss, head and merging belong to the labels; boxes and pre-training have their own."""
    if cfg.DETECTION.ENABLE or cfg.MASK.ENABLE or cfg.TASK == "ssl" or cfg.MODEL.MODEL_NAME == "ContrastiveModel":
        return []
    return checks.check_labels(
        multi_label=cfg.DATA.MULTI_LABEL,
        loss=cfg.MODEL.LOSS_FUNC,
        activation=cfg.MODEL.HEAD_ACT,
        ensemble=cfg.DATA.ENSEMBLE_METHOD,
        classes=cfg.MODEL.NUM_CLASSES,
        tests=cfg.TEST.ENABLE,
    )


def build_data_findings(cfg, sample: int = 64) -> list[Found]:
    """What the lists say, which files are there, and whether ``sample`` videos of each split decode."""
    classes_key = "MODEL.NUM_CLASSES"
    if cfg.MODEL.MODEL_NAME == "ContrastiveModel":  # which has the width of its features in that key
        classes_key = "CONTRASTIVE.NUM_CLASSES_DOWNSTREAM"
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.NUM_CLASSES = cfg.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM
        cfg.freeze()
    try:
        check = build_data_check(cfg, sample=sample, workers=min(2, own_cores()))
    except _WRONG as error:
        return [Found("data", "problem", first_words(error).replace("MODEL.NUM_CLASSES", classes_key))]
    seen = ", ".join(f"{one.split}: {one.rows} rows, {one.decoded} videos tried" for one in check.splits)
    findings = [
        checks.DataFinding(one.level, one.kind, f"{one.split}: {one.what}: {one.text}") for one in check.findings
    ]
    return [Found("data", "ok" if check.ok else "note", seen), *checks.check_data(findings, classes_key)]


def build_training(cfg, published: Recipe | None) -> list[Found]:
    """Network, start, batch, memory and pace of the training."""
    try:
        phases = training_phases(cfg)
        run = build_run(phases[-1].cfg, milestones=phases[-1].milestones)  # the full shape
    except _WRONG as error:
        return [wrong_network(error)]
    shards, processes = cfg.NUM_SHARDS, max(cfg.NUM_GPUS, 1)
    size = sum(parameter.numel() for parameter in run.network.parameters()) / 1e6
    found = [Found("network", "ok", f"{type(run.network).__name__}, {size:.2f} M parameters")]
    found += build_start_findings(cfg, run)
    sampler = run.train_loader.batch_sampler
    found += checks.check_batch(
        batch=cfg.TRAIN.BATCH_SIZE,
        processes=processes,
        shards=shards,
        accumulation=cfg.TRAIN.ACCUMULATION_STEPS,
        rate=cfg.SOLVER.BASE_LR,
        clips=len(run.train_loader.dataset),
        published=published,
    )
    found += checks.check_norm(
        has_batch_norm=any("BatchNorm" in type(module).__name__ for module in run.network.modules()),
        clips=cfg.TRAIN.BATCH_SIZE // processes // max(cfg.TRAIN.ACCUMULATION_STEPS, 1),
        norm=phases[-1].cfg.BN.NORM_TYPE,
        frozen=cfg.MODEL.FROZEN_BN,
    )
    epochs = [(phase.milestones, epoch) for phase in phases for epoch in phase.epochs()]
    saved = sum(run.plan.checkpoint_due(epoch) if due is None else epoch in due for due, epoch in epochs)
    kept = (
        min(saved, cfg.TRAIN.CHECKPOINT_KEEP + cfg.TRAIN.CHECKPOINT_KEEP_BEST) if cfg.TRAIN.CHECKPOINT_KEEP else saved
    )
    existing = Path(cfg.OUTPUT_DIR).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    found += checks.check_output(cfg.OUTPUT_DIR, checkpoint_bytes(run) * max(kept, 1), free)
    if any(one.level == "problem" and one.topic == "batch" for one in found) or not len(sampler):
        return found
    course = build_course(phases, run.train_loader)
    return found + look_at_steps(run, course, processes=processes, shards=shards, workers=cfg.DATA_LOADER.NUM_WORKERS)


def look_at_steps(run: Run, course: Course, *, processes: int, shards: int, workers: int) -> list[Found]:
    """Memory and pace of a few steps of the last epoch's shape, and what they make of the whole ``course``."""
    found, pace = [], None
    on_gpu = run.device.type == "cuda"
    where, available = "the GPU", 0
    if on_gpu:
        available = torch.cuda.get_device_properties(run.device).total_memory
    else:
        where, available = "this machine", psutil.virtual_memory().available // processes
    estimate = 0
    try:
        run.train_loader.batch_sampler.set_epoch(0)
        estimate = estimate_memory(run, next(iter(run.train_loader)))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(run.device)
        pace = measure_steps(run)
        course.evaluation = measure_evaluation(run) * len(run.val_loader)
    except torch.OutOfMemoryError:
        text = f"out of memory in the first steps: the GPU has {available / checks.GIB:.1f} GiB"
        return [Found("memory", "problem", text, checks.LESS_MEMORY)]
    except NonFiniteLossError as error:
        remedy_of_loss = "a lower SOLVER.BASE_LR or WARMUP_START_LR, SOLVER.CLIP_GRAD_L2NORM 1.0, or bf16 for fp16"
        return [Found("steps", "problem", f"within the first steps: {error}", remedy_of_loss)]
    except _WRONG as error:
        return [Found("steps", "problem", f"the first steps failed: {first_words(error)}")]
    needed = torch.cuda.max_memory_allocated(run.device) if on_gpu else estimate
    found += checks.check_memory(needed, available, where=where, measured=on_gpu)
    advice = data_advice(workers, own_cores())
    found += checks.check_speed(pace.waiting, advice, pace_text(pace, processes * shards))
    steps, epochs, evaluations = len(run.train_loader), len(course.pixels), len(course.evaluated)
    whole = {"computing": (pace.step - pace.data) * steps, "waiting": pace.data * steps}
    text = eta(course.seconds_left(0, 0.0, like=epochs - 1, **whole))
    text += f" for {epochs} epochs and {evaluations} evaluations of {course.evaluation:.0f} s"
    several = "; the exchange of gradients is not in it" if processes * shards > 1 else ""
    return [*found, Found("time", "ok", f"about {text}, from {pace.steps} steps measured here{several}")]


def pace_text(pace: Pace, processes: int) -> str:
    """``pace`` in words."""
    together = f", {pace.clips_per_second * processes:.1f} on all {processes} processes" if processes > 1 else ""
    return (
        f"{pace.step:.3f} s per step of {pace.clips} clips ({pace.clips_per_second:.1f} clips/s{together}), "
        f"of which {pace.waiting:.0%} waiting for data"
    ).replace("%", " %")


def build_start_findings(cfg, run: Run) -> list[Found]:
    """What the training starts from, and whether it fits."""
    try:
        start = carry_out(build_start_plan(cfg), run.network, run.optimizer, run.scaler)
    except (CheckpointError, OSError, RuntimeError, KeyError) as error:
        return [wrong_checkpoint(error)]
    report = start.report
    found = checks.check_start(
        start.note,
        problems=len(report.problems()) if report else 0,
        loaded=len(report.loaded) if report else 0,
        table=report.table() if report else "",
        epoch=start.epoch,
        max_epoch=run.plan.max_epoch,
        resumed=start.resumed,
    )
    if cfg.TEST.ENABLE and cfg.TEST.CHECKPOINT_FILE_PATH:
        text = f"the test after training takes TEST.CHECKPOINT_FILE_PATH={cfg.TEST.CHECKPOINT_FILE_PATH}, not what is "
        found.append(Found("checkpoint", "warning", f"{text}trained here", "TEST.CHECKPOINT_FILE_PATH ''"))
    return found


def build_weights(cfg) -> tuple[list[Found], nn.Module | None, Task | None]:
    """Findings about the network of a job that does not train and about its weights; both, where they fit."""
    try:
        network, task = build_model(cfg), build_task(cfg)
        task.prepare(network, lambda: build_dataset(cfg.TRAIN.DATASET, cfg, "train"))
    except _WRONG as error:
        return [wrong_network(error)], None, None
    found = [Found("network", "ok", type(network).__name__)]
    try:
        plan = build_test_plan(cfg)
        start = carry_out(plan, network)
    except (CheckpointError, OSError, RuntimeError, KeyError) as error:
        return [*found, wrong_checkpoint(error)], None, None
    found.append(Found("checkpoint", "ok", f"{plan.path}: all {len(start.report.loaded)} weights fit"))
    return found, network, task


def build_testing(cfg) -> list[Found]:
    """Network, weights and one batch of a job that only tests."""
    found, network, task = build_weights(cfg)
    if network is None or task is None:
        return found
    try:
        device = get_device()
        loader = build_loader(cfg, "test")
        batch = next(iter(loader)).to(device)
        with torch.no_grad():
            scores = task.predict(network.eval().to(device), batch) if len(batch) else None
    except _WRONG as error:
        return [*found, Found("steps", "problem", f"the first batch failed: {first_words(error)}")]
    shape = "no clip of it could be read" if scores is None else f"scores {list(scores.shape)}"
    return [*found, Found("steps", "ok", f"the first of {len(loader)} batches: {shape}")]


def build_demo_findings(cfg) -> list[Found]:
    """Whether there is something to watch, and whether how it is to be drawn can be read. A camera is not opened."""
    section = cfg.DEMO
    name = f"{CAMERA}{section.WEBCAM}" if section.WEBCAM >= 0 else section.INPUT_VIDEO
    if not name:
        remedy = "DEMO.INPUT_VIDEO, or DEMO.WEBCAM with the number of a camera"
        return [Found("demo", "problem", "there is nothing to watch", remedy)]
    try:
        build_style(cfg)
        if cfg.DETECTION.ENABLE:
            build_detector_name(cfg)
            build_given_boxes(cfg, name)
        live = name.startswith(CAMERA) or is_live(name)
        length = "" if live else f", {build_stream(cfg, name).num_frames} frames"
    except _WRONG as error:
        return [Found("demo", "problem", first_words(error), "compare section DEMO with docs/demo.md")]
    return [Found("demo", "ok", f"{name}{length}")]


def wrong_network(error: Exception) -> Found:
    """The network, or something around it, cannot be built."""
    text = "the values named do not belong together: compare them with those of the published config of this network"
    return Found("network", "problem", first_words(error), text)


def wrong_checkpoint(error: Exception) -> Found:
    """Weights cannot be used."""
    text = "give weights that belong to this network (tools/zoo.py lists pairs of config and weights); for "
    text += (
        "fine-tuning, TRAIN.CHECKPOINT_FILE_PATH with TRAIN.CHECKPOINT_EPOCH_RESET True, where a new classifier may "
    )
    text += "differ"
    return Found("checkpoint", "problem", first_words(error), text)


def first_words(error: Exception) -> str:
    """The message of ``error``, without what goes on for pages."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
    return "\n".join(text.splitlines()[:12])
