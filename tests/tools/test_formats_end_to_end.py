"""run_net.py on each format of data from its files to its results; tests/engine/test_formats.py has frames and folders.

A job of one epoch on a few small videos: that the rows, their labels and their number of views come out right.
"""

import json
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from slowfast.datasets.frame_lists import HEADER
from slowfast.datasets.shards import write_shards
from slowfast.datasets.ssv2 import LABELS, VIDEOS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train": 4, "val": 2, "test": 2}
GREYS = (40, 200)

YAML = """
TRAIN: {{DATASET: {name}, BATCH_SIZE: 4, EVAL_PERIOD: 1, CHECKPOINT_PERIOD: 1}}
TEST: {{DATASET: {name}, BATCH_SIZE: 4, NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 3}}
DATA:
  PATH_TO_DATA_DIR: {data}
  PATH_PREFIX: {prefix}
  NUM_FRAMES: 4
  SAMPLING_RATE: 2
  TRAIN_JITTER_SCALES: [32, 36]
  TRAIN_CROP_SIZE: 32
  TEST_CROP_SIZE: 32
  INPUT_CHANNEL_NUM: [3]
MODEL: {{MODEL_NAME: ResNet, ARCH: slow, NUM_CLASSES: 2}}
RESNET: {{DEPTH: 18, TRANS_FUNC: basic_transform, WIDTH_PER_GROUP: 4, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}}
SOLVER: {{BASE_LR: 0.01, MAX_EPOCH: 1}}
DATA_LOADER: {{NUM_WORKERS: 0}}
NUM_GPUS: 0
OUTPUT_DIR: {out}
"""


def write_video(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for number in range(12):
            pixels = np.full((40, 48, 3), grey + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def run_net(tmp_path, monkeypatch, capsys):
    """A function from the name of a data set and options to the lines of its test."""
    tool = load_script(ROOT / "tools" / "run_net.py")

    def run(name, *options, data="data", prefix="data"):
        out, file = tmp_path / "out", tmp_path / "job.yaml"
        file.write_text(YAML.format(name=name, data=tmp_path / data, prefix=tmp_path / prefix, out=out))
        monkeypatch.setattr(sys, "argv", ["run_net.py", "--cfg", str(file), *map(str, options)])
        assert tool.main() == 0, capsys.readouterr().err
        assert (out / "report.html").stat().st_size > 10_000
        (lines,) = out.glob("test_*.jsonl")
        return [json.loads(line) for line in lines.read_text().splitlines()]

    return run


@pytest.fixture
def videos(tmp_path):
    """Lists of videos with named labels."""
    for split, count in SPLITS.items():
        rows = []
        for number in range(count):
            kind = ("dark room", "bright")[number % 2]
            write_video(tmp_path / "data" / split / f"{number}.mp4", GREYS[number % 2])
            rows.append(f"{split}/{number}.mp4,{kind}\n")
        (tmp_path / "data" / f"{split}.csv").write_text("".join(rows))
    return tmp_path / "data"


def test_lists_with_names(videos, run_net):
    lines = run_net("kinetics", "DATA.PATH_LABEL_SEPARATOR", ",")
    assert [(Path(line["path"]).name, line["label"], line["views"]) for line in lines] == [
        ("0.mp4", 1, 3),
        ("1.mp4", 0, 3),
    ]


def test_the_original_names_of_other_readers(videos, run_net):
    assert len(run_net("Ptvkinetics", "DATA.PATH_LABEL_SEPARATOR", ",")) == 2


def test_shards(videos, tmp_path, run_net):
    from slowfast.datasets.kinetics import load_records

    for split in SPLITS:
        records = load_records(str(videos / f"{split}.csv"), ",", str(videos))
        write_shards(records, str(tmp_path / "shards"), split, prefix=str(videos), shard_bytes=1)
    shutil.rmtree(videos)
    lines = run_net("shards", data="shards")
    assert [line["label"] for line in lines] == [1, 0]
    assert lines[0]["path"] == str(tmp_path / "shards" / "test-000000.tar" / "test" / "0.mp4")


def test_something_something_from_videos(tmp_path, run_net):
    data = tmp_path / "data"
    data.mkdir()
    (data / LABELS).write_text('{"Being dark": "0", "Being bright": "1"}')
    for first, split in ((0, "train"), (10, "val")):
        annotation = []
        for number in range(first, first + SPLITS[split]):
            write_video(tmp_path / "webm" / f"{number}.webm", GREYS[number % 2])
            annotation.append({"id": str(number), "template": ("Being [dark]", "Being [bright]")[number % 2]})
        (data / VIDEOS[split]).write_text(json.dumps(annotation))
    lines = run_net("ssv2", prefix="webm")
    assert [(line["path"], line["label"]) for line in lines] == [
        (str(tmp_path / "webm" / "10.webm"), 0),
        (str(tmp_path / "webm" / "11.webm"), 1),
    ]


def test_charades_from_videos(tmp_path, run_net):
    for split in ("train", "val"):
        rows = [f"{HEADER[0]} video_id frame_id path labels\n"]
        for number in range(SPLITS[split]):
            video = f"{split}{number}"
            write_video(tmp_path / "data" / f"{video}.mp4", GREYS[number % 2])
            for frame in range(24):
                labels = "0,1" if number % 2 and frame > 20 else "0"
                rows.append(f'{video} {number} {frame} {video}/{frame:06d}.jpg "{labels}"\n')
        (tmp_path / "data" / f"{split}.csv").write_text("".join(rows))
    options = ["DATA.MULTI_LABEL", True, "DATA.ENSEMBLE_METHOD", "max", "MODEL.LOSS_FUNC", "bce_logit"]
    lines = run_net("charades", *options, "MODEL.HEAD_ACT", "sigmoid", "TEST.NUM_ENSEMBLE_VIEWS", 2)
    assert [(line["label"], line["views"]) for line in lines] == [([0], 6), ([0, 1], 6)]


def test_images_of_lists(tmp_path, run_net):
    for split, count in SPLITS.items():
        rows = []
        for number in range(count):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (56, 48), (GREYS[number % 2],) * 3).save(tmp_path / "data" / split / f"{number}.jpg")
            rows.append({"im_path": f"{split}/{number}.jpg", "class": number % 2})
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(rows))
    flat = ["DATA.NUM_FRAMES", 1, "MODEL.ARCH", "2d", "DATA.TEST_CROP_SIZE", 40, "TEST.NUM_SPATIAL_CROPS", 1]
    lines = run_net("imagenet", "DATA.PATH_TO_PRELOAD_IMDB", tmp_path / "data", *flat)
    assert [(line["label"], line["views"]) for line in lines] == [(0, 1), (1, 1)]
