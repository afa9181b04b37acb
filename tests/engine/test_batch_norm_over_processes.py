"""Statistics of batch norm on two processes: precise ones are those of all samples, and all processes agree."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.datasets.batch import Batch
from slowfast.engine import launch
from slowfast.engine.train import renew_statistics
from slowfast.utils import distributed


def samples(rank):
    """Two batches of a process, all of one size."""
    draw = np.random.default_rng(rank)
    return [torch.from_numpy(draw.normal(rank, 1 + rank, (4, 2, 2, 3, 3)).astype(np.float32)) for _ in range(2)]


class Batches(list):
    batch_sampler = SimpleNamespace(set_epoch=lambda epoch: None)


def renew(precise):
    """Statistics of this process after renewing them, with ``precise`` batches."""
    rank = distributed.get_rank()
    network = nn.Sequential(nn.BatchNorm3d(2)).train()
    for clips in samples(rank):
        network(clips)
    batches = Batches(Batch(clips, torch.zeros(4), torch.arange(4)) for clips in samples(rank))
    plan = SimpleNamespace(precise_bn_batches=precise, freeze_bn=False, max_epoch=1, seed=0)
    task = SimpleNamespace(forward=lambda model, batch: model(batch.clips))
    run = SimpleNamespace(network=network, train_loader=batches, plan=plan, device=torch.device("cpu"), task=task)
    desk = SimpleNamespace(watch=SimpleNamespace(over=lambda bar, length, doing: bar))
    renew_statistics(run, 0, desk)
    return distributed.all_gather_objects([network[0].running_mean.tolist(), network[0].running_var.tolist()])


def test_precise_statistics_of_one_process_are_those_of_its_samples():
    (found,) = launch(lambda: renew(2))
    expected = torch.cat(samples(0))
    np.testing.assert_allclose(found[0], expected.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected.var((0, 2, 3, 4), correction=0), rtol=1e-4)


def renew_precisely():
    return renew(2)


def renew_plainly():
    return renew(0)


@pytest.mark.slow
def test_precise_statistics_of_two_processes_are_those_of_all_samples():
    one, two = launch(renew_precisely, processes=2)
    assert one == two
    expected = torch.cat([*samples(0), *samples(1)])
    np.testing.assert_allclose(one[0], expected.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one[1], expected.var((0, 2, 3, 4), correction=0), rtol=1e-4)


@pytest.mark.slow
def test_running_statistics_are_those_of_the_first_process_everywhere():
    one, two = launch(renew_plainly, processes=2)
    assert one == two
    norm = nn.BatchNorm3d(2)
    for clips in samples(0):
        norm(clips)
    np.testing.assert_allclose(one[0], norm.running_mean, rtol=1e-6)
