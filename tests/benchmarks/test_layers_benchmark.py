"""The benchmark that times the convolutions of a network one by one."""

from pathlib import Path

import torch
from scripts import load_script
from torch import nn

from slowfast.models.fold import FusedConv3d

ROOT = Path(__file__).resolve().parents[2]


def test_each_shape_is_timed_as_often_as_it_occurs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    layers = load_script(ROOT / "benchmarks" / "layers.py")
    body = nn.Sequential(*(FusedConv3d(nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), None) for _ in range(2)))
    found = layers.time_layers(body, torch.randn(1, 4, 2, 8, 8), rounds=3)
    (((size, channels, kernel, stride, minimal), (seconds, operations)),) = found.items()
    assert (size, channels, kernel, stride, minimal) == ((4, 2, 8, 8), 4, (1, 3, 3), (1, 1, 1), False)
    assert len(seconds) == 6
    assert min(seconds) > 0
    assert operations == 2 * (4 * 2 * 8 * 8) * (4 * 9)
