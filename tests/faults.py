"""Faults on demand: a job in a process of its own, that is hurt at a named call of the package.

``Fault("slowfast.engine.train:train_step", 3, kill)`` replaces that function, in the child only, by one that calls
``kill()`` before its third call. The package itself knows nothing of this.
"""

import importlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

# Loader workers are forked from the process of a job: it must not have been used for computing before.
CONTEXT = multiprocessing.get_context("forkserver")
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


def kill_a_worker() -> None:
    """One of the processes that load data."""
    workers = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    workers[0].kill()


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
    process.join(timeout=seconds if seconds is not None else 300)
    if process.is_alive():
        process.kill()
        process.join()
        assert seconds is not None, "the job neither ended nor failed within five minutes"
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
