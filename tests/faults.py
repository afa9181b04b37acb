"""Faults on demand: a job in a process of its own, that is hurt at a named call of the package.

``Fault("slowfast.engine.train:train_step", 3, kill)`` replaces that function, in the child only, by one that calls
``kill()`` before its third call. The package itself knows nothing of this.
"""

import errno
import gc
import importlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from slowfast.engine.interrupt import Watch

# Loader workers are forked from the process of a job: it must not have been used for computing before.
CONTEXT = multiprocessing.get_context("forkserver")
# Everything that draws random numbers: loader workers, several augmented copies of a clip, mixup and CutMix, dropout.
# Six steps per epoch; evaluation and precise statistics after each.
EVERYTHING_RANDOM = (
    *("DATA_LOADER.NUM_WORKERS", 2, "TRAIN.BATCH_SIZE", 2, "SOLVER.MAX_EPOCH", 2, "LOG_PERIOD", 4),
    *("AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2, "AUG.RE_PROB", 0.5, "MIXUP.ENABLE", True, "MODEL.DROPOUT_RATE", 0.5),
    *("MODEL.LOSS_FUNC", "soft_cross_entropy", "BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", 2),
    *("TRAIN.CHECKPOINT_PERIOD_STEPS", 2, "MODEL.MODEL_NAME", "X3D", "MODEL.ARCH", "x3d", "X3D.WIDTH_FACTOR", 0.5),
    *("RESNET.TRANS_FUNC", "x3d_transform", "X3D.DIM_C5", 32, "X3D.DIM_C1", 8, "MODEL.DROPCONNECT_RATE", 0.3),
    *("DATA.TRAIN_CROP_SIZE", 32),
)
PATIENCE = 1200  # seconds: a tiny job on a machine that is busy with much else
TIMES = ("dt", "dt_data", "dt_net", "eta", "time_diff", "time", "gpu_mem", "RAM")


class Fault(NamedTuple):
    """``action()`` before the ``count``-th call of ``target`` ("module:function" or "module:Class.method")."""

    target: str
    count: int
    action: Callable[[], Any]


def kill() -> None:
    """As the system does it when memory runs out: at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def user_signal() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def hang() -> None:
    while True:
        time.sleep(0.1)


def lose_patience() -> None:
    """From now on twelve seconds without progress are a hang; what came before may have taken as long as it liked."""
    for watch in [item for item in gc.get_objects() if isinstance(item, Watch)]:
        watch.hang_seconds = 12.0


def kill_a_worker() -> None:
    """One of the processes that load data."""
    workers = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    workers[0].kill()


def terminate_all() -> None:
    """As a scheduler does it: a signal to the job and to all processes it has started."""
    pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)


def fill_the_disk() -> None:
    """From now on no file of this process grows beyond 40 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def read_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def poison_the_loss() -> None:
    """From now on the loss is not a number."""
    from slowfast.tasks.classification import Classification

    whole = Classification.loss

    def poisoned(self, *args):
        result = whole(self, *args)
        result.total = result.total * float("nan")
        return result

    Classification.loss = poisoned


def inject(faults: list[Fault]) -> None:
    """Put ``faults`` in place, in this process."""
    for fault in faults:
        module, _, name = fault.target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, _hurt(getattr(owner, name), fault))


def _hurt(function: Callable, fault: Fault) -> Callable:
    calls = 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.count:
            fault.action()
        return function(*args, **kwargs)

    return wrapper


def run_job(job: Callable[[], Any], faults: list[Fault] | None = None, *, seconds: float | None = None) -> int:
    """The exit code of ``job()`` in a process of its own; ``seconds`` after its start it is killed.

    Negative codes are signals. What an exception said stands in ``error.txt`` of ``job``'s output folder.
    """
    # CONTEXT.set_forkserver_preload has no effect once the server runs, and costs nothing then.
    CONTEXT.set_forkserver_preload(["torch", "slowfast.engine", "fvcore.nn.precise_bn", "faults"])
    process = CONTEXT.Process(target=_child, args=(job, faults or []))
    process.start()
    process.join(timeout=seconds if seconds is not None else PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        assert seconds is not None, f"the job neither ended nor failed within {PATIENCE} seconds"
    return process.exitcode


def _child(job: Callable[[], Any], faults: list[Fault]) -> None:
    torch.set_num_threads(1)
    inject(faults)
    try:
        job()
    except Exception:
        path = Path(job.args[0].OUTPUT_DIR) / "error.txt"
        path.write_text(traceback.format_exc())
        raise SystemExit(1) from None


# ---------------------------------------------------------------- what a job left


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint of a whole epoch: weights, statistics, optimizer, and whatever else."""
    newest = sorted(folder.glob("checkpoints/*checkpoint_epoch_?????.pyth"))[-1]
    return dict(_tensors("", torch.load(newest, weights_only=True)))


def _tensors(name: str, value: Any):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}/{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _tensors(f"{name}/{place}", item)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records in ``json_stats.log``, without times and memory."""
    lines = (folder / "json_stats.log").read_text().splitlines()
    parsed = [json.loads(line.removeprefix("json_stats: ")) for line in lines]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in parsed]


def differences(one: Path, two: Path) -> list[str]:
    """Names of all that is not equal to the last bit in the results of two jobs."""
    left, right = final_state(one), final_state(two)
    unequal = [name for name in left.keys() | right.keys() if name not in left or name not in right]
    unequal += [name for name in left.keys() & right.keys() if not torch.equal(left[name], right[name])]
    return sorted(unequal) + (["json_stats.log"] if records(one) != records(two) else [])


# ---------------------------------------------------------------- several processes


def hurt_rank(job: Callable[[], Any], rank: int, faults: list[Fault], everywhere: Sequence[Fault] = ()) -> Any:
    """``job()`` on every process of a launch, with ``faults`` on one of them and those ``everywhere`` on all."""
    from slowfast.utils import distributed

    torch.set_num_threads(1)
    inject(list(everywhere))
    if distributed.get_rank() == rank:
        inject(faults)
    return job()


class Launched:
    """A job on several processes, spawned from the one that :func:`run_job` starts."""

    def __init__(
        self,
        job: Callable[[], Any],
        processes: int,
        rank: int = 0,
        faults: Sequence[Fault] = (),
        everywhere: Sequence[Fault] = (),
    ) -> None:
        self.args = job.args  # the configuration comes first
        self.job, self.processes, self.rank = job, processes, rank
        self.faults, self.everywhere = list(faults), list(everywhere)

    def __call__(self) -> Any:
        from slowfast.engine import launch

        job = partial(hurt_rank, self.job, self.rank, self.faults, self.everywhere)
        return launch(job, processes=self.processes)


def train_and_test_noting_order(cfg, test_cfg=None):
    """``train(cfg)``, with the rows and pixels of every step in ``order_<rank>.jsonl``; then test ``test_cfg``."""
    from slowfast import engine
    from slowfast.utils import distributed

    path = Path(cfg.OUTPUT_DIR) / f"order_{distributed.get_rank()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module("slowfast.engine.train")
    step_of_training = module.train_step

    def noting(run, batch, epoch, step):
        clips = [zlib.crc32(clip.contiguous().numpy().tobytes()) for clip in batch.clips]
        with path.open("a") as file:
            file.write(json.dumps({"epoch": round(epoch, 6), "rows": batch.index.tolist(), "clips": clips}) + "\n")
        return step_of_training(run, batch, epoch, step)

    module.train_step = noting
    engine.train(cfg)
    if test_cfg is not None:
        engine.test(test_cfg)
