"""The motion benchmark and its configurations fit the data set that they are made for."""

import json
from pathlib import Path

import pytest
from scripts import load_script

from slowfast.config import load_cfg
from slowfast.datasets.motion import MOTIONS, MotionSpec
from slowfast.tasks.base import task_name

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "Motion").glob("*.yaml"))


@pytest.fixture(scope="module")
def benchmark():
    return load_script(ROOT / "benchmarks" / "motion.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_fits_the_data_set(path):
    cfg, spec = load_cfg(str(path)), MotionSpec()
    contrastive = task_name(cfg) == "Contrastive"  # its outputs are features
    assert len(MOTIONS) == (cfg.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM if contrastive else cfg.MODEL.NUM_CLASSES)
    assert spec.fps == cfg.DATA.TARGET_FPS
    assert spec.frames / 2 >= cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE  # several clips of a video differ
    assert not cfg.DATA.RANDOM_FLIP  # it would turn left into right
    assert cfg.DATA.TRAIN_CROP_SIZE % 32 == 0  # the head averages the whole map
    assert cfg.DATA.TRAIN_JITTER_SCALES[1] <= spec.height  # no pixel is invented
    assert spec.width > spec.height  # so that three crops differ


def test_networks_of_the_benchmark_differ_in_time_only(benchmark):
    video, frame = (load_cfg(str(ROOT / "configs" / "Motion" / f"{name}.yaml")) for name in benchmark.NETWORKS.values())
    assert frame.DATA.NUM_FRAMES == 1
    for key in ("DEPTH", "WIDTH_PER_GROUP", "TRANS_FUNC"):
        assert video.RESNET[key] == frame.RESNET[key]
    assert video.SOLVER == frame.SOLVER
    assert video.DATA.TRAIN_CROP_SIZE == frame.DATA.TRAIN_CROP_SIZE


def test_accuracy_is_read_from_the_scores_of_the_test(benchmark, tmp_path):
    rows = [(0, 0), (1, 1), (2, 1), (1, 1)]
    lines = [json.dumps({"label": label, "top": [[best, 0.9], [5, 0.1]]}) for label, best in rows]
    (tmp_path / "test_3x3.jsonl").write_text("\n".join(lines) + "\n")
    accuracy, error, videos = benchmark.read_accuracy(tmp_path)
    assert (accuracy, videos) == (75.0, 4)
    assert error == pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)
