"""Convolutions with fewer multiplications: equal to direct ones, as exact as promised, chosen where they gain."""

import pytest
import torch
from fill import fill_input
from torch.nn import functional as F

from slowfast.models import winograd
from slowfast.models.layers import Conv3d, conv_form

TIME, FRAMES = (3, 1, 1), (1, 3, 3)
SIZES = [(8, 4, 4), (4, 7, 6), (5, 8, 9), (1, 3, 5), (3, 14, 2)]


def convolve(kernel, *args):
    return (winograd.convolve_time if kernel == TIME else winograd.convolve_frames)(*args)


def results(function, x, weight, bias):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    slope = fill_input("winograd:slope", tuple(y.shape)).to(y.dtype)
    return [y, *torch.autograd.grad((y * slope).sum(), leaves)]


def tensors(kernel, size, batch=2, channels=6, out=5):
    x = fill_input("winograd:x", (batch, channels, *size)).contiguous(memory_format=torch.channels_last_3d)
    return x, fill_input("winograd:w", (out, channels, *kernel)), fill_input("winograd:b", (out,))


@pytest.mark.parametrize("most_tiles", [512, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [TIME, FRAMES])
def test_outputs_and_gradients_equal_those_of_conv3d(kernel, size, most_tiles, monkeypatch):
    monkeypatch.setattr(winograd, "MOST_TILES", most_tiles)
    x, weight, bias = tensors(kernel, size)
    padding = tuple(k // 2 for k in kernel)
    expected = results(lambda *t: F.conv3d(*t, padding=padding), x.double(), weight.double(), bias.double())
    found = results(lambda *t: convolve(kernel, *t), x, weight, bias)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize("kernel", [TIME, FRAMES])
def test_no_bias_and_frozen_parts(kernel):
    x, weight, bias = tensors(kernel, (4, 4, 4))
    without, given = convolve(kernel, x, weight), convolve(kernel, x, weight, bias)
    torch.testing.assert_close(without + bias.view(-1, 1, 1, 1), given, rtol=1e-5, atol=1e-4)
    for frozen in (0, 1):
        leaves = [x.clone(), weight.clone()]
        leaves[1 - frozen].requires_grad_()
        convolve(kernel, *leaves).sum().backward()
        assert leaves[frozen].grad is None
        assert leaves[1 - frozen].grad.abs().sum() > 0


def test_the_largest_error_is_as_documented():
    for kernel, bound in ((TIME, 4e-6), (FRAMES, 2e-5)):
        torch.manual_seed(0)
        x = torch.randn(1, 256, 8, 14, 14).relu().contiguous(memory_format=torch.channels_last_3d)
        weight = torch.randn(128, 256, *kernel)
        exact = F.conv3d(x.double(), weight.double(), padding=tuple(k // 2 for k in kernel))
        assert (convolve(kernel, x, weight) - exact).abs().max() < bound * exact.abs().max()


def form(shape, out, kernel, stride=(1, 1, 1), dilation=(1, 1, 1), groups=1, device="cpu", padding=None):
    padding = padding or tuple(k // 2 for k in kernel)
    return conv_form(
        shape, out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, device=device
    )


def test_chosen_for_wide_layers_only():
    wide = (1, 256, 8, 14, 14)
    assert form(wide, 256, FRAMES) == "winograd"
    assert form((1, 1024, 8, 14, 14), 256, TIME) == "winograd"
    for other in (
        form(wide, 256, FRAMES, stride=(1, 2, 2)),
        form(wide, 256, FRAMES, groups=32),
        form(wide, 256, FRAMES, dilation=(1, 2, 2), padding=(0, 2, 2)),
        form(wide, 256, (3, 3, 3)),
        form(wide, 256, FRAMES, device="cuda"),
        form((1, 64, 8, 56, 56), 64, FRAMES),  # too narrow
        form((1, 512, 8, 7, 7), 512, FRAMES),  # transforming the filters would cost more
        form((64, 256, 8, 2, 2), 256, FRAMES),  # a piece of four would be half empty
        form((1, 256, 8, 56, 56), 64, TIME),
        form((1, 1024, 5, 14, 14), 256, TIME),  # two pieces for five frames
    ):
        assert other != "winograd"


@pytest.mark.parametrize("kernel", [TIME, FRAMES])
def test_the_layer_is_the_same_in_other_types(kernel):
    torch.manual_seed(0)
    conv = Conv3d(256, 128, kernel, padding=tuple(k // 2 for k in kernel))
    x = torch.randn(1, 256, 4, 16, 16)
    with torch.no_grad():
        y, wide = conv(x), conv.double()(x.double())
        plain = F.conv3d(x.double(), conv.weight, conv.bias, padding=conv.padding)
        torch.testing.assert_close(wide, plain, rtol=1e-12, atol=1e-12)  # a direct convolution
        torch.testing.assert_close(y.double(), plain, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert conv.float()(x).dtype == torch.bfloat16
