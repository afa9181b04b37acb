"""The benchmark of the passes of convolutions measures the same functions in each of its forms."""

from pathlib import Path

import pytest
import torch
from scripts import load_script
from torch import nn

from slowfast.models.layers import Conv3d

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load_script(ROOT / "benchmarks" / "conv_passes.py")


def test_shapes_are_found_as_often_as_they_occur(benchmark):
    body = nn.Sequential(*(Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)) for _ in range(2)), Conv3d(4, 4, 3, groups=2))
    found = benchmark.find_shapes(body, torch.randn(1, 4, 3, 8, 8))
    assert found == {((1, 4, 3, 8, 8), 4, (1, 3, 3), (1, 1, 1), (0, 1, 1)): 2}


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 1, 1), (1, 2, 2)),
        ((1, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2)),
        ((7, 1, 1), (4, 1, 1)),
        ((5, 7, 7), (1, 2, 2)),
    ],
)
def test_forms_of_a_pass_agree(benchmark, kernel, stride):
    torch.manual_seed(0)
    key = ((1, 4, 8, 12, 12), 6, kernel, stride, tuple(k // 2 for k in kernel))
    passes, used = benchmark.passes_of(key)
    assert used
    with torch.no_grad():
        found = {name: form() for name, form in passes.items()}
    assert len(found) >= 4
    for name, value in found.items():
        if ", " in name:
            plain = found[name.split(", ")[0]]
            plain = plain[name.startswith("weight")] if isinstance(plain, tuple) else plain
            torch.testing.assert_close(value.reshape(plain.shape), plain, rtol=1e-3, atol=1e-2)
    times = benchmark.time_in_turn(passes, rounds=1)
    assert set(times) == set(passes)
    assert min(times.values()) > 0
