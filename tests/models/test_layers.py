import copy

import pytest
import torch
from torch import nn

from slowfast.models.layers import (
    _FORMS,
    AvgPool3d,
    Conv3d,
    MaxPool3d,
    conv_backend,
    conv_form,
    init_weights,
    mark_final,
    maybe_checkpointed,
    set_conv_backend,
)

T333, T133, T311, T111 = (3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)

# input shape, out channels, kernel, stride, padding, dilation, groups
CASES = {
    "pointwise": ((2, 6, 3, 5, 4), 7, T111, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "pointwise one frame": ((1, 6, 1, 5, 4), 7, T111, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "pointwise one pixel": ((3, 6, 1, 1, 1), 7, T111, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "pointwise strided": ((2, 6, 3, 7, 5), 4, T111, (1, 2, 2), (0, 0, 0), (1, 1, 1), 1),
    "pointwise strided in time": ((2, 6, 5, 7, 5), 4, T111, (2, 2, 2), (0, 0, 0), (1, 1, 1), 1),
    "pointwise grouped": ((2, 6, 3, 7, 5), 4, T111, (1, 1, 1), (0, 0, 0), (1, 1, 1), 2),
    "pointwise padded": ((2, 6, 3, 7, 5), 4, T111, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
    "spatial": ((2, 4, 3, 7, 5), 6, T133, (1, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    "spatial strided": ((1, 4, 3, 7, 6), 6, T133, (1, 2, 2), (0, 1, 1), (1, 1, 1), 1),
    "spatial dilated": ((2, 4, 3, 9, 8), 6, T133, (1, 1, 1), (0, 2, 2), (1, 2, 2), 1),
    "spatial grouped": ((2, 4, 3, 9, 8), 6, T133, (1, 1, 1), (0, 1, 1), (1, 1, 1), 2),
    "spatial depthwise": ((2, 4, 3, 9, 8), 4, T133, (1, 2, 2), (0, 1, 1), (1, 1, 1), 4),
    "spatial uneven": ((2, 4, 3, 9, 8), 4, (1, 3, 1), (1, 2, 1), (0, 1, 0), (1, 1, 1), 1),
    "spatial unpadded, one channel": ((2, 1, 2, 9, 8), 3, (1, 5, 5), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "spatial with time stride": ((2, 4, 5, 7, 5), 6, T133, (2, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    "temporal": ((2, 4, 5, 3, 2), 6, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "temporal one frame": ((2, 4, 1, 3, 2), 6, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "temporal strided": ((2, 4, 9, 3, 2), 6, (7, 1, 1), (4, 1, 1), (3, 0, 0), (1, 1, 1), 1),
    "temporal dilated": ((2, 4, 9, 3, 2), 6, T311, (1, 1, 1), (2, 0, 0), (2, 1, 1), 1),
    "temporal grouped": ((2, 4, 9, 3, 2), 6, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 2),
    "temporal narrowing": ((2, 128, 4, 5, 5), 8, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "temporal wide": ((2, 1024, 3, 4, 3), 5, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "temporal reaching beyond": ((2, 4, 2, 5, 4), 6, (7, 1, 1), (1, 1, 1), (3, 0, 0), (1, 1, 1), 1),
    "temporal of an even kernel": ((2, 4, 9, 3, 2), 6, (2, 1, 1), (1, 1, 1), (1, 0, 0), (2, 1, 1), 1),
    "pointwise narrow": ((2, 8, 3, 5, 4), 7, T111, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "temporal unpadded": ((1, 4, 5, 3, 2), 6, (5, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "spatial wide": ((4, 128, 1, 16, 16), 128, T133, (1, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    "temporal wide, many pixels": ((1, 256, 4, 8, 8), 128, T311, (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
    "full": ((2, 4, 5, 7, 6), 6, T333, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1),
    "full batch one": ((1, 4, 5, 7, 6), 6, T333, (1, 2, 2), (1, 1, 1), (1, 1, 1), 1),
    "full few outputs": ((2, 3, 5, 9, 8), 2, (5, 7, 7), (1, 2, 2), (2, 3, 3), (1, 1, 1), 1),
    "full few outputs, time stride": ((2, 3, 8, 9, 8), 2, T333, (2, 1, 1), (1, 1, 1), (2, 1, 1), 1),
    "full dilated": ((1, 3, 8, 9, 8), 6, T333, (1, 1, 1), (2, 2, 2), (2, 2, 2), 1),
    "full depthwise": ((2, 4, 5, 9, 8), 4, T333, (1, 2, 2), (1, 1, 1), (1, 1, 1), 4),
    "few positions": ((2, 3, 2, 4, 4), 32, T333, (1, 2, 2), (1, 1, 1), (1, 1, 1), 1),
    "few positions, time stride": ((1, 3, 4, 3, 3), 40, T333, (2, 2, 2), (1, 1, 1), (1, 1, 1), 1),
    "few positions, spatial": ((1, 3, 2, 2, 2), 40, T133, (1, 1, 1), (0, 1, 1), (1, 1, 1), 1),
    "few positions, dilated": ((1, 3, 2, 2, 2), 40, T133, (1, 1, 1), (0, 2, 2), (1, 2, 2), 1),
}


def make_conv(case, bias):
    shape, out, kernel, stride, padding, dilation, groups = case
    torch.manual_seed(0)
    conv = Conv3d(shape[1], out, kernel, stride, padding, dilation, groups, bias=bias).double()
    return conv, torch.randn(shape, dtype=torch.float64)


def outputs_and_gradients(conv, x):
    x = x.detach().requires_grad_()
    y = conv(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *conv.parameters()])]


def layouts(x):
    yield x
    yield x.to(memory_format=torch.channels_last_3d)
    yield x.repeat_interleave(2, dim=4)[..., ::2]


@pytest.mark.parametrize("name", CASES)
def test_both_backends_give_equal_outputs_and_gradients(name):
    for bias, x in zip((False, True, True), layouts(make_conv(CASES[name], True)[1]), strict=True):
        conv, _ = make_conv(CASES[name], bias)
        plain = copy.deepcopy(conv)
        plain.backend = "native"
        for found, expected in zip(outputs_and_gradients(conv, x), outputs_and_gradients(plain, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_cases_reach_every_form():
    forms = {
        conv_form(shape, out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, device="cpu")
        for shape, out, kernel, stride, padding, dilation, groups in CASES.values()
    }
    assert forms == set(_FORMS)


def test_other_devices_get_the_native_form():
    shape, out, kernel, stride, padding, dilation, groups = CASES["pointwise"]
    form = conv_form(
        shape, out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, device="cuda"
    )
    assert form == "native"


@pytest.mark.parametrize("name", ["pointwise", "spatial", "temporal", "full few outputs", "few positions"])
def test_activations_stay_channels_last(name):
    conv, x = make_conv(CASES[name], bias=False)
    y = conv.float()(x.float())
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_backend_is_switched_for_a_while():
    model = nn.Sequential(Conv3d(1, 1, 1), nn.Sequential(Conv3d(1, 1, 1)))
    with conv_backend(model, "native"):
        assert [model[0].backend, model[1][0].backend] == ["native", "native"]
    assert [model[0].backend, model[1][0].backend] == ["auto", "auto"]


def test_unknown_backend_names_the_key():
    with pytest.raises(ValueError, match=r"MODEL.CONV_BACKEND='fast': allowed are auto, native"):
        set_conv_backend(nn.Identity(), "fast")


def test_max_pool_equals_the_plain_one():
    x = torch.randn(2, 3, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    pools = [(T133, [1, 2, 2], [0, 1, 1]), *(([k, 1, 1], [k, 1, 1], [0, 0, 0]) for k in (2, 3, 4))]
    for kernel, stride, padding in pools:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            y = MaxPool3d(kernel, stride, padding)(x.contiguous(memory_format=layout))
            expected = nn.functional.max_pool3d(x, kernel, stride, padding)
            assert torch.equal(y, expected)
            grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)]
            torch.testing.assert_close(*grads)


def test_frame_pooling_gives_the_gradient_to_the_first_of_equals():
    x = torch.tensor([1.0, 1, 0, 2, 2, 2, 7]).view(1, 1, 7, 1, 1).requires_grad_()
    for kernel, expected in (([2, 1, 1], [1, 0, 0, 1, 1, 0, 0]), ([3, 1, 1], [1, 0, 0, 1, 0, 0, 0])):
        for pool in (MaxPool3d(kernel, kernel), nn.MaxPool3d(kernel, kernel)):
            (grad,) = torch.autograd.grad(pool(x).sum(), x)
            assert grad.flatten().tolist() == expected


def test_initialisation_has_the_stated_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(Conv3d(40, 50, (3, 3, 3)), Conv3d(40, 200, (1, 3, 3), groups=40), nn.Linear(500, 300))
    init_weights(model, fc_std=0.02)
    assert model[0].weight.std().item() == pytest.approx((2 / (50 * 27)) ** 0.5, rel=0.02)
    assert model[1].weight.std().item() == pytest.approx((2 / (200 * 9)) ** 0.5, rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(module.bias.abs().max() == 0 for module in model)


@pytest.mark.parametrize("zero", [False, True])
def test_final_layers_start_at_zero_where_asked(zero):
    model = nn.Sequential(
        mark_final(Conv3d(2, 2, 1)), mark_final(nn.BatchNorm3d(2)), nn.BatchNorm3d(2), nn.BatchNorm3d(2, affine=False)
    )
    init_weights(model, zero_final_norm=zero, zero_final_conv=zero)
    assert bool((model[0].weight == 0).all()) == zero
    assert model[1].weight.tolist() == ([0, 0] if zero else [1, 1])
    assert model[2].weight.tolist() == [1, 1]


def test_seeded_initialisation_draws_in_module_order():
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(Conv3d(2, 4, 1)), nn.Linear(2, 2))
    torch.manual_seed(7)
    init_weights(model, fc_std=0.5)
    torch.manual_seed(7)
    expected = [torch.randn(2, 3) * 0.5, torch.randn(4, 2, 1, 1, 1) * 0.5**0.5, torch.randn(2, 2) * 0.5]
    found = [model[0].weight, model[1][0].weight, model[2].weight]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_checkpointing_changes_neither_gradients_nor_running_statistics():
    torch.manual_seed(0)
    plain = nn.Sequential(Conv3d(2, 3, T333, padding=1), nn.BatchNorm3d(3), nn.ReLU())
    saved = copy.deepcopy(plain)
    x = torch.randn(2, 2, 3, 4, 4)
    results = []
    for model, enabled in ((plain, False), (saved, True)):
        maybe_checkpointed(model, x, enabled=enabled).square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))
    assert int(saved[1].num_batches_tracked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_a_net_of_all_forms_compiles_without_graph_breaks(compiler):
    torch.manual_seed(0)
    model = nn.Sequential(
        Conv3d(3, 2, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3)),
        Conv3d(2, 128, T133, padding=(0, 1, 1)),
        nn.ReLU(inplace=True),
        Conv3d(128, 1024, T311, padding=(1, 0, 0)),
        Conv3d(1024, 16, T311, padding=(1, 0, 0)),
        Conv3d(16, 24, T311, (2, 1, 1), padding=(1, 0, 0)),
        Conv3d(24, 24, T111),
        Conv3d(24, 300, T333, (1, 2, 2), padding=(1, 1, 1)),
        Conv3d(300, 8, T333, padding=(1, 1, 1)),
    )
    x = torch.randn(2, 3, 4, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    grads = []
    for net in (model, compiled):
        model.zero_grad()
        y = net(x)
        y.square().sum().backward()
        grads.append([y, *(p.grad.clone() for p in model.parameters())])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_average_of_a_map_smaller_than_its_kernel_counts_the_padding():
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    mean = AvgPool3d((3, 3, 3), (1, 2, 2), (1, 1, 1))(x)
    assert torch.equal(mean.flatten(), torch.tensor([28.0, 28.0]) / 27)
    large = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(AvgPool3d(3, 1, 1)(large), nn.AvgPool3d(3, 1, 1)(large))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) .*smaller than the pooling window \(2, 3, 3\).*DATA.NUM_FRAMES"):
        AvgPool3d((2, 3, 3), 1)(x)
