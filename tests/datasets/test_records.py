import os
import pickle
import sys

import pytest
import torch

from slowfast.datasets.batch import Sample
from slowfast.datasets.containment import ClipLoader
from slowfast.datasets.kinetics import load_records
from slowfast.datasets.records import FlatStrings, PathLabels
from slowfast.datasets.samplers import TrainBatchSampler


def test_strings_come_back_whatever_they_hold():
    strings = ["a b.mp4", "", "übung/ä.mp4", os.fsdecode(b"\xff\xfe.mp4"), "last"]
    flat = FlatStrings(strings)
    assert list(flat) == strings
    assert flat[-1] == "last"
    assert list(FlatStrings([])) == []
    with pytest.raises(IndexError, match="row 5 of 5"):
        flat[5]


def test_a_part_of_the_records_is_records(tmp_path):
    records = PathLabels(["a", "b", "c"], [2, 1, 0], ["x", "y", "z"])
    part = records[1:]
    assert [(record.path, record.label) for record in part] == [("b", 1), ("c", 0)]
    assert part.class_names == ["x", "y", "z"]


@pytest.fixture(scope="module")
def long_list(tmp_path_factory):
    """A list of 100,000 videos, and its size in bytes."""
    file = tmp_path_factory.mktemp("list") / "train.csv"
    file.write_text("".join(f"class {row % 400}/video_{row:020d}.mp4,{row % 400}\n" for row in range(100_000)))
    return file


def test_a_long_list_takes_little_more_than_its_text(long_list):
    records = load_records(str(long_list), ",", "/data")
    assert len(records) == 100_000
    assert records[99_999].path == "/data/class 399/video_00000000000000099999.mp4"
    assert len(pickle.dumps(records)) < long_list.stat().st_size + 22 * len(records)


class Reader:
    """Looks at records all over the list for each row."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return 100

    def __getitem__(self, request):
        for row in range(request.index, len(self.records), 2000):
            assert self.records[row].label == row % 400
        size = private_bytes() if request.index % 20 == 0 else 0  # takes a while
        return Sample(torch.tensor([size]), 0, request.index)


def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_reads_all_records_copies_none(long_list):
    records = load_records(str(long_list), ",")
    loader = ClipLoader(Reader(records), TrainBatchSampler(100, 50), num_workers=1)
    sizes = [size for batch in loader for size in batch.clips.flatten().tolist()]
    loader.close()
    sizes = [size for size in sizes if size]
    assert len(sizes) == 5
    assert max(sizes) - min(sizes) < 5 << 20  # the records have 6 MiB, as Python objects 20
