"""AVA from its own annotations to an mAP, by the commands and a published recipe: needs the files of AVA v2.1."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import shared

from slowfast.engine.output import read_records
from slowfast.evaluation.ava import GroundTruth, Scored, mean_ap, read_label_map

ROOT = Path(__file__).resolve().parents[2]
VIDEOS, LAST_SECOND, FPS = 2, 905, 30
LABELS, EXCLUDED = "ava_action_list_v2.1_for_activitynet_2018.pbtxt", "ava_val_excluded_timestamps_v2.1.csv"


@pytest.fixture
def ava(tmp_path):
    """The real boxes of the first seconds of two videos, a detector's boxes, and drawn frames, as AVA lays them out."""
    rows = gzip.decompress(shared("ava/ava_val_v2.1.csv.gz").read_bytes()).decode().split()
    names = list(dict.fromkeys(row.split(",")[0] for row in rows))[:VIDEOS]
    rows = [row for row in rows if row.split(",")[0] in names and int(row.split(",")[1]) <= LAST_SECOND]
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "ava_val_v2.1.csv").write_text("\n".join(rows) + "\n")
    for name in (LABELS, EXCLUDED):
        (annotations / name).write_bytes(shared(f"ava/{name}").read_bytes())
    rng = np.random.default_rng(0)
    boxes = list(dict.fromkeys(tuple(row.split(",")[:6]) for row in rows))
    with (annotations / "detected.csv").open("w") as file:
        for video, second, *corners in boxes:
            moved = np.clip(np.array(corners, dtype=float) + rng.normal(0, 0.02, 4), 0, 1)
            file.write(f"{video},{second},{','.join(f'{value:.3f}' for value in moved)},,{rng.uniform(0.75, 1):.4f}\n")
    lines = ["original_vido_id video_id frame_id path labels"]
    for number, video in enumerate(names):
        folder = tmp_path / "frames" / video
        folder.mkdir(parents=True)
        width = (320, 426)[number]  # as the films of AVA, of different shapes
        ground = rng.integers(0, 256, (15, width // 16, 3), dtype=np.uint8)
        for frame in range((LAST_SECOND - 900 + 2) * FPS):
            picture = Image.fromarray(np.roll(ground, frame // 4, axis=1)).resize((width, 240))
            picture.save(folder / f"{video}_{frame + 1:06d}.jpg", quality=60)
            lines.append(f'{video} {number} {frame} {video}/{video}_{frame + 1:06d}.jpg ""')
    (tmp_path / "lists").mkdir()
    for name in ("train.csv", "val.csv"):
        (tmp_path / "lists" / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def read_detections(file):
    """Key frames and scores out of the official csv."""
    found = {}
    for line in file.read_text().splitlines():
        video, second, *corners, class_id, score = line.split(",")
        scores = found.setdefault((video, float(second), tuple(map(float, corners))), np.zeros(80))
        scores[int(class_id) - 1] = float(score)
    keys = list(dict.fromkeys((video, second) for video, second, _ in found))
    images = np.array([keys.index((video, second)) for video, second, _ in found])
    return keys, Scored(images, np.array([corners for *_, corners in found]), np.array(list(found.values())))


@pytest.mark.slow
def test_a_published_recipe_trains_and_tests_on_the_real_annotations(ava):
    folders = ["AVA.FRAME_DIR", ava / "frames", "AVA.FRAME_LIST_DIR", ava / "lists"]
    folders += ["AVA.ANNOTATION_DIR", ava / "annotations", "OUTPUT_DIR", ava / "job"]
    files = ["AVA.TRAIN_GT_BOX_LISTS", "['ava_val_v2.1.csv']", "AVA.TRAIN_PREDICT_BOX_LISTS", "['detected.csv']"]
    files += ["AVA.TEST_PREDICT_BOX_LISTS", "['detected.csv']", "AVA.GROUNDTRUTH_FILE", "ava_val_v2.1.csv"]
    files += ["AVA.LABEL_MAP_FILE", LABELS, "AVA.EXCLUSION_FILE", EXCLUDED]
    small = ["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "NUM_GPUS", 0]
    small += ["DATA.TRAIN_JITTER_SCALES", "[64, 80]", "RESNET.WIDTH_PER_GROUP", 8, "DATA_LOADER.NUM_WORKERS", 0]
    short = ["TRAIN.BATCH_SIZE", 3, "TEST.BATCH_SIZE", 4, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0.0]
    short += ["TRAIN.CHECKPOINT_TYPE", "pytorch", "SOLVER.STEPS", "[0]", "SOLVER.LRS", "[1]", "LOG_PERIOD", 1]
    options = [*folders, *files, *small, *short]
    command = [sys.executable, ROOT / "tools/run_net.py", "--cfg", ROOT / "configs/AVA/SLOWFAST_32x2_R50_SHORT.yaml"]
    done = subprocess.run(
        [*map(str, command), "--opts", *map(str, options)], capture_output=True, text=True, cwd=ava, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = (ava / "job" / "stdout.log").read_text()
    assert '"_type": "train_iter", "cur_epoch": "1/1", "cur_iter": "1"' in log
    final = read_records(ava / "job")[-1]
    assert final["split"] == "test_final"
    # The official rules on the files that were written, whose numbers are rounded, give the same mAP.
    names = read_label_map(str(ava / "annotations" / LABELS))
    truth = GroundTruth.read(str(ava / "annotations/ava_val_v2.1.csv"), names, str(ava / "annotations" / EXCLUDED))
    results = truth.compare(*read_detections(ava / "job" / "detections_latest.csv"))
    assert 100 * mean_ap(results) == pytest.approx(float(final["map"]), abs=0.5)
    assert len(results) == 60
    assert sum(result.num_truth for result in results) == len(truth.boxes.images)
