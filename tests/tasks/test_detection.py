"""pytest tests/tasks/test_detection.py"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from slowfast.config import get_cfg
from slowfast.evaluation.ava import Boxes, GroundTruth
from slowfast.tasks import Detection, build_task

UNIT = [0.0, 0.0, 1.0, 1.0]


def truth_of(*seconds, names=None):
    boxes = Boxes(np.arange(len(seconds)), np.array([UNIT] * len(seconds)), np.ones(len(seconds), dtype=np.int64))
    return GroundTruth([("v", float(second)) for second in seconds], boxes, names or {1: "walk", 3: "sit"})


class Fixed(nn.Module):
    """A network that scores every box alike, in a type of its own."""

    def __init__(self, score=0.25, dtype=torch.float32):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score))
        self.dtype = dtype

    def forward(self, clips, boxes):
        return self.score.to(self.dtype).expand(len(boxes), 3)


class Tells(nn.Module):
    """A network whose scores of a box are the first value of its clip, its left edge, and the width of the clip."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, clips, boxes):
        self.sizes.append(tuple(clips.shape))
        first = clips[boxes[:, 0].long(), 0, 0, 0, 0]
        return torch.stack([first, boxes[:, 1], torch.full_like(first, clips.shape[-1])], dim=1)


def make_batch(clips, boxes, labels=None):
    return SimpleNamespace(clips=clips, boxes=torch.tensor(boxes), labels=labels)


def test_the_loss_is_the_mean_over_boxes_and_classes():
    batch = make_batch(torch.zeros(1), [[0.0, *UNIT]] * 2, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    result = Detection(truth_of(1), num_classes=3).loss(Fixed(), batch, epoch=0.0)
    assert result.total.item() == pytest.approx(-(np.log(0.25) + 5 * np.log(0.75)) / 6)
    assert result.errors == {}


def test_the_loss_survives_half_precision():
    batch = make_batch(torch.zeros(1), [[0.0, *UNIT]], torch.ones(1, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Detection(truth_of(1), num_classes=3).loss(Fixed(dtype=torch.bfloat16), batch, epoch=0.0)
    assert result.total.dtype == torch.float32
    result.total.backward()


def test_clips_of_one_size_are_computed_together_and_scores_stay_with_their_boxes():
    clips = [torch.full((3, 2, 4, width), float(value)) for value, width in ((1, 6), (2, 8), (3, 6))]
    boxes = [[0.0, 5, 0, 1, 1], [0.0, 4, 0, 1, 1], [1.0, 3, 0, 1, 1], [2.0, 2, 0, 1, 1]]
    model = Tells()
    scores = Detection(truth_of(1), num_classes=3).predict(model, make_batch(clips, boxes))
    assert scores.tolist() == [[1, 5, 6], [1, 4, 6], [2, 3, 8], [3, 2, 6]]
    assert sorted(size[0] for size in model.sizes) == [1, 2]
    together = Detection(truth_of(1), num_classes=3).predict(model, make_batch(torch.stack(clips[::2]), boxes[:2]))
    assert together.tolist() == [[1, 5, 6], [1, 4, 6]]


def test_the_metric_keeps_the_seconds_that_the_data_set_has():
    task = Detection(truth_of(3, 4, 8), num_classes=3)
    rows = SimpleNamespace(key_frames=[("v", 4.0)], period=4)
    assert task.metric("val", rows).truth.key_frames == [("v", 4.0), ("v", 8.0)]
    rows.period = 0
    assert len(task.metric("test", rows).truth.key_frames) == 3


# ------------------------------ from a configuration ------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "truth.csv").write_text("v,1,0,0,1,1,1\nv,1,0,0,1,1,2\nw,2.5,0,0,1,1,3\n")
    (tmp_path / "labels.pbtxt").write_text('item { name: "walk" id: 1 }\nitem { name: "sit" id: 3 }\n')
    (tmp_path / "excluded.csv").write_text("w,2.5\n")
    return tmp_path


def boxes_cfg(folder, *options):
    cfg = get_cfg()
    files = ["AVA.GROUNDTRUTH_FILE", "truth.csv", "AVA.LABEL_MAP_FILE", "labels.pbtxt", "AVA.EXCLUSION_FILE", ""]
    model = ["DETECTION.ENABLE", True, "MODEL.NUM_CLASSES", 3, "MODEL.LOSS_FUNC", "bce", "MODEL.HEAD_ACT", "sigmoid"]
    cfg.merge_from_list(["AVA.ANNOTATION_DIR", str(folder), *files, *model, *options])
    return cfg


def test_files_say_what_is_judged(folder):
    task = build_task(boxes_cfg(folder))
    assert isinstance(task, Detection)
    assert task.truth.key_frames == [("v", 1.0), ("w", 2.5)]
    assert task.truth.class_names == {1: "walk", 3: "sit"}
    assert task.truth.boxes.classes.tolist() == [1, 3]
    assert build_task(boxes_cfg(folder, "AVA.EXCLUSION_FILE", "excluded.csv")).truth.key_frames == [("v", 1.0)]
    assert build_task(boxes_cfg(folder, "AVA.LABEL_MAP_FILE", "")).truth.class_names == {1: "1", 2: "2", 3: "3"}


def test_outputs_that_are_never_judged_are_mentioned(folder, caplog):
    build_task(boxes_cfg(folder))
    assert not caplog.records
    build_task(boxes_cfg(folder, "MODEL.NUM_CLASSES", 400))
    assert "names ids up to 3: of MODEL.NUM_CLASSES=400" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["MODEL.LOSS_FUNC", "bce_logit"], ValueError, "'bce_logit' with DETECTION.ENABLE: .* set it to bce"),
        (["MIXUP.ENABLE", True], ValueError, "boxes cannot be mixed"),
        (["MODEL.NUM_CLASSES", 2], ValueError, "class id 3, but MODEL.NUM_CLASSES=2: set it to 3"),
        (["AVA.GROUNDTRUTH_FILE", ""], ValueError, "AVA.GROUNDTRUTH_FILE is empty"),
        (["AVA.GROUNDTRUTH_FILE", "excluded.csv"], ValueError, "2 columns instead of 7 or 8"),
        (["AVA.LABEL_MAP_FILE", "no.pbtxt"], FileNotFoundError, "no.pbtxt .* set AVA.LABEL_MAP_FILE ''"),
        (["AVA.EXCLUSION_FILE", "no.csv"], FileNotFoundError, "set AVA.EXCLUSION_FILE ''"),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_names_the_key(folder, options, error, message):
    with pytest.raises(error, match=message):
        build_task(boxes_cfg(folder, *options))
