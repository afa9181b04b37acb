"""Precisions, what files hold, and answers to files and clips that do not fit."""

import sys
from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch.nn import functional as F

from slowfast.config import load_cfg
from slowfast.export import build_card, compare, load_exported, percent_right, write_exported
from slowfast.export.compare import file_size, latencies
from slowfast.export.weights import FromInt8, store_weights, to_bfloat16, to_int8
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]
OPTS = ["MODEL.NUM_CLASSES", 3, "DATA.NUM_FRAMES", 2, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32]


class Tiny(nn.Module):
    """A convolution, a mean, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, clips):
        return self.fc(F.relu(self.conv(clips)).mean((2, 3, 4))).softmax(1)


@pytest.fixture(scope="module")
def card():
    return build_card(load_cfg(ROOT / "configs/Motion/2D_R18.yaml", OPTS), ["a", "b", "c"])


@pytest.fixture(scope="module")
def tiny():
    return fill_model(Tiny()).eval()


CLIPS = fill_input("export", (4, 3, 2, 32, 32))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2), ("int8", 1e-2)])
def test_precisions_give_nearly_the_same(tiny, card, tmp_path, suffix, precision, atol):
    path = tmp_path / f"tiny{suffix}"
    written = write_exported(tiny, path, card, precision=precision)
    exported = load_exported(path, device="cpu")
    assert exported.card == written
    assert written.precision == precision
    with torch.no_grad():
        wanted = tiny(CLIPS)
    found = exported(CLIPS)
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max()) <= atol
    assert torch.equal(found, wanted) is False or precision == "fp32"
    result = compare(tiny, exported, path, CLIPS, rounds=1)
    assert result.largest_difference == pytest.approx(float((found - wanted).abs().max()), abs=1e-6)
    assert (result.clips, result.same_best, result.size_bytes) == (4, 4, path.stat().st_size)
    assert tiny.conv.weight.dtype == torch.float32  # the network itself is as before


def test_weights_in_8_bits_are_the_nearest_multiples():
    weight = torch.tensor([[127.0, -63.4, 0.4], [0.0, 0.0, 0.0], [-2.54, 1.27, 0.015]])
    stored, restore = to_int8(weight)
    assert stored.tolist() == [[127, -63, 0], [0, 0, 0], [-127, 64, 1]]
    torch.testing.assert_close(restore(stored)[2], torch.tensor([-2.54, 1.28, 0.02]))
    assert isinstance(restore, FromInt8)


@pytest.mark.parametrize(("reduce", "dtype"), [(to_int8, torch.int8), (to_bfloat16, torch.bfloat16)])
def test_only_weights_are_stored_in_fewer_bits(reduce, dtype):
    network = nn.Sequential(nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 5)).eval()
    store_weights(network, reduce)
    small = [value for value in network.state_dict().values() if value.dtype == dtype]
    assert sum(value.numel() for value in small) == 8 + 20
    assert network[1].weight.dtype == network[0].bias.dtype == torch.float32
    assert network[0].weight.dtype == torch.float32  # as the layer uses it


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_files_shrink_with_the_weights(card, tmp_path, suffix):
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 32 * 32, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    sizes = {}
    for precision in ("fp32", "bf16", "int8"):
        path = tmp_path / f"{precision}{suffix}"
        write_exported(wide, path, card, precision=precision)
        sizes[precision] = file_size(path)
    weights = 4 * (6144 * 64 + 64 * 3)
    assert sizes["fp32"] > weights
    assert sizes["fp32"] - sizes["bf16"] == pytest.approx(weights / 2, rel=0.05)
    assert sizes["fp32"] - sizes["int8"] == pytest.approx(weights * 3 / 4, rel=0.05)


def test_wrong_endings_precisions_and_files_are_answered(tiny, card, tmp_path):
    with pytest.raises(ValueError, match=r"net.pth: an exported file ends in .onnx \(ONNX\) or .pt2"):
        write_exported(tiny, tmp_path / "net.pth", card)
    with pytest.raises(ValueError, match="precision 'int4': allowed are fp32, fp16, bf16, int8"):
        write_exported(tiny, tmp_path / "net.pt2", card, precision="int4")
    with pytest.raises(ValueError, match="there is no such file"):
        load_exported(tmp_path / "gone.onnx")
    for name in ("bad.onnx", "bad.pt2"):
        (tmp_path / name).write_bytes(b"nothing of a network")
        with pytest.raises(ValueError, match=f"{name} "):
            load_exported(tmp_path / name, device="cpu")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "weights.pt2")
    with pytest.raises(ValueError, match=r"weights\.pt2 cannot be read by PyTorch"):
        load_exported(tmp_path / "weights.pt2", device="cpu")


def test_files_of_others_have_no_card(tiny, tmp_path):
    import onnx

    torch.export.save(torch.export.export(tiny, (CLIPS,)), tmp_path / "other.pt2")
    nodes = [onnx.helper.make_node("Identity", ["clips"], ["scores"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("clips", "scores")]
    graph = onnx.helper.make_graph(nodes, "other", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "other.onnx")
    for name in ("other.pt2", "other.onnx"):
        with pytest.raises(ValueError, match=f"{name} has no card: it was not written by tools/export.py"):
            load_exported(tmp_path / name, device="cpu")


def test_clips_of_another_size_are_refused(tiny, card, tmp_path):
    write_exported(tiny, tmp_path / "net.pt2", card)
    exported = load_exported(tmp_path / "net.pt2", device="cpu").eval().to("cpu")
    with pytest.raises(ValueError, match=r"exported for clips of \[3, 2, 32, 32\].*given are \[3, 4, 32, 32\]"):
        exported(torch.zeros(1, 3, 4, 32, 32))


def test_missing_packages_are_named(tiny, card, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'need the package onnxscript: python -m pip install "slowfast\[export\]"'):
        write_exported(tiny, tmp_path / "net.onnx", card)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"any")
    with pytest.raises(ImportError, match="need the package onnxruntime"):
        load_exported(tmp_path / "net.onnx")


def test_onnx_on_a_gpu_needs_the_other_runtime(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    (tmp_path / "net.onnx").write_bytes(b"any")
    with pytest.raises(ValueError, match="onnxruntime-gpu"):
        load_exported(tmp_path / "net.onnx", device="cuda")


class Sample:
    def __init__(self, clip, label):
        self.clip, self.label = clip, label


class Rows(list):
    num_views = 2


def test_right_answers_are_counted_over_merged_views():
    def net(clips):
        return clips.flatten(1)[:, :3]

    def row(*scores, label):
        return Sample(torch.tensor(scores), label)

    rows = Rows(
        [
            *(row(0.9, 0.1, 0.0, label=0), row(0.3, 0.7, 0.0, label=0)),  # mean: class 0
            *(row(0.0, 0.4, 0.6, label=1), row(0.0, 0.5, 0.5, label=1)),  # class 2
            *(Sample(None, 2), Sample(None, 2)),  # cannot be read
        ]
    )
    assert percent_right({"a": net, "b": lambda clips: net(clips).flip(1)}, rows) == {"a": 50.0, "b": 0.0}
    with pytest.raises(ValueError, match="no video that can be read"):
        percent_right({"a": net}, Rows(rows[4:]))


def test_several_labels_are_judged_by_average_precision():
    rows = Rows(
        [
            *[Sample(torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))] * 2,
            *[Sample(torch.tensor([0.1, 0.1]), torch.tensor([0, 1]))] * 2,
        ]
    )
    # Class 0 ranks its one positive first (1), class 1 its one second (1/2).
    assert percent_right({"a": lambda clips: clips}, rows) == {"a": 75.0}


def test_networks_take_turns_when_timed():
    calls = []

    def timed(name):
        def run(clips):
            calls.append(name)
            return clips

        return run

    times = latencies([timed("a"), timed("b")], torch.zeros(1), rounds=2, warmup=1)
    assert "".join(calls) == "ababab"
    assert len(times) == 2
    assert all(time > 0 for time in times)


def test_network_of_the_package_is_left_as_it_was(tmp_path):
    cfg = load_cfg(ROOT / "configs/Motion/2D_R18.yaml", OPTS)
    network = build_model(cfg)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    write_exported(network, tmp_path / "net.pt2", build_card(cfg, ["a", "b", "c"]), precision="int8")
    assert network.training
    assert all(param.requires_grad for param in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
