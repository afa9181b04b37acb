"""All sides of benchmarks/data.py do the same work."""

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"


@pytest.fixture(scope="module")
def data():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_data", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip(data, tmp_path_factory):
    """Three seconds of 340x256, smooth in space and time."""
    rows, columns = np.mgrid[:256, :340]
    frames = []
    for number in range(30):
        grey = 90 + 60 * np.sin((rows + columns) / 40 + number / 10)
        frames.append(av.VideoFrame.from_ndarray(np.stack([grey, grey, 255 - grey], -1).astype(np.uint8), "rgb24"))
    frames = [frame.reformat(format="yuv420p") for frame in frames]
    data.SECONDS = 4
    return data.encode(frames, Fraction(25), tmp_path_factory.mktemp("clips") / "x.mp4")


@pytest.mark.slow
def test_the_plain_loader_gives_the_clips_of_ours(data, clip):
    task = data.Task("test", "SLOW_8x8_R50", data.ClipSpec(8, 8, 30), test=True)
    plain = data.run_plain([clip], task, np.random.default_rng(0))
    ours = data.run_ours_normalised([clip], task, np.random.default_rng(0)).clips
    assert plain.shape == ours.shape == (30, 3, 8, 256, 256)
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-5)


def test_every_side_gives_training_clips_of_one_shape(data, clip):
    task = data.Task("train", "SLOW_8x8_R50", data.ClipSpec(8, 8, 30))
    for run in data.available_sides()[0].values():
        made = run([clip, clip], task, np.random.default_rng(0))
        clips = made if isinstance(made, torch.Tensor) else made.clips
        assert clips.shape == (2, 3, 8, 224, 224)
