"""pytest tests/engine/test_saving.py"""

import threading
import time

import pytest

from slowfast.engine.output import epoch_of, read_records, rewind
from slowfast.engine.saving import Background, SavePlan, Saver, score_of, superseded

FOUND = [
    ((0, 2), "a"),
    ((1, None), "1"),
    ((1, 4), "b"),
    ((2, None), "2"),
    ((3, None), "3"),
    ((3, 0), "c"),
    ((3, 2), "d"),
]


@pytest.mark.parametrize(
    ("keep", "best", "spare", "removed"),
    [
        (0, [], 2, ["a", "b"]),  # all epochs; of those within, the two newest files of all
        (1, [], 2, ["a", "1", "b", "2"]),
        (2, [], 2, ["a", "1", "b"]),
        (1, [1], 2, ["a", "b", "2"]),
        (1, [3], 2, ["a", "1", "b", "2"]),
        (0, [1], 1, ["a", "b", "c"]),
        (0, [], 0, ["a", "b"]),  # at the end: what lies behind the last whole epoch stays
    ],
)
def test_what_is_superseded(keep, best, spare, removed):
    assert superseded(FOUND, keep=keep, best=best, spare=spare) == removed


def test_nothing_and_one_file_are_no_trouble():
    assert superseded([], keep=1) == []
    assert superseded([((0, 5), "a")], keep=1) == []
    assert superseded([((1, None), "1")], keep=1) == []


def test_the_best_epoch_is_one_that_was_saved(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for epoch in (2, 4, 6):
        (tmp_path / f"checkpoints/checkpoint_epoch_{epoch:05d}.pyth").touch()
    saver = Saver(str(tmp_path), "", SavePlan(keep=1, keep_best=1), scores={2: 10.0, 3: 5.0, 4: 20.0, 6: 30.0})
    saver.started_at(6, 0)
    saver.finish()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00006.pyth"]


def test_lower_is_better_except_for_accuracies():
    results = {"top1_err": 30.0, "top5_err": 10.0}
    assert score_of(4, results, "") == {4: 30.0}
    assert score_of(4, results, "top5_err") == {4: 10.0}
    assert score_of(4, {"map": 0.25}, "") == {4: -0.25}
    assert score_of(4, {"map": 0.25}, "top1_err") == {}


def test_a_negative_period_names_its_key():
    with pytest.raises(ValueError, match=r"TRAIN.CHECKPOINT_PERIOD_STEPS=-1"):
        SavePlan(period_steps=-1)


def test_background_work_is_done_in_order_and_one_at_a_time():
    done, background = [], Background()
    for number in range(4):
        background.submit(lambda number=number: (time.sleep(0.01), done.append(number)))
        assert len(done) >= number
    background.close()
    assert done == [0, 1, 2, 3]


def test_what_fails_in_the_background_is_raised_once_by_the_next_call():
    started = threading.Event()

    def fail():
        started.set()
        raise OSError("disk full")

    background = Background()
    background.submit(fail)
    started.wait()
    with pytest.raises(OSError, match="disk full"):
        background.wait()
    background.check()
    background.close()


RECORDS = """\
json_stats: {"_type": "train_epoch", "epoch": "1/3", "loss": 1.0}
json_stats: {"_type": "val_epoch", "epoch": "1/3", "top1_err": 50.0}
json_stats: {"_type": "train_epoch", "epoch": "2/3", "loss": 0.5}
json_stats: {"_type": "val_epoch", "epoch": "2/3", "top1_err": 40.0}
json_stats: {"split": "test_final", "top1_acc": "60.00"}
json_stats: {"_type": "train_ep"""


@pytest.mark.parametrize(
    ("epochs", "again", "kept"),
    [
        (0, False, []),
        (1, False, [1, 1]),
        (1, True, [1]),
        (2, False, [1, 1, 2, 2]),
        (2, True, [1, 1, 2]),
        (3, False, [1, 1, 2, 2]),
    ],
)
def test_records_are_cut_back_to_where_training_goes_on(tmp_path, epochs, again, kept):
    (tmp_path / "json_stats.log").write_text(RECORDS)
    (tmp_path / "bad_videos.csv").write_text(
        "split,epoch,path,reason,times\ntrain,1,a,x,1\ntrain,2,b,y,1\nval,2,c,z,1\n"
    )
    rewind(tmp_path, epochs, evaluate_again=again)
    records = read_records(tmp_path)
    assert [epoch_of(record) for record in records] == [*kept, 0]  # the test stays, the half line does not
    assert (tmp_path / "json_stats.log").read_text().endswith('"60.00"}\n')
    rows = (tmp_path / "bad_videos.csv").read_text().splitlines()[1:]
    left = [row for row in ("train,1,a,x,1", "train,2,b,y,1", "val,2,c,z,1") if int(row.split(",")[1]) <= epochs]
    assert rows == [row for row in left if not (again and row.startswith(f"val,{epochs}"))]


def test_without_logs_there_is_nothing_to_cut(tmp_path):
    rewind(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
