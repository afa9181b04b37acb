"""The demo as a job: what the keys of section DEMO do to what is written."""

import json
import os
import signal
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fill import fill_model
from torchvision.models import detection

from slowfast.config import load_cfg
from slowfast.datasets import DecodeError
from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.datasets.moving_boxes import BoxesSpec, write_boxes_dataset
from slowfast.engine import demo as jobs
from slowfast.engine.demo import build_detector_name, demo
from slowfast.models import build_model
from slowfast.visualization import live
from slowfast.visualization.drawing import OUTLINES, TRUTH, enlarged
from slowfast.visualization.people import load_detector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """The built-in boxes, larger, and a network for them."""
    folder = tmp_path_factory.mktemp("boxes")
    write_boxes_dataset(folder, BoxesSpec(videos=(1, 1), side=240))
    cfg = load_cfg(ROOT / "configs/Boxes/SLOWFAST_R18.yaml", ["RESNET.WIDTH_PER_GROUP", 8])
    torch.save({"model_state": fill_model(build_model(cfg)).state_dict()}, folder / "w.pyth")
    return folder


def boxes_cfg(folder, out, *more):
    opts = ["AVA.FRAME_DIR", str(folder / "videos"), "AVA.ANNOTATION_DIR", str(folder), "OUTPUT_DIR", str(out)]
    opts += ["RESNET.WIDTH_PER_GROUP", 8, "TEST.CHECKPOINT_FILE_PATH", str(folder / "w.pyth"), "DEMO.ENABLE", True]
    opts += ["DEMO.INPUT_VIDEO", str(folder / "videos/val_0000.mp4"), "DEMO.STARTING_SECOND", 0]
    opts += ["DEMO.CLIP_VIS_SIZE", 1, "DEMO.VIS_MODE", "top-k", "TENSORBOARD.MODEL_VIS.TOPK_PREDS", 1]
    return load_cfg(ROOT / "configs/Boxes/SLOWFAST_R18.yaml", [*opts, *more])


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """A video of 32 frames at 15 a second and options of a small network for it."""
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, MotionSpec(classes=("bounce",), train_per_class=0, val_per_class=0, test_per_class=1))
    opts = ["MODEL.NUM_CLASSES", 3, "RESNET.WIDTH_PER_GROUP", 8, "DEMO.ENABLE", True]
    opts += ["TEST.CHECKPOINT_FILE_PATH", str(folder / "w.pyth"), "TEST.NUM_ENSEMBLE_VIEWS", 1]
    opts += ["DEMO.INPUT_VIDEO", str(folder / "test/bounce/00000.mp4"), "DEMO.CLIP_VIS_SIZE", 2]
    cfg = load_cfg(ROOT / "configs/Motion/_base/slowfast.yaml", opts)
    torch.save({"model_state": fill_model(build_model(cfg)).state_dict()}, folder / "w.pyth")
    return opts


def motion_cfg(motion, out, *more):
    return load_cfg(ROOT / "configs/Motion/_base/slowfast.yaml", [*motion, "OUTPUT_DIR", str(out), *more])


def frames_of(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def lines_of(out):
    return [json.loads(line) for line in (out / "demo.jsonl").read_text().splitlines()]


def is_near(picture, color, tolerance=60):
    return np.abs(picture.astype(int) - color).max(axis=-1) <= tolerance


def test_boxes_are_drawn_where_they_are_and_only_around_their_key_frames(boxes, tmp_path):
    cfg = boxes_cfg(boxes, tmp_path, "DEMO.PREDS_BOXES", str(boxes / "detected.csv"))
    out = demo(cfg)
    assert out == tmp_path / "demo.mp4"
    drawn, plain = frames_of(out), frames_of(boxes / "videos/val_0000.mp4")
    assert [time for time, _ in drawn] == pytest.approx([time for time, _ in plain], abs=1e-3)
    lines = lines_of(tmp_path)
    rows = [row.split(",") for row in (boxes / "detected.csv").read_text().splitlines()]
    assert [line["second"] for line in lines] == [0.75, 1.0, 1.25]
    sure = [row for row in rows if float(row[7]) >= 0.8]  # AVA.DETECTION_SCORE_THRESH
    assert [[row[1], *row[2:6]] for row in sure] == [
        [f"{line['second']:g}", *(f"{side:.4f}" for side in person["box"])]
        for line in lines
        for person in line["people"]
    ]
    # Key frames 9, 12 and 15, and one on either side of each: 8 to 16.
    difference = [np.abs(a.astype(int) - b).mean() for (_, a), (_, b) in zip(drawn, plain, strict=True)]
    assert max(difference[:8] + difference[17:]) < 2.5 < min(difference[8:17])
    for line in lines:
        index = round(line["second"] * 12)
        picture = drawn[index][1]
        for person in line["people"]:
            left, top, _, bottom = (round(239 * side) for side in person["box"])
            color = OUTLINES[(person["person"] - 1) % len(OUTLINES)]
            place = (slice(top + 24, bottom - 4), left + 1)  # of the left edge, below what is written there
            before, after = (np.abs(p[place].astype(int) - color).mean() for p in (plain[index][1], picture))
            assert after < 0.5 * before, (line["second"], person["person"])


def test_true_boxes_alone_are_scored_and_drawn_beside(boxes, tmp_path):
    demo(boxes_cfg(boxes, tmp_path, "DEMO.GT_BOXES", str(boxes / "val.csv")))
    true = [row.split(",") for row in (boxes / "val.csv").read_text().splitlines()]
    corners = {(float(row[1]), *map(float, row[2:6])) for row in true}
    assert {(line["second"], *person["box"]) for line in lines_of(tmp_path) for person in line["people"]} == corners
    picture = frames_of(tmp_path / "demo.mp4")[12][1]
    assert is_near(picture, TRUTH).sum() > 100


def test_slow_motion_and_rate_of_the_written_video(boxes, tmp_path):
    more = ["DEMO.PREDS_BOXES", str(boxes / "detected.csv"), "DEMO.SLOWMO", 3, "DEMO.OUTPUT_FPS", 24]
    demo(boxes_cfg(boxes, tmp_path, *more, "DEMO.OUTPUT_FILE", str(tmp_path / "own.mp4")))
    times = [time for time, _ in frames_of(tmp_path / "own.mp4")]
    assert times == pytest.approx(np.arange(24 + 2 * 9) / 24, abs=1e-3)


def test_people_are_found_by_the_detector_of_a_file(boxes, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 3.0]))
    torch.save(network.state_dict(), tmp_path / "detector.pth")
    cfg = boxes_cfg(boxes, tmp_path, "DEMO.DETECTRON2_WEIGHTS", str(tmp_path / "detector.pth"))
    name = build_detector_name(cfg)
    assert name == str(tmp_path / "detector.pth")
    small = load_detector(name)
    small.transform.min_size = (160,)  # for the test's time: it would be 800
    monkeypatch.setattr(jobs, "load_detector", lambda file: small if file == name else None)
    demo(cfg, name)
    lines = lines_of(tmp_path)
    assert [(line["start_s"], line["end_s"]) for line in lines] == [(0, 1.333), (0.667, 2)]
    assert all(person["certainty"] >= 0.9 for line in lines for person in line["people"])
    assert sum(len(line["people"]) for line in lines) > 0


def test_which_detector_is_needed(boxes, tmp_path):
    assert build_detector_name(boxes_cfg(boxes, tmp_path)) == "torchvision"
    assert build_detector_name(boxes_cfg(boxes, tmp_path, "DEMO.PREDS_BOXES", "a.csv")) == ""
    assert build_detector_name(boxes_cfg(boxes, tmp_path, "DEMO.ENABLE", False)) == ""
    for wrong in ("gone.pth", "detectron2://COCO-Keypoints/model.pkl"):
        with pytest.raises(ValueError, match=r"torchvision's Faster R-CNN, not by detectron2"):
            build_detector_name(boxes_cfg(boxes, tmp_path, "DEMO.DETECTRON2_WEIGHTS", wrong))


def test_classes_are_written_around_the_middle_of_each_clip(motion, tmp_path):
    demo(motion_cfg(motion, tmp_path, "DEMO.UNCOMMON_CLASS_THRES", 0.0))
    lines = lines_of(tmp_path)
    assert [(line["start_s"], line["end_s"]) for line in lines] == [(0, 1.067), (1.067, 2.133)]
    assert len(lines[0]["top"]) == 3
    plain = frames_of(motion[motion.index("DEMO.INPUT_VIDEO") + 1])
    drawn = frames_of(tmp_path / "demo.mp4")
    assert len(drawn) == len(plain) == 32  # the last clip too
    corner = (slice(0, 40), slice(0, 80))
    difference = [
        np.abs(a[corner].astype(int) - enlarged(b)[corner]).mean() for (_, a), (_, b) in zip(drawn, plain, strict=True)
    ]
    near = [index for index in range(32) if abs(index - 8) <= 2 or abs(index - 24) <= 2]
    far = [index for index in range(32) if index not in near]
    assert max(difference[index] for index in far) < 5 < min(difference[index] for index in near)


@pytest.mark.skipif("lavfi" not in av.formats_available, reason="this build of PyAV has no virtual device")
def test_a_camera_is_watched_until_ctrl_c_and_the_video_is_whole(motion, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "camera_device", lambda name: ("testsrc=size=320x240:rate=15", "lavfi"))
    seen = []

    def line_of(prediction):
        seen.append(prediction)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    monkeypatch.setattr(jobs, "line_of", line_of)
    before = signal.getsignal(signal.SIGINT)
    demo(motion_cfg(motion, tmp_path, "DEMO.WEBCAM", 0, "DEMO.THREAD_ENABLE", True, "DEMO.NUM_CLIPS_SKIP", 1))
    assert signal.getsignal(signal.SIGINT) == before
    frames = frames_of(tmp_path / "demo.mp4")
    assert len(frames) > 32
    assert frames[0][1].shape == (240, 320, 3)
    assert threading.active_count() < 30


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (["DEMO.INPUT_VIDEO", ""], ValueError, r"set DEMO\.INPUT_VIDEO, or DEMO\.WEBCAM"),
        (["DEMO.INPUT_VIDEO", "gone.mp4"], DecodeError, "gone.mp4: no such file"),
        (["DEMO.VIS_MODE", "best"], ValueError, r"DEMO\.VIS_MODE='best' is not thres or top-k"),
        (["DEMO.INPUT_FORMAT", "YUV"], ValueError, r"DEMO\.INPUT_FORMAT='YUV'"),
        (["DEMO.BUFFER_SIZE", 9], ValueError, r"DEMO\.BUFFER_SIZE=9 is not within 0 and half a clip"),
        (["DEMO.CLIP_VIS_SIZE", -1], ValueError, r"DEMO\.CLIP_VIS_SIZE=-1"),
        (["DEMO.SLOWMO", 0], ValueError, r"DEMO\.SLOWMO=0"),
        (["DEMO.OUTPUT_FILE", "a.gif"], ValueError, "written as one of"),
    ],
)
def test_wrong_keys_are_answered_and_leave_no_video(motion, tmp_path, more, error, says):
    with pytest.raises(error, match=says):
        demo(motion_cfg(motion, tmp_path, *more))
    assert not list(tmp_path.glob("*.mp4"))


def test_a_video_never_overwrites_itself(motion, tmp_path):
    video = motion[motion.index("DEMO.INPUT_VIDEO") + 1]
    with pytest.raises(DecodeError, match="is the video itself"):
        demo(motion_cfg(motion, tmp_path, "DEMO.OUTPUT_FILE", video))
