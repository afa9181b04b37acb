"""pytest tests/engine/test_stats.py"""

import json

import pytest
import torch

from slowfast.engine.output import BadVideoLog, read_records
from slowfast.engine.stats import Recorder, StepBuffer, Window, eta, json_stats_line


def test_json_stats_line_sorts_keys_and_writes_five_decimals():
    record = {"_type": "train_iter", "loss": 0.1234567891, "lr": 1e-07, "n": 3, "mode": "train"}
    line = 'json_stats: {"_type": "train_iter", "loss": 0.12346, "lr": 0.00000, "mode": "train", "n": 3}'
    assert json_stats_line(record) == line


def test_a_value_that_is_not_finite_is_still_readable_as_json():
    line = json_stats_line({"loss": float("nan"), "lr": float("inf")})
    record = json.loads(line.removeprefix("json_stats: "))
    assert record["loss"] != record["loss"]
    assert record["lr"] == float("inf")


# value added -> median, mean of the window, mean of all
WINDOW_OF_FOUR = [
    (3.0, 3.0, 3.0, 3.0),
    (1.0, 2.0, 2.0, 2.0),
    (4.0, 3.0, 8 / 3, 8 / 3),
    (1.0, 2.0, 2.25, 2.25),
    (5.0, 2.5, 2.75, 2.8),
    (9.0, 4.5, 4.75, 23 / 6),
    (2.0, 3.5, 4.25, 25 / 7),
    (6.0, 5.5, 5.5, 31 / 8),
]


def test_window_statistics():
    window = Window(4)
    for value, *expected in WINDOW_OF_FOUR:
        window.add(value)
        assert [window.median, window.mean, window.global_mean] == pytest.approx(expected)


def test_global_mean_weighs_by_clips():
    window = Window(2)
    window.add(1.0, weight=3)
    window.add(5.0, weight=1)
    assert window.global_mean == 2.0


def test_buffer_reads_every_step_once():
    buffer = StepBuffer()
    buffer.add({"loss": torch.tensor(1.5), "top1_err": torch.tensor(50.0, dtype=torch.float64)})
    buffer.add({"loss": torch.tensor(0.5), "top1_err": torch.tensor(25.0, dtype=torch.float64)})
    assert buffer.read() == [{"loss": 1.5, "top1_err": 50.0}, {"loss": 0.5, "top1_err": 25.0}]
    assert buffer.read() == []


def test_eta_counts_days():
    assert eta(2.0, 3600 * 24) == "2 days, 0:00:00"


def test_recorder_keeps_epoch_records_and_feeds_sinks(tmp_path):
    class Memory:
        def __init__(self):
            self.seen, self.closed = [], False

        def write(self, record, step):
            self.seen.append((record["_type"], step))

        def close(self):
            self.closed = True

    sink = Memory()
    recorder = Recorder(tmp_path, [sink])
    recorder.write({"_type": "train_iter_", "loss": 1.0}, 3, keep=False)
    recorder.write({"_type": "val_epoch", "top1_err": 12.5}, 0)
    recorder.close()
    assert sink.seen == [("train_iter_", 3), ("val_epoch", 0)]
    assert sink.closed
    assert read_records(tmp_path) == [{"_type": "val_epoch", "top1_err": 12.5}]


def test_bad_videos_are_counted_named_and_filed(tmp_path):
    log = BadVideoLog(tmp_path)
    log.add([(3, "b.mp4", "no video stream"), (7, "a.mp4", "empty file")])
    log.add([(3, "b.mp4", "no video stream")])
    assert log.flush("train", epoch=4) == 2
    assert log.flush("train", epoch=5) == 0
    rows = (tmp_path / "bad_videos.csv").read_text().splitlines()
    assert rows == [
        "split,epoch,path,reason,times",
        "train,5,a.mp4,empty file,1",
        "train,5,b.mp4,no video stream,2",
    ]
