"""The first convolution of I3D with fewer multiplications gives the numbers of the direct one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slowfast.models import conv_passes, long_kernels
from slowfast.models.fold import FusedConv3d

OPTIONS = ((1, 2, 2), (2, 3, 3))  # stride, padding


def make(frames, batch=1, side=20, dim=32, channels=3):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, frames, side, side - 1).contiguous(memory_format=torch.channels_last_3d)
    return x, torch.randn(dim, channels, 5, 7, 7) * 0.05


def compare(found, x, weight, bias=None, options=OPTIONS):
    expected = F.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), *options)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("most", [1, 10_000, 2**22])
@pytest.mark.parametrize(("frames", "batch"), [(8, 2), (4, 1), (7, 1), (1, 1), (13, 1)])
def test_equals_the_direct_one(frames, batch, most, monkeypatch):
    monkeypatch.setattr(long_kernels, "MOST_VALUES", most)
    x, weight = make(frames, batch)
    bias = torch.randn(32)
    compare(long_kernels.convolve(x, weight, None, *OPTIONS), x, weight)
    compare(long_kernels.convolve(x, weight, bias, *OPTIONS), x, weight, bias)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_of_one_row_or_column(side):
    # Such a layout is channels last and channels first at once.
    x, weight = make(8, side=side)
    compare(long_kernels.convolve(x, weight, torch.zeros(32), *OPTIONS), x, weight)


def test_without_stride_and_padding_in_space():
    x, weight = make(8)
    options = ((1, 1, 1), (2, 0, 1))
    compare(long_kernels.convolve(x, weight, None, *options), x, weight, options=options)
    compare_gradient(x, weight, options)


def compare_gradient(x, weight, options=OPTIONS):
    wide = weight.double().requires_grad_()
    y = F.conv3d(x.double(), wide, None, *options)
    slope = torch.randn_like(y).float().contiguous(memory_format=torch.channels_last_3d)
    (expected,) = torch.autograd.grad(y, wide, slope.double())
    found = long_kernels.weight_gradient(x, slope, tuple(weight.shape[2:]), *options)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("most", [1, 10_000, 2**22])
@pytest.mark.parametrize(("frames", "batch", "side"), [(8, 2, 20), (7, 1, 20), (1, 1, 20), (13, 1, 5), (8, 1, 2)])
def test_gradients_of_weights_equal_the_direct_ones(frames, batch, side, most, monkeypatch):
    monkeypatch.setattr(long_kernels, "MOST_VALUES", most)
    compare_gradient(*make(frames, batch, side))


def test_the_matrices_are_exact():
    source, filters, target = (matrix.double() for matrix in long_kernels._matrices(4))
    clip, kernel = torch.randn(4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    found = target @ ((source @ clip) * (filters @ kernel))
    expected = F.conv1d(clip[None, None], kernel[None, None], padding=2).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the matrices are kept in float32


def test_gradients_and_folding():
    x, weight = make(8)
    assert long_kernels.suits(tuple(x.shape), tuple(weight.shape), *OPTIONS)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert conv_passes.weight_gradient_form(*leaves, *OPTIONS) == "winograd"
    y = conv_passes.convolve(*leaves, *OPTIONS)
    compare(y.detach(), x.detach(), weight.detach())
    slope = torch.randn_like(y)
    grads = torch.autograd.grad(y, leaves, slope)
    for a, b in zip(grads, torch.autograd.grad(F.conv3d(*leaves, None, *OPTIONS), leaves, slope), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    conv = nn.Conv3d(3, 32, (5, 7, 7), *OPTIONS).requires_grad_(False)
    folded = FusedConv3d(conv, None, "relu")
    torch.testing.assert_close(folded(x.detach()), conv(x.detach()).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "weight", "stride", "expected"),
    [
        ((1, 3, 8, 224, 224), (64, 3, 5, 7, 7), (1, 2, 2), True),
        ((1, 3, 4, 224, 224), (64, 3, 5, 7, 7), (1, 2, 2), False),  # too few frames to gain
        ((1, 3, 32, 224, 224), (8, 3, 5, 7, 7), (1, 2, 2), False),  # too few outputs
        ((1, 3, 8, 224, 224), (64, 3, 5, 7, 7), (2, 2, 2), False),
        ((1, 3, 8, 224, 224), (64, 3, 1, 7, 7), (1, 2, 2), False),
        ((1, 64, 8, 56, 56), (64, 64, 5, 3, 3), (1, 1, 1), False),
    ],
)
def test_the_rule(shape, weight, stride, expected):
    assert long_kernels.suits(shape, weight, stride, (2, 3, 3)) == expected


def test_an_image_smaller_than_the_kernel_gets_the_error_of_pytorch():
    x, weight = make(8, side=6)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size can't be greater than actual input size"):
        conv_passes.convolve(x, weight.requires_grad_(), (1, 2, 2), (2, 0, 0))
