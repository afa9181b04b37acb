"""The learning rate as a pure function of the (fractional) epoch.

There is no scheduler object and no state: a resumed run asks for the rate of the epoch it is at.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

POLICIES = ("cosine", "steps_with_relative_lrs")


def lr_at(cfg: Any, epoch: float) -> float:
    """Learning rate at ``epoch``, e.g. 3.25 after a quarter of the fourth epoch; before any layer-wise decay."""
    solver = cfg.SOLVER
    return learning_rate(
        epoch,
        policy=solver.LR_POLICY,
        base_lr=solver.BASE_LR,
        max_epoch=solver.MAX_EPOCH,
        warmup_epochs=solver.WARMUP_EPOCHS,
        warmup_start_lr=solver.WARMUP_START_LR,
        cosine_end_lr=solver.COSINE_END_LR,
        cosine_after_warmup=solver.COSINE_AFTER_WARMUP,
        steps=solver.STEPS,
        relative_lrs=solver.LRS,
    )


def learning_rate(
    epoch: float,
    *,
    policy: str,
    base_lr: float,
    max_epoch: float,
    warmup_epochs: float = 0.0,
    warmup_start_lr: float = 0.0,
    cosine_end_lr: float = 0.0,
    cosine_after_warmup: bool = False,
    steps: Sequence[float] = (),
    relative_lrs: Sequence[float] = (),
) -> float:
    """The policy's rate, preceded by a linear warm-up that ends at what the policy says at ``warmup_epochs``."""

    def at(position: float) -> float:
        if policy == "cosine":
            start = warmup_epochs if cosine_after_warmup else 0.0
            return cosine(position, base_lr=base_lr, end_lr=cosine_end_lr, start=start, max_epoch=max_epoch)
        if policy == "steps_with_relative_lrs":
            # A published recipe lists MAX_EPOCH among its steps without a rate for it: that step is not reached.
            unreached = len([step for step in steps[len(relative_lrs) :] if step >= max_epoch])
            return base_lr * relative_step(position, steps[: len(steps) - unreached], relative_lrs)
        raise ValueError(f"SOLVER.LR_POLICY={policy!r} is unknown; choose one of {', '.join(POLICIES)}")

    if epoch >= warmup_epochs:
        return at(epoch)
    return warmup_start_lr + (at(warmup_epochs) - warmup_start_lr) * epoch / warmup_epochs


def cosine(epoch: float, *, base_lr: float, end_lr: float, start: float, max_epoch: float) -> float:
    """Half a cosine wave from ``base_lr`` at epoch ``start`` to ``end_lr`` at ``max_epoch``."""
    if end_lr >= base_lr:
        raise ValueError(f"SOLVER.COSINE_END_LR={end_lr} must be below SOLVER.BASE_LR={base_lr}")
    if max_epoch <= start:
        raise ValueError(
            f"SOLVER.MAX_EPOCH={max_epoch} leaves no epoch for the cosine, which SOLVER.COSINE_AFTER_WARMUP "
            f"starts after SOLVER.WARMUP_EPOCHS={start}"
        )
    progress = (epoch - start) / (max_epoch - start)
    return end_lr + (base_lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def relative_step(epoch: float, steps: Sequence[float], relative_lrs: Sequence[float]) -> float:
    """The factor of the last step that begins at or before ``epoch``.

    More factors than steps are accepted (published recipes have them) and the surplus is not used.
    """
    if not steps or steps[0] != 0:
        raise ValueError(f"SOLVER.STEPS={list(steps)} must begin with 0, the epoch where the first of SOLVER.LRS holds")
    if any(later < earlier for earlier, later in pairwise(steps)):  # equal ones: a phase that was rounded away
        raise ValueError(f"SOLVER.STEPS={list(steps)} must not decrease")
    if len(relative_lrs) < len(steps):
        raise ValueError(
            f"SOLVER.LRS={list(relative_lrs)} has {len(relative_lrs)} entries for the {len(steps)} of "
            f"SOLVER.STEPS={list(steps)}; give one relative rate per step"
        )
    return relative_lrs[max(bisect_right(steps, epoch) - 1, 0)]
