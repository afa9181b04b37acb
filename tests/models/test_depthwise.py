"""The depthwise convolution: outputs and gradients equal PyTorch's."""

import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch.nn import functional as F

from slowfast.models import depthwise
from slowfast.models.depthwise import DepthwiseConv3d, depthwise_conv3d
from slowfast.models.layers import set_conv_backend

CASES = [
    # size, kernel, stride, padding, dilation
    ((4, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((4, 7, 6), (3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((5, 8, 8), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    ((4, 9, 9), (3, 3, 3), (1, 8, 8), (1, 1, 1), (1, 1, 1)),
    ((3, 9, 8), (3, 3, 3), (1, 4, 4), (1, 1, 1), (1, 1, 1)),  # the stride leaves a rest
    ((2, 8, 8), (1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
    ((6, 5, 5), (5, 1, 1), (1, 1, 1), (2, 0, 0), (1, 1, 1)),
    ((1, 6, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),  # only the middle step ever meets a frame
    ((8, 6, 6), (3, 3, 3), (4, 1, 1), (0, 0, 0), (1, 1, 1)),
    ((3, 8, 8), (3, 3, 3), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
    ((2, 8, 8), (2, 4, 2), (1, 3, 2), (1, 2, 1), (1, 1, 1)),
]


@pytest.mark.parametrize("most", [1, depthwise.MOST_VALUES], ids=["clip by clip", "all clips at once"])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), CASES)
def test_gradients_equal_those_of_conv3d(size, kernel, stride, padding, dilation, most, monkeypatch):
    monkeypatch.setattr(depthwise, "MOST_VALUES", most)
    x = fill_input("depthwise:x", (2, 3, *size)).double().requires_grad_()
    weight = fill_input("depthwise:w", (3, 1, *kernel)).double().requires_grad_()
    results = []
    for function in (
        lambda: F.conv3d(x, weight, None, stride, padding, dilation, 3),
        lambda: depthwise_conv3d(x, weight, stride, padding, dilation),
    ):
        y = function()
        slope = fill_input("depthwise:g", tuple(y.shape)).double()
        results.append([y, *torch.autograd.grad((y * slope).sum(), [x, weight])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [2, 6, 54, 96])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), CASES)
def test_single_precision_is_as_exact_for_any_number_of_channels(channels, size, kernel, stride, padding, dilation):
    conv = fill_model(DepthwiseConv3d(channels, kernel, stride, padding, dilation=dilation))
    x = fill_input("depthwise:single", (2, channels, *size)).requires_grad_()
    y = conv(x)
    slope = fill_input("depthwise:g", tuple(y.shape))
    found = [y, *torch.autograd.grad((y * slope).sum(), [x, conv.weight])]
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, conv.weight))
    wide_y = F.conv3d(wide_x, wide_weight, None, stride, padding, dilation, channels)
    expected = [wide_y, *torch.autograd.grad((wide_y * slope.double()).sum(), [wide_x, wide_weight])]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_module_equals_a_plain_convolution(backend):
    conv = fill_model(DepthwiseConv3d(6, (3, 3, 3), (1, 2, 2), (1, 1, 1)))
    set_conv_backend(conv, backend)
    plain = nn.Conv3d(6, 6, 3, (1, 2, 2), 1, groups=6, bias=False)
    plain.load_state_dict(conv.state_dict())
    x = fill_input("depthwise:module", (2, 6, 3, 8, 8)).requires_grad_()
    grads = []
    for module in (conv, plain):
        y = module(x)
        grads.append([y, *torch.autograd.grad(y.square().sum(), [x, module.weight])])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frozen_filters_and_first_layers_need_one_gradient_only():
    conv = DepthwiseConv3d(4, (3, 3, 3), padding=(1, 1, 1))
    conv(torch.rand(1, 4, 2, 4, 4)).sum().backward()
    assert conv.weight.grad is not None
    conv.weight.requires_grad_(False)
    x = torch.rand(1, 4, 2, 4, 4, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(("kernel", "padding"), [((1, 3, 3), (0, 3, 3)), ((3, 1, 1), (1, 0, 0))])
def test_more_padding_than_reach_and_single_pixels_fall_back(kernel, padding):
    conv = DepthwiseConv3d(2, kernel, padding=padding)
    assert not conv.has_fast_backward
    conv(torch.rand(1, 2, 2, 4, 4)).sum().backward()
    assert conv.weight.grad is not None
