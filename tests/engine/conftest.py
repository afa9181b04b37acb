"""A tiny job: a few short real videos and a small network, enough for every path of the engine."""

import json

import av
import numpy as np
import pytest

from slowfast.config import load_cfg

CLASSES = ("dark", "bright", "striped")


def write_video(path, kind, seed, frames=12, size=48):
    """An H.264 video whose class shows in its pixels, so that a tiny network can learn it in seconds."""
    rng = np.random.default_rng(seed)
    base = np.full((size, size, 3), {"dark": 40, "bright": 210, "striped": 40}[kind], np.uint8)
    if kind == "striped":
        base[::8] = base[1::8] = 220
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"crf": "20"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            noisy = np.clip(base.astype(int) + rng.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder with train.csv, val.csv and test.csv of real encoded videos."""
    root = tmp_path_factory.mktemp("videos")
    for split, per_class in (("train", 4), ("val", 2), ("test", 3)):
        lines = []
        for label, kind in enumerate(CLASSES):
            for number in range(per_class):
                name = f"{split}_{kind}_{number}.mp4"
                write_video(root / name, kind, seed=100 * label + number + len(split))
                lines.append(f"{name} {label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "class_names.json").write_text(json.dumps({name: index for index, name in enumerate(CLASSES)}))
    return root


@pytest.fixture(scope="session")
def tiny_of(videos):
    """A function from an output folder and overrides to the configuration of a tiny job."""

    def make(out, *overrides, data=videos):
        return load_cfg(
            None,
            [
                *("TRAIN.DATASET", "kinetics", "TEST.DATASET", "kinetics", "NUM_GPUS", 0, "LOG_PERIOD", 2),
                *("DATA.PATH_TO_DATA_DIR", str(data), "DATA.PATH_PREFIX", str(data), "OUTPUT_DIR", str(out)),
                *("DATA.NUM_FRAMES", 4, "DATA.SAMPLING_RATE", 2, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32),
                *("DATA.TRAIN_JITTER_SCALES", [32, 40], "DATA.INPUT_CHANNEL_NUM", [3], "DATA_LOADER.NUM_WORKERS", 0),
                *("MODEL.MODEL_NAME", "ResNet", "MODEL.ARCH", "slow", "MODEL.NUM_CLASSES", 3),
                *("MODEL.DROPOUT_RATE", 0.5, "RESNET.DEPTH", 18, "RESNET.TRANS_FUNC", "basic_transform"),
                *("RESNET.WIDTH_PER_GROUP", 8, "RESNET.NUM_BLOCK_TEMP_KERNEL", [[2], [2], [2], [2]]),
                *("TRAIN.BATCH_SIZE", 6, "TRAIN.EVAL_PERIOD", 1, "TRAIN.CHECKPOINT_PERIOD", 1, "TEST.BATCH_SIZE", 4),
                *("TEST.NUM_ENSEMBLE_VIEWS", 2, "SOLVER.BASE_LR", 0.05, "SOLVER.MAX_EPOCH", 2),
                *overrides,
            ],
        )

    return make


@pytest.fixture
def tiny(tiny_of, videos, tmp_path):
    """The same for a job that writes into ``tmp_path / "out"`` unless told otherwise."""

    def make(*overrides, data=videos, out=tmp_path / "out"):
        return tiny_of(out, *overrides, data=data)

    return make
