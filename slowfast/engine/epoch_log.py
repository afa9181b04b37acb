"""The lines and records of a training: scalars of the steps, means of the epoch, lowest errors so far."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slowfast.engine.course import Course
from slowfast.engine.output import epoch_of
from slowfast.engine.run import Run
from slowfast.engine.stats import (
    Record,
    Recorder,
    StepBuffer,
    StepTimer,
    Window,
    eta,
    gpu_memory,
    host_memory,
    own_cores,
    pace_values,
    waiting_line,
)
from slowfast.utils import distributed

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite, or grew beyond ``TRAIN.KILL_LOSS_EXPLOSION_FACTOR``."""


class BestErrors:
    """The lowest error of each kind so far, also over a resumed run: earlier records are read back."""

    def __init__(self, records: list[dict], before_epoch: int) -> None:
        self.lowest: dict[str, float] = {}
        for record in records:
            if record.get("_type") == "val_epoch" and epoch_of(record) <= before_epoch:
                self.update({key: value for key, value in record.items() if key in ("top1_err", "top5_err")})

    def update(self, results: Mapping[str, float]) -> dict[str, float]:
        """Take in new results; ``min_*`` of every error."""
        for name, value in results.items():
            if name.endswith("_err"):
                self.lowest[name] = min(value, self.lowest.get(name, math.inf))
        return {f"min_{name}": value for name, value in self.lowest.items()}


class EpochLog:
    """Times and scalars of one epoch: reads the device every ``log_period`` steps and writes the two kinds of line."""

    def __init__(self, run: Run, epoch: int, steps: int, recorder: Recorder, course: Course) -> None:
        self.run, self.epoch, self.steps, self.recorder, self.course = run, epoch, steps, recorder, course
        self.timer = StepTimer()
        self.buffer = StepBuffer()
        self.clips: list[int] = []
        self.batches: deque[int] = deque(maxlen=run.plan.log_period)
        self.said: float | None = None
        self.windows: dict[str, Window] = {}
        self.latest: dict[str, float] = {}
        self.head = {"epoch": f"{epoch + 1}/{run.plan.max_epoch}"}

    def add(self, step: int, scalars: Mapping[str, Tensor], clips: int) -> None:
        """Note one step; every ``log_period``-th writes a line."""
        self.buffer.add(scalars)
        self.clips.append(clips)
        self.batches.append(clips)
        self.timer.step_done()
        self._window("dt").add(self.timer.step)
        self._window("dt_data").add(self.timer.data)
        if (step + 1) % self.run.plan.log_period == 0:
            self._read()
            done = (step + 1) / self.steps
            record = {"_type": "train_iter_", **self.head, "iter": f"{step + 1}/{self.steps}"}
            record |= {**self._times(done), **self._values("median")}
            step_s, data_s = self._window("dt").mean, self._window("dt_data").mean
            clips = distributed.get_world_size() * sum(self.batches) / len(self.batches)
            pace = pace_values(data_s, step_s, clips=clips, device=self.run.device)
            place = self.course.place(self.epoch, done)
            self.recorder.write(record, place, keep=False, for_sinks=pace)
            self._say_what_is_waited_for(data_s, step_s)

    def _say_what_is_waited_for(self, data: float, step: float) -> None:
        """A line at the first log line of the epoch, and where a fifth more or less of the time is waited since."""
        share = data / step if step > 0 else 0.0
        if self.said is not None and abs(share - self.said) < 0.2:
            return
        self.said = share
        workers = getattr(self.run.train_loader, "num_workers", 0)
        line = waiting_line(data, step, workers=workers, cores=own_cores())
        if line and distributed.is_main_process():
            logger.info(f"waiting: {line}")

    def state(self) -> dict[str, Any]:
        """All that the lines and records to come depend on, in plain values; reads the device."""
        self._read()
        windows = {
            name: {"values": list(window.values), "count": window.count, "total": window.total}
            for name, window in self.windows.items()
        }
        return {"windows": windows, "latest": dict(self.latest), "processes": distributed.get_world_size()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave, say, in a process that was killed since.

        Steps weigh by the clips of one process: with another number of processes, those before weigh accordingly.
        """
        share = state["processes"] / distributed.get_world_size()
        for name, saved in state["windows"].items():
            window = self._window(name)
            window.values.extend(saved["values"])
            window.count, window.total = saved["count"] * share, saved["total"] * share
        self.latest = dict(state["latest"])

    def finish(self) -> None:
        """The record of the whole epoch."""
        self._read()
        record = {"_type": "train_epoch", **self.head, **self._times(1.0), "RAM": host_memory()}
        self.recorder.write({**record, **self._values("global_mean")}, self.course.place(self.epoch, 1.0))

    def _window(self, name: str) -> Window:
        return self.windows.setdefault(name, Window(self.run.plan.log_period))

    def _read(self) -> None:
        rows = self.buffer.read()
        for row, clips in zip(rows, self.clips, strict=True):
            for name, value in row.items():
                window = self._window(name)
                if name == "loss":
                    self._check_explosion(value, window)
                window.add(value, clips)
            self.latest = row
        self.clips.clear()

    def _check_explosion(self, loss: float, window: Window) -> None:
        before = list(window.values)[-5:]
        factor = self.run.plan.explosion_factor
        if factor > 0 and len(before) == 5 and loss > factor * sum(before) / 5:
            raise NonFiniteLossError(
                f"epoch {self.epoch + 1}: the loss jumped to {loss:.5g}, more than TRAIN.KILL_LOSS_EXPLOSION_FACTOR="
                f"{factor:g} times the mean of the five steps before ({sum(before) / 5:.5g})"
            )

    def _times(self, done: float) -> Record:
        step, data = self._window("dt").mean, self._window("dt_data").mean
        whole = {"computing": (step - data) * self.steps, "waiting": data * self.steps}
        return {
            "dt": step,
            "dt_data": data,
            "dt_net": step - data,
            "eta": eta(self.course.seconds_left(self.epoch, done, like=self.epoch, **whole)),
            "gpu_mem": gpu_memory(self.run.device),
        }

    def _values(self, kind: str) -> Record:
        means = {
            name: getattr(window, kind)
            for name, window in self.windows.items()
            if name not in ("dt", "dt_data", "grad_norm")
        }
        lr = self.run.optimizer.param_groups[0]["lr"] / self.run.optimizer.param_groups[0].get("layer_decay", 1.0)
        return {**means, "lr": lr, "grad_norm": self.latest["grad_norm"]}
