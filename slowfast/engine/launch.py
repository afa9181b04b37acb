"""Processes and ranks: run a job in this process, in spawned ones, or as one of torchrun's."""

import atexit
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from slowfast.engine.interrupt import EXIT_CODE, Interrupted, forwarded
from slowfast.utils import distributed

logger = logging.getLogger(__name__)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def under_torchrun() -> bool:
    """Whether ``torchrun`` (or a launcher that sets the same variables) started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def get_device() -> torch.device:
    """The device of this process: its own GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", distributed.get_local_rank())
    return torch.device("cpu")


def launch(
    job: Callable[[], Any],
    *,
    processes: int = 1,
    num_shards: int = 1,
    shard_id: int = 0,
    init_method: str | None = None,
    backend: str = "nccl",
) -> Any:
    """Run ``job`` on ``processes`` processes of this machine and return the first one's result.

    ``job`` must be picklable and its result plain data. Under ``torchrun`` the launcher's own numbers are used.
    ``processes`` 0 or 1 on a single machine runs in this process, without a group. ``init_method`` defaults to a
    free port of this machine; with several machines it must be the same address for all (``tcp://host:port``). On
    the CPU the backend is gloo whatever ``backend`` says.
    """
    if under_torchrun():
        if not distributed.is_initialized():  # one group for all jobs of this process: its launcher knows one meeting
            _join(backend, "env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
            atexit.register(distributed.leave)
        return job()
    processes = max(processes, 1)
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(f"NUM_GPUS={processes} but this machine shows {torch.cuda.device_count()}: lower NUM_GPUS")
    if processes * num_shards == 1:
        return job()
    if init_method is None:
        if num_shards > 1:
            raise ValueError(f"NUM_SHARDS={num_shards} machines need --init_method tcp://HOST:PORT, the same on each")
        init_method = f"tcp://localhost:{_free_port()}"
    results = mp.get_context("spawn").SimpleQueue()
    arguments = (job, processes, num_shards, shard_id, init_method, backend, results)
    children = mp.spawn(_child, arguments, nprocs=processes, join=False)
    with forwarded(children.pids()) as sent:
        try:
            while not children.join():
                pass
        except mp.ProcessExitedException as error:
            # A process that was still starting does not listen yet and dies of the signal itself.
            if error.exit_code == EXIT_CODE or -error.exit_code in sent:
                raise Interrupted(f"process {error.error_index} was stopped by a signal") from error
            raise
    return results.get() if shard_id == 0 else None


def _child(
    local_rank: int,
    job: Callable[[], Any],
    processes: int,
    num_shards: int,
    shard_id: int,
    init_method: str,
    backend: str,
    results: Any,
) -> None:
    os.environ.update(LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE=str(processes))
    _join(backend, init_method, shard_id * processes + local_rank, processes * num_shards)
    try:
        result = job()
        if distributed.is_main_process():
            results.put(result)
    finally:
        distributed.leave()


def _join(backend: str, init_method: str, rank: int, world_size: int) -> None:
    """Enter the process group, with a fair share of the cores or the GPU of this rank."""
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    else:
        backend = "gloo"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with _fresh_store(rank, world_size) as store:
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    else:
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size)


@contextmanager
def _fresh_store(rank: int, world_size: int) -> Iterator[dist.Store]:
    """A part of torchrun's store that these processes alone have written to; inside, they may form their group.

    Agents on several machines keep one store over restarts. What processes that have died left there (their
    addresses, above all) would be taken for that of their successors, who would wait for each other forever. The
    number of restarts cannot tell them apart: the agent of a process that was merely stopped does not count one. So
    the first rank draws a name, and answers every process that asks for it by a name of its own.
    """
    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size)
    store, own, formed = dist.TCPStore(*where, is_master=False), uuid4().hex, Event()

    def answer() -> None:
        mine = dist.TCPStore(*where, is_master=False)
        while not formed.wait(0.05):
            for other in range(1, world_size):
                if mine.check([f"slowfast/asks/{other}"]):
                    mine.set(f"slowfast/answer/{mine.get(f'slowfast/asks/{other}').decode()}", own)

    if rank == 0:
        helper = Thread(target=answer, daemon=True)
        helper.start()
        name = own
    else:
        store.set(f"slowfast/asks/{rank}", own)
        name = store.get(f"slowfast/answer/{own}").decode()  # waits
    try:
        yield dist.PrefixStore(f"slowfast/{name}", store)
    finally:
        formed.set()
        if rank == 0:
            helper.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
