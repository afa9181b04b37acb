"""A group forms under torchrun's store although dead processes left their addresses there."""

import multiprocessing
import os

import pytest
import torch.distributed as dist

from slowfast.engine.launch import _fresh_store


def join(rank, port, results):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with _fresh_store(rank, 2) as store:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    value = [None, None]
    dist.all_gather_object(value, rank)
    results.put(value)
    os._exit(0)  # without leaving the group, as a killed process


@pytest.fixture
def server():
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    return store


def test_restarted_processes_find_each_other(server):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    server.set("slowfast/asks/1", "asked by one that died before it was answered")
    for _ in range(2):
        processes = [context.Process(target=join, args=(rank, server.port, results)) for rank in range(2)]
        for process in processes:
            process.start()
        assert [results.get(), results.get()] == [[0, 1], [0, 1]]
        for process in processes:
            process.join()
