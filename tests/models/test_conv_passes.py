"""Convolutions whose passes are computed apart give the numbers of PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F

from slowfast.models import conv_passes
from slowfast.models.layers import Conv3d

# images [N, C, H, W], outputs, kernel, stride, padding
IMAGES = {
    "strided": ((3, 128, 9, 8), 130, (3, 3), (2, 2), (1, 1)),
    "stride that leaves a rest": ((2, 128, 10, 7), 128, (3, 3), (3, 2), (1, 0)),
    "large kernel": ((2, 5, 12, 11), 7, (7, 5), (2, 1), (3, 2)),
    "along time": ((2, 32, 9, 6), 40, (7, 1), (4, 1), (3, 0)),
}
# clips [B, C, T, H, W], outputs, kernel, stride, padding
CLIPS = {
    "narrow": ((2, 3, 5, 10, 9), 8, (5, 7, 7), (1, 2, 2), (2, 3, 3)),
    "wide": ((1, 3, 4, 9, 8), 64, (5, 3, 3), (1, 2, 2), (2, 1, 1)),
    "no padding in time": ((2, 1, 6, 5, 5), 4, (3, 3, 3), (1, 1, 1), (0, 1, 1)),
    "fewer frames than steps": ((1, 2, 2, 6, 6), 4, (5, 3, 3), (1, 1, 1), (2, 1, 1)),
}


def make(shape, dim, kernel, dtype=torch.float64, layout=None):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    layout = layout or (torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    weight = torch.randn(dim, shape[1], *kernel, dtype=dtype)
    return x.contiguous(memory_format=layout).requires_grad_(), weight.requires_grad_()


def compare(found, expected, leaves, tolerance=1e-11):
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))
    slope = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    for a, b in zip(*(torch.autograd.grad(y, leaves, slope) for y in (found, expected)), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("most", [1, 2000, 2**21])
@pytest.mark.parametrize("case", [*IMAGES.values(), *CLIPS.values()], ids=[*IMAGES, *CLIPS])
def test_images_and_clips(case, most, monkeypatch):
    monkeypatch.setattr(conv_passes, "MOST_VALUES", most)
    shape, dim, kernel, stride, padding = case
    x, weight = make(shape, dim, kernel)
    plain = F.conv2d if x.ndim == 4 else F.conv3d
    compare(conv_passes.convolve(x, weight, stride, padding), plain(x, weight, None, stride, padding), (x, weight))


@pytest.mark.parametrize("size", [(2, 2, 3), (8, 64, 65)], ids=["few positions", "many positions"])
@pytest.mark.parametrize(("channels", "dim"), [(6, 40), (40, 6)])
def test_points(size, channels, dim):
    x, weight = make((2, channels, *size), dim, (1, 1, 1))
    compare(conv_passes.convolve_points(x, weight), F.conv3d(x, weight), (x, weight))


@pytest.mark.parametrize("stride", [(1, 2, 2), (3, 1, 2), (2, 9, 1)])
def test_points_of_a_stride_keep_the_input_and_no_copy(stride):
    x, weight = make((2, 6, 4, 7, 6), 5, (1, 1, 1))
    compare(conv_passes.convolve_points(x, weight, stride), F.conv3d(x, weight, None, stride), (x, weight))
    kept = storages_kept(lambda: conv_passes.convolve_points(x, weight, stride))
    assert kept == {x.untyped_storage().data_ptr(), weight.untyped_storage().data_ptr()}


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("gated", [True, False])
def test_swished_points_keep_what_they_are_made_of(gated, layout):
    x, weight = make((2, 20, 3, 5, 4), 7, (1, 1, 1), layout=layout)
    gate = torch.rand(2, 20, 1, 1, 1, dtype=torch.float64).requires_grad_() if gated else None
    leaves = [leaf for leaf in (x, gate, weight) if leaf is not None]
    expected = F.conv3d(F.silu(x * gate if gated else x), weight)
    compare(conv_passes.convolve_swished_points(x, gate, weight), expected, leaves)
    kept = storages_kept(lambda: conv_passes.convolve_swished_points(x, gate, weight))
    assert kept == {leaf.untyped_storage().data_ptr() for leaf in leaves}


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_swished_points_of_which_some_are_frozen(wanted):
    x, weight = make((2, 6, 2, 3, 3), 4, (1, 1, 1))
    leaves = [x, torch.rand(2, 6, 1, 1, 1, dtype=torch.float64), weight]
    leaves = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(leaves)]
    asked = [leaves[i] for i in wanted]
    expected = F.conv3d(F.silu(leaves[0] * leaves[1]), leaves[2])
    compare(conv_passes.convolve_swished_points(*leaves), expected, asked)


def storages_kept(forward) -> set[int]:
    """Where what ``forward`` keeps for its backward pass lies."""
    kept = set()

    def keep(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return kept


def test_weight_gradient_by_minimal_filters():
    x, weight = make((4, 64, 32, 32), 64, (3, 3), dtype=torch.float32)
    assert conv_passes.weight_gradient_form(x, weight, (1, 1), (1, 1)) == "winograd"
    found = conv_passes.convolve(x, weight, (1, 1), (1, 1))
    compare(found, F.conv2d(x, weight, None, 1, 1), (x, weight), tolerance=1e-4)


def test_only_the_gradients_that_are_asked_for():
    shape, dim, kernel, stride, padding = CLIPS["narrow"]
    x, weight = make(shape, dim, kernel)
    for wanted, other in ((x, weight), (weight, x)):
        y = conv_passes.convolve(*(t if t is wanted else t.detach() for t in (x, weight)), stride, padding)
        (grad,) = torch.autograd.grad(y.sum(), wanted)
        expected = F.conv3d(x, weight, None, stride, padding)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), wanted)[0])
        assert other.grad is None


@pytest.mark.parametrize(
    ("channels", "dim", "kernel", "stride", "size"),
    [
        (6, 4, (1, 1, 1), (1, 1, 1), (16, 64, 65)),
        (6, 40, (1, 1, 1), (1, 1, 1), (4, 16, 17)),
        (128, 128, (1, 3, 3), (1, 2, 2), (2, 8, 8)),
        (128, 256, (3, 1, 1), (1, 1, 1), (8, 8, 8)),
        (128, 128, (1, 3, 3), (1, 1, 1), (8, 16, 16)),
        (16, 8, (3, 1, 1), (1, 1, 1), (4, 8, 8)),
        (32, 64, (7, 1, 1), (4, 1, 1), (8, 4, 4)),
        (3, 8, (5, 7, 7), (1, 2, 2), (4, 32, 32)),
    ],
)
def test_the_result_may_be_written_over(channels, dim, kernel, stride, size):
    torch.manual_seed(0)
    conv = Conv3d(channels, dim, kernel, stride, [k // 2 for k in kernel], bias=False)
    x = torch.randn(1, channels, *size).requires_grad_()
    grads = []
    for backend in ("auto", "native"):
        conv.backend = backend
        loss = F.relu(conv(x), inplace=True).square().mean()
        grads.append(torch.autograd.grad(loss, (x, conv.weight)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("steps", [(1, 2, 2), (3, 1, 2), (2, 9, 1)])
def test_every_nth(steps):
    x = torch.randn(2, 5, 4, 7, 6, dtype=torch.float64).requires_grad_()
    found, expected = conv_passes.every_nth(x, steps), x[:, :, :: steps[0], :: steps[1], :: steps[2]]
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    compare(found, expected, (x,))
    with torch.no_grad():
        assert torch.equal(conv_passes.every_nth(x, steps), expected)
    shared = x.detach()[:, :, :1, :1, :1].requires_grad_()
    F.relu(conv_passes.every_nth(shared, steps), inplace=True)  # a tensor of its own, even if nothing is left out
    assert torch.equal(shared, x[:, :, :1, :1, :1])


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_two_readers_add_their_gradients(stride):
    torch.manual_seed(0)
    one, two = (Conv3d(8, 6, 1, stride, bias=False).double() for _ in range(2))
    leaf = torch.randn(2, 8, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    grads = []
    for backend in ("auto", "native"):
        one.backend = two.backend = backend
        x = leaf * 1.5
        loss = (one(x).square() + two(x)).sum() + x[:, :, 0].pow(3).sum()
        grads.append(torch.autograd.grad(loss, (leaf, one.weight, two.weight)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_passes_are_one_without_training_and_in_mixed_precision():
    x, weight = make((1, 4, 2, 3, 3), 4, (1, 1, 1), dtype=torch.float32)
    assert conv_passes.can_split(x, weight)
    assert not conv_passes.can_split(x.half(), weight)
    assert not conv_passes.can_split(x, weight.detach())
    with torch.no_grad():
        assert not conv_passes.can_split(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not conv_passes.can_split(x, weight)


@pytest.mark.parametrize(
    ("shape", "dim", "kernel", "stride", "form"),
    [
        ((8, 64, 56, 56), 64, (3, 3), (1, 1), "winograd"),
        ((8, 128, 56, 56), 128, (3, 3), (2, 2), "patches"),
        ((8, 512, 7, 7), 512, (3, 3), (1, 1), "patches"),
        ((32, 8, 56, 56), 8, (3, 3), (1, 1), "native"),
        ((32, 64, 7, 7), 64, (3, 3), (1, 1), "native"),
        ((1, 64, 32, 784), 128, (7, 1), (4, 1), "patches"),
        ((1, 8, 32, 784), 16, (7, 1), (4, 1), "native"),
        ((1, 3, 32, 224, 224), 8, (5, 7, 7), (1, 2, 2), "patches"),
        ((1, 3, 32, 224, 224), 8, (5, 7, 7), (2, 2, 2), "native"),
        ((1, 64, 8, 56, 56), 64, (3, 3, 3), (1, 1, 1), "native"),
    ],
)
def test_the_rule(shape, dim, kernel, stride, form):
    x = torch.empty(shape, device="meta")
    weight = torch.empty(dim, shape[1], *kernel, device="meta")
    padding = tuple(k // 2 for k in kernel)
    assert conv_passes.weight_gradient_form(x, weight, stride, padding) == form
