"""Whole jobs on tiny real videos: pytest tests/engine/test_jobs.py"""

import json
import pickle
import shutil
from functools import partial

import pytest
import torch

from slowfast import engine
from slowfast.checkpoint import CheckpointError, load_checkpoint
from slowfast.datasets.sources import DecodeError
from slowfast.engine import NonFiniteLossError, launch, train
from slowfast.engine.output import read_records
from slowfast.models import build_model
from slowfast.tasks import Classification
from slowfast.visualization.results import read_job


def weights(folder, epoch=2):
    return load_checkpoint(folder / "checkpoints" / f"checkpoint_epoch_{epoch:05d}.pyth")["model_state"]


def assert_same_weights(left, right):
    assert list(left) == list(right)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def records_of(folder, key):
    return [record for record in read_records(folder) if record.get("_type", record.get("split")) == key]


def test_training_leaves_checkpoints_records_and_the_configuration(tiny, tmp_path):
    results = train(tiny())
    assert set(results) == {"top1_err", "top5_err"}
    assert results["top5_err"] == 0.0  # three classes: five guesses are always right
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "checkpoint_epoch_00001.pyth",
        "checkpoint_epoch_00002.pyth",
    ]
    epochs, evaluations = records_of(out, "train_epoch"), records_of(out, "val_epoch")
    assert [record["epoch"] for record in epochs] == ["1/2", "2/2"]
    assert [record["epoch"] for record in evaluations] == ["1/2", "2/2"]
    assert all(0 < record["loss"] < 100 for record in epochs)
    assert {"dt", "dt_data", "dt_net", "eta", "lr", "grad_norm", "gpu_mem", "RAM", "top1_err"} <= set(epochs[0])
    lowest = min(record["top1_err"] for record in evaluations)
    assert evaluations[-1]["min_top1_err"] == lowest
    assert (out / "config.yaml").exists()
    assert "train_iter_" in (out / "stdout.log").read_text()
    saved = torch.load(out / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    assert list(saved) == ["epoch", "model_state", "optimizer_state", "cfg", "class_names"]
    assert saved["epoch"] == 1


def test_a_resumed_training_ends_with_the_same_weights(tiny, tmp_path):
    train(tiny(out=tmp_path / "whole"))
    broken = tmp_path / "broken"
    train(tiny(out=broken))
    (broken / "checkpoints/checkpoint_epoch_00002.pyth").unlink()
    train(tiny(out=broken))
    assert_same_weights(weights(tmp_path / "whole"), weights(broken))


@pytest.mark.slow
def test_workers_do_not_change_the_result(tiny, tmp_path):
    train(tiny(out=tmp_path / "none"))
    train(tiny("DATA_LOADER.NUM_WORKERS", 2, out=tmp_path / "two"))
    assert_same_weights(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_testing_merges_views_and_files_every_video(tiny, videos, tmp_path):
    out = tmp_path / "out"
    train(tiny())
    results = engine.test(tiny("TEST.SAVE_RESULTS_PATH", "results.pkl", "TEST.NUM_TEMPORAL_CLIPS", [1, 2]))
    assert set(results) == {f"{prefix}top{k}_acc" for prefix in ("", "1x3/", "2x3/") for k in (1, 5)}
    assert results["top1_acc"] == results["2x3/top1_acc"]
    lines = [json.loads(line) for line in (out / "test_2x3.jsonl").read_text().splitlines()]
    listed = [line.split() for line in (videos / "test.csv").read_text().splitlines()]
    assert [(line["path"].split("/")[-1], line["label"]) for line in lines] == [(p, int(y)) for p, y in listed]
    assert {line["views"] for line in lines} == {6}
    for line in lines:
        assert sum(line["scores"]) == pytest.approx(6.0, abs=1e-3)  # softmax scores of six views
        assert line["top"][0] == [line["scores"].index(max(line["scores"])), max(line["scores"])]
    right = sum(line["top"][0][0] == line["label"] for line in lines)
    assert results["top1_acc"] == pytest.approx(100 * right / len(lines))
    tables = (out / "stdout.log").read_text().split("how the classes fared:")[1:]
    assert len(tables) == 2
    assert all(name in tables[1] for name in ("dark", "bright", "striped"))
    with (out / "results.pkl").open("rb") as file:
        scores, labels = pickle.load(file)
    assert labels.tolist() == [int(y) for _, y in listed]
    assert torch.allclose(scores, torch.tensor([line["scores"] for line in lines]), atol=1e-4)
    finals = records_of(out, "test_final")
    assert [record["views"] for record in finals] == ["1x3", "2x3"]
    assert finals[1]["top1_acc"] == f"{results['top1_acc']:.2f}"


def test_a_test_stopped_between_two_numbers_of_views_leaves_each_result_once(tiny, tmp_path, monkeypatch):
    start = tmp_path / "a.pyth"
    torch.save({"model_state": build_model(tiny()).state_dict()}, start)
    cfg = tiny("TEST.NUM_TEMPORAL_CLIPS", [1, 2], "TEST.CHECKPOINT_FILE_PATH", str(start))
    predict, calls = Classification.predict, []

    def stopped(self, *args):
        calls.append(None)
        if len(calls) == 9:  # 9 videos of 3 views are 7 batches
            raise KeyboardInterrupt
        return predict(self, *args)

    other = '{"split": "test_final", "views": "10x3", "top1_acc": "50.00"}'
    (tmp_path / "out").mkdir()
    (tmp_path / "out/json_stats.log").write_text(f"json_stats: {other}\n")
    monkeypatch.setattr(Classification, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.test(cfg)
    assert [record["views"] for record in records_of(tmp_path / "out", "test_final")] == ["10x3", "1x3"]
    engine.test(cfg)
    assert [record["views"] for record in records_of(tmp_path / "out", "test_final")] == ["10x3", "1x3", "2x3"]


@pytest.mark.slow
def test_two_processes_test_like_one(tiny, tmp_path):
    train(tiny())
    checkpoint = ("TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "out/checkpoints/checkpoint_epoch_00002.pyth"))
    one = launch(partial(engine.test, tiny(*checkpoint, out=tmp_path / "one")))
    two = launch(partial(engine.test, tiny(*checkpoint, out=tmp_path / "two")), processes=2)
    assert one == two
    assert (tmp_path / "one/test_2x3.jsonl").read_text() == (tmp_path / "two/test_2x3.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_train_together(tiny, tmp_path):
    results = launch(partial(train, tiny()), processes=2)
    assert set(results) == {"top1_err", "top5_err"}
    assert len(records_of(tmp_path / "out", "train_epoch")) == 2


def test_testing_without_weights_is_an_error(tiny):
    with pytest.raises(CheckpointError, match="no weights to test"):
        engine.test(tiny())


@pytest.fixture
def damaged(videos, tmp_path):
    """The tiny videos, with the first training video and the first test video cut off."""
    root = tmp_path / "damaged"
    shutil.copytree(videos, root)
    for name in ("train_dark_0.mp4", "test_dark_0.mp4"):
        (root / name).write_bytes((root / name).read_bytes()[:200])
    return root


def test_a_bad_training_video_is_replaced_counted_and_named(tiny, damaged, tmp_path):
    train(tiny("SOLVER.MAX_EPOCH", 1, data=damaged))
    rows = (tmp_path / "out/bad_videos.csv").read_text().splitlines()
    assert rows[0] == "split,epoch,path,reason,times"
    assert len(rows) == 2
    assert rows[1].startswith(f"train,1,{damaged / 'train_dark_0.mp4'}")


def test_a_bad_test_video_stops_the_test_or_is_left_out_where_asked(tiny, damaged, tmp_path):
    train(tiny("SOLVER.MAX_EPOCH", 1, data=damaged))
    with pytest.raises(DecodeError, match="test_dark_0"):
        engine.test(tiny(data=damaged))
    results = engine.test(tiny("TEST.SKIP_BAD_VIDEOS", True, data=damaged))
    assert "top1_acc" in results
    lines = [json.loads(line) for line in (tmp_path / "out/test_2x3.jsonl").read_text().splitlines()]
    assert lines[0] == {"path": str(damaged / "test_dark_0.mp4"), "skipped": True}
    assert all("scores" in line for line in lines[1:])
    assert records_of(tmp_path / "out", "test_final")[-1]["videos"] == 8
    assert "test_dark_0" in (tmp_path / "out/bad_videos.csv").read_text()


def test_a_loss_that_is_not_finite_names_the_batch_and_saves_nothing(tiny, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step \d+.*train_\w+\.mp4"):
        train(tiny("SOLVER.BASE_LR", 1e30))
    assert not list((tmp_path / "out/checkpoints").glob("*"))


def test_precise_statistics_and_frozen_ones(tiny, tmp_path):
    train(tiny("BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", 2, "SOLVER.MAX_EPOCH", 1))
    state = weights(tmp_path / "out", 1)
    assert state["s1.pathway0_stem.bn.running_mean"].abs().sum() > 0
    train(tiny("MODEL.FROZEN_BN", True, "SOLVER.MAX_EPOCH", 1, out=tmp_path / "frozen"))
    frozen = weights(tmp_path / "frozen", 1)
    assert torch.equal(frozen["s1.pathway0_stem.bn.running_mean"], torch.zeros(8))


def test_a_finished_training_is_evaluated_again(tiny):
    first = train(tiny())
    assert train(tiny()) == first


def test_two_classes_train_and_test(tiny, videos, tmp_path):
    root = tmp_path / "pair"
    shutil.copytree(videos, root)
    for split in ("train", "val", "test"):
        path = root / f"{split}.csv"
        path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.endswith(" 2")))
    cfg = tiny("MODEL.NUM_CLASSES", 2, "SOLVER.MAX_EPOCH", 1, data=root)
    assert train(cfg)["top5_err"] == 0.0
    assert engine.test(cfg)["top5_acc"] == 100.0


def test_names_of_classes_stay_with_the_network(tiny, videos, tmp_path):
    out, again, small = tmp_path / "out", tmp_path / "again", ("TRAIN.EVAL_PERIOD", 9, "SOLVER.MAX_EPOCH", 1)
    train(tiny(*small))
    checkpoint = out / "checkpoints/checkpoint_epoch_00001.pyth"
    named = {"dark": 0, "bright": 1, "striped": 2}
    assert json.loads((out / "class_names.json").read_text()) == named
    assert torch.load(checkpoint)["class_names"] == list(named)
    # Somewhere else, where the same files have no names.
    bare = shutil.copytree(videos, tmp_path / "bare")
    (bare / "class_names.json").unlink()
    engine.test(tiny("TEST.CHECKPOINT_FILE_PATH", str(checkpoint), data=bare, out=again))
    assert json.loads((again / "class_names.json").read_text()) == named
    assert read_job(again).class_names == list(named)
    # What is trained on from there has the names of its own data, which are none.
    tuned = ("TRAIN.CHECKPOINT_FILE_PATH", str(checkpoint), "SOLVER.MAX_EPOCH", 2)
    train(tiny(*small, *tuned, data=bare, out=tmp_path / "tuned"))
    assert "class_names" not in torch.load(tmp_path / "tuned/checkpoints/checkpoint_epoch_00002.pyth")
    assert not (tmp_path / "tuned/class_names.json").exists()
