"""What a preflight measures: the pace of a few real steps, and the memory that a step needs."""

import itertools
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from slowfast.engine.accumulation import in_parts
from slowfast.engine.prefetch import DeviceMover
from slowfast.engine.run import Run
from slowfast.engine.stats import StepTimer
from slowfast.engine.train import seed_step, train_step

LEAST_STEPS = 6
# Once so many seconds have gone by, what has been measured is enough.
LONGEST = 90.0


@dataclass(frozen=True)
class Pace:
    """Seconds of a step (the mean of ``steps``), of which ``data`` are waiting for its batch of ``clips``."""

    steps: int
    clips: int
    step: float
    data: float

    @property
    def waiting(self) -> float:
        """The share of the time that goes by waiting for data."""
        return self.data / self.step if self.step > 0 else 0.0

    @property
    def clips_per_second(self) -> float:
        """Clips that one process trains on in a second."""
        return self.clips / self.step if self.step > 0 else 0.0


def measure_steps(run: Run, *, longest: float = LONGEST) -> Pace:
    """Train ``run`` for a few steps: its weights change, nothing is written.

    Batches that workers made while the first step got going (compiling, choosing kernels) are not counted.
    """
    ahead = 2 * run.train_loader.num_workers
    steps = min(ahead + LEAST_STEPS, len(run.train_loader))
    skipped = min(max(2, ahead), steps // 2)
    run.model.train()
    move, times, clips = DeviceMover(run.device), [], []
    run.train_loader.batch_sampler.set_epoch(0)
    began, timer = time.perf_counter(), StepTimer()
    batches = tqdm(itertools.islice(run.train_loader, steps), "steps", steps, leave=False, disable=None)
    for step, batch in enumerate(batches):
        batch = move(batch)
        timer.data_ready()
        seed_step(run.plan.seed, 0, step)
        train_step(run, batch, step / len(run.train_loader), step)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        timer.step_done()
        times.append((timer.step, timer.data))
        clips.append(len(batch))
        if time.perf_counter() - began > longest:
            break
    counted = times[min(skipped, len(times) - 1) :]
    mean = [sum(column) / len(counted) for column in zip(*counted, strict=True)]
    return Pace(len(counted), round(sum(clips) / len(clips)), *mean)


@torch.no_grad()
def measure_evaluation(run: Run, batches: int = 3) -> float:
    """Seconds of one batch of the validation; 0 where there is none."""
    if not run.task.evaluates or not len(run.val_loader):
        return 0.0
    run.network.eval()
    times = []
    began = time.perf_counter()
    for batch in itertools.islice(run.val_loader, batches):
        if len(batch):
            run.task.predict(run.network, batch.to(run.device)).float().cpu()
        now = time.perf_counter()
        times.append(now - began)
        began = now
    run.network.train()
    return median(times)


def estimate_memory(run: Run, batch: Any) -> int:
    """Bytes that training on ``batch`` (of this process) takes: weights, gradients, optimiser, what backward keeps.

    What backward keeps is counted in a forward pass of two clips and scaled; workspaces of kernels are not in it.
    """
    pieces = max(run.plan.accumulation, 1)
    clips = max(len(batch) // pieces, 1)
    part = in_parts(batch, max(len(batch) // 2, 1))[0][0].to(run.device)
    own = {tensor.untyped_storage().data_ptr() for tensor in run.network.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    run.network.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), run.precision.autocast():
        for piece in run.task.split(run.network, part):
            result = run.task.loss(run.network, piece, 0.0)
    activations = sum(kept.values()) * clips // max(len(part), 1)
    del result
    return state_bytes(run) + activations


def state_bytes(run: Run) -> int:
    """Bytes of weights, gradients, what the optimiser remembers of each, and the moving average."""
    weights = sum(parameter.nbytes for parameter in run.network.parameters())
    learning = sum(parameter.nbytes for parameter in run.network.parameters() if parameter.requires_grad)
    memories = 2 if "betas" in run.optimizer.defaults else 1
    return weights * (2 if run.average is not None else 1) + learning * (1 + memories)


def checkpoint_bytes(run: Run) -> int:
    """Bytes of one checkpoint, as near as it can be known before it is written."""
    learning = sum(parameter.nbytes for parameter in run.network.parameters() if parameter.requires_grad)
    return state_bytes(run) - learning
