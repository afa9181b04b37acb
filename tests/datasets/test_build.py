import multiprocessing
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from slowfast.datasets import DATASET_REGISTRY, build, build_dataset, build_loader, collate
from slowfast.datasets.sources import VideoFile
from slowfast.utils import distributed


@pytest.fixture
def with_workers(monkeypatch):
    """Sets the number of workers whatever the machine has."""
    return lambda number: monkeypatch.setattr(build, "_num_workers", lambda asked, processes: number)


def by_index(loader):
    """Clips and labels of one pass by row."""
    found = {}
    for batch in loader:
        for row, label, clip in zip(batch.index.tolist(), batch.labels.tolist(), batch.clips):
            assert row not in found
            found[row] = (label, clip.clone())
    return found


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_workers_change_nothing(video_folder, small_cfg, with_workers, split):
    passes = []
    for workers in (0, 2):
        with_workers(workers)
        loader = build_loader(small_cfg(video_folder), split)
        loader.batch_sampler.set_epoch(3)
        passes.append(by_index(loader))
    assert passes[0].keys() == passes[1].keys()
    assert len(passes[0]) == {"train": 6, "val": 6, "test": 36}[split]
    for row, (label, clip) in passes[0].items():
        assert passes[1][row][0] == label
        assert torch.equal(passes[1][row][1], clip)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [4, 7])
def test_each_test_video_is_decoded_once(
    video_folder, small_cfg, with_workers, monkeypatch, tmp_path, workers, batch_size
):
    with_workers(workers)
    log, read = tmp_path / "reads", VideoFile.read

    def counted(self, wanted):
        with log.open("a") as stream:  # one short line: whole even from several processes
            stream.write(self.path + "\n")
        return read(self, wanted)

    monkeypatch.setattr(VideoFile, "read", counted)
    loader = build_loader(small_cfg(video_folder, "TEST.BATCH_SIZE", batch_size), "test")
    assert sum(len(batch) for batch in loader) == 36
    assert Counter(log.read_text().split()) == {str(video_folder / f"{name}.mp4"): 1 for name in "abcdef"}


def test_epochs_are_shuffled_in_training_and_not_in_validation(video_folder, small_cfg):
    cfg = small_cfg(video_folder)
    train, val = build_loader(cfg, "train"), build_loader(cfg, "val")
    orders = []
    for epoch in range(2):
        train.batch_sampler.set_epoch(epoch)
        orders.append([row for batch in train for row in batch.index.tolist()])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6))
    assert orders[0] != orders[1]
    assert [row for batch in val for row in batch.index.tolist()] == list(range(6))
    assert len(train) == len(val) == 3


def test_a_loader_can_start_in_the_middle(video_folder, small_cfg, with_workers):
    whole = list(build_loader(small_cfg(video_folder), "train"))
    with_workers(2)
    loader = build_loader(small_cfg(video_folder), "train")
    loader.batch_sampler.set_epoch(0, start_batch=1)
    rest = list(loader)
    assert len(rest) == 2
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(rest, whole[1:]))


def test_the_clips_of_a_machine_are_divided_by_its_processes(video_folder, small_cfg, monkeypatch):
    assert build_loader(small_cfg(video_folder, "NUM_GPUS", 2), "train").batch_sampler.batch_size == 1
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_local_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"TRAIN.BATCH_SIZE=2 is less than one clip for each of the 3 processes"):
        build_loader(small_cfg(video_folder), "train")
    monkeypatch.setattr(distributed, "get_local_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        ranks.append(
            [batch.index.tolist() for batch in build_loader(small_cfg(video_folder, "TRAIN.BATCH_SIZE", 4), "train")]
        )
    monkeypatch.undo()
    whole = [batch.index.tolist() for batch in build_loader(small_cfg(video_folder, "TRAIN.BATCH_SIZE", 4), "train")]
    assert [first + second for first, second in zip(*ranks)] == whole


def test_more_workers_than_cores_are_not_started(video_folder, small_cfg, caplog):
    caplog.set_level("INFO")
    loader = build_loader(small_cfg(video_folder, "DATA_LOADER.NUM_WORKERS", 1000), "train")
    assert loader.num_workers < 1000
    assert "DATA_LOADER.NUM_WORKERS 1000" in caplog.text


def test_threads_used_before_do_not_stop_the_workers(video_folder, small_cfg, with_workers):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _ = torch.randn(600, 600) @ torch.randn(600, 600)  # starts the pool that a fork does not copy
        torch.nn.functional.interpolate(torch.randn(8, 3, 64, 64), size=200, mode="bilinear")
        with_workers(2)
        assert len(list(build_loader(small_cfg(video_folder), "train"))) == 3
    finally:
        torch.set_num_threads(threads)


def test_a_bad_video_of_a_worker_reaches_the_batch(video_folder, small_cfg, with_workers, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"")
    lines = [f"{tmp_path}/broken.mp4 0", *(f"{video_folder}/{name}.mp4 1" for name in "abc")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    with_workers(1)
    bad = [video for batch in build_loader(small_cfg(tmp_path), "train") for video in batch.bad]
    assert (bad[0].index, bad[0].reason) == (0, "the file is empty")
    with pytest.raises(RuntimeError, match=r"broken.mp4: the file is empty \(clip 0 of 2"):
        list(build_loader(small_cfg(tmp_path), "test"))
    skipped = list(build_loader(small_cfg(tmp_path, "TEST.SKIP_BAD_VIDEOS", True), "test"))
    assert sum(len(batch) for batch in skipped) == 18
    assert {video.index for batch in skipped for video in batch.bad} == set(range(6))


def test_unknown_names_are_answered_with_the_known(video_folder, small_cfg):
    with pytest.raises(KeyError, match="Kinetics"):
        build_dataset("kinetic", small_cfg(video_folder), "train")
    with pytest.raises(ValueError, match="'training' is not one of train, val, test"):
        build_dataset("kinetics", small_cfg(video_folder), "training")


def test_a_data_set_of_ones_own_is_found_by_name(video_folder, small_cfg):
    class Mine(Dataset):
        def __init__(self, cfg, split):
            self.made_of = (cfg, split)

    if "Mine" not in DATASET_REGISTRY:
        DATASET_REGISTRY.register(Mine)
    cfg = small_cfg(video_folder)
    assert build_dataset("mine", cfg, "val").made_of == (cfg, "val")


@pytest.mark.slow
def test_workers_may_be_spawned(video_folder, small_cfg):
    dataset = build_dataset("kinetics", small_cfg(video_folder), "train")
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=collate, multiprocessing_context=context)
    assert [batch.index.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
