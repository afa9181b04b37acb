"""Weights & Biases, without its service: pytest tests/visualization/test_wandb_sink.py"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from slowfast.config import load_cfg
from slowfast.visualization.wandb_sink import WandbSink, build_wandb


class Run:
    def __init__(self, **options):
        self.options, self.logged, self.summary, self.axes, self.ended = options, [], {}, {}, False

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.ended = True


@pytest.fixture
def runs(monkeypatch):
    """What a module in the place of wandb was asked for."""
    started = []

    def init(**options):
        started.append(Run(**options))
        return started[-1]

    module = ModuleType("wandb")
    module.init, module.Image = init, lambda picture: SimpleNamespace(size=picture.size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return started


def sink_in(folder, offline=False):
    return WandbSink(folder, project="p", name="", config={"SOLVER.BASE_LR": 0.1}, offline=offline)


def test_numbers_go_with_their_axes(runs, tmp_path):
    sink = sink_in(tmp_path / "out")
    sink.write({"_type": "train_iter_", "loss": 1.5, "top1_err": 40.0, "clips_per_s": 64.0, "eta": "0:01"}, 10)
    sink.write({"_type": "train_epoch", "loss": 1.5}, 10)
    sink.write({"_type": "val_epoch", "top1_err": 25.0}, 0)
    sink.write({"split": "test_final", "top1_acc": "75.50", "views": "10x3"}, 0)
    sink.close()
    (run,) = runs
    assert run.axes == {"step": None, "Train/*": "step", "epoch": None, "Val/*": "epoch"}
    assert run.logged == [
        {"Train/loss": 1.5, "Train/Top1_err": 40.0, "Train/Top1_acc": 60.0, "Train/clips_per_s": 64.0, "step": 10},
        {"Val/Top1_err": 25.0, "Val/Top1_acc": 75.0, "epoch": 1},
    ]
    assert run.summary == {"Test/10x3/top1_acc": 75.5}
    assert run.ended
    assert run.options["name"] == "out"
    assert run.options["config"] == {"SOLVER.BASE_LR": 0.1}


def test_the_next_job_of_a_folder_goes_on_with_its_run(runs, tmp_path):
    for folder in ("one", "one", "two"):
        sink_in(tmp_path / folder)
    ids = [run.options["id"] for run in runs]
    assert ids[0] == ids[1] != ids[2]
    assert {run.options["resume"] for run in runs} == {"allow"}
    sink_in(tmp_path / "one", offline=True)
    assert (runs[-1].options["mode"], "resume" in runs[-1].options) == ("offline", False)


def test_predictions_are_a_picture_where_it_can_be_read(runs, tmp_path):
    sink = sink_in(tmp_path)
    sink.add_predictions(np.eye(3), np.array([0, 1, 1]), 1)
    sink.add_predictions(np.eye(400), np.arange(400), 1)
    sink.add_predictions(np.eye(3), np.eye(3), 1)
    (logged,) = runs[0].logged
    assert min(logged["Confusion Matrix"].size) > 400


def test_off_by_default_and_a_missing_package_is_named(tmp_path, monkeypatch):
    assert build_wandb(load_cfg(None, ["OUTPUT_DIR", str(tmp_path)])) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="python -m pip install wandb"):
        build_wandb(load_cfg(None, ["OUTPUT_DIR", str(tmp_path), "WANDB.ENABLE", True]))


def test_the_configuration_chooses(runs, tmp_path):
    build_wandb(load_cfg(None, ["OUTPUT_DIR", str(tmp_path), "WANDB.ENABLE", True, "WANDB.NAME", "first"]))
    assert (runs[0].options["project"], runs[0].options["name"]) == ("slowfast", "first")
    assert runs[0].options["config"]["WANDB.NAME"] == "first"
