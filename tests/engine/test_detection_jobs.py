"""Whole jobs with boxes on the built-in set: pytest tests/engine/test_detection_jobs.py"""

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from slowfast.config import load_cfg
from slowfast.datasets.moving_boxes import CLASSES, BoxesSpec, write_boxes_dataset
from slowfast.engine import test as run_test
from slowfast.engine import train
from slowfast.engine.output import read_records
from slowfast.engine.visualize import visualize

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Six videos to train on and four to test, and a trained job."""
    root = tmp_path_factory.mktemp("boxes")
    write_boxes_dataset(root, BoxesSpec(videos=(6, 4)))
    return root


def options(boxes, out, *more):
    paths = ["AVA.FRAME_DIR", str(boxes / "videos"), "AVA.ANNOTATION_DIR", str(boxes), "OUTPUT_DIR", str(out)]
    small = ["TRAIN.BATCH_SIZE", 6, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0.0, "DATA_LOADER.NUM_WORKERS", 0]
    return [*paths, *small, "RESNET.WIDTH_PER_GROUP", 8, "LOG_PERIOD", 2, "TEST.REPORT", False, *more]


def boxes_cfg(boxes, out, *more):
    return load_cfg(str(ROOT / "configs/Boxes/SLOWFAST_R18.yaml"), options(boxes, out, *more))


@pytest.fixture(scope="module")
def trained(boxes, tmp_path_factory):
    out = tmp_path_factory.mktemp("job")
    validated = train(boxes_cfg(boxes, out))
    return out, validated


def test_training_validates_by_frame_map(trained):
    out, validated = trained
    assert set(validated) == {"map"}
    (record,) = [record for record in read_records(out) if record.get("_type") == "val_epoch"]
    assert record["map"] == pytest.approx(validated["map"], abs=1e-4)
    (epoch,) = [record for record in read_records(out) if record.get("_type") == "train_epoch"]
    assert 0 < epoch["loss"] < 2
    assert "top1_err" not in epoch


def test_a_test_writes_the_official_files_once_into_the_output_folder(boxes, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, validated = trained
    cfg = boxes_cfg(boxes, out, "TEST.SAVE_RESULTS_PATH", "scores.pkl", "TEST.BATCH_SIZE", 5)
    results = run_test(cfg)
    assert results["map"] == pytest.approx(validated["map"], abs=1e-6)  # the same frames, square and not cropped
    assert list(tmp_path.iterdir()) == []  # nothing where the command was given
    final = read_records(out)[-1]
    found = (out / "detections_latest.csv").read_text().splitlines()
    assert (final["split"], final["key_frames"], final["map"]) == ("test_final", 12, f"{results['map']:.2f}")
    assert len(found) == final["boxes"] * len(CLASSES)
    true = (out / "groundtruth_latest.csv").read_text().splitlines()
    assert len(true) == len((boxes / "val.csv").read_text().splitlines())
    assert true[0].startswith("val_0000,0.75,")
    assert true[0].endswith(",1.0000")
    with (out / "ap_per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(CLASSES)
    known = [float(row["ap_percent"]) for row in rows if row["ap_percent"]]
    assert np.mean(known) == pytest.approx(results["map"], abs=1e-3)
    assert sum(int(row["true_boxes"]) for row in rows) == len(true)
    assert (out / "ap_per_class.png").read_bytes().startswith(b"\x89PNG")
    shown = [json.loads(line) for line in (out / "key_frames.jsonl").read_text().splitlines()]
    assert len(shown) == 12
    assert shown[0]["file"] == str(boxes / "videos/val_0000.mp4")
    assert shown[0]["frame"] == 9
    assert {name for box in shown[0]["true"] for name in box["classes"]} <= set(CLASSES)
    with (out / "scores.pkl").open("rb") as file:
        scores, corners, keys = pickle.load(file)
    assert scores.shape == (final["boxes"], len(CLASSES))
    assert corners.shape == (final["boxes"], 4)
    assert keys[0] == ("val_0000", 0.75)
    assert "AP per class at IoU 0.5" in (out / "stdout.log").read_text()


@pytest.mark.slow
def test_the_batch_size_changes_nothing(boxes, trained, tmp_path):
    out, _ = trained
    weights = ["TEST.CHECKPOINT_FILE_PATH", str(out / "checkpoints/checkpoint_epoch_00001.pyth")]
    results = []
    for size in (1, 7):
        cfg = boxes_cfg(boxes, tmp_path / str(size), *weights, "TEST.BATCH_SIZE", size, "DATA.TEST_CROP_SIZE", 72)
        results.append(run_test(cfg)["map"])
    assert results[0] == pytest.approx(results[1], abs=1e-6)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(boxes, trained, tmp_path):
    out, _ = trained
    weights = ["TEST.CHECKPOINT_FILE_PATH", str(out / "checkpoints/checkpoint_epoch_00001.pyth")]
    one = run_test(boxes_cfg(boxes, tmp_path / "one", *weights))
    more = options(boxes, tmp_path / "two", *weights, "TRAIN.ENABLE", False, "TEST.BATCH_SIZE", 6)
    tool = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*tool, str(ROOT / "tools/run_net.py"), "--cfg", str(ROOT / "configs/Boxes/SLOWFAST_R18.yaml")]
    done = subprocess.run([*command, "--opts", *map(str, more)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    final = read_records(tmp_path / "two")[-1]
    assert final["map"] == f"{one['map']:.2f}"
    for name in ("detections_latest.csv", "groundtruth_latest.csv", "ap_per_class.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_a_video_that_cannot_be_decoded_is_left_out_on_both_sides_where_asked(boxes, trained, tmp_path):
    out, _ = trained
    weights = ["TEST.CHECKPOINT_FILE_PATH", str(out / "checkpoints/checkpoint_epoch_00001.pyth")]
    (tmp_path / "videos").mkdir()
    for file in (boxes / "videos").iterdir():
        (tmp_path / "videos" / file.name).write_bytes(b"" if file.name == "val_0001.mp4" else file.read_bytes())
    more = [*weights, "AVA.FRAME_DIR", str(tmp_path / "videos"), "TEST.SKIP_BAD_VIDEOS", True]
    run_test(boxes_cfg(boxes, tmp_path / "out", *more))
    assert read_records(tmp_path / "out")[-1]["key_frames"] == 9
    for name in ("detections_latest.csv", "groundtruth_latest.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert "val_0000" in text
        assert "val_0001" not in text
    assert "val_0001.mp4" in (tmp_path / "out/bad_videos.csv").read_text()


@pytest.mark.slow
def test_mixed_precision_trains(boxes, tmp_path):
    cfg = boxes_cfg(boxes, tmp_path, "TRAIN.MIXED_PRECISION", True, "SOLVER.MAX_EPOCH", 1)
    assert torch.isfinite(torch.tensor(train(cfg)["map"]))


@pytest.mark.slow
def test_precise_batch_norm_sees_boxes(boxes, tmp_path):
    cfg = boxes_cfg(boxes, tmp_path, "BN.USE_PRECISE_STATS", True, "BN.NUM_BATCHES_PRECISE", 2)
    assert "map" in train(cfg)


MVIT = [
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "DATA.INPUT_CHANNEL_NUM", [3], "DATA.NUM_FRAMES", 4),
    *("MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "MVIT.DIM_MUL", [[1, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0]]),
    *("MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [1, 1, 2, 2]], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]),
    *("MVIT.POOL_KVQ_KERNEL", [3, 3, 3], "MVIT.PATCH_KERNEL", [3, 7, 7], "MVIT.PATCH_STRIDE", [2, 4, 4]),
    *("MVIT.PATCH_PADDING", [1, 3, 3], "MVIT.MODE", "conv", "MVIT.CLS_EMBED_ON", False, "MVIT.NORM", "layernorm"),
    *("MVIT.USE_ABS_POS", False, "MVIT.REL_POS_SPATIAL", True, "MVIT.REL_POS_TEMPORAL", True),
    *("SOLVER.ZERO_WD_1D_PARAM", True, "MVIT.DIM_MUL_IN_ATT", True),
]
SLOW = [
    *("MODEL.MODEL_NAME", "ResNet", "MODEL.ARCH", "slow", "DATA.INPUT_CHANNEL_NUM", [3]),
    *("RESNET.NUM_BLOCK_TEMP_KERNEL", [[2]] * 4, "RESNET.SPATIAL_STRIDES", [[1], [2], [1], [1]]),
    *("RESNET.SPATIAL_DILATIONS", [[1]] * 4, "NONLOCAL.LOCATION", [[[]]] * 4, "NONLOCAL.GROUP", [[1]] * 4),
]


@pytest.mark.slow
@pytest.mark.parametrize("model", [MVIT, SLOW], ids=["MViT", "Slow"])
def test_other_networks_train_and_test_on_boxes(boxes, tmp_path, model):
    cfg = boxes_cfg(boxes, tmp_path, *model, "DATA.TEST_CROP_SIZE", 72)
    train(cfg)
    assert 0 <= run_test(cfg)["map"] <= 100


def test_the_visualisation_job_shows_key_frames_with_their_boxes(boxes, trained, tmp_path):
    out, _ = trained
    weights = str(out / "checkpoints" / "checkpoint_epoch_00001.pyth")
    vis = [
        "INPUT_VIDEO",
        True,
        "ACTIVATIONS",
        True,
        "MAX_CLIPS",
        2,
        "TOPK_PREDS",
        2,
        "LAYER_LIST",
        ["s1/pathway1_stem"],
    ]
    keys = [f"TENSORBOARD.MODEL_VIS.{word}" if isinstance(word, str) and word.isupper() else word for word in vis]
    board = [
        "TENSORBOARD.ENABLE",
        True,
        "TENSORBOARD.MODEL_VIS.ENABLE",
        True,
        "TENSORBOARD.WRONG_PRED_VIS.ENABLE",
        True,
    ]
    page = visualize(boxes_cfg(boxes, tmp_path, *board, *keys, "TEST.CHECKPOINT_FILE_PATH", weights))
    files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.*")}
    clips = {f"clips/input_{n}{rest}" for n in (0, 1) for rest in (".png", "-slow.gif", "-fast.gif")}
    assert {file for file in files if file.startswith("clips/")} == clips
    assert {file.split("-")[0] for file in files if file.startswith("activations/")} == {
        "activations/input_0",
        "activations/input_1",
    }
    log = (tmp_path / "stdout.log").read_text()
    assert "boxes have any number of classes" in log
