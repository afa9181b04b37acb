"""The same network from three kinds of file, tested by the command: pytest tests/tools/test_foreign_weights.py"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import load_script

from slowfast.checkpoint.convert import fit_state
from slowfast.checkpoint.hub_names import recognise

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "Kinetics" / "c2" / "SLOW_8x8_R50.yaml"
PAIRS = json.loads((ROOT / "tests/golden/checkpoint/checkpoint.json").read_text())["caffe2_pairs"]
OPTS = ("DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 7)


def parity_tool():
    return load_script(ROOT / "tools" / "parity.py")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One filled network as the original, Caffe2 and pytorchvideo's hub save it, and three videos to test it on."""
    from slowfast.config import load_cfg
    from slowfast.datasets.motion import MotionSpec, write_dataset
    from slowfast.models import build_model

    folder = tmp_path_factory.mktemp("foreign")
    tool = parity_tool()
    witness = next(w for w in tool.WITNESSES if w.name == "Slow R50")
    theirs = tool.fill(witness.build()).state_dict()
    network = build_model(load_cfg(CONFIG, list(OPTS)))
    ours = fit_state(theirs, network.state_dict())
    network.load_state_dict(ours)
    torch.save({"model_state": network.state_dict(), "epoch": 3, "cfg": "a: 1"}, folder / "original.pyth")
    torch.save({"model_state": theirs}, folder / "hub.pyth")
    blobs = {name: blob for blob, name in PAIRS}
    caffe2 = {blobs[name]: value.numpy() for name, value in ours.items() if name in blobs}
    (folder / "caffe2.pkl").write_bytes(pickle.dumps({"blobs": {**caffe2, "model_iter": 2.0}}, protocol=2))
    assert recognise(theirs).name == "pytorchvideo ResNet"
    assert {name for name in ours if not name.endswith("num_batches_tracked")} <= set(blobs)
    sizes = {"train_per_class": 1, "val_per_class": 1, "test_per_class": 1, "frames": 16, "width": 80, "height": 64}
    write_dataset(folder / "data", MotionSpec(classes=("move_left", "move_right", "zoom_in"), **sizes), workers=1)
    return folder


def scores_of(files, name, *options):
    """Scores per video of `run_net.py` with the weights of file ``name``."""
    data, out = files / "data", files / f"out_{name}"
    opts = [*OPTS, "TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH", files / name, "DATA.PATH_TO_DATA_DIR", data]
    opts += ["DATA.PATH_PREFIX", data, "OUTPUT_DIR", out, "NUM_GPUS", 0, "TEST.BATCH_SIZE", 2, "TEST.REPORT", False]
    opts += ["TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1, "DATA_LOADER.NUM_WORKERS", 0, *options]
    command = [sys.executable, str(ROOT / "tools" / "run_net.py"), "--cfg", str(CONFIG), *map(str, opts)]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600
    )
    if result.returncode:
        return result.stderr
    return [json.loads(line)["scores"] for line in (out / "test_1x1.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_caffe2_and_hub_files_score_as_the_original(files):
    wanted = scores_of(files, "original.pyth", "TEST.CHECKPOINT_TYPE", "pytorch")
    assert len(wanted) == 3
    assert max(map(max, wanted)) < 0.999, "a saturated network would prove nothing"
    assert scores_of(files, "caffe2.pkl") == wanted
    assert scores_of(files, "hub.pyth", "TEST.CHECKPOINT_TYPE", "pytorch") == wanted


@pytest.mark.slow
def test_a_hub_file_of_another_network_is_refused(files):
    state = torch.load(files / "hub.pyth", weights_only=True)["model_state"]
    torch.save({name: tensor for name, tensor in state.items() if "blocks.4" not in name}, files / "partly.pyth")
    message = scores_of(files, "partly.pyth", "TEST.CHECKPOINT_TYPE", "pytorch")
    assert "s5" in message
    assert "not in the file" in message
