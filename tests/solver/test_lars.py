import copy

import pytest
import torch
from torch import nn

from slowfast.solver.lars import LARS


def make(weight=((3.0, 0.0), (0.0, 4.0)), bias=(1.0, 1.0), *, apply=True, momentum=0.0):
    params = [
        nn.Parameter(torch.tensor(weight, dtype=torch.float64)),
        nn.Parameter(torch.tensor(bias, dtype=torch.float64)),
    ]
    group = {"params": params, "weight_decay": 0.1, "apply_LARS": apply}
    return params, LARS(torch.optim.SGD([group], lr=2.0, momentum=momentum))


def test_step_of_a_matrix_is_scaled_to_its_size():
    (weight, bias), optimizer = make()
    start = weight.detach().clone()
    weight.grad, bias.grad = torch.full_like(weight, 1.0), torch.full_like(bias, 1.0)
    optimizer.step()
    scale = 0.001 * 5.0 / (2.0 + 0.1 * 5.0 + 1e-8)
    assert torch.allclose(weight, start - 2.0 * scale * (1.0 + 0.1 * start), rtol=1e-12)
    assert bias.tolist() == [-1.0, -1.0]  # a vector: raw gradient, no decay
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_group_without_lars_is_a_plain_step():
    (weight, bias), optimizer = make(apply=False)
    start = weight.detach().clone()
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    optimizer.step()
    assert torch.allclose(weight, start - 2.0 * (1.0 + 0.1 * start))
    assert torch.allclose(bias, torch.full_like(bias, 1.0 - 2.0 * 1.1))


@pytest.mark.parametrize(("weight", "grad"), [(0.0, 1.0), (1.0, 0.0)])
def test_zero_weight_or_gradient_keeps_the_raw_gradient(weight, grad):
    (param, bias), optimizer = make(weight=[[weight] * 2] * 2)
    param.grad, bias.grad = torch.full_like(param, grad), None
    optimizer.step()
    assert torch.equal(param, torch.full_like(param, weight - 2.0 * grad))


def test_saved_form_is_that_of_the_inner_optimizer():
    (weight, bias), optimizer = make(momentum=0.9)
    weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved.keys() == torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0).state_dict().keys()

    (other, other_bias), fresh = make(momentum=0.9)
    fresh.load_state_dict(saved)
    assert fresh.param_groups is fresh.inner.param_groups
    fresh.param_groups[0]["lr"] = 0.5
    assert fresh.inner.param_groups[0]["lr"] == 0.5
    assert torch.equal(fresh.state[other]["momentum_buffer"], optimizer.state[weight]["momentum_buffer"])
    assert torch.equal(fresh.state[other_bias]["momentum_buffer"], optimizer.state[bias]["momentum_buffer"])


def test_is_an_optimizer_for_gradient_scaler_and_closure():
    (weight, bias), optimizer = make()
    assert isinstance(optimizer, torch.optim.Optimizer)

    def closure():
        optimizer.zero_grad()
        loss = weight.sum() + bias.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    optimizer.zero_grad()
    assert weight.grad is None

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    (weight, bias), optimizer = make(apply=False)
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert torch.equal(weight.grad, torch.ones_like(weight))
    scaler.step(optimizer)
    assert weight[0, 0].item() == pytest.approx(3.0 - 2.0 * 1.3)
