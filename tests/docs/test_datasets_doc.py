"""docs/datasets.md says what is so: its example runs, its names and keys exist."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from slowfast.config import get_cfg
from slowfast.datasets import DATASET_REGISTRY

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()


def scripts():
    """The Python files of the document by the name in their first line."""
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, flags=re.DOTALL)
    return dict(blocks)


def write_video(path, greys):
    """A video of 10 frames a second in which each of ``greys`` lasts one second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for grey in np.repeat(greys, 10):
            frame = np.full((32, 48, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def moments(tmp_path, monkeypatch):
    """A folder with the scripts of the document and long videos: bright from second 2 to 4, dark otherwise."""
    for name, code in scripts().items():
        (tmp_path / name).write_text(code)
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", [20 + number, 20, 220, 220 + number, 20, 20])
    rows = [f"{number}.mp4 {start} {start + 2} {int(start == 2)}\n" for number in range(2) for start in (0, 2, 4)]
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(rows))
    sizes = "NUM_FRAMES: 4, SAMPLING_RATE: 4, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 32, TRAIN_JITTER_SCALES: [32, 36]"
    (tmp_path / "my.yaml").write_text(f"""
TRAIN: {{BATCH_SIZE: 2, EVAL_PERIOD: 1}}
TEST: {{BATCH_SIZE: 2, NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 1, REPORT: False}}
DATA: {{PATH_TO_DATA_DIR: {tmp_path}, PATH_PREFIX: {tmp_path}, INPUT_CHANNEL_NUM: [3], {sizes}}}
DATA_LOADER: {{NUM_WORKERS: 0}}
RESNET: {{DEPTH: 18, TRANS_FUNC: basic_transform, WIDTH_PER_GROUP: 8, NUM_BLOCK_TEMP_KERNEL: [[2], [2], [2], [2]]}}
MODEL: {{MODEL_NAME: ResNet, ARCH: slow, NUM_CLASSES: 2}}
SOLVER: {{MAX_EPOCH: 1}}
NUM_GPUS: 0
OUTPUT_DIR: {tmp_path / "out"}
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_moments.py", str(tmp_path / "my.yaml"), "SOLVER.BASE_LR", "0.01"])
    return tmp_path


def test_the_example_trains_and_tests(moments):
    runpy.run_path(str(moments / "train_moments.py"), run_name="__main__")
    lines = [json.loads(line) for line in (moments / "out" / "test_1x1.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [0, 1, 0] * 2

    from slowfast.config import load_cfg
    from slowfast.datasets import Request, build_dataset

    cfg = load_cfg(str(moments / "my.yaml"))
    train = build_dataset("moments", cfg, "train")
    for epoch in range(3):
        for row in range(6):
            sample = train[Request(row, epoch)]
            assert bool(sample.clip.mean() > 0) == bool(sample.label)  # frames of that part and no other


@pytest.mark.parametrize("options", [["DATA.AUTOROTATE", False], ["DATA.VIDEO_DECODER", "torchcodec"]])
def test_the_example_follows_the_keys_of_decoding(moments, options):
    from slowfast.config import load_cfg
    from slowfast.datasets import build_dataset
    from slowfast.datasets.sources import why_not_torchcodec

    if "torchcodec" in options and why_not_torchcodec():
        pytest.skip("needs torchcodec and FFmpeg's libraries")
    importlib.import_module("moments")
    sample = build_dataset("moments", load_cfg(str(moments / "my.yaml"), options), "train")[1]
    assert (sample.label, bool(sample.clip.mean() > 0)) == (1, True)


def test_every_data_set_is_described():
    table = TEXT[TEXT.index("| name |") : TEXT.index("## Your own videos")]
    named = {
        name.capitalize()
        for row in table.splitlines()[2:]
        for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    ours = {name for name, entry in DATASET_REGISTRY if entry.__module__.startswith("slowfast.")}
    assert named <= ours
    assert ours - named <= {"Ava"}  # described where detection is


def test_every_key_exists():
    cfg = get_cfg()
    for section, key in set(re.findall(r"`([A-Z]+)\.([A-Z_]+)\b", TEXT)):
        assert key in cfg[section], f"{section}.{key}"
