"""pytest tests/engine/test_stats.py"""

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from slowfast.engine import epoch_log
from slowfast.engine.course import Course
from slowfast.engine.epoch_log import EpochLog
from slowfast.engine.output import BadVideoLog, read_records, rewind
from slowfast.engine.stats import (
    Recorder,
    StepBuffer,
    Window,
    detection_names,
    eta,
    json_stats_line,
    pace_values,
    ssl_names,
    waiting_line,
)
from slowfast.visualization.results import read_job


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
    assert eta(2.0 * 3600 * 24) == "2 days, 0:00:00"


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


def test_sinks_get_more_than_the_lines(tmp_path):
    class Memory:
        def write(self, record, step):
            self.seen = record

    sink = Memory()
    Recorder(tmp_path, [sink]).write({"_type": "val_epoch", "top1_err": 12.5}, 3, for_sinks={"clips_per_s": 64.0})
    assert sink.seen == {"_type": "val_epoch", "top1_err": 12.5, "clips_per_s": 64.0}
    assert read_records(tmp_path) == [{"_type": "val_epoch", "top1_err": 12.5}]


@pytest.mark.parametrize(
    ("data", "workers", "cores", "begin", "advice"),
    [
        (0.62, 2, 16, "62 % data: decode; ", "raise DATA_LOADER.NUM_WORKERS from 2 to 15"),
        (0.25, 15, 16, "25 % data: decode; ", "all 16 cores are in use; tools/prepare_videos.py"),
        (0.10, 0, 1, "10 % data: decode; ", "raise DATA_LOADER.NUM_WORKERS from 0 to 1"),
    ],
)
def test_waiting_is_said_with_advice(data, workers, cores, begin, advice):
    line = waiting_line(data, 1.0, workers=workers, cores=cores)
    assert line.startswith(begin + advice), line


def test_a_busy_device_is_not_worth_a_line():
    assert waiting_line(0.04, 1.0, workers=2, cores=2) == ""
    assert waiting_line(0.0, 0.0, workers=2, cores=2) == ""


def test_pace_in_plain_numbers():
    values = pace_values(0.1, 0.5, clips=32, device=torch.device("cpu"))
    assert (values["clips_per_s"], values["data_wait"]) == (64.0, 20.0)
    assert values["ram_gb"] > 0
    assert "gpu_mem_gb" not in values


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


def test_a_test_that_is_repeated_names_its_bad_videos_once(tmp_path):
    log = BadVideoLog(tmp_path)
    log.add([(3, "b.mp4", "no video stream")])
    log.flush("train", epoch=0)
    for times in (1, 2):
        log.add([(3, "b.mp4", "no video stream")] * times)
        log.flush("test")
    for _ in range(2):
        log.add([(3, 'c, "d".mp4', "empty file"), (4, "e\n\u2028f.mp4", "empty file")])
        log.flush("test")
    with (tmp_path / "bad_videos.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 5
    assert (tmp_path / "bad_videos.csv").read_text().splitlines()[1:4] == [
        "train,1,b.mp4,no video stream,1",
        "test,,b.mp4,no video stream,2",
        'test,,"c, ""d"".mp4",empty file,1',
    ]


@pytest.mark.parametrize(
    ("naming", "record", "line"),
    [
        (ssl_names, {"_type": "train_iter_"}, {"_type": "train_iter_ssl"}),
        (ssl_names, {"_type": "train_epoch"}, {"_type": "train_epoch_ssl"}),
        (ssl_names, {"_type": "val_iter"}, {"_type": "val_iter_ssl"}),
        (ssl_names, {"_type": "val_epoch"}, {"_type": "val_epoch_ssl"}),
        (ssl_names, {"split": "test_final"}, {"split": "test_final"}),
        (
            detection_names,
            {"_type": "train_iter_", "epoch": "2/20", "iter": "10/95", "dt": 0.5},
            {"_type": "train_iter", "mode": "train", "cur_epoch": "2/20", "cur_iter": "10", "dt": 0.5},
        ),
        (
            detection_names,
            {"_type": "val_iter", "epoch": "2/20", "iter": "10/95", "time_diff": 0.25},
            {"_type": "val_iter", "mode": "val", "cur_epoch": "2/20", "cur_iter": "10", "dt": 0.25},
        ),
        (
            detection_names,
            {"_type": "val_epoch", "epoch": "2/20", "map": 31.5},
            {"_type": "val_epoch", "mode": "val", "cur_epoch": "2", "map": 31.5},
        ),
        (
            detection_names,
            {"split": "test_iter", "cur_iter": "3/9", "time_diff": 0.25},
            {"_type": "test_iter", "mode": "test", "cur_iter": "3", "dt": 0.25},
        ),
        (detection_names, {"split": "test_final", "map": "31.50"}, {"mode": "test", "map": "31.50"}),
    ],
)
def test_lines_of_other_jobs_have_the_names_of_the_original(naming, record, line, tmp_path):
    Recorder(tmp_path, naming=naming).write(record, 0)
    written = json.loads((tmp_path / "json_stats.log").read_text().removeprefix("json_stats: "))
    assert written == {**record, **line}
    (read,) = read_records(tmp_path)
    assert read.get("_type", "").rstrip("_") == (record.get("_type") or line.get("_type", "")).rstrip("_")


def test_logs_of_pre_training_are_cut_back_like_others(tmp_path):
    recorder = Recorder(tmp_path, naming=ssl_names)
    for epoch in (1, 2):
        for kind in ("train_epoch", "val_epoch"):
            recorder.write({"_type": kind, "epoch": f"{epoch}/2", "top1_err": 10.0 * epoch}, epoch)
    rewind(tmp_path, 2, evaluate_again=True)
    assert [record["_type"] for record in read_records(tmp_path)] == ["train_epoch", "val_epoch", "train_epoch"]
    assert epoch_log.BestErrors(read_records(tmp_path), before_epoch=2).lowest == {"top1_err": 10.0}
    job = read_job(tmp_path)
    assert [epoch for epoch, _ in job.history("train_epoch")] == [1.0, 2.0]
    assert [epoch for epoch, _ in job.history("val_epoch")] == [1.0]


class Tape:
    """A recorder that keeps what it is told."""

    def __init__(self):
        self.records = []

    def write(self, record, step, *, keep=True, for_sinks=None):
        self.records.append((record, for_sinks))


def test_an_epoch_says_once_what_it_waits_for_and_gives_sinks_its_pace(monkeypatch):
    plan = SimpleNamespace(log_period=2, max_epoch=1, explosion_factor=0.0)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    loader = SimpleNamespace(num_workers=1)
    run = SimpleNamespace(plan=plan, device=torch.device("cpu"), optimizer=optimizer, train_loader=loader)
    tape = Tape()
    log = EpochLog(run, 0, 6, tape, Course(6, (1.0,)))
    monkeypatch.setattr(log.timer, "step_done", lambda: None)
    said = []
    monkeypatch.setattr(epoch_log, "logger", SimpleNamespace(info=said.append, warning=said.append))
    for step, data in enumerate([0.6, 0.6, 0.6, 0.6, 0.2, 0.2]):
        log.timer.step, log.timer.data = 1.0, data
        log.add(step, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}, clips=8)
    assert [line.split(": ")[1] for line in said] == ["60 % data", "20 % data"]
    record, pace = tape.records[0]
    assert (pace["clips_per_s"], pace["data_wait"]) == (8.0, 60.0)
    times = {"dt", "dt_data", "dt_net", "eta", "gpu_mem"}
    assert set(record) == {"_type", "epoch", "iter", "loss", "lr", "grad_norm"} | times
