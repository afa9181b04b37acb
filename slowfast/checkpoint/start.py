"""Which file a job starts from, and what is taken out of it.

A plan is made from plain values and can be read before anything is loaded; carrying it out fills the model.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.optim import Optimizer

from slowfast.checkpoint.convert import fit_state
from slowfast.checkpoint.finetune import advice, extras, may_differ
from slowfast.checkpoint.io import (
    CheckpointError,
    LoadReport,
    compare_weights,
    find_last_checkpoint,
    load_checkpoint,
    load_weights,
    misfit,
)
from slowfast.utils import distributed

TYPES = ("pytorch", "caffe2")
_STANDARD = ("epoch", "model_state", "optimizer_state", "scaler_state", "cfg", "split_statistics")


@dataclass(frozen=True)
class StartPlan:
    """The file to start from (None: random weights) and how it is used.

    ``resume``: this job's own checkpoint; everything must fit. ``continue``: another job's checkpoint; epoch and
    optimiser are taken if the model is the very same, else the weights alone. ``weights``: those alone. Of the
    weights for these two, only what a fine-tuning may lack need not fit. ``test``: the weights, all of which must fit.
    """

    path: str | None
    mode: Literal["resume", "continue", "weights", "test"] = "weights"
    inflate: bool = False
    clear_patterns: tuple[str, ...] = ()
    image_init: bool = False
    averaged: bool = False
    """Take the moving average of the weights, where the file has one."""


@dataclass(frozen=True)
class Start:
    """Where a job stands after its plan was carried out, and what was loaded.

    ``epoch`` (0-based) is the first to train, ``step`` how many of its steps are done. ``checkpoint`` holds what else
    the file of a resumed or continued training has (the standard entries are not repeated); ``resumed`` says that the
    file is this job's own.
    """

    epoch: int = 0
    path: str | None = None
    report: LoadReport | None = None
    note: str = "starting from random weights"
    step: int = 0
    resumed: bool = False
    checkpoint: dict[str, Any] = field(default_factory=dict)


def plan_training(
    output_dir: str | Path,
    *,
    task: str = "",
    auto_resume: bool = True,
    initial_path: str = "",
    initial_type: str = "pytorch",
    epoch_reset: bool = False,
    inflate: bool = False,
    clear_patterns: Sequence[str] = (),
    image_init: bool = False,
) -> StartPlan:
    """This job's newest good checkpoint, be it within an epoch; else ``initial_path``, if any.

    The first process looks for it and tells the others. A TASK of "ssl_eval" without a checkpoint of its own takes
    the newest one of the "ssl" task in the folder. Checkpoints of other tasks in the folder do not matter.
    """
    _check_type("TRAIN.CHECKPOINT_TYPE", initial_type)
    clear_patterns = tuple(clear_patterns)
    if auto_resume:
        own = _find_together(output_dir, task, within_epochs=True)
        if own:
            return StartPlan(own, "resume")
        pretrained = _find_together(output_dir, "ssl") if "ssl_eval" in task else None
        if pretrained:
            return StartPlan(pretrained, "weights", clear_patterns=clear_patterns)
    mode = "weights" if epoch_reset or inflate else "continue"
    return StartPlan(initial_path or None, mode, inflate, clear_patterns, image_init)


def plan_test(
    output_dir: str | Path,
    *,
    task: str = "",
    test_path: str = "",
    test_type: str = "pytorch",
    train_path: str = "",
    train_type: str = "pytorch",
    averaged: bool = False,
) -> StartPlan:
    """``test_path``, else the newest good checkpoint of the folder, else ``train_path``.

    A checkpoint from within an epoch is taken only where the folder has no other. Without any of them there is
    nothing to test: ``CheckpointError``.
    """
    _check_type("TEST.CHECKPOINT_TYPE", test_type)
    _check_type("TRAIN.CHECKPOINT_TYPE", train_type)
    path = test_path or _find_together(output_dir, task) or _find_together(output_dir, task, within_epochs=True)
    path = path or train_path
    if not path:
        raise CheckpointError(
            f"no weights to test: TEST.CHECKPOINT_FILE_PATH and TRAIN.CHECKPOINT_FILE_PATH are empty and "
            f"OUTPUT_DIR={output_dir} has no checkpoint{f' of TASK={task}' if task else ''}"
        )
    return StartPlan(path, "test", averaged=averaged)


def _find_together(output_dir: str | Path, task: str, *, within_epochs: bool = False) -> str | None:
    """What the first process finds, or the error that it meets, on every process."""
    found = None
    if distributed.is_main_process():
        try:
            found = find_last_checkpoint(output_dir, task, within_epochs=within_epochs)
        except CheckpointError as error:
            found = error
    found = distributed.all_gather_objects(found)[0]
    if isinstance(found, CheckpointError):
        raise found
    return found


def _check_type(key: str, value: str) -> None:
    if value not in TYPES:
        raise CheckpointError(f"{key}={value!r} is unknown; choose {' or '.join(TYPES)} (the file itself decides)")


def start_training(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    *,
    output_dir: str | Path,
    **options: Any,
) -> Start:
    """Plan (:func:`plan_training` says which ``options``) and carry out the start of a training."""
    return carry_out(plan_training(output_dir, **options), model, optimizer, scaler)


def load_test_weights(model: nn.Module, *, output_dir: str | Path, **options: Any) -> Start:
    """Plan (:func:`plan_test` says which ``options``) and carry out the loading of weights to test."""
    return carry_out(plan_test(output_dir, **options), model)


def build_test_plan(cfg: CfgNode, path: str | os.PathLike = "") -> StartPlan:
    """What a test of ``cfg`` starts from; ``path`` stands in front of ``TEST.CHECKPOINT_FILE_PATH``."""
    return plan_test(
        cfg.OUTPUT_DIR,
        task=cfg.TASK,
        test_path=os.fspath(path) or cfg.TEST.CHECKPOINT_FILE_PATH,
        test_type=cfg.TEST.CHECKPOINT_TYPE,
        train_path=cfg.TRAIN.CHECKPOINT_FILE_PATH,
        train_type=cfg.TRAIN.CHECKPOINT_TYPE,
        averaged=cfg.TRAIN.EMA_DECAY > 0,
    )


def last_trained_epoch(plan: StartPlan) -> int:
    """The epoch (0-based) that the plan's file was saved after or in; -1 where it does not go on from one."""
    if plan.path is None or plan.mode not in ("resume", "continue"):
        return -1
    checkpoint = load_checkpoint(plan.path)
    return int(checkpoint.get("epoch", -1)) + bool(checkpoint.get("position", {}).get("step", 0))


def carry_out(
    plan: StartPlan,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Start:
    """Fill ``model``, and ``optimizer`` and ``scaler`` where the plan says so, from the plan's file."""
    if plan.path is None:
        return Start()
    checkpoint = load_checkpoint(plan.path)
    state = checkpoint["model_state"]
    if plan.averaged and "ema_state" in checkpoint:
        state = checkpoint["ema_state"]["weights"]
    try:
        report = load_initial_weights(
            model,
            state,
            inflate=plan.inflate,
            clear_patterns=plan.clear_patterns,
            image_init=plan.image_init,
            allow_partial=plan.mode in ("continue", "weights"),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{plan.path}: {error}") from error
    if plan.mode == "resume":
        reason = _cannot_continue(checkpoint, report, optimizer)
        if reason:
            raise CheckpointError(
                f"cannot resume from {plan.path}: {reason}. Set TRAIN.AUTO_RESUME False or choose another OUTPUT_DIR"
            )
    elif plan.mode == "continue":
        reason = _cannot_continue(checkpoint, report, optimizer)
    else:
        reason = "epoch and optimiser are not asked for"
    if reason:
        return Start(0, plan.path, report, f"weights from {plan.path}; {reason}")

    load_optimizer(optimizer, checkpoint["optimizer_state"])
    if scaler is not None and scaler.is_enabled() and checkpoint.get("scaler_state"):
        scaler.load_state_dict(checkpoint["scaler_state"])
    _load_split_statistics(model, checkpoint.get("split_statistics", {}))
    epoch, step = checkpoint["epoch"] + 1, int(checkpoint.get("position", {}).get("step", 0))
    where = f"epoch {epoch + 1}" + (f" after {step} steps" if step else "")
    extras = {key: value for key, value in checkpoint.items() if key not in _STANDARD}
    return Start(
        epoch, plan.path, report, f"continuing {plan.path} at {where}", step, plan.mode == "resume", checkpoint=extras
    )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give ``optimizer`` a saved state; momenta of weights that are cut up over processes are cut up likewise."""
    optimizer.load_state_dict(state)
    for param, memory in optimizer.state.items():
        if hasattr(param, "device_mesh"):
            from slowfast.checkpoint.sharded import as_sharded

            for key, value in memory.items():
                if isinstance(value, torch.Tensor) and value.shape == param.shape:
                    memory[key] = as_sharded(value, param)


def _load_split_statistics(model: nn.Module, splits: dict[str, torch.Tensor]) -> None:
    """The statistics of each sub-batch, where the model has as many of them as the one that was saved."""
    target = distributed.unwrap(model).state_dict()
    fitting = {name: value for name, value in splits.items() if name in target and target[name].shape == value.shape}
    distributed.unwrap(model).load_state_dict(fitting, strict=False)


def load_initial_weights(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    *,
    inflate: bool = False,
    clear_patterns: Sequence[str] = (),
    image_init: bool = False,
    allow_partial: bool = True,
) -> LoadReport:
    """Convert ``state`` to what ``model`` needs (:func:`~slowfast.checkpoint.convert.fit_state`) and load it.

    With ``allow_partial``, what a fine-tuning may lack (:func:`~slowfast.checkpoint.finetune.may_differ`) need not
    fit. Anything else that does not is a ``CheckpointError`` with a table and advice, and so is a file that has
    nothing but such parts.
    """
    model = distributed.unwrap(model)
    options = {"clear_patterns": clear_patterns, "image_init": image_init}
    tables = {"grid": getattr(model, "patch_dims", None)}
    if getattr(model, "positions", None) == "sincos":
        tables["fixed"] = ("pos_embed", "decoder_pos_embed")
    fitted = fit_state(state, model.state_dict(), inflate=inflate, **options, **tables)
    report = compare_weights(model, fitted)
    allowed = may_differ(model, state, report=report, **options) if allow_partial else set()
    refused = [name for name in report.problems() if name not in allowed]
    useless = allow_partial and all(map(extras(model).match, report.loaded))
    if refused or useless or not report.loaded:
        raise CheckpointError(misfit(report, len(refused)) + advice(report, training=allow_partial))
    return load_weights(model, fitted, allow_partial=True)


def _groups_of(state: Any) -> list[dict[str, Any]] | None:
    """The parameter groups in the state of an optimiser; None where it is none."""
    groups = state.get("param_groups") if isinstance(state, Mapping) and "state" in state else None
    is_sound = isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups)
    return groups if is_sound else None


def _cannot_continue(checkpoint: dict[str, Any], report: LoadReport, optimizer: Optimizer | None) -> str:
    """Why training cannot go on from where the file stopped; empty if it can."""
    absent = [key for key in ("epoch", "optimizer_state") if key not in checkpoint]
    if absent:
        return f"the file has no {' and no '.join(absent)}, so training starts at the first epoch"
    if not report.complete:
        return f"the model differs in {len(report.problems())} weights, so optimiser and epoch start anew"
    if optimizer is None:
        return "no optimiser was given"
    saved, present = _groups_of(checkpoint["optimizer_state"]), optimizer.param_groups
    if saved is None:
        return "its optimizer_state is not that of an optimiser, so optimiser and epoch start anew"
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in present]:
        return "its optimiser has other parameter groups, so optimiser and epoch start anew"
    if any(("momentum" in one) != ("momentum" in two) for one, two in zip(saved, present, strict=True)):
        return "its optimiser is of another kind (SOLVER.OPTIMIZING_METHOD), so optimiser and epoch start anew"
    return ""
