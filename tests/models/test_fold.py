"""The network for use only scores as the one it was made of, and is faster because its norms are gone."""

import copy
from unittest import mock

import pytest
import torch
from fill import fill_input, fill_model
from torch import Tensor, nn

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.attention import MultiScaleBlock
from slowfast.models.fold import (
    HAS_ONE_PASS,
    FusedBlock,
    FusedConv3d,
    FusedMultiScaleBlock,
    for_inference,
    scale_and_shift,
)
from slowfast.models.norm import SubBatchNorm3d
from slowfast.models.resnet import ResBlock
from slowfast.models.summary import count_products

SMALL = ["MODEL.NUM_CLASSES", 5, "DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32]
RESNET = [*SMALL, "RESNET.DEPTH", 18, "RESNET.WIDTH_PER_GROUP", 8, "RESNET.TRANS_FUNC", "basic_transform"]
DEEP = [*SMALL, "RESNET.DEPTH", 50, "RESNET.WIDTH_PER_GROUP", 8]
NONLOCAL = [[[1], []], [[], []], [[0], []], [[], []]]
X3D = [
    *("MODEL.MODEL_NAME", "X3D", "MODEL.ARCH", "x3d", "RESNET.TRANS_FUNC", "x3d_transform", "X3D.DIM_C5", 32),
    *("X3D.BOTTLENECK_FACTOR", 2.25, *SMALL, "X3D.BN_LIN5", True),
]
MVIT = [
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32),
    *("MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "MVIT.CLS_EMBED_ON", True, "MODEL.NUM_CLASSES", 5),
]
MVIT2 = [
    *(*MVIT, "MVIT.CLS_EMBED_ON", False, "MVIT.DIM_MUL", [[1, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0]]),
    *("MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [1, 1, 2, 2]], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]),
    *("MVIT.POOL_KVQ_KERNEL", [3, 3, 3], "MVIT.MODE", "conv", "MVIT.DIM_MUL_IN_ATT", True),
    *("MVIT.REL_POS_SPATIAL", True, "MVIT.REL_POS_TEMPORAL", True, "MVIT.RESIDUAL_POOLING", True),
]
NETWORKS = {
    "SlowFast": [*RESNET, "SLOWFAST.ALPHA", 4],
    "SlowFast of bottlenecks": [*DEEP, "SLOWFAST.ALPHA", 4, "NONLOCAL.LOCATION", NONLOCAL],
    "I3D": [*DEEP, "MODEL.MODEL_NAME", "ResNet", "MODEL.ARCH", "i3d", "DATA.INPUT_CHANNEL_NUM", [3]],
    "sub-batch norm": [*RESNET, "SLOWFAST.ALPHA", 4, "BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", 2],
    "native": [*RESNET, "SLOWFAST.ALPHA", 4, "MODEL.CONV_BACKEND", "native"],
    "X3D": [*X3D, "DATA.INPUT_CHANNEL_NUM", [3]],
    "MViT": [*MVIT, "DATA.INPUT_CHANNEL_NUM", [3]],
    "MViTv2": [*MVIT2, "DATA.INPUT_CHANNEL_NUM", [3]],
    "MViT with layer scale": [*MVIT2, "DATA.INPUT_CHANNEL_NUM", [3], "MVIT.LAYER_SCALE_INIT_VALUE", 0.5],
}


def make(name):
    cfg = get_cfg()
    cfg.merge_from_list(NETWORKS[name])
    return fill_model(build_model(cfg)).eval()


def clips():
    return fill_input("fold", (2, 3, 8, 32, 32))


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_equal(name):
    model, x = make(name), clips()
    folded = for_inference(model)
    assert not any(isinstance(module, (nn.BatchNorm3d, SubBatchNorm3d)) for module in folded.modules())
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
        wide = model.double()
        torch.testing.assert_close(for_inference(wide)(x.double()), wide(x.double()), rtol=1e-9, atol=1e-12)


def test_the_model_itself_is_left_as_it_was():
    model = make("SlowFast").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for_inference(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_place_nothing_is_copied():
    model, x = make("X3D"), clips()
    weight = model.head.projection.weight
    with torch.no_grad():
        expected = model(x)
        folded = for_inference(model, in_place=True)
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    assert folded.head.projection.weight is weight


def test_gradients_of_the_clip_and_mixed_precision_take_the_plain_way():
    model, x = make("X3D"), clips()
    folded = for_inference(model)
    grads = []
    for net in (model, folded):
        leaf = x.clone().requires_grad_()
        (net(leaf) * torch.arange(5.0)).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3 * float(grads[0].abs().max()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(folded(x).float(), model(x).float(), rtol=0.1, atol=0.02)


def test_a_block_that_someone_looks_into_or_derived_from_is_kept():
    class Mine(ResBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    model, x = make("I3D"), clips()
    seen = []
    model.s3.pathway0_res1.branch2.b_bn.register_forward_hook(lambda *args: seen.append(args[2].shape))
    model.s4.pathway0_res0.__class__ = Mine
    folded = for_inference(model)
    assert type(folded.s3.pathway0_res1) is ResBlock
    assert type(folded.s4.pathway0_res0) is Mine
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["SlowFast", "SlowFast of bottlenecks", "X3D"])
def test_what_someone_looks_at_is_not_written_over(name):
    model, x = make(name), clips()
    folded = for_inference(model)
    blocks = [key for key, module in folded.named_modules() if type(module) is FusedBlock]
    seen = []
    for network in (model, folded):
        outputs = {}
        for key in blocks:
            network.get_submodule(key).register_forward_hook(
                lambda module, args, output, key=key, outputs=outputs: outputs.__setitem__(key, output)
            )
        with torch.no_grad():
            network(x)
        seen.append(outputs)
    assert len(blocks) >= 8
    for key in blocks:
        torch.testing.assert_close(seen[1][key], seen[0][key], rtol=1e-4, atol=1e-4)


def test_blocks_write_over_what_only_they_read():
    folded = for_inference(make("SlowFast"))
    assert folded.s2.pathway0_res1.before == [folded.s2.pathway0_res0]
    assert folded.s2.pathway1_res1.before == [folded.s2.pathway1_res0]
    assert folded.s2.pathway1_res0.before == []  # what it gets, others have too
    folded = for_inference(make("X3D"))
    assert folded.s3.pathway0_res1.before == [folded.s3.pathway0_res0]
    folded = for_inference(make("SlowFast of bottlenecks"))
    assert folded.s4.pathway0_res1.before == []  # a non-local block stands between
    assert folded.s4.pathway0_res2.before == [folded.s4.pathway0_res1]


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 1, 1)])
@pytest.mark.skipif(not HAS_ONE_PASS, reason="this PyTorch has no convolution that is fused on a CPU")
def test_large_weights_over_few_positions_are_put_in_order_once(kernel):
    torch.manual_seed(0)
    plain = nn.Conv3d(64, 96, kernel, padding=[k // 2 for k in kernel], bias=False).requires_grad_(False)
    conv = FusedConv3d(plain, None)
    kept = None
    for size in ((2, 3, 4), (1, 4, 3), (2, 3, 4)):  # the order for one size serves the others
        x = torch.randn(1, 64, *size)
        torch.testing.assert_close(conv(x), plain(x), rtol=1e-4, atol=1e-5)
        kept = kept or conv.packed
        assert conv.packed is kept
        assert kept is not None
    assert copy.deepcopy(conv).packed is None
    assert list(conv.state_dict()) == ["weight", "bias"]
    plain.weight.mul_(2)
    conv.weight.mul_(2)  # seen, and put in order again
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-4, atol=1e-5)
    wide = torch.randn(1, 64, 8, 16, 16)
    torch.testing.assert_close(FusedConv3d(plain, None)(wide), plain(wide), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 7, 10), (4, 8, 8)])
@pytest.mark.skipif(not HAS_ONE_PASS, reason="this PyTorch has no convolution that is fused on a CPU")
def test_minimal_filters_of_large_weights_over_few_positions_are_made_once(size):
    torch.manual_seed(0)
    plain = nn.Conv3d(256, 512, (3, 1, 1), padding=(1, 0, 0)).requires_grad_(False)
    conv, x, add = FusedConv3d(plain, None, "relu"), torch.randn(1, 256, *size), torch.randn(1, 512, *size)
    kept = None
    for _ in range(2):
        torch.testing.assert_close(conv(x), plain(x).relu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(conv(x, add.clone()), (plain(x) + add).relu(), rtol=1e-4, atol=1e-5)
        kept = kept or conv.packed
        assert conv.packed is kept
        assert kept[1].numel() == 2 * conv.weight.numel()
    plain.weight.mul_(2)
    conv.weight.mul_(2)
    torch.testing.assert_close(conv(x), plain(x).relu(), rtol=1e-4, atol=1e-5)
    x = x.requires_grad_()
    conv(x).sum().backward()  # as before: kept filters know no gradients
    assert x.grad is not None


@pytest.mark.parametrize("name", ["MViT", "MViT with layer scale"])
def test_the_last_layers_of_a_transformer_block_add_to_the_shortcut(name):
    model, x = make(name), clips()
    folded = for_inference(model)
    assert all(type(block) is FusedMultiScaleBlock for block in folded.blocks)
    with torch.no_grad():
        expected = model(x)
        calls = []
        plain = Tensor.addmm_
        with mock.patch.object(Tensor, "addmm_", lambda *args: calls.append(args[0].shape) or plain(*args)):
            torch.testing.assert_close(folded(x), expected)
        assert len(calls) == 2 * len(folded.blocks)
        seen = []
        folded.blocks[1].attn.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        torch.testing.assert_close(folded(x), expected)
        assert len(seen) == 1
    x.requires_grad_()
    grads = (torch.autograd.grad(network(x).amax(1).sum(), x)[0] for network in (folded, model))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


def test_replaced_parts_of_a_transformer_are_kept():
    model, x = make("MViT with layer scale"), clips()
    first, second = model.blocks
    first.mlp.act = nn.ReLU()
    second.mlp.fc2 = nn.Linear(second.mlp.fc2.in_features, second.mlp.fc2.out_features, bias=False)
    folded = for_inference(model)
    assert [type(block) for block in folded.blocks] == [FusedMultiScaleBlock, MultiScaleBlock]
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))


def test_operations_are_counted_by_definition_in_a_folded_transformer_too():
    model = make("MViT")
    assert count_products(for_inference(model), clips()) == count_products(model, clips())


def test_norms_without_statistics_are_kept():
    model, x = make("I3D"), clips()
    norm = model.s2.pathway0_res0.branch2.a_bn
    norm.running_mean = norm.running_var = None
    folded = for_inference(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_foreign_network_is_copied_as_it_is():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU())
    folded = for_inference(model)
    assert [type(module) for module in folded] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU]
    assert folded is not model
    assert not folded.training
    assert model.training


def test_scale_and_shift_by_hand():
    norm = nn.BatchNorm3d(1, eps=0.0)
    with torch.no_grad():
        for name, value in {"running_mean": 3.0, "running_var": 4.0, "weight": 5.0, "bias": 7.0}.items():
            getattr(norm, name).fill_(value)
    scale, shift = scale_and_shift(norm)
    assert (scale.item(), shift.item()) == (2.5, -0.5)  # (x - 3) / 2 * 5 + 7


@pytest.mark.parametrize("activation", ["none", "relu", "swish"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [
        ((1, 1, 1), (1, 2, 2), (0, 0, 0), 1),
        ((3, 1, 1), (1, 1, 1), (1, 0, 0), 1),
        ((5, 1, 1), (4, 1, 1), (2, 0, 0), 1),
        ((5, 1, 1), (1, 1, 1), (2, 0, 0), 6),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 2),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), 6),
    ],
)
def test_fused_convolution_equals_its_parts(kernel, stride, padding, groups, activation):
    torch.manual_seed(0)
    conv = nn.Conv3d(6, 12 if groups < 6 else 6, kernel, stride, padding, groups=groups)
    x = torch.randn(2, 6, 8, 6, 6)
    act = {"none": lambda y: y, "relu": torch.relu, "swish": nn.functional.silu}[activation]
    fused = FusedConv3d(conv, None, activation)
    with torch.no_grad():
        plain = conv(x)
        torch.testing.assert_close(fused(x), act(plain), rtol=1e-5, atol=1e-5)
        add = torch.randn_like(plain)
        torch.testing.assert_close(fused(x, add.clone()), act(plain + add), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    folded, x = for_inference(make("SlowFast")), clips()
    with torch.no_grad():
        compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), folded(x), rtol=1e-4, atol=1e-5)
