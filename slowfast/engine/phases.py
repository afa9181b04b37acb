"""Phases: stretches of epochs, each trained with its own frozen configuration (one input shape each).

Multigrid training (Wu et al., "A Multigrid Method for Efficiently Training Video Models",
https://arxiv.org/abs/1912.00998) is a list of phases. The *long cycle* goes from few frames and small crops in large
batches to the full shape, once per step of the learning-rate schedule; each of its shapes is a phase. The *short cycle*
varies crop and batch from step to step inside a phase; the sampler does that (``datasets/samplers.py``).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from slowfast.utils import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """The epochs ``first_epoch`` to ``last_epoch`` (0-based, both included) are trained as ``cfg`` says.

    ``milestones``, where given, are the epochs that a checkpoint and an evaluation follow, whatever the periods say.
    """

    cfg: CfgNode
    first_epoch: int
    last_epoch: int
    milestones: frozenset[int] | None = None

    def epochs(self, start: int = 0) -> range:
        """The epochs of this phase from ``start`` on; empty if the phase lies before it."""
        return range(max(start, self.first_epoch), self.last_epoch + 1)


def phase_of(phases: Sequence[Phase], epoch: int) -> Phase:
    """The phase that ``epoch`` is trained in; the first or last one where it lies outside."""
    return next((phase for phase in phases if epoch <= phase.last_epoch), phases[-1])


class Shape(NamedTuple):
    """What a clip of a phase is, and by how much its batch is larger than that of the full shape."""

    batch_factor: int
    frames: int
    crop: int


class Stretch(NamedTuple):
    """One entry of the long-cycle schedule: up to ``end`` (an epoch, excluded) in learning-rate step ``step``."""

    step: int
    shape: Shape
    end: int


def training_phases(cfg) -> list[Phase]:
    """The phases that ``cfg`` describes, in order and without gaps, from epoch 0 to the last."""
    multigrid = cfg.MULTIGRID
    if not (multigrid.SHORT_CYCLE or multigrid.LONG_CYCLE):
        return [Phase(cfg, 0, cfg.SOLVER.MAX_EPOCH - 1)]
    keys = " and ".join(f"MULTIGRID.{name}" for name in ("SHORT_CYCLE", "LONG_CYCLE") if multigrid[name])
    if cfg.MASK.ENABLE or cfg.AUG.GEN_MASK_LOADER:
        raise ValueError(f"{keys} and masks of one size (MASK.ENABLE, AUG.GEN_MASK_LOADER) exclude each other")
    if cfg.DETECTION.ENABLE and multigrid.SHORT_CYCLE:
        raise ValueError(
            "MULTIGRID.SHORT_CYCLE crops clips, DETECTION.ENABLE needs boxes of whole ones: switch one off"
        )
    if multigrid.EPOCH_FACTOR <= 0:
        raise ValueError(f"MULTIGRID.EPOCH_FACTOR={multigrid.EPOCH_FACTOR} is not above 0")
    phases = build_long_cycle(cfg) if multigrid.LONG_CYCLE else [build_short_cycle(cfg)]
    for phase in phases:
        log_phase(phase.first_epoch, phase.last_epoch, phase.cfg)
    return phases


def build_short_cycle(cfg) -> Phase:
    """One phase of the full shape, ``MULTIGRID.EPOCH_FACTOR`` times as long."""
    factor = cfg.MULTIGRID.EPOCH_FACTOR
    longer = _changed(
        cfg,
        **build_defaults(cfg),
        SOLVER__STEPS=[int(step * factor) for step in cfg.SOLVER.STEPS],
        SOLVER__MAX_EPOCH=int(cfg.SOLVER.MAX_EPOCH * factor),
    )
    return Phase(longer, 0, longer.SOLVER.MAX_EPOCH - 1)


def build_long_cycle(cfg) -> list[Phase]:
    """A phase per shape of every cycle; neighbours of one shape are one phase.

    All phases share the learning-rate steps of the whole training. A cosine has no steps to scale: there the base
    rate of each phase is that of its batch, and ``SOLVER.STEPS`` only says where the cycles begin.
    """
    multigrid = cfg.MULTIGRID
    stretches = long_cycle_schedule(
        frames=cfg.DATA.NUM_FRAMES,
        crop=cfg.DATA.TRAIN_CROP_SIZE,
        long_factors=multigrid.LONG_CYCLE_FACTORS,
        short_factors=multigrid.SHORT_CYCLE_FACTORS if multigrid.SHORT_CYCLE else (),
        steps=cfg.SOLVER.STEPS,
        max_epoch=cfg.SOLVER.MAX_EPOCH,
        epoch_factor=multigrid.EPOCH_FACTOR,
    )
    changes = {**build_defaults(cfg), "SOLVER__MAX_EPOCH": stretches[-1].end}
    if cfg.SOLVER.LR_POLICY != "cosine":
        steps, rates = long_cycle_rates(stretches, gamma=cfg.SOLVER.GAMMA)
        changes |= {"SOLVER__STEPS": steps, "SOLVER__LRS": rates}
    phases: list[Phase] = []
    current, before, first = _changed(cfg, **changes), None, 0
    for _, shape, end in stretches:
        if end == first:
            continue  # rounded away
        milestones = milestones_of(first, end, multigrid.EVAL_FREQ)
        if phases and shape == before:
            phases[-1] = replace(phases[-1], last_epoch=end - 1, milestones=phases[-1].milestones | milestones)
        else:
            current = build_phase_cfg(cfg, current, shape)
            phases.append(Phase(current, first, end - 1, milestones))
        first, before = end, shape
    return phases


def build_phase_cfg(cfg, current: CfgNode, shape: Shape) -> CfgNode:
    """``current`` (the phase before, or the whole training) with clips of ``shape``; ``cfg`` is the user's own."""
    batch = shape.batch_factor * cfg.TRAIN.BATCH_SIZE
    processes = distributed.get_local_world_size() if distributed.is_initialized() else max(1, cfg.NUM_GPUS)
    changes: dict[str, Any] = {
        "DATA__NUM_FRAMES": shape.frames,
        "DATA__TRAIN_CROP_SIZE": shape.crop,
        "TRAIN__BATCH_SIZE": batch,
        "MULTIGRID__LONG_CYCLE_SAMPLING_RATE": cfg.DATA.SAMPLING_RATE * (cfg.DATA.NUM_FRAMES // shape.frames),
        **{
            f"BN__{key}": value
            for key, value in choose_norm(max(batch // processes, 1), cfg.MULTIGRID.BN_BASE_SIZE).items()
        },
    }
    if cfg.BN.GLOBAL_SYNC:
        changes.pop("BN__NUM_SYNC_DEVICES", None)
    if cfg.SOLVER.LR_POLICY == "cosine":
        for key in ("BASE_LR", "COSINE_END_LR"):
            changes[f"SOLVER__{key}"] = cfg.SOLVER[key] * shape.batch_factor
    return _changed(current, **changes)


def build_defaults(cfg) -> dict[str, int]:
    """The full shape, kept beside that of each phase."""
    shape = {"B": cfg.TRAIN.BATCH_SIZE, "T": cfg.DATA.NUM_FRAMES, "S": cfg.DATA.TRAIN_CROP_SIZE}
    return {f"MULTIGRID__DEFAULT_{name}": value for name, value in shape.items()}


def _changed(tree: CfgNode, **changes: Any) -> CfgNode:
    """A frozen copy of ``tree`` with ``SECTION__KEY=value`` set."""
    copy = tree.clone()
    copy.defrost()
    for name, value in changes.items():
        section, key = name.split("__")
        copy[section][key] = value
    copy.freeze()
    return copy


def log_phase(first_epoch: int, last_epoch: int, tree: CfgNode) -> None:
    """Say what the epochs of a phase train on."""
    norm = tree.BN.NORM_TYPE
    if norm == "sub_batchnorm":
        norm += f" of {tree.BN.NUM_SPLITS} splits"
    if norm == "sync_batchnorm":
        norm += f" over {tree.BN.NUM_SYNC_DEVICES} processes"
    logger.info(
        f"epochs {first_epoch + 1} to {last_epoch + 1}: batch {tree.TRAIN.BATCH_SIZE}, "
        f"{tree.DATA.NUM_FRAMES} frames of {tree.DATA.TRAIN_CROP_SIZE} px"
        + (", short cycle" if tree.MULTIGRID.SHORT_CYCLE else "")
        + f", {norm}"
    )


# ---------------------------------------------------------------- numbers


def long_cycle_schedule(
    *,
    frames: int,
    crop: int,
    long_factors: Sequence[Sequence[float]],
    short_factors: Sequence[float],
    steps: Sequence[int],
    max_epoch: int,
    epoch_factor: float,
) -> list[Stretch]:
    """The shapes of a whole training: one long cycle per learning-rate step, and the full shape in the last step.

    ``long_factors`` are (frames, crop) relative to the full shape, ``short_factors`` the crops of the short cycle
    (empty without one). A shape gets epochs in proportion to the mean batch it is trained with, so that all shapes of
    a cycle make the same number of updates, and all together ``epoch_factor * max_epoch``.
    """
    if not steps or steps[0] != 0 or max_epoch <= steps[-1]:
        raise ValueError(
            f"SOLVER.STEPS={list(steps)}: MULTIGRID.LONG_CYCLE runs one cycle per learning-rate step, so they must "
            f"begin with 0 and end before SOLVER.MAX_EPOCH={max_epoch}, e.g. [0, {max_epoch * 2 // 5}, "
            f"{max_epoch * 2 // 3}]"
        )
    shapes, batches = [], []
    for time_factor, space_factor in long_factors:
        shape_frames, shape_crop = round(frames * time_factor), round(crop * space_factor)
        if shape_frames < 1 or shape_crop < 1:
            raise ValueError(
                f"MULTIGRID.LONG_CYCLE_FACTORS: ({time_factor}, {space_factor}) leaves nothing of DATA.NUM_FRAMES="
                f"{frames} frames of DATA.TRAIN_CROP_SIZE={crop}"
            )
        crops = [*(round(crop * factor) for factor in short_factors), shape_crop]
        factors = [round(frames * crop**2 / (shape_frames * side**2)) for side in crops]
        shapes.append(Shape(factors[-1], shape_frames, shape_crop))
        batches.append(fmean(factors))
    total = sum(batches)
    lengths = [
        (step, shape, (end - start) * batch / total)
        for step, (start, end) in enumerate(pairwise(steps))
        for shape, batch in zip(shapes, batches, strict=True)
    ]
    # A cycle makes total / len(batches) times fewer updates than the full shape in as many epochs; so does the rest.
    saving = total / len(batches)
    lengths.append((len(steps) - 1, shapes[-1], (max_epoch - steps[-1]) / saving * batches[-1]))
    scale = max_epoch * epoch_factor / sum(length for _, _, length in lengths)
    stretches, position = [], 0.0
    for step, shape, length in lengths:
        position += length * scale
        stretches.append(Stretch(step, shape, round(position)))
    return stretches


def long_cycle_rates(stretches: Sequence[Stretch], *, gamma: float) -> tuple[list[int], list[float]]:
    """Steps and relative rates: ``gamma`` to the power of the step, times the batch factor.

    The first half of the last stretch keeps the rate of the one before it.
    """
    ends = [stretch.end for stretch in stretches]
    before = ends[-2] if len(ends) > 1 else 0
    steps = [0, *ends[:-1], (before + ends[-1]) // 2]
    rates = [gamma**stretch.step * stretch.shape.batch_factor for stretch in stretches]
    kept = rates[-2] if len(rates) > 1 else rates[-1]
    return steps, [*rates[:-1], kept, rates[-1]]


def milestones_of(first: int, end: int, frequency: int) -> frozenset[int]:
    """About ``frequency`` epochs of ``first`` .. ``end`` - 1, evenly spread, with the last one among them."""
    period = max((end - first) // max(frequency, 1) + 1, 1)
    return frozenset(range(end - 1, first - 1, -period))


def choose_norm(batch: int, base: int) -> dict[str, Any]:
    """Batch norm that takes its statistics from about ``base`` clips, where a process has ``batch``."""
    if batch < base:
        return {"NORM_TYPE": "sync_batchnorm", "NUM_SYNC_DEVICES": base // batch}
    if batch == base:
        return {"NORM_TYPE": "batchnorm"}
    splits = next(count for count in range(batch // base, 0, -1) if batch % count == 0)
    return {"NORM_TYPE": "sub_batchnorm", "NUM_SPLITS": splits}
