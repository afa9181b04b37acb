"""When a training is saved, and what is kept: copied to host memory between two steps, written by a second thread."""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from slowfast.checkpoint import (
    checkpoint_content,
    checkpoint_path,
    copy_to_host,
    list_positions,
    remove_leftovers,
    step_checkpoint_path,
    write_atomically,
)
from slowfast.config.load import dump_cfg
from slowfast.engine.interrupt import Interrupted, Wish
from slowfast.engine.output import epoch_of
from slowfast.engine.run import Run
from slowfast.utils import distributed

logger = logging.getLogger(__name__)

Position = tuple[int, int | None]
"""Whole epochs, and steps of the next one (None for the checkpoint that follows a whole epoch)."""


@dataclass(frozen=True)
class SavePlan:
    """Saving within epochs, every so many steps or minutes (0: not), and how many checkpoints of epochs are kept.

    ``keep`` 0 keeps all; otherwise the newest ``keep``, and the ``keep_best`` best by ``metric`` ("": map or
    top1_err, whichever the evaluation gives).
    """

    period_steps: int = 0
    period_minutes: float = 0.0
    keep: int = 0
    keep_best: int = 0
    metric: str = ""

    def __post_init__(self) -> None:
        for name in ("period_steps", "period_minutes", "keep", "keep_best"):
            if getattr(self, name) < 0:
                raise ValueError(f"TRAIN.CHECKPOINT_{name.upper()}={getattr(self, name)}: it may not be negative")

    @classmethod
    def from_cfg(cls, cfg) -> "SavePlan":
        """The keys ``TRAIN.CHECKPOINT_*``."""
        train = cfg.TRAIN
        return cls(
            period_steps=train.CHECKPOINT_PERIOD_STEPS,
            period_minutes=train.CHECKPOINT_PERIOD_MINUTES,
            keep=train.CHECKPOINT_KEEP,
            keep_best=train.CHECKPOINT_KEEP_BEST,
            metric=train.CHECKPOINT_BEST_METRIC,
        )


class Background:
    """Does one thing after another in a second thread. What fails there is raised by the next call here."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: list[Future] = []

    def submit(self, work: Callable[[], Any]) -> None:
        """Queue ``work``; waits until what was queued before is done, so that little is held in memory."""
        self.wait()
        self._pending.append(self._pool.submit(work))

    def check(self) -> None:
        """Raise what has failed so far."""
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()

    def wait(self) -> None:
        """Return when all is done."""
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        """Let what was queued come to its end, and end the thread."""
        self._pool.shutdown(wait=True)


@dataclass
class Saver:
    """Writes the checkpoints of one training and removes those that are superseded. A context manager.

    All processes call it alike; the first one writes. A write that failed stops the training: its cause is raised
    by the next call, and by leaving the context.
    """

    output_dir: str
    cfg_text: str
    plan: SavePlan
    task: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    """Evaluated epochs (counted from 1) and their metric, lower is better."""
    class_names: Sequence[str] = ()
    """Written into every checkpoint, where there are any."""

    def __post_init__(self) -> None:
        self._main = distributed.is_main_process()
        self._background = Background()
        self._saved: Position | None = None
        self._steps = 0
        self._since = time.monotonic()  # NOTE: not the time of day, which may jump

    def __enter__(self) -> "Saver":
        if self._main:
            remove_leftovers(self.output_dir)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._background.close()
        try:
            self._background.check()
        except Exception as failure:
            if not isinstance(error, Exception):
                raise
            logger.error(f"the last checkpoint failed too: {failure}")
        if isinstance(error, Interrupted):
            distributed.barrier()  # a launcher that sees one process end soon kills the others

    # ------------------------------------------------------------ when

    def step_done(self) -> bool:
        """Count a step; whether as many were done since the last checkpoint as ask for one. Raises what has failed."""
        self._background.check()
        self._steps += 1
        return 0 < self.plan.period_steps <= self._steps

    def wish(self) -> Wish:
        """Whether this process wants to save because of the time that has gone by: only the first one ever does."""
        minutes = (time.monotonic() - self._since) / 60
        due = self._main and 0 < self.plan.period_minutes <= minutes
        return Wish.SAVE if due else Wish.NOTHING

    # ------------------------------------------------------------ what

    def save_epoch(self, run: Run, epoch: int) -> None:
        """The checkpoint that follows ``epoch`` (0-based)."""
        self._save(run, (epoch + 1, None), checkpoint_path(self.output_dir, epoch, self.task), {})

    def save_step(self, run: Run, epochs: int, step: int, steps: int, progress: Mapping[str, Any]) -> None:
        """The checkpoint after ``epochs`` whole epochs and ``step`` of the ``steps`` steps of the next.

        ``progress`` are plain values that the logs go on from. Nothing is done where this position is saved already.
        """
        position = {"epoch": epochs, "step": step, "steps": steps, "layout": run.train_loader.batch_sampler.layout()}
        path = step_checkpoint_path(self.output_dir, epochs, step, self.task)
        if self._saved not in ((epochs, step), (epochs, step or None)):
            self._save(run, (epochs, step), path, {"position": position, **progress})

    def started_at(self, epochs: int, step: int) -> None:
        """Where the training goes on from: that need not be saved again."""
        self._saved = epochs, step or None

    def _save(self, run: Run, position: Position, path: str, extra: Mapping[str, Any]) -> None:
        self._saved, self._steps = position, 0
        if self.class_names:
            extra = {**extra, "class_names": list(self.class_names)}
        if run.is_sharded:
            self._save_sharded(run, position, path, extra)
        elif self._main:
            began = time.monotonic()
            scaler = run.scaler if run.precision.dtype is not None else None
            extra = {**extra, **run.extra_state()}
            content = checkpoint_content(run.network, run.optimizer, position[0] - 1, self.cfg_text, scaler, extra)
            self._background.submit(partial(self._write, path, copy_to_host(content)))
            logger.info(f"saving {path} (the training waited {time.monotonic() - began:.2f} s)")
        self._since = time.monotonic()

    def _save_sharded(self, run: Run, position: Position, path: str, extra: Mapping[str, Any]) -> None:
        """All processes write, and the training waits."""
        from slowfast.checkpoint.sharded import save_shards

        scaler = run.scaler if run.precision.dtype is not None else None
        content = checkpoint_content(run.network, run.optimizer, position[0] - 1, self.cfg_text, scaler, extra)
        rest = save_shards(path, content)
        if self._main:
            self._write(path, copy_to_host(rest))
        distributed.barrier()

    def _write(self, path: str, content: Mapping[str, Any]) -> None:
        write_atomically(path, content)
        logger.info(f"saved {path}")
        self._remove_superseded()

    # ------------------------------------------------------------ what is kept

    def evaluated(self, epoch: int, results: Mapping[str, float]) -> None:
        """Take in the result of the evaluation after ``epoch`` (0-based), which decides what is best."""
        self.scores |= score_of(epoch + 1, results, self.plan.metric)
        if self.plan.keep and self.plan.keep_best and epoch + 1 not in self.scores:
            raise ValueError(
                f"TRAIN.CHECKPOINT_BEST_METRIC={self.plan.metric!r} is not among the results of the evaluation: "
                f"{', '.join(results) or 'there are none'}"
            )
        if self._main and self.plan.keep:
            self._background.submit(self._remove_superseded)

    def finish(self) -> None:
        """Wait for what is being written, on every process; what was saved within epochs has had its use."""
        if self._main:
            self._background.wait()
            self._remove_superseded(spare=0)
        distributed.barrier()

    def _remove_superseded(self, spare: int = 2) -> None:
        reached = _order(self._saved) if self._saved else (0, 0)
        # What lies beyond is of another training in this folder, and none of this one's business.
        found = [entry for entry in list_positions(self.output_dir, self.task) if _order(entry[0]) <= reached]
        # Evaluations may come more often than checkpoints: only an epoch that was saved can be the best one to keep.
        saved = [position[0] for position, _ in found if position[1] is None and position[0] in self.scores]
        best = sorted(saved, key=lambda epoch: (self.scores[epoch], epoch))[: self.plan.keep_best]
        for path in superseded(found, keep=self.plan.keep, best=best, spare=spare):
            Path(path).unlink(missing_ok=True)
            shutil.rmtree(f"{path}.shards", ignore_errors=True)
            logger.info(f"removed {path}: it is superseded")


def _order(position: Position) -> tuple[int, int]:
    return position[0], -1 if position[1] is None else position[1]


def superseded(
    found: Sequence[tuple[Position, str]], *, keep: int, best: Collection[int] = (), spare: int = 2
) -> list[str]:
    """Which of the checkpoints ``found`` (oldest first) are not needed any more.

    Of whole epochs: those that are not among the newest ``keep`` (0: all) nor of the ``best`` epochs. From within
    epochs: those that are not among the ``spare`` newest of all, and those before the newest whole epoch if none is
    to be spared.
    """
    wholes = [position[0] for position, _ in found if position[1] is None]
    kept = {*(wholes[-keep:] if keep else wholes), *best}
    newest = {path for _, path in found[len(found) - spare :]}
    last_whole = wholes[-1] if wholes else -1
    removed = []
    for (epochs, step), path in found:
        if step is None:
            removed += [path] if epochs not in kept else []
        elif path not in newest and (spare or epochs < last_whole):
            removed.append(path)
    return removed


def score_of(epoch: int, results: Mapping[str, Any], metric: str) -> dict[int, float]:
    """{epoch: value}, such that lower is better; empty where the results do not have the metric."""
    names = (metric,) if metric else ("map", "top1_err")
    name = next((name for name in names if isinstance(results.get(name), int | float)), None)
    if name is None:
        return {}
    sign = 1 if name.endswith(("_err", "loss")) else -1
    return {epoch: sign * float(results[name])}


def build_saver(cfg, records: Sequence[Mapping[str, Any]], class_names: Sequence[str] = ()) -> Saver:
    """The saver that ``cfg`` describes; ``records`` of earlier evaluations say which epochs were best so far."""
    plan = SavePlan.from_cfg(cfg)
    scores: dict[int, float] = {}
    for record in records:
        if record.get("_type") == "val_epoch":
            scores |= score_of(epoch_of(record), record, plan.metric)
    return Saver(cfg.OUTPUT_DIR, dump_cfg(cfg), plan, cfg.TASK, scores, class_names)
