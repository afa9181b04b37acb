"""A whole job, training and testing, on each format of data: the labels get through from the files to the results."""

import json

import numpy as np
import pytest
from PIL import Image

from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.ssv2 import LABELS, VIDEOS
from slowfast.engine import test as run_test
from slowfast.engine import train
from slowfast.visualization.results import read_job

GREYS = {"dark": 30, "bright": 220}
SPLITS = {"train": 4, "val": 2}


def write_image(path, kind, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (48, 56, 3))
    Image.fromarray((GREYS[kind] + noise).astype(np.uint8)).save(path)


def results(cfg, out):
    """Train and test; the lines of the test's videos."""
    train(cfg)
    run_test(cfg)
    (file,) = out.glob("test_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def short(name):
    """Options of a job of one epoch on the data set ``name``."""
    views = ["TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1, "TEST.REPORT", False]
    sizes = ["MODEL.NUM_CLASSES", 2, "TRAIN.BATCH_SIZE", 4, "SOLVER.MAX_EPOCH", 1]
    return ["TRAIN.DATASET", name, "TEST.DATASET", name, *views, *sizes]


@pytest.fixture
def frame_lists(tmp_path):
    """Frame folders with train.csv and val.csv; the labels of a frame are its class, twice as many in dark videos."""
    for split, per_class in SPLITS.items():
        lines = [f"{HEADER[0]} video_id frame_id path labels"]
        for number in range(2 * per_class):
            kind, video = ("dark", "bright")[number % 2], f"{split}{number}"
            for frame in range(8):
                write_image(tmp_path / video / f"{frame}.jpg", kind, seed=frame)
                labels = "0,1" if kind == "dark" and frame > 3 else str(number % 2)
                lines.append(f'{video} {number} {frame} {video}/{frame}.jpg "{labels}"')
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_something_something(frame_lists, tiny, tmp_path):
    (frame_lists / LABELS).write_text('{"Being dark": "0", "Being bright": "1"}')
    for split, per_class in SPLITS.items():
        named = [("Being [dark]", "Being [bright]")[number % 2] for number in range(2 * per_class)]
        videos = [{"id": f"{split}{number}", "template": template} for number, template in enumerate(named)]
        (frame_lists / VIDEOS[split]).write_text(json.dumps(videos))
    lines = results(tiny(*short("ssv2"), data=frame_lists), tmp_path / "out")
    assert [(line["path"], line["label"]) for line in lines] == [
        (str(frame_lists / f"val{number}"), number % 2) for number in range(4)
    ]


def test_charades(frame_lists, tiny, tmp_path):
    options = ["DATA.MULTI_LABEL", True, "DATA.ENSEMBLE_METHOD", "max", "MODEL.LOSS_FUNC", "bce_logit"]
    cfg = tiny(*short("charades"), *options, "MODEL.HEAD_ACT", "sigmoid", data=frame_lists)
    lines = results(cfg, tmp_path / "out")
    assert [line["label"] for line in lines] == [[0, 1], [1], [0, 1], [1]]


def test_class_folders(videos, tiny, tmp_path):
    for split in ("train", "val", "test"):
        for video in videos.glob(f"{split}_*.mp4"):
            _, kind, number = video.stem.split("_")
            (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / kind / f"{number}.mp4").symlink_to(video)
    options = ["MODEL.NUM_CLASSES", 3, "TEST.REPORT", True]
    lines = results(tiny(*short("kinetics"), *options, data=tmp_path / "data"), tmp_path / "out")
    assert [line["label"] for line in lines] == [0] * 3 + [1] * 3 + [2] * 3
    assert {line["path"].split("/")[-2] for line in lines if line["label"] == 0} == {"bright"}
    assert read_job(tmp_path / "out").class_names == ["bright", "dark", "striped"]


def test_images(tiny, tmp_path):
    for split, per_class in {**SPLITS, "test": 2}.items():
        for number in range(2 * per_class):
            kind = ("dark", "bright")[number % 2]
            write_image(tmp_path / "data" / split / kind / f"{number}.jpg", kind, seed=number)
    flat = ["DATA.NUM_FRAMES", 1, "MODEL.ARCH", "2d", "DATA.TEST_CROP_SIZE", 40]
    lines = results(tiny(*short("imagenet"), *flat, data=tmp_path / "data"), tmp_path / "out")
    assert [(line["path"].split("/")[-2], line["label"], line["views"]) for line in lines] == [
        ("bright", 0, 1),
        ("bright", 0, 1),
        ("dark", 1, 1),
        ("dark", 1, 1),
    ]
