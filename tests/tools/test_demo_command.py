"""The demo as people start it: run_net.py with the published files of demo/ and section DEMO."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fill import fill_model

from slowfast.config import load_cfg
from slowfast.datasets.moving_boxes import BoxesSpec, write_boxes_dataset
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["RESNET.WIDTH_PER_GROUP", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "DATA.NUM_FRAMES", 8]
NAMES = {"Kinetics": "SLOWFAST_8x8_R50.yaml", "AVA": "SLOWFAST_32x2_R101_50_50.yaml"}


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/run_net.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_published_files_run_with_a_video_in_place_of_the_camera(kind, tmp_path):
    write_boxes_dataset(tmp_path, BoxesSpec(videos=(1, 1)))
    file = ROOT / "demo" / kind / NAMES[kind]
    opts = [*SMALL, "DATA.TRAIN_JITTER_SCALES", "[64, 64]", "TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1]
    cfg = load_cfg(file, opts)
    torch.save({"model_state": fill_model(build_model(cfg)).state_dict()}, tmp_path / "w.pyth")
    opts += ["DEMO.WEBCAM", -1, "DEMO.INPUT_VIDEO", tmp_path / "videos/val_0000.mp4", "OUTPUT_DIR", tmp_path / "out"]
    opts += ["TRAIN.CHECKPOINT_FILE_PATH", tmp_path / "w.pyth", "TRAIN.CHECKPOINT_TYPE", "pytorch"]
    if kind == "AVA":
        opts += ["DEMO.PREDS_BOXES", tmp_path / "detected.csv", "DEMO.STARTING_SECOND", 0]
    result = run("--cfg", file, "--opts", *opts)
    assert result.returncode == 0, result.stderr
    assert f"demo:        {tmp_path / 'out/demo.mp4'}" in result.stdout
    assert (tmp_path / "out/demo.mp4").exists()
    assert len((tmp_path / "out/demo.jsonl").read_text().splitlines()) >= 3


@pytest.mark.slow
def test_what_is_missing_is_said_at_once(tmp_path):
    """Nothing but the detector, which may not be downloaded; and a camera that is not there."""
    opts = ["DEMO.WEBCAM", -1, "DEMO.INPUT_VIDEO", "a.mp4", "OUTPUT_DIR", tmp_path]
    file = ROOT / "demo/AVA" / NAMES["AVA"]
    result = run("--cfg", file, "--opts", *opts, SLOWFAST_OFFLINE="1", SLOWFAST_CACHE=str(tmp_path))
    assert result.returncode == 1
    assert "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth" in result.stderr
    file = ROOT / "configs/Motion/_base/slowfast.yaml"
    cfg = load_cfg(file)
    torch.save({"model_state": build_model(cfg).state_dict()}, tmp_path / "w.pyth")
    opts = ["TRAIN.ENABLE", False, "TEST.ENABLE", False, "DEMO.ENABLE", True, "DEMO.WEBCAM", 97]
    opts += ["TEST.CHECKPOINT_FILE_PATH", tmp_path / "w.pyth", "OUTPUT_DIR", tmp_path]
    result = run("--cfg", file, "--opts", *opts)
    assert result.returncode == 1
    assert "webcam:97: " in result.stderr
