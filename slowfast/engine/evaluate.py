"""One pass over a loader without gradients, each row exactly once, on any number of processes."""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from slowfast.engine.interrupt import Watch
from slowfast.engine.stats import Recorder, eta, gpu_memory
from slowfast.evaluation.metrics import Metric
from slowfast.tasks import Task
from slowfast.utils import distributed

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    task: Task,
    metric: Metric,
    *,
    device: torch.device,
    recorder: Recorder,
    on_bad: Callable[[list], None],
    name: str,
    header: dict[str, object],
    log_period: int,
    watch: Watch | None = None,
) -> Metric:
    """Predict every batch of ``loader`` and return ``metric``, reduced over processes.

    ``model`` must be the bare network: ranks may have different numbers of batches, and a wrapper that
    communicates in its forward pass would wait forever. ``header`` starts the line logged every ``log_period``
    batches; ``on_bad`` is told of the videos that could not be decoded; ``name`` is shown on
    the progress bar. ``watch`` stops the evaluation between two batches when a signal has come.
    """
    was_training = model.training
    model.eval()
    started = time.perf_counter()
    steps = len(loader)
    bar = tqdm(loader, desc=name, unit="batch", leave=False, disable=None if distributed.is_main_process() else True)
    batches = bar if watch is None else watch.over(bar, steps, name)
    for step, batch in enumerate(batches, start=1):
        on_bad(batch.bad)
        if len(batch):
            batch = batch.to(device)
            metric.update(task.predict(model, batch).float(), batch)
        if step % log_period == 0:
            seconds = (time.perf_counter() - started) / step
            extra = {"gpu_mem": gpu_memory(device)}
            position = {"cur_iter" if "split" in header else "iter": f"{step}/{steps}"}
            timing = {"time_diff": seconds, "eta": eta(seconds * (steps - step))}
            recorder.write({**header, **position, **timing, **extra}, step, keep=False)
    metric.reduce()
    model.train(was_training)
    return metric
