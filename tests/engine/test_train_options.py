"""Options of the step: accumulation, average of weights, freezing, precision, wrapping."""

import itertools
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model
from torch import nn

from slowfast import engine
from slowfast.checkpoint import load_checkpoint
from slowfast.datasets.batch import Batch
from slowfast.engine import train
from slowfast.engine.accumulation import in_parts, part_of
from slowfast.engine.ema import WeightAverage
from slowfast.engine.freezing import freeze_parameters, hold_still
from slowfast.engine.parallel import Wrapping, keep_gradients_local, wrap_model
from slowfast.engine.prefetch import DeviceMover, tensors_of
from slowfast.engine.run import build_run, choose_precision
from slowfast.engine.train import train_step
from slowfast.models import build_model
from slowfast.models.norm import SubBatchNorm3d
from slowfast.utils.distributed import unwrap

CPU = torch.device("cpu")


def saved(cfg):
    return load_checkpoint(sorted(Path(cfg.OUTPUT_DIR, "checkpoints").iterdir())[-1])


# ---------------------------------------------------------------- accumulation


def a_batch(count=6, classes=3):
    clips = fill_input("batch", (count, 3, 4, 32, 32))
    return Batch(clips, torch.arange(count) % classes, torch.arange(count))


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_gradients_of_parts_add_up_to_those_of_the_batch(parts, tiny):
    gradients, scalars = [], []
    for count in (1, parts):
        # Frozen statistics: batch norm looks at each part alone, everything else is the same.
        run = build_run(tiny("TRAIN.ACCUMULATION_STEPS", count, "MODEL.DROPOUT_RATE", 0.0))
        fill_model(run.network)
        hold_still(run.network.train(), all_batch_norms=True)
        scalars.append(train_step(run, a_batch(), 0.0, 0))
        gradients.append({name: param.grad.clone() for name, param in run.network.named_parameters()})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
    for name, value in scalars[0].items():
        torch.testing.assert_close(scalars[1][name], value, rtol=1e-4, atol=1e-5)


def test_parts_share_by_clips_or_by_boxes():
    shares = [(len(part), share, is_last) for part, share, is_last in in_parts(a_batch(5), 2)]
    assert shares == [(2, 0.4, False), (3, 0.6, True)]
    assert [len(part) for part, _, _ in in_parts(a_batch(2), 4)] == [1, 1]
    boxes = torch.tensor([[0.0, 1, 1, 2, 2], [1, 3, 3, 4, 4], [1, 5, 5, 6, 6], [2, 7, 7, 8, 8]])
    batch = Batch(
        torch.zeros(3, 3, 1, 4, 4), torch.eye(4), torch.arange(3), boxes=boxes, keyframes=torch.arange(8).view(4, 2)
    )
    (one, first, _), (two, second, _) = in_parts(batch, 2)
    assert (first, second) == (0.25, 0.75)
    assert one.boxes.tolist() == [[0, 1, 1, 2, 2]]
    assert two.boxes.tolist() == [[0, 3, 3, 4, 4], [0, 5, 5, 6, 6], [1, 7, 7, 8, 8]]
    assert torch.equal(two.labels, torch.eye(4)[1:])
    assert two.keyframes[0].tolist() == [2, 3]


def test_parts_of_views_keep_all_views():
    batch = Batch([torch.arange(4.0), torch.arange(4.0) + 10], torch.zeros(4), torch.arange(4))
    assert [view.tolist() for view in part_of(batch, 1, 3).clips] == [[1, 2], [11, 12]]


# ---------------------------------------------------------------- average of weights


def test_the_average_follows_its_formula():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(net[0].weight, 0.0)
    average = WeightAverage(net, 0.5)
    expected = 0.0
    for update, value in enumerate((1.0, 3.0, 5.0), start=1):
        net[0].weight.data.fill_(value)
        net[1].num_batches_tracked.fill_(update)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert average.weights["0.weight"].item() == pytest.approx(expected)
    assert average.weights["1.num_batches_tracked"] == 3
    with average.applied():
        assert net[0].weight.item() == pytest.approx(expected)
        net[1].running_mean.fill_(7.0)
    assert (net[0].weight.item(), net[1].running_mean.item()) == (5.0, 0.0)
    assert average.weights["1.running_mean"].item() == 7.0
    other = WeightAverage(nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)), 0.5)
    other.load_state_dict(average.state_dict())
    assert (other.updates, other.weights["0.weight"].item()) == (3, pytest.approx(expected))


def test_an_average_that_cannot_be_names_its_key():
    with pytest.raises(ValueError, match=r"TRAIN.EMA_DECAY=1.5 must lie between 0"):
        WeightAverage(nn.Linear(1, 1), 1.5)
    average = WeightAverage(nn.Linear(2, 1), 0.9)
    with pytest.raises(ValueError, match=r"does not fit the network: 2 differ, e.g. weight"):
        average.load_state_dict({"weights": {}, "updates": 0})


def test_queues_are_copied_and_other_numbers_of_sub_batches_are_taken():
    net = nn.ModuleDict({"norm": SubBatchNorm3d(2, num_splits=2)})
    net.register_buffer("queue", torch.zeros(2))
    average = WeightAverage(net, 0.5)
    net.queue.fill_(1.0)
    net["norm"].bn.running_mean.fill_(1.0)
    average.update()
    assert average.weights["queue"].tolist() == [1.0, 1.0]
    assert 0 < average.weights["norm.bn.running_mean"][0] < 1
    other = nn.ModuleDict({"norm": SubBatchNorm3d(2, num_splits=4)})
    other.register_buffer("queue", torch.zeros(2))
    taken = WeightAverage(other, 0.5)
    taken.load_state_dict(average.state_dict())
    assert torch.equal(taken.weights["norm.bn.running_mean"], average.weights["norm.bn.running_mean"])
    assert taken.weights["norm.split_bn.running_mean"].tolist() == [taken.weights["norm.bn.running_mean"][0]] * 8


@pytest.mark.slow
def test_precise_statistics_of_the_average_are_its_own(tiny, tmp_path):
    """The statistics of the weights are those of a training without the average."""
    options = ("BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", 2, "SOLVER.BASE_LR", 0.005)
    train(tiny(*options, "TRAIN.EMA_DECAY", 0.9))
    train(tiny(*options, out=tmp_path / "plain"))
    both, plain = saved(tiny()), saved(tiny(out=tmp_path / "plain"))
    assert all(torch.equal(value, both["model_state"][name]) for name, value in plain["model_state"].items())
    name = "s1.pathway0_stem.bn.running_mean"
    assert not torch.equal(both["ema_state"]["weights"][name], both["model_state"][name])


@pytest.mark.slow
@pytest.mark.parametrize("precise", [False, True])
def test_the_average_is_evaluated_saved_tested_and_resumed(precise, tiny, tmp_path):
    options = ("TRAIN.EMA_DECAY", 0.9, "SOLVER.MAX_EPOCH", 3, "SOLVER.BASE_LR", 0.005)
    options += ("BN.USE_PRECISE_STATS", precise, "BN.NUM_BATCHES_PRECISE", 2)
    whole, broken = tiny(*options), tiny(*options, out=tmp_path / "broken")
    results = train(whole)
    average = saved(whole)["ema_state"]
    assert average["updates"] == 6  # 3 epochs of 2 steps
    assert not torch.equal(
        average["weights"]["head.projection.weight"], saved(whole)["model_state"]["head.projection.weight"]
    )
    (tmp_path / "broken/checkpoints").mkdir(parents=True)
    first = sorted((tmp_path / "out/checkpoints").iterdir())[0]
    (tmp_path / "broken/checkpoints" / first.name).write_bytes(first.read_bytes())
    assert train(broken) == results
    one, two = saved(whole), saved(broken)
    assert all(torch.equal(two["ema_state"]["weights"][k], v) for k, v in one["ema_state"]["weights"].items())
    assert all(torch.equal(two["model_state"][k], v) for k, v in one["model_state"].items())
    scores = []
    for cfg in (whole, tiny(*options, "TRAIN.EMA_DECAY", 0.0)):
        engine.test(cfg)
        scores.append((tmp_path / "out/test_2x3.jsonl").read_text())
    assert scores[0] != scores[1]


# ---------------------------------------------------------------- freezing


def small_net():
    return nn.ModuleDict(
        {"s1": nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)), "s2": SubBatchNorm3d(2, num_splits=2)}
    )


def test_frozen_parts_keep_weights_and_statistics():
    net = small_net()
    assert freeze_parameters(net, ["s1"]) == ["s1.0.weight", "s1.0.bias", "s1.1.weight", "s1.1.bias"]
    hold_still(net.train())
    assert (net["s1"][1].training, net["s2"].training) == (False, True)
    assert [param.requires_grad for param in net.parameters()] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(("pattern", "count"), [("s1.*", 4), ("*.weight", 3), ("s[12]", 6), ("s1.1", 2)])
def test_patterns_name_parts_of_the_network(pattern, count):
    assert len(freeze_parameters(small_net(), [pattern])) == count


def test_a_pattern_without_a_match_names_the_parts():
    with pytest.raises(ValueError, match=r"MODEL.FREEZE: 's9' is no part of the network; its parts are s1, s2"):
        freeze_parameters(small_net(), ["s1", "s9"])


def test_a_job_with_frozen_parts_trains_the_rest(tiny):
    cfg = tiny("MODEL.FREEZE", ["s1", "s2"], "SOLVER.MAX_EPOCH", 1)
    before = build_run(cfg).network.state_dict()
    train(cfg)
    after = saved(cfg)["model_state"]
    for name in after:
        is_frozen = name.startswith(("s1.", "s2."))
        assert not is_frozen or torch.equal(before[name], after[name]), name
    assert not torch.equal(before["s3.pathway0_res0.branch1.weight"], after["s3.pathway0_res0.branch1.weight"])


# ---------------------------------------------------------------- precision and wrapping


def test_precision_is_what_was_asked_for():
    assert choose_precision(False, CPU, "bf16").dtype is None
    assert [choose_precision(True, CPU, kind).dtype for kind in ("auto", "bf16", "fp16")] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ValueError, match=r"TRAIN.MIXED_PRECISION_TYPE='fp8' is unknown"):
        choose_precision(True, CPU, "fp8")


def test_the_scaler_is_for_fp16_alone(tiny):
    mixed = ("TRAIN.MIXED_PRECISION", True, "TRAIN.MIXED_PRECISION_TYPE")
    assert build_run(tiny(*mixed, "fp16")).scaler.is_enabled()
    assert not build_run(tiny(*mixed, "bf16")).scaler.is_enabled()


def test_wrapping_follows_the_keys(tiny):
    def wrapping(*opts):
        return Wrapping.from_cfg(tiny(*opts))

    assert wrapping() == Wrapping(static_graph=True)
    assert wrapping("TRAIN.ACCUMULATION_STEPS", 2) == Wrapping()
    assert wrapping("MODEL.DETACH_FINAL_FC", True) == Wrapping(find_unused=True)
    assert wrapping("MODEL.FP16_ALLREDUCE", True).compression == "fp16"
    assert wrapping("MODEL.BF16_ALLREDUCE", True).compression == "bf16"
    assert wrapping("MODEL.COMPILE", True, "MULTIGRID.SHORT_CYCLE", True) == Wrapping(compile=True, shapes=3)
    with pytest.raises(ValueError, match=r"MODEL.FP16_ALLREDUCE and MODEL.BF16_ALLREDUCE are both True"):
        wrapping("MODEL.FP16_ALLREDUCE", True, "MODEL.BF16_ALLREDUCE", True)


def test_a_compiled_network_has_one_graph_per_shape_and_the_same_numbers():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU())
    compiled = wrap_model(net, Wrapping(compile=True, shapes=3), backend=backend)
    assert unwrap(compiled) is net
    for size, _ in itertools.product((8, 12, 16), range(3)):
        x = fill_input("compile", (1, 3, 4, size, size))
        torch.testing.assert_close(compiled(x), net(x))
    assert len(graphs) == 3


def test_one_process_is_not_wrapped():
    net = nn.Linear(1, 1)
    assert wrap_model(net, Wrapping()) is net
    assert isinstance(keep_gradients_local(net), nullcontext)


@pytest.mark.parametrize("name", ["ResNet", "X3D"])
def test_activation_checkpointing_changes_no_number(name, tiny):
    arch = (
        (
            "MODEL.MODEL_NAME",
            "X3D",
            "MODEL.ARCH",
            "x3d",
            "X3D.DIM_C5",
            16,
            "X3D.WIDTH_FACTOR",
            0.5,
            "RESNET.TRANS_FUNC",
            "x3d_transform",
            "RESNET.DEPTH",
            50,
        )
        if name == "X3D"
        else ()
    )
    results = []
    for enabled in (False, True):
        cfg = tiny("MODEL.ACT_CHECKPOINT", enabled, "MODEL.DROPOUT_RATE", 0.0, *arch)
        net = fill_model(build_model(cfg)).train()
        net(a_batch(2).clips).square().sum().backward()
        results.append([*(param.grad for param in net.parameters()), *net.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_on_the_cpu_moving_a_batch_is_nothing_but_to():
    batch = a_batch(2)
    batch.boxes = torch.zeros(1, 5)
    moved = DeviceMover(CPU)(batch)
    assert torch.equal(moved.clips, batch.clips)
    assert len(tensors_of(moved)) == 4
