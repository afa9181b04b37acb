import pytest

from slowfast.datasets.batch import Request
from slowfast.datasets.samplers import CycleStep, EvalBatchSampler, TrainBatchSampler


def rows(sampler):
    return [[request.index for request in batch] for batch in sampler]


def test_an_epoch_is_a_permutation_that_changes_with_seed_and_epoch():
    sampler = TrainBatchSampler(23, 4, seed=3)
    first = rows(sampler)
    assert [len(batch) for batch in first] == [4] * 5 == [4] * len(sampler)
    assert len({row for batch in first for row in batch}) == 20
    assert rows(sampler) == first
    sampler.set_epoch(1)
    assert rows(sampler) != first
    assert rows(TrainBatchSampler(23, 4, seed=4)) != first
    assert next(iter(sampler))[0] == Request(rows(sampler)[0][0], epoch=1)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size):
    whole = rows(TrainBatchSampler(50, 12))
    ranks = [
        rows(TrainBatchSampler(50, 12 // world_size, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert [[row for part in parts for row in part] for parts in zip(*ranks)] == whole


def test_training_starts_in_the_middle_with_the_same_rest():
    sampler = TrainBatchSampler(23, 4)
    sampler.set_epoch(2)
    whole = rows(sampler)
    sampler.set_epoch(2, start_batch=3)
    assert rows(sampler) == whole[3:]
    assert len(sampler) == 5
    sampler.set_epoch(3)
    assert len(rows(sampler)) == 5


CYCLE = [CycleStep(4, 8), CycleStep(2, 12), CycleStep(1)]


def test_a_short_cycle_takes_sizes_and_crops_in_turn():
    batches = list(TrainBatchSampler(24, CYCLE, seed=1))
    assert [len(batch) for batch in batches] == [4, 2, 1] * 3
    assert [batch[0].crop_size for batch in batches] == [8, 12, None] * 3
    assert len({request.index for batch in batches for request in batch}) == 21
    assert len(TrainBatchSampler(27, CYCLE)) == 3 * 3 + 2  # 21 rows in three rounds, then 4 and 2


def test_short_cycles_do_not_depend_on_ranks_and_start_in_the_middle():
    whole = rows(TrainBatchSampler(50, [CycleStep(2 * step.batch_size) for step in CYCLE]))
    ranks = [rows(TrainBatchSampler(50, CYCLE, rank=rank, world_size=2)) for rank in range(2)]
    assert [[row for part in parts for row in part] for parts in zip(*ranks)] == whole
    sampler = TrainBatchSampler(50, CYCLE)
    whole = rows(sampler)
    sampler.set_epoch(0, start_batch=5)
    assert rows(sampler) == whole[5:]


def test_a_list_shorter_than_a_batch_names_the_key():
    with pytest.raises(ValueError, match=r"8 clips .* 7 videos .* TRAIN.BATCH_SIZE"):
        TrainBatchSampler(7, 4, world_size=2)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_views", "batch_size"), [(1, 4), (6, 4), (30, 8), (6, 1), (3, 64)])
def test_every_view_is_seen_once_by_any_number_of_ranks_and_workers(num_workers, world_size, num_views, batch_size):
    seen, lengths = [], []
    for rank in range(world_size):
        sampler = EvalBatchSampler(7, num_views, batch_size, rank=rank, world_size=world_size, num_workers=num_workers)
        batches = rows(sampler)
        assert len(batches) == len(sampler)
        assert all(0 < len(batch) <= batch_size for batch in batches)
        own = sorted(row for batch in batches for row in batch)
        assert own == list(range(own[0], own[-1] + 1))  # a contiguous block of whole videos
        assert own[0] % num_views == 0
        seen += own
        lengths.append(len(own))
    assert seen == list(range(7 * num_views))
    assert max(lengths) - min(lengths) <= num_views


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("start_batch", [0, 1, 5])
def test_each_worker_meets_the_views_of_a_video_in_a_row(num_workers, start_batch):
    sampler = EvalBatchSampler(8, 30, 7, num_workers=num_workers)
    sampler.set_epoch(0, start_batch)
    batches = rows(sampler)
    changes, met = 0, {row // 30 for batch in batches for row in batch}
    for worker in range(num_workers):
        videos = [row // 30 for batch in batches[worker::num_workers] for row in batch]
        changes += sum(before != after for before, after in zip([None, *videos], videos))
    assert changes == len(met)


def test_a_rank_without_videos_has_no_batches():
    sampler = EvalBatchSampler(1, 6, 4, rank=0, world_size=2, num_workers=2)
    other = EvalBatchSampler(1, 6, 4, rank=1, world_size=2, num_workers=2)
    assert len(sampler) + len(other) == 2
    assert sorted(rows(sampler) + rows(other)) == [[0, 1, 2], [3, 4, 5]]


def test_evaluation_starts_in_the_middle_with_the_same_rest():
    sampler = EvalBatchSampler(5, 6, 4, num_workers=2)
    whole = rows(sampler)
    sampler.set_epoch(0, start_batch=2)
    assert rows(sampler) == whole[2:]
