"""Gradients of two processes are averaged, in full or half precision: pytest tests/engine/test_parallel.py"""

import pytest
import torch
from torch import nn

from slowfast.engine import launch
from slowfast.engine.parallel import Wrapping, keep_gradients_local, wrap_model
from slowfast.utils import distributed

KINDS = {
    "plain": Wrapping(),
    "static graph": Wrapping(static_graph=True),
    "fp16": Wrapping(static_graph=True, compression="fp16"),
    "bf16": Wrapping(static_graph=True, compression="bf16"),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 8, 5))


def clips(rank, step):
    return torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(10 * rank + step))


def backward(model, rank, step):
    model(clips(rank, step)).square().mean().backward()


def gradients(model):
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def own_gradients(rank, steps):
    """Those of one process by itself."""
    model = network()
    for step in steps:
        backward(model, rank, step)
    return gradients(model)


def train_in_two():
    """Per kind, the gradients of the second of two steps; then those of a first step that was kept local."""
    rank, found = distributed.get_rank(), {}
    for kind, wrapping in KINDS.items():
        model = wrap_model(network(), wrapping)
        for step in (0, 1):
            model.zero_grad(set_to_none=True)
            backward(model, rank, step)
        found[kind] = gradients(model)
    model = wrap_model(network(), Wrapping())
    with keep_gradients_local(model):
        backward(model, rank, 0)
    found["local"] = gradients(model).clone()
    backward(model, rank, 1)
    found["accumulated"] = gradients(model)
    return distributed.all_gather_objects({kind: values.tolist() for kind, values in found.items()})


@pytest.mark.slow
def test_two_processes_average_their_gradients():
    one, two = ({kind: torch.tensor(v) for kind, v in found.items()} for found in launch(train_in_two, processes=2))
    mean = (own_gradients(0, [1]) + own_gradients(1, [1])) / 2
    for kind in KINDS:
        assert torch.equal(one[kind], two[kind]), kind
    for kind in ("plain", "static graph"):
        torch.testing.assert_close(one[kind], mean)
    # What went over in half precision is near, and not the same.
    for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        error = (one[kind] - mean).abs().max() / mean.abs().max()
        assert 0 < error < 2 * torch.finfo(dtype).eps, (kind, error)
    assert torch.equal(one["local"], own_gradients(0, [0]))
    assert torch.equal(two["local"], own_gradients(1, [0]))
    torch.testing.assert_close(one["accumulated"], (own_gradients(0, [0, 1]) + own_gradients(1, [0, 1])) / 2)
