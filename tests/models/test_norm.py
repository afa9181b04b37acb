import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fill import fill_input, fill_model
from torch import nn

from slowfast.models.norm import (
    BatchNorm3d,
    GroupSyncBatchNorm3d,
    SubBatchNorm3d,
    aggregate_sub_bn_stats,
    norm_factory,
)

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "models" / "sub_bn.json").read_text())


def test_sub_batch_norm_equals_the_original():
    expected = GOLDEN["forward"]
    norm = fill_model(SubBatchNorm3d(3, num_splits=2)).train()
    assert list(norm.state_dict()) == expected["state_keys"]
    x = fill_input("subbn", (4, 3, 2, 2, 2))
    out = norm(x)
    assert out.flatten()[:24].tolist() == pytest.approx(expected["train_out_first24"], rel=1e-5, abs=1e-6)
    assert norm.split_bn.running_mean.tolist() == pytest.approx(expected["split_running_mean_after"], rel=1e-5)
    assert norm.split_bn.running_var.tolist() == pytest.approx(expected["split_running_var_after"], rel=1e-5)
    assert aggregate_sub_bn_stats(nn.Sequential(norm, nn.ReLU())) == 1
    assert norm.bn.running_mean.tolist() == pytest.approx(expected["bn_running_mean_after"], rel=1e-5)
    assert norm.bn.running_var.tolist() == pytest.approx(expected["bn_running_var_after"], rel=1e-5)
    out = norm.eval()(x)
    assert out.flatten()[:24].tolist() == pytest.approx(expected["eval_out_first24"], rel=1e-5, abs=1e-6)


def test_statistics_of_the_parts_are_merged_into_those_of_the_whole():
    case = GOLDEN["aggregate"]
    norm = SubBatchNorm3d(3, num_splits=2)
    norm.split_bn.running_mean.copy_(torch.tensor(case["split_mean"]))
    norm.split_bn.running_var.copy_(torch.tensor(case["split_var"]))
    norm.aggregate_stats()
    assert norm.bn.running_mean.tolist() == pytest.approx(case["mean"])
    assert norm.bn.running_var.tolist() == pytest.approx(case["var"])


def test_sub_batch_norm_normalises_each_part_alone():
    norm = SubBatchNorm3d(2, num_splits=3)
    x = torch.randn(6, 2, 2, 3, 3) * torch.arange(1.0, 7.0).view(6, 1, 1, 1, 1)
    out = norm(x.to(memory_format=torch.channels_last_3d))
    for part in range(3):
        torch.testing.assert_close(out[part::3], nn.BatchNorm3d(2)(x[part::3]), rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_be_split_names_the_key():
    with pytest.raises(ValueError, match=r"batch of 5 clips cannot be split into BN.NUM_SPLITS=2"):
        SubBatchNorm3d(2, num_splits=2)(torch.zeros(5, 2, 1, 1, 1))


def test_unknown_norm_names_the_key():
    with pytest.raises(ValueError, match=r"BN.NORM_TYPE='layernorm': allowed are batchnorm, sub_batchnorm"):
        norm_factory("layernorm")


def test_each_name_gives_its_layer():
    assert type(norm_factory("batchnorm")(3)) is BatchNorm3d
    assert issubclass(BatchNorm3d, nn.BatchNorm3d)  # for whoever looks for batch norms
    assert norm_factory("sub_batchnorm", num_splits=4)(3).split_bn.num_features == 12
    assert norm_factory("sync_batchnorm", num_sync_devices=8)(3).num_sync_devices == 8
    assert type(norm_factory("sync_batchnorm_apex")(3)) is nn.SyncBatchNorm


def test_global_sync_excludes_a_number_of_devices():
    with pytest.raises(ValueError, match=r"BN.GLOBAL_SYNC is on.*set BN.NUM_SYNC_DEVICES None"):
        norm_factory("sync_batchnorm", num_sync_devices=2, global_sync=True)(3)


def test_sync_batch_norm_of_one_process_is_plain_batch_norm():
    x = torch.randn(4, 3, 2, 3, 3)
    sync, plain = GroupSyncBatchNorm3d(3, num_sync_devices=8), nn.BatchNorm3d(3)
    assert torch.equal(sync(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(sync.state_dict().values(), plain.state_dict().values(), strict=True))


def _groups(rank, world, local_world, **options):
    norm = GroupSyncBatchNorm3d(1, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slowfast.utils.distributed.get_rank", lambda: rank)
        patch.setattr("slowfast.utils.distributed.get_world_size", lambda: world)
        patch.setattr("slowfast.utils.distributed.get_local_world_size", lambda: local_world)
        return norm._group()


def test_groups_are_neighbours_on_one_machine():
    two_machines = [_groups(rank, 8, 4, num_sync_devices=2) for rank in range(8)]
    assert two_machines == [(0, 4, 2), (0, 4, 2), (1, 4, 2), (1, 4, 2), (2, 4, 2), (2, 4, 2), (3, 4, 2), (3, 4, 2)]
    assert [_groups(rank, 8, 4, num_sync_devices=0) for rank in (0, 3, 4)] == [(0, 2, 4), (0, 2, 4), (1, 2, 4)]
    assert [_groups(rank, 8, 4, num_sync_devices=8) for rank in (0, 7)] == [(0, 2, 4), (1, 2, 4)]
    assert _groups(5, 8, 4, num_sync_devices=None, global_sync=True) == (0, 1, 8)
    uneven = [_groups(rank, 6, 3, num_sync_devices=2) for rank in range(6)]
    assert uneven == [(0, 4, 2), (0, 4, 2), (1, 4, 1), (2, 4, 2), (2, 4, 2), (3, 4, 1)]


def _sync_worker(rank, world, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    x = torch.randn(world * 2, 3, 2, 3, 3, dtype=torch.float64)
    weight = torch.randn_like(x)
    mine = slice(rank * 2, rank * 2 + 2)
    norm = fill_model(GroupSyncBatchNorm3d(3, num_sync_devices=None, global_sync=True)).double()
    part = x[mine].clone().requires_grad_()
    (norm(part) * weight[mine]).sum().backward()
    torch.save(
        [part.grad, norm.weight.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked], f"{out}{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_normalise_like_one_with_the_whole_batch(tmp_path):
    world = 2
    mp.spawn(_sync_worker, (world, tmp_path / "store", tmp_path / "out"), nprocs=world)
    torch.manual_seed(0)
    x = torch.randn(world * 2, 3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    norm = fill_model(nn.BatchNorm3d(3)).double()
    before = norm.running_var.clone()
    (norm(x) * weight).sum().backward()
    parts = [torch.load(f"{tmp_path / 'out'}{rank}") for rank in range(world)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), x.grad)
    torch.testing.assert_close(sum(part[1] for part in parts), norm.weight.grad)
    biased = 0.9 * before + 0.1 * x.detach().var((0, 2, 3, 4), correction=0)
    for part in parts:
        torch.testing.assert_close(part[2], norm.running_mean)
        torch.testing.assert_close(part[3], biased)
        assert int(part[4]) == 0


def narrow_pair(channels, momentum=0.1):
    torch.manual_seed(0)
    ours = BatchNorm3d(channels, momentum=momentum).double()
    nn.init.uniform_(ours.weight)
    nn.init.normal_(ours.bias)
    plain = nn.BatchNorm3d(channels, momentum=momentum).double()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def clip_of(channels, frames=4, batch=2, dtype=torch.float64):
    x = torch.randn(batch, channels, frames, 64, 64, dtype=dtype) * 2 + 3
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_a_narrow_norm_is_that_of_pytorch(channels, monkeypatch):
    monkeypatch.setattr("slowfast.models.norm.LARGE", 2**10)
    ours, plain = narrow_pair(channels)
    for _ in range(2):
        x = clip_of(channels).requires_grad_()
        assert ours._shares_lanes(x)
        slope = torch.randn_like(x)
        results = []
        for norm in (ours, plain):
            y = norm(x)
            leaves = (x, norm.weight, norm.bias)
            results.append([y, *torch.autograd.grad(y, leaves, slope), *norm.state_dict().values()])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    assert ours.num_batches_tracked == 2
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))  # without gradients, but training
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_sums_over_many_positions_stay_exact():
    norm = BatchNorm3d(8)
    x = clip_of(8, frames=32, dtype=torch.float32)
    y = norm(x).detach()
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    expected = nn.BatchNorm3d(8).double()(x.double()).detach()
    assert float((y - expected).abs().max() / expected.abs().max()) < 2e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda norm, x: (norm.eval(), x),
        lambda norm, x: (norm, x.contiguous()),
        lambda norm, x: (norm, x[:, :, :1, :8, :8].contiguous(memory_format=torch.channels_last_3d)),
        lambda norm, x: (norm.double(), x),
        lambda norm, x: (BatchNorm3d(8, momentum=None), x),
        lambda norm, x: (BatchNorm3d(8, affine=False), x),
        lambda norm, x: (BatchNorm3d(16), x.repeat(1, 2, 1, 1, 1)),
        lambda norm, x: (BatchNorm3d(6), x[:, :6].contiguous(memory_format=torch.channels_last_3d)),
    ],
)
def test_other_norms_are_left_to_pytorch(change):
    norm, x = change(BatchNorm3d(8), clip_of(8, dtype=torch.float32))
    assert not norm._shares_lanes(x)
    assert BatchNorm3d(8)._shares_lanes(clip_of(8, dtype=torch.float32))


def test_a_narrow_norm_without_running_statistics():
    norm, plain = BatchNorm3d(8, track_running_stats=False), nn.BatchNorm3d(8, track_running_stats=False)
    x = clip_of(8, dtype=torch.float32)
    assert norm._shares_lanes(x)
    torch.testing.assert_close(norm(x), plain(x), rtol=1e-4, atol=1e-4)
    assert norm.running_mean is None
