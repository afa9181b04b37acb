"""Layers as the original names them, and tensors as pictures."""

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.visualization.layers import LayerChoice, find_layers, picture, recorded, tile, weight_tensors


def test_names_and_indices_are_read():
    assert LayerChoice.parse("s1/pathway0_stem/conv") == LayerChoice("s1.pathway0_stem.conv")
    assert LayerChoice.parse("module/s1.bn 0,1;2") == LayerChoice("s1.bn", ((0, 1), (2,)))
    for text, message in (("s1 a,b", "no whole numbers"), ("s1 0 1", "is not 'path/to/layer'")):
        with pytest.raises(ValueError, match=message):
            LayerChoice.parse(text)


def test_indices_combine_as_numpy_does():
    values = torch.arange(24.0).view(2, 3, 4)
    found = LayerChoice("x", ((0, 1), (2, 0))).select(values)
    assert np.array_equal(found.numpy(), values.numpy()[[0, 1], [2, 0]])
    found = LayerChoice("x", ((0, 1), (2,))).select(values)
    assert np.array_equal(found.numpy(), values.numpy()[[0, 1], [2]])
    assert LayerChoice("x").select(values) is values
    with pytest.raises(ValueError, match=r"do not fit x, which gives \[2, 3, 4\]"):
        LayerChoice("x", ((5,),)).select(values)


def test_tensors_are_tiled_in_order():
    nan = torch.nan
    assert torch.equal(tile(torch.arange(4.0)), torch.tensor([[0.0, 1], [2, 3]]))
    torch.testing.assert_close(tile(torch.arange(5.0)), torch.tensor([[0.0, 1], [2, 3], [4, nan]]), equal_nan=True)
    assert torch.equal(tile(torch.ones(2, 3)), torch.ones(2, 3))
    sheet = tile(torch.stack([torch.full((1, 2), float(i)) for i in range(5)]))  # rows of two
    expected = torch.tensor([[0.0, 0, nan, 1, 1], [nan] * 5, [2, 2, nan, 3, 3], [nan] * 5, [4, 4, nan, nan, nan]])
    torch.testing.assert_close(sheet, expected, equal_nan=True)


def test_pictures_go_from_the_least_to_the_largest_value():
    colors = picture(torch.tensor([[[-2.0, 0.0]], [[0.0, 2.0]], [[2.0, 2.0]], [[2.0, 2.0]]]), "gray")
    step = colors.shape[0] // 3  # two tiles of one row, and a gap
    assert step * 3 == colors.shape[0]
    assert colors[0, :: colors.shape[1] // 5, 0].tolist() == [0, 128, 255, 128, 255]
    assert colors[step, :, 0].tolist() == [255] * colors.shape[1]
    assert picture(torch.full((2, 2), 7.0)).std(axis=(0, 1)).max() == 0
    assert min(picture(torch.ones(300, 300)).shape[:2]) == 300


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


def test_what_layers_give_is_kept_before_it_is_overwritten():
    net = Net().eval()
    nn.init.constant_(net.conv.weight, -1.0)
    nn.init.zeros_(net.conv.bias)
    layers = find_layers(net, [LayerChoice("conv"), LayerChoice("relu")])
    with torch.no_grad(), recorded(layers) as kept:
        net(torch.ones(1, 1, 2, 2))
    assert kept["conv"][0].eq(-1).all()
    assert kept["relu"][0].eq(0).all()
    assert not net.conv._forward_hooks
    assert list(weight_tensors(net.conv)) == ["weight", "bias"]
    assert weight_tensors(net) == {}
    with pytest.raises(ValueError, match="did you mean conv"):
        find_layers(net, [LayerChoice("convs")])
