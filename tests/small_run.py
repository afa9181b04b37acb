"""A run with a network that can be shown videos: configuration, checkpoint, curves and a test, quickly made."""

import json
from functools import partial
from pathlib import Path

import torch
from fake_job import write_training
from fill import fill_model
from torch import nn

from slowfast.config import load_cfg
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.engine.run import Plan, Run, choose_precision
from slowfast.models import build_model
from slowfast.solver import build_optimizer, lr_at
from slowfast.tasks import Task, build_task

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("move_left", "zoom_in", "bounce")


def bare_run(cfg, model: nn.Module, task: Task | None = None) -> Run:
    """Training of a network that is there, step by step: full precision, no loaders."""
    device = torch.device("cpu")
    return Run(
        model=model,
        optimizer=build_optimizer(model, cfg),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        task=task or build_task(cfg),
        plan=Plan.from_cfg(cfg),
        device=device,
        precision=choose_precision(False, device),
        train_loader=None,
        val_loader=None,
        schedule=partial(lr_at, cfg),
    )


def write_network(folder: Path, crops: int) -> None:
    """A small SlowFast of three classes in ``folder`` (small.yaml, small.pyth, class_names.json), videos in data."""
    sizes = {"train_per_class": 0, "val_per_class": 0, "test_per_class": 1}
    write_dataset(folder / "data", MotionSpec(classes=CLASSES, **sizes))
    (folder / "small.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Motion/_base/slowfast.yaml\n"
        "MODEL: {NUM_CLASSES: 3}\nRESNET: {WIDTH_PER_GROUP: 8}\n"
        f"TEST: {{NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: {crops}}}\n"
    )
    (folder / "class_names.json").write_text((folder / "data" / "class_names.json").read_text())
    network = fill_model(build_model(load_cfg(folder / "small.yaml")))
    torch.save({"model_state": network.state_dict()}, folder / "small.pyth")


def write_run(folder: Path, data: Path) -> Path:
    """A small SlowFast of three classes in ``folder``, and in ``data`` its six videos of 32 frames at 15 a second.

    The test says class 0 of all: two videos are right, two of each other class are not.
    """
    folder.mkdir(parents=True)
    if not data.exists():
        write_dataset(data, MotionSpec(classes=CLASSES, train_per_class=0, val_per_class=0, test_per_class=2))
    (folder / "config.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Motion/_base/slowfast.yaml\n"
        f"DATA: {{PATH_TO_DATA_DIR: {data}, PATH_PREFIX: {data}}}\n"
        "MODEL: {NUM_CLASSES: 3}\nRESNET: {WIDTH_PER_GROUP: 8}\n"
        "TEST: {NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3, BATCH_SIZE: 4}\n"
        f"DATA_LOADER: {{NUM_WORKERS: 0}}\nTENSORBOARD: {{ENABLE: False}}\nOUTPUT_DIR: elsewhere\n"
    )
    network = fill_model(build_model(load_cfg(folder / "config.yaml")))
    network.head.projection.weight.data *= 30  # filled weights alone score all videos nearly alike
    (folder / "checkpoints").mkdir()
    torch.save(
        {"model_state": network.state_dict(), "epoch": 5}, folder / "checkpoints" / "checkpoint_epoch_00006.pyth"
    )
    write_training(folder)
    with (folder / "test_2x3.jsonl").open("w") as file:
        for index, name in enumerate(CLASSES):
            for number in range(2):
                path = str(data / "test" / name / f"{number:05d}.mp4")
                scores = [3.0, 2.0, 1.0]
                line = {"path": path, "label": index, "views": 6, "top": list(enumerate(scores)), "scores": scores}
                file.write(json.dumps(line) + "\n")
    return folder
