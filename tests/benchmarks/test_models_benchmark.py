"""The plain form that the networks are compared with is the same network, and the configurations exist."""

import argparse
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model
from scripts import load_script
from torch import nn

from slowfast.config import get_cfg
from slowfast.models import build_model
from slowfast.models.attention import BlockOptions, BlockSpec, MultiScaleBlock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return load_script(ROOT / "benchmarks" / "models.py")


def outputs_and_gradients(model, *inputs):
    y = model(*inputs)
    y = y[0] if isinstance(y, tuple) else y
    (y * fill_input("benchmark:slope", tuple(y.shape)).double()).sum().backward()
    return [y, *(parameter.grad for parameter in model.parameters())]


def compare(benchmark, model, *inputs):
    plain = benchmark.write_plainly(copy.deepcopy(model))
    pairs = zip(outputs_and_gradients(model, *inputs), outputs_and_gradients(plain, *inputs), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    return plain


@pytest.mark.parametrize("has_cls", [True, False])
def test_plain_attention_is_the_same_function(benchmark, has_cls):
    options = BlockOptions(has_cls=has_cls, rel_pos_spatial=True, rel_pos_temporal=True, dim_mul_in_att=True)
    spec = BlockSpec(8, 16, 2, (2, 4, 6), (2, 4, 6), (3, 3, 3), (3, 3, 3), stride_q=(1, 2, 2), stride_kv=(1, 1, 2))
    block = fill_model(MultiScaleBlock(spec, options), gain=2.0).double()
    compare(benchmark, block, fill_input("benchmark:tokens", (2, has_cls + 48, 8)).double(), (2, 4, 6))


def test_plain_x3d_is_the_same_function(benchmark):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MODEL_NAME", "X3D", "MODEL.ARCH", "x3d", "RESNET.TRANS_FUNC", "x3d_transform"])
    cfg.merge_from_list(["X3D.DIM_C5", 16, "DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 5])
    cfg.merge_from_list(["DATA.INPUT_CHANNEL_NUM", [3], "MODEL.DROPOUT_RATE", 0.0])
    model = fill_model(build_model(cfg)).double().train()
    plain = compare(benchmark, model, fill_input("benchmark:clips", (2, 3, 4, 32, 32)).double())
    assert {m.backend for m in plain.modules() if isinstance(m, nn.Conv3d)} == {"native"}


def test_every_network_has_its_configurations(benchmark):
    for network in benchmark.NETWORKS.values():
        for name in (network.config, network.peer):
            assert not name.endswith(".yaml") or (ROOT / "configs" / "Kinetics" / name).is_file()


def test_logits_of_both_forms_are_compared(benchmark, monkeypatch):
    options = argparse.Namespace(threads=1, crop=32)
    network = benchmark.NETWORKS["X3D-S"]
    found, expected = (benchmark.logits_of(network, form, options) for form in ("ours", "naive"))
    assert len(found) == 400
    assert benchmark.difference(found, expected) < 1e-4
    monkeypatch.setattr(benchmark, "in_process", lambda function, *args: function(*args))
    benchmark.check_logits(network, options)
    monkeypatch.setattr(benchmark, "write_plainly", lambda model: model.head.projection.reset_parameters() or model)
    with pytest.raises(SystemExit, match="differ by"):
        benchmark.check_logits(network, options)


def test_ratios_are_taken_within_turns(benchmark):
    # The machine was twice as slow in the second turn: it shows in the times, not in the ratio.
    assert benchmark.ratio([3.0, 6.0, 3.3], [2.0, 4.0, 2.0]) == 1.5
    assert benchmark.ratio([3.0, 6.0], [2.0]) is None
    assert benchmark.ratio(None, [2.0]) is None


@pytest.mark.slow
@pytest.mark.parametrize("together", [[], ["--together"]])
def test_a_form_that_fails_is_named_and_the_others_are_measured(together):
    arguments = ["--only", "MViTv2", "--crop", "64", "--threads", "1", "--rounds", "1", *together]
    command = [sys.executable, str(ROOT / "benchmarks" / "models.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    for step in ("inference", "training"):
        assert f"MViTv2-S 16x4, {step}, peer: ValueError: torchvision's mvit_v2_s is built for 224" in result.stderr
        (row, *_) = (line.split("|") for line in result.stdout.splitlines() if f"| {step} |" in line)
        naive, peer, ours = (cell.strip() for cell in row[3:6])
        assert peer == "-"
        assert min(float(naive), float(ours)) > 0
