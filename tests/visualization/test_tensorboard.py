import json

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slowfast.config import load_cfg
from slowfast.visualization import tensorboard
from slowfast.visualization.tensorboard import ClassPlots, TensorboardSink, build_tensorboard, read_subset, scalars_of


def read(log_dir):
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return events


def test_training_and_validation_become_the_original_s_scalars(tmp_path):
    sink = TensorboardSink(tmp_path)
    record = {"_type": "train_iter_", "epoch": "1/2", "loss": 1.5, "lr": 0.1, "top1_err": 50.0, "top5_err": 0.0}
    sink.write({**record, "dt": 0.2, "dt_data": 0.1, "eta": "0:00:01"}, 10)
    sink.write({**record, "loss": 1.0}, 20)
    sink.write({"_type": "train_epoch", "loss": 9.0}, 20)
    sink.write({"_type": "val_epoch", "top1_err": 40.0, "top5_err": 5.0}, 0)
    sink.close()
    events = read(tmp_path)
    train = {"Train/loss", "Train/lr", "Train/Top1_err", "Train/Top5_err", "Train/dt", "Train/dt_data"}
    accuracies = {"Train/Top1_acc", "Train/Top5_acc", "Val/Top1_acc", "Val/Top5_acc"}
    assert set(events.Tags()["scalars"]) == train | accuracies | {"Val/Top1_err", "Val/Top5_err"}
    assert [(event.step, event.value) for event in events.Scalars("Train/loss")] == [(10, 1.5), (20, 1.0)]
    assert [event.value for event in events.Scalars("Val/Top1_err")] == [40.0]


def test_pace_and_memory_are_scalars_and_accuracy_is_the_rest_of_the_error():
    record = {"_type": "train_iter_", "top1_err": 37.5, "clips_per_s": 64.0, "data_wait": 62.0, "ram_gb": 3.5}
    assert scalars_of({**record, "gpu_mem_gb": 1.25}) == {
        "Train/Top1_err": 37.5,
        "Train/Top1_acc": 62.5,
        "Train/clips_per_s": 64.0,
        "Train/data_wait_percent": 62.0,
        "Train/host_memory_GiB": 3.5,
        "Train/gpu_memory_GiB": 1.25,
    }
    assert scalars_of({"split": "test_final", "top1_err": 1.0}) == {}


def test_multi_label_records_have_no_errors(tmp_path):
    sink = TensorboardSink(tmp_path)
    sink.write({"_type": "train_iter_", "loss": 0.5, "lr": 0.1}, 1)
    sink.write({"_type": "val_epoch", "map": 31.5}, 1)
    sink.close()
    assert set(read(tmp_path).Tags()["scalars"]) == {"Train/loss", "Train/lr", "Val/mAP"}


def test_pictures_carry_the_original_s_tags(tmp_path):
    options = ClassPlots(
        class_names=["left", "right", "up"],
        confusion_size=(2, 2),
        confusion_subset=[0, 2],
        parents={"sideways": [0, 1], "other data": []},
        histogram_size=(2, 2),
        histogram_subset=[1],
        topk=2,
    )
    sink = TensorboardSink(tmp_path, class_plots=options)
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    sink.add_predictions(scores, torch.tensor([0, 1, 2]), 5)
    sink.close()
    assert set(read(tmp_path).Tags()["images"]) == {
        "Confusion Matrix",
        "Confusion Matrix Subset",
        "Confusion Matrices Grouped by Parent Classes/sideways",
        "Top 2 predictions by classes/right",
    }


def test_multi_label_predictions_count_by_the_first_true_class(tmp_path, monkeypatch):
    sink = TensorboardSink(tmp_path, class_plots=ClassPlots(["a", "b"], confusion_size=(1, 1)))
    seen = []
    monkeypatch.setattr(tensorboard, "class_figures", lambda options, counts: seen.append(counts.tolist()) or [])
    sink.add_predictions(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[1.0, 1.0], [0.0, 1.0]]), 0)
    sink.close()
    assert seen == [[[0, 1], [1, 0]]]


def test_builder_chooses_the_folder(tmp_path):
    base = ["OUTPUT_DIR", str(tmp_path), "TRAIN.DATASET", "ssv2"]
    assert build_tensorboard(load_cfg(None, base)) is None
    sink = build_tensorboard(load_cfg(None, [*base, "TENSORBOARD.ENABLE", True]))
    assert sink.log_dir == tmp_path / "runs-ssv2"
    assert sink.class_plots is None
    sink.close()
    sink = build_tensorboard(load_cfg(None, [*base, "TENSORBOARD.ENABLE", True, "TENSORBOARD.LOG_DIR", "board"]))
    assert sink.log_dir == tmp_path / "board"
    sink.close()


def test_builder_reads_names_subsets_and_groups(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"a": 0, "c": 2}))
    (tmp_path / "subset.txt").write_text("c\n\na\n")
    (tmp_path / "groups.json").write_text(json.dumps({"g": ["a", "not here"]}))
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.NUM_CLASSES", 3, "TENSORBOARD.ENABLE", True]
    opts += ["TENSORBOARD.CLASS_NAMES_PATH", str(tmp_path / "names.json")]
    opts += ["TENSORBOARD.CATEGORIES_PATH", str(tmp_path / "groups.json")]
    opts += ["TENSORBOARD.CONFUSION_MATRIX.ENABLE", True]
    opts += ["TENSORBOARD.CONFUSION_MATRIX.SUBSET_PATH", str(tmp_path / "subset.txt")]
    sink = build_tensorboard(load_cfg(None, opts))
    sink.close()
    assert sink.class_plots == ClassPlots(
        class_names=["a", "1", "c"], confusion_size=(8, 8), confusion_subset=[2, 0], parents={"g": [0]}
    )


def test_unknown_name_in_a_subset_is_an_error(tmp_path):
    (tmp_path / "subset.txt").write_text("a\nnobody\n")
    with pytest.raises(ValueError, match="nobody"):
        read_subset(str(tmp_path / "subset.txt"), ["a", "b"])
