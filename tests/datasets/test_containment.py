"""Workers that crash and hang, and what is left of a run then."""

import faulthandler
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from slowfast.datasets import containment
from slowfast.datasets.ava import Ava, BoxLists, KeyFrameRecord, KeyFrames
from slowfast.datasets.batch import Sample
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.containment import ClipLoader
from slowfast.datasets.samplers import EvalBatchSampler, TrainBatchSampler
from slowfast.datasets.sampling import FrameChoice
from slowfast.datasets.sources import DecodeError, VideoInfo
from slowfast.datasets.transforms.presets import EvalTransform, Normalize

CRASH, HANG, KILL, OUTSIDE = "crash", "hang", "kill", "outside"


class Source:
    """Five grey frames of one brightness, or what a decoder may do instead."""

    info = VideoInfo(5, 8, 8, 5.0)

    def __init__(self, number, mood, marks):
        self.number, self.mood, self.marks = number, mood, marks

    def read(self, indices):
        if self.mood == CRASH:
            faulthandler.disable()
            os.abort()
        if self.mood == HANG:
            time.sleep(60)
        if self.mood == KILL and not self.marks.exists():  # once only, as an overfull machine does
            self.marks.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mood == "error":
            raise DecodeError(f"{self.number}.mp4", "broken")
        return torch.full((len(indices), 8, 8, 3), self.number, dtype=torch.uint8)


class Video(NamedTuple):
    number: int
    mood: str
    marks: object
    label: int = 0

    @property
    def path(self):
        return f"{self.number}.mp4"

    def open(self, *, short_side=None, threads=1):
        return Source(self.number, self.mood, self.marks)

    def label_of(self, choice):
        return self.label


def choose(info, view, rng):
    start = 0.0 if view is not None else float(rng.integers(3))
    return FrameChoice((torch.arange(2) + int(start)), start, start + 1)


@pytest.fixture
def dataset(tmp_path):
    """Twelve videos, some of which have a mood: ``dataset(3="crash")``."""

    def build(moods=None, **options):
        records = [Video(row, (moods or {}).get(row, ""), tmp_path / f"killed{row}") for row in range(12)]
        transform = EvalTransform(Normalize((0.0,) * 3, (1 / 255,) * 3), scale=8, crop=8)
        return ClipDataset(records, choose, transform, **options)

    return build


def contents(loader):
    """Rows, brightness of the clips, and bad videos of every batch."""
    return [
        (
            batch.index.tolist(),
            batch.to("cpu").clips[:, 0, 0, 0, 0].tolist(),
            [(bad.index, bad.path) for bad in batch.bad],
        )
        for batch in loader
    ]


@pytest.fixture
def loader():
    """Builds loaders and ends their workers."""
    built = []

    def build(dataset, workers=2, timeout_s=0.0, sampler=None, **options):
        sampler = sampler or TrainBatchSampler(len(dataset), 2, seed=1)
        built.append(ClipLoader(dataset, sampler, num_workers=workers, timeout_s=timeout_s, **options))
        return built[-1]

    yield build
    for item in built:
        item.close()


@pytest.mark.parametrize("moods", [{4: CRASH}, {4: HANG}, {4: CRASH, 7: CRASH, 8: HANG}])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_video_that_ends_its_worker_is_replaced_as_a_broken_one(dataset, loader, workers, moods, caplog):
    broken = contents(loader(dataset(dict.fromkeys(moods, "error")), workers=0))
    found = loader(dataset(moods), workers, timeout_s=1.5)
    assert contents(found) == broken
    assert sum(len(rows) for rows, *_ in broken) == 12
    assert {row for *_, bad in broken for row, _ in bad} == set(moods)
    assert len([record for record in caplog.records if "counts as bad" in record.message]) == len(moods)
    assert contents(found) == broken  # known from the start of the second pass
    assert len([record for record in caplog.records if "counts as bad" in record.message]) == len(moods)


def test_the_reason_says_what_happened(dataset, loader):
    reasons = {bad.index: bad.reason for b in loader(dataset({1: CRASH, 2: HANG}), timeout_s=1.5) for bad in b.bad}
    assert reasons == {
        1: "its decoder ended the process (SIGABRT)",
        2: "not decoded within 1.5 s (DATA_LOADER.VIDEO_TIMEOUT)",
    }


def test_a_test_stops_at_such_a_video_or_leaves_it_out(dataset, loader):
    def build(**options):
        tested = dataset({5: CRASH}, views=(2, 3), **options)
        return loader(tested, sampler=EvalBatchSampler(12, 6, 4, num_workers=2))

    with pytest.raises(DecodeError, match=r"5.mp4: its decoder ended the process \(SIGABRT\) \(clip 0 of 2") as caught:
        list(build())
    assert "Traceback" in str(caught.value.__cause__)
    batches = list(build(skip_bad=True))
    assert sorted(row for batch in batches for row in batch.index.tolist()) == [
        row for row in range(72) if row // 6 != 5
    ]
    assert {bad.index // 6 for batch in batches for bad in batch.bad} == {5}


def test_a_worker_killed_from_outside_blames_no_video(dataset, loader):
    assert contents(loader(dataset({3: KILL}))) == contents(loader(dataset(), workers=0))


# ---------------------------------------------------------------- clips with boxes


@dataclass(frozen=True)
class KeyFrame(KeyFrameRecord):
    mood: str = ""

    def open(self):
        return Source(int(self.video), self.mood, None)


class KeyFrameTable(list):
    """Three key frames of each of four videos, which are files or, with ``images``, folders."""

    def __init__(self, moods, images):
        lists = BoxLists()
        lists.boxes = {
            (str(video), second): {("0", "0", "1", "1"): [1]} for video in range(4) for second in (0.0, 0.2, 0.4)
        }
        self.key_frames = table = KeyFrames(lists, "0123")
        for row, (video, second) in enumerate(zip(table.videos.tolist(), table.seconds.tolist())):
            files = ["image"] if images else None
            truth = {"boxes": table.boxes(row), "labels": table.labels(row), "files": files, "fps": 1.0}
            super().append(KeyFrame(f"{video}.mp4", str(video), second, **truth, mood=moods.get(video, "")))


def leave_as_it_is(frames, boxes, rng, crop_size=None):
    return frames.permute(3, 0, 1, 2).float(), boxes.float()


@pytest.fixture
def boxes():
    """The data set of ``KeyFrameTable``."""

    def build(moods, images=False, **options):
        table = KeyFrameTable(moods, images)
        return Ava(table, leave_as_it_is, num_frames=2, stride=1, num_classes=1, seed=1, **options)

    return build


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("mood", [CRASH, HANG])
def test_a_video_with_boxes_that_ends_its_worker_is_replaced_as_a_broken_one(boxes, loader, images, mood, caplog):
    broken = contents(loader(boxes({2: "error"}, images, train=True), workers=0))
    found = loader(boxes({2: mood}, images, train=True), 1, timeout_s=1.0)
    assert contents(found) == broken
    assert {row // 3 for *_, bad in broken for row, _ in bad} == {2}
    reports = [record for record in caplog.records if "counts as bad" in record.message]
    assert len(reports) == (3 if images else 1)  # a file is waited for once, images are files of their own
    assert contents(found) == broken


def test_a_test_with_boxes_stops_at_such_a_video_or_leaves_it_out(boxes, loader):
    def build(**options):
        return loader(boxes({1: CRASH}, **options), sampler=EvalBatchSampler(12, 1, 2, num_workers=2))

    with pytest.raises(DecodeError, match=r"1.mp4: its decoder ended the process \(SIGABRT\); TEST.SKIP_BAD_VIDEOS"):
        list(build())
    batches = list(build(skip_bad=True))
    assert sorted(row for batch in batches for row in batch.index.tolist()) == [0, 1, 2, *range(6, 12)]
    assert sorted(bad.index for batch in batches for bad in batch.bad) == [3, 4, 5]


# ---------------------------------------------------------------- what no video explains


class Selfish:
    """A data set that dies where no video is watched."""

    def __len__(self):
        return 12

    def __getitem__(self, request):
        os._exit(3)


def test_a_worker_that_always_dies_ends_the_run(loader):
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid \d+\) ended unexpectedly \(exit code 3\)"):
        list(loader(Selfish()))


def test_an_error_of_a_worker_is_raised_here_and_the_loader_lives_on(dataset, loader):
    found = loader(dataset())
    expected = contents(found)
    records, found.dataset.records = found.dataset.records, []
    found.close()
    with pytest.raises(IndexError, match="row"):
        list(found)
    found.dataset.records = records
    found.close()
    assert contents(found) == expected


def test_a_pass_given_up_leaves_nothing_behind(dataset, loader):
    found = loader(dataset())
    expected = contents(found)
    for _ in range(3):
        next(iter(found))
    assert contents(found) == expected


def process_is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_live_on_between_passes_and_end_with_the_loader(dataset):
    found = ClipLoader(dataset(), TrainBatchSampler(12, 2), num_workers=2)
    list(found)
    pids = [worker.process.pid for worker in found._workers]
    list(found)
    assert [worker.process.pid for worker in found._workers] == pids
    del found
    assert not any(process_is_alive(pid) for pid in pids)


def test_batches_may_be_made_ready_by_a_thread(dataset, loader, monkeypatch):
    def mark(batch):
        batch.index += 100
        return batch

    monkeypatch.setattr(containment.Batch, "pin_memory", mark)
    expected = [[row + 100 for row in rows] for rows, *_ in contents(loader(dataset(), workers=0))]
    for workers in (0, 2):
        found = loader(dataset(), workers, pin_memory=True)
        assert [rows for rows, *_ in contents(found)] == expected
        next(iter(found))  # given up: its thread ends
    with pytest.raises(DecodeError):
        list(loader(dataset({5: "error"}, views=(1, 1)), pin_memory=True, sampler=EvalBatchSampler(12, 1, 4)))


# ---------------------------------------------------------------- where a loader is


@pytest.mark.parametrize("workers", [(0, 2), (2, 1), (1, 0)])
@pytest.mark.parametrize("test", [False, True])
def test_another_loader_goes_on_with_the_same_rest(dataset, loader, workers, test):
    def build(number):
        if not test:
            return loader(dataset(), number)
        sampler = EvalBatchSampler(12, 6, 5, num_workers=number)
        return loader(dataset(views=(2, 3)), number, sampler=sampler)

    first, second = build(workers[0]), build(workers[1])
    first.batch_sampler.set_epoch(3)
    whole = []
    for number, batch in enumerate(first):
        whole.append(batch.index.tolist())
        if number == 2:
            state = first.state()
    second.load_state(state)
    assert second.state() == state
    assert [rows for rows, *_ in contents(second)] == whole[3:]
    second.batch_sampler.set_epoch(3)
    rows = [row for rows, *_ in contents(second) for row in rows]
    assert sorted(rows) == sorted(row for batch in whole for row in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_between_two_passes_a_loader_is_at_the_start_of_the_next(dataset, loader, workers):
    def place():
        return found.state()["epoch"], found.state()["batch"]

    found, other = loader(dataset(), workers), loader(dataset(), 0)
    assert place() == (0, 0)
    found.batch_sampler.set_epoch(3, 1)
    assert place() == (3, 1)
    assert len(list(found)) == 5
    assert place() == (3, 6)
    found.batch_sampler.set_epoch(4)
    assert place() == (4, 0)
    batches = iter(found)
    assert place() == (4, 0)
    other.load_state(found.state())
    assert contents(other) == contents(found)
    batches = iter(found)
    assert place() == (4, 0)  # also of a second pass of one epoch
    next(batches)
    assert place() == (4, 1)
    found.batch_sampler.set_epoch(4, 2)
    assert place() == (4, 2)


def test_a_state_of_other_batches_is_refused(dataset, loader):
    state = loader(dataset()).state()
    with pytest.raises(ValueError, match=r"\[12, 2\], and has \[12, 3\] now: go on with the same list, batch size"):
        loader(dataset(), sampler=TrainBatchSampler(12, 3)).load_state(state)


@pytest.mark.slow
def test_workers_may_be_spawned(dataset, loader):
    spawned = loader(dataset(), 1, start_method="spawn")
    assert contents(spawned) == contents(loader(dataset(), workers=0))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_time(loader):
    found = loader(Large(), 1, sampler=TrainBatchSampler(32, 2))
    sizes = []
    for epoch in range(6):
        found.batch_sampler.set_epoch(epoch)
        for batch in found:
            assert batch.clips.shape == (2, 3, 2, 256, 256)
        sizes.append(private_bytes(found._workers[0].process.pid) + private_bytes(os.getpid()))
    assert max(sizes[2:]) - sizes[0] < 16 << 20  # an epoch has 48 MiB


class Large:
    """Clips of 1.5 MiB."""

    def __len__(self):
        return 32

    def __getitem__(self, request):
        return Sample(torch.full((3, 2, 256, 256), float(request.index)), 0, request.index)


def private_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("Private", "Pss_Shmem")))
