"""The benchmark that times the convolutions of a network one by one."""

from pathlib import Path

import torch
from scripts import load_script
from torch import nn

from slowfast.models.attention import BlockOptions, BlockSpec, MultiScaleBlock
from slowfast.models.fold import FusedConv3d

ROOT = Path(__file__).resolve().parents[2]


def test_each_shape_is_timed_as_often_as_it_occurs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    layers = load_script(ROOT / "benchmarks" / "layers.py")
    body = nn.Sequential(*(FusedConv3d(nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), None) for _ in range(2)))
    found = layers.time_layers(body, torch.randn(1, 4, 2, 8, 8), rounds=3)
    ((name, (seconds, operations)),) = found.items()
    assert name == "4 x 2 x 8 x 8 -> 4, 1x3x3 / 1x1x1"
    assert len(seconds) == 6
    assert min(seconds) > 0
    assert operations == 2 * (4 * 2 * 8 * 8) * (4 * 9)


def test_linear_layers_and_attention_are_timed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    layers = load_script(ROOT / "benchmarks" / "layers.py")
    options = BlockOptions()
    block = MultiScaleBlock(BlockSpec(dim=8, dim_out=8, heads=2, grid=(2, 3, 3), size=(2, 3, 3)), options)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x, (2, 3, 3))

    found = layers.time_layers(Network(), torch.randn(1, 18, 8), rounds=2)
    assert {name: (len(seconds), operations) for name, (seconds, operations) in found.items()} == {
        "linear, 18 x 8 -> 24": (2, 2 * 18 * 8 * 24),
        "attention, 2 heads, 18 x 18 of 4": (2, 2 * 2 * 18 * 18 * 8),
        "linear, 18 x 8 -> 8": (2, 2 * 18 * 8 * 8),
        "linear, 18 x 8 -> 32": (2, 2 * 18 * 8 * 32),
        "linear, 18 x 32 -> 8": (2, 2 * 18 * 8 * 32),
    }
