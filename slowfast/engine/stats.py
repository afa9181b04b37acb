"""Numbers over time: windows, timers, time left, and the ``json_stats`` line that users' parsers read.

Scalars of a step stay on the device; they are stacked, read and averaged over ranks once per log period.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from statistics import fmean, median
from typing import Protocol

import psutil
import torch
from torch import Tensor

from slowfast.utils import distributed

logger = logging.getLogger(__name__)

Record = dict[str, object]


class Sink(Protocol):
    """Where records go besides the log: TensorBoard, or a service."""

    def write(self, record: Record, step: int) -> None:
        """Store ``record``; ``step`` is the epoch for records of evaluations, else that of ``Course.place``."""
        ...

    def add_predictions(self, scores: Tensor, labels: Tensor, step: int) -> None:
        """Show how classes are told apart: merged scores [N, K] and labels of a tested split."""
        ...

    def close(self) -> None:
        """Flush what is left."""
        ...


def json_stats_line(record: Mapping[str, object]) -> str:
    """One line with sorted keys; floats as numbers of five decimals."""

    def render(value: object) -> str:
        return f"{value:.5f}" if isinstance(value, float) and math.isfinite(value) else json.dumps(value)

    body = ", ".join(f"{json.dumps(key)}: {render(record[key])}" for key in sorted(record))
    return f"json_stats: {{{body}}}"


Naming = Callable[[Mapping[str, object]], Record]
"""How the lines of a kind of job differ from those of classification. Sinks get the names of classification."""


def ssl_names(record: Mapping[str, object]) -> Record:
    """Lines of pre-training without labels: ``train_iter_ssl``, ``val_epoch_ssl`` and so on."""
    return {**record, "_type": f"{str(record['_type']).rstrip('_')}_ssl"} if "_type" in record else dict(record)


def detection_names(record: Mapping[str, object]) -> Record:
    """Lines about boxes: mode, epoch and step under names of their own, beside those of classification."""
    kind = str(record.get("_type") or record.get("split")).rstrip("_")
    named: Record = {**record, "mode": kind.split("_")[0]}
    if kind != "test_final":
        named["_type"] = kind
    if "epoch" in record:
        epoch = str(record["epoch"])
        named["cur_epoch"] = epoch if kind.endswith("_iter") else epoch.split("/")[0]
    if kind.endswith("_iter"):
        named["cur_iter"] = str(record.get("iter", record.get("cur_iter"))).split("/")[0]
        named.setdefault("dt", record.get("time_diff"))
    return named


def plain_names(record: Mapping[str, object]) -> Record:
    """A record that was read, with the ``_type`` that it has in classification, whatever kind of job wrote it."""
    return {**record, "_type": str(record["_type"]).removesuffix("_ssl")} if "_type" in record else dict(record)


class Window:
    """The last ``size`` values of a series, and the sum of all."""

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.count = 0
        self.total = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        """Append one value; ``weight`` (say, the number of clips) counts in the mean of all."""
        self.values.append(value)
        self.count += weight
        self.total += value * weight

    @property
    def median(self) -> float:
        """Median of the window (mean of the middle two)."""
        return median(self.values)

    @property
    def mean(self) -> float:
        """Mean of the window."""
        return fmean(self.values)

    @property
    def global_mean(self) -> float:
        """Weighted mean of everything ever added."""
        return self.total / max(self.count, 1)


class StepTimer:
    """Splits the time of each step into waiting for data and the rest, in seconds."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.data = 0.0
        self.step = 0.0

    def data_ready(self) -> None:
        """The batch has arrived."""
        self.data = time.perf_counter() - self.start

    def step_done(self) -> None:
        """The step is over and the next wait begins."""
        now = time.perf_counter()
        self.step, self.start = now - self.start, now


def gpu_memory(device: torch.device) -> str:
    """Largest memory this process has held on its GPU, as "x.xxG"."""
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return f"{used / 1024**3:.2f}G"


def host_memory() -> str:
    """Memory in use and in all on this machine, as "x.xx/y.yyG"."""
    memory = psutil.virtual_memory()
    return f"{(memory.total - memory.available) / 1024**3:.2f}/{memory.total / 1024**3:.2f}G"


def eta(seconds: float) -> str:
    """Time left as "d days, hh:mm:ss"."""
    return str(timedelta(seconds=int(max(seconds, 0.0))))


def waiting_line(data: float, step: float, *, workers: int, cores: int) -> str:
    """What a training waits for ("62 % data: decode") and what to do, where waiting takes a tenth of it or more.

    ``data`` seconds of ``step`` seconds go by until the next batch is there; ``workers`` make batches for a process
    that has ``cores`` processor cores to itself. Empty where the device is kept busy.
    """
    share = data / step if step > 0 else 0.0
    return f"{share:.0%} data: decode; {data_advice(workers, cores)}".replace("%", " %") if share >= 0.1 else ""


def pace_values(data: float, step: float, *, clips: float, device: torch.device) -> Record:
    """Throughput, waiting and memory as plain numbers, for sinks; ``clips`` of a step on all processes.

    ``data`` of ``step`` seconds are waiting. Memory in GiB; that of the GPU only where there is one.
    """
    memory = psutil.virtual_memory()
    values: Record = {"ram_gb": (memory.total - memory.available) / 1024**3}
    if step > 0:
        values |= {"clips_per_s": clips / step, "data_wait": 100 * data / step}
    if device.type == "cuda":
        values["gpu_mem_gb"] = torch.cuda.max_memory_allocated(device) / 1024**3
    return values


def data_advice(workers: int, cores: int) -> str:
    """How batches would come faster to a process with ``workers`` of them and ``cores`` cores."""
    prepare = "tools/prepare_videos.py makes videos cheap to decode (docs/preparing_videos.md)"
    if workers < cores - 1 or not workers:
        return f"raise DATA_LOADER.NUM_WORKERS from {workers} to {max(cores - 1, 1)}; {prepare}"
    return f"all {cores} cores are in use; {prepare}"


def own_cores() -> int:
    """Processor cores that each process of this machine has to itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // distributed.get_local_world_size())


class Recorder:
    """Sends records to the log, to ``json_stats.log`` and to sinks; silent on all ranks but the first.

    ``naming`` makes the lines of records that are named as in classification.
    """

    def __init__(
        self, output_dir: str | Path | None = None, sinks: list[Sink] | None = None, *, naming: Naming = dict
    ) -> None:
        self.active = distributed.is_main_process()
        self.path = Path(output_dir) / "json_stats.log" if output_dir is not None and self.active else None
        self.sinks = (sinks or []) if self.active else []
        self.naming = naming

    def write(
        self, record: Record, step: int, *, keep: bool = True, for_sinks: Mapping[str, object] | None = None
    ) -> None:
        """Log ``record``; ``keep`` also appends it to ``json_stats.log`` (epoch and final results).

        ``for_sinks``: what sinks get besides, and the lines, whose keys parsers know, do not.
        """
        if not self.active:
            return
        line = json_stats_line(self.naming(record))
        logger.info(line)
        if keep and self.path is not None:
            with self.path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint that takes it for written
        for sink in self.sinks:
            sink.write({**record, **(for_sinks or {})}, step)

    def show_predictions(self, scores: Tensor, labels: Tensor, step: int) -> None:
        """Hand the predictions of a tested split, scores [N, K] and labels, to the sinks."""
        for sink in self.sinks:
            sink.add_predictions(scores, labels, step)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()


class StepBuffer:
    """Scalars of the steps since the last reading, still on the device.

    ``add`` costs no synchronisation; ``read`` copies all to the host in one go, averaged over ranks.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.rows: list[Tensor] = []

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Keep the scalars of one step; each step must bring the same names."""
        self.names = tuple(scalars)
        self.rows.append(torch.stack([value.detach().float().reshape(()) for value in scalars.values()]))

    def read(self) -> list[dict[str, float]]:
        """One mapping per step since the last call."""
        if not self.rows:
            return []
        table = distributed.all_reduce_mean(torch.stack(self.rows)).tolist()
        self.rows.clear()
        return [dict(zip(self.names, row, strict=True)) for row in table]
