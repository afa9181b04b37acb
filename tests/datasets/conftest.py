"""Videos made by counting: the brightness of a frame tells its number."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "datasets"


def write_video(path, num_frames=40, *, size=(64, 48), fps=25, codec="libx264", gop=12, b_frames=2, offset=0):
    """A video whose frame k is grey of luma 16 + 2 (k + offset); for numbers below 108."""
    options = {"bf": str(b_frames), "crf": "1", "x264-params": "log-level=none"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.max_b_frames = b_frames
            stream.bit_rate = 4_000_000
        for number in range(num_frames):
            planes = np.full((size[1] * 3 // 2, size[0]), 128, dtype=np.uint8)
            luma = 16 + 2 * (number + offset)
            planes[: size[1]] = luma if stream.pix_fmt == "yuv420p" else round((luma - 16) * 255 / 219)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format=stream.pix_fmt)))
        container.mux(stream.encode())
    return str(path)


def write_frames(folder, num_frames=20, *, size=(32, 24), offset=0, name="frame_{:06d}.png", colour=None):
    """Images that a video of ``write_video`` would give; names count from 1. Or all of one ``colour``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_frames):
        grey = round(2 * (number + offset) * 255 / 219)
        Image.new("RGB", size, colour or (grey, grey, grey)).save(folder / name.format(number + 1))
    return folder


def numbers_of(frames: torch.Tensor) -> list[int]:
    """The frame numbers that ``write_video`` put into ``frames`` [T, ...], 0..255."""
    grey = frames.flatten(1).float().mean(dim=1)
    return (grey * 219 / 255 / 2).round().long().tolist()


def numbers_of_clip(clip: torch.Tensor) -> list[int]:
    """The same for a normalised clip [C, T, H, W] with the default mean and deviation."""
    return numbers_of((clip.transpose(0, 1) * 0.225 + 0.45) * 255)


@pytest.fixture(scope="session")
def golden_sampling():
    """Rows of the golden sampling table by name."""
    table = json.loads((GOLDEN / "sampling.json").read_text())
    return lambda name: table[name]["rows"] if "rows" in table[name] else table[name]


@pytest.fixture(scope="session")
def golden_video_frames():
    """Frames chosen in real videos: their timelines and the views."""
    return json.loads((GOLDEN / "video_frames.json").read_text())


@pytest.fixture(scope="session")
def make_video():
    """``write_video``."""
    return write_video


@pytest.fixture(scope="session")
def make_frames():
    """``write_frames``."""
    return write_frames


@pytest.fixture(scope="session")
def frame_numbers():
    """``numbers_of``."""
    return numbers_of


@pytest.fixture(scope="session")
def clip_numbers():
    """``numbers_of_clip``."""
    return numbers_of_clip


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    """Six good videos (a.mp4 .. f.mp4; video v starts at frame number 5 v) and train, val and test lists of them."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"{letter}.mp4" for letter in "abcdef"]
    for number, name in enumerate(names):
        write_video(folder / name, 40, offset=5 * number)
    lines = "".join(f"{name} {number % 3}\n" for number, name in enumerate(names))
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text(lines)
    return folder


@pytest.fixture
def small_cfg():
    """A configuration for small clips of a folder of videos; more options as KEY, value."""
    from slowfast.config import load_cfg

    def load(folder, *opts):
        small = ["DATA.NUM_FRAMES", 4, "DATA.SAMPLING_RATE", 3, "DATA.TRAIN_JITTER_SCALES", [32, 40]]
        small += ["DATA.TRAIN_CROP_SIZE", 24, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 3, "NUM_GPUS", 0]
        small += [
            "TRAIN.BATCH_SIZE",
            2,
            "TEST.BATCH_SIZE",
            4,
            "TEST.NUM_ENSEMBLE_VIEWS",
            2,
            "DATA_LOADER.NUM_WORKERS",
            0,
        ]
        small += ["DATA.PATH_TO_DATA_DIR", str(folder), "DATA.PATH_PREFIX", str(folder)]
        return load_cfg(None, [*small, *opts])

    return load
