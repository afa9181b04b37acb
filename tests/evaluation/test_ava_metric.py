"""Frame mAP: the golden numbers of the original, a loop written from the rules, and hand-made cases."""

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared import shared

from slowfast.evaluation.ava import (
    Boxes,
    FrameMAP,
    GroundTruth,
    Scored,
    average_precision,
    class_average_precision,
    detection_lines,
    match_boxes,
    mean_ap,
    precision_recall,
    read_key_frames,
    read_label_map,
    second_text,
    truth_lines,
)

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/evaluation/ava.json.gz").read_bytes()))
NAMES = {item["id"]: item["name"] for item in GOLDEN["categories"] if item["id"] in GOLDEN["whitelist"]}


def golden_truth(folder, excluded=()):
    """The golden ground truth, through the files."""
    rows = GOLDEN["groundtruth_rows"]["rows"]
    (folder / "truth.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    (folder / "excluded.csv").write_text("".join(f"{key}\n" for key in excluded))
    return GroundTruth.read(str(folder / "truth.csv"), NAMES, str(folder / "excluded.csv"))


def golden_found():
    """Key frames in order of rows, and the golden detections."""
    videos = GOLDEN["video_names"]
    keys = [(videos[video], float(second)) for video, second in GOLDEN["metadata_video_idx_sec"]]
    unique = list(dict.fromkeys(keys))
    corners = np.array(GOLDEN["boxes_with_batch_index"], dtype=np.float32)[:, 1:].astype(np.float64)
    images = np.array([unique.index(key) for key in keys])
    return unique, Scored(images, corners, np.array(GOLDEN["preds"], dtype=np.float32))


def golden_metrics(name):
    prefix = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"
    values = {key: math.nan if value is None else value for key, value in GOLDEN[name].items()}
    per_class = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return values["PascalBoxes_Precision/mAP@0.5IOU"], per_class


@pytest.mark.parametrize("name", ["metrics_with_exclusions", "metrics_without_exclusions"])
def test_equals_the_original(name, tmp_path):
    truth = golden_truth(tmp_path, GOLDEN["excluded_keys"] if name == "metrics_with_exclusions" else ())
    results = truth.compare(*golden_found())
    expected, per_class = golden_metrics(name)
    assert mean_ap(results) == pytest.approx(expected, abs=1e-9)
    found = {result.name: result.ap for result in results}
    assert found == pytest.approx({key: per_class[key] for key in found}, abs=1e-9, nan_ok=True)


def test_the_metric_equals_the_original_whatever_the_batches(tmp_path):
    truth = golden_truth(tmp_path, GOLDEN["excluded_keys"])
    keys, found = golden_found()
    metric = FrameMAP(truth, keys, 10)
    for rows in torch.randperm(len(keys), generator=torch.Generator().manual_seed(3)).split(4):  # in any order
        chosen = [np.flatnonzero(found.images == row) for row in rows.tolist()]
        place = np.repeat(np.arange(len(rows)), [len(boxes) for boxes in chosen])
        boxes = np.concatenate(chosen)
        image_boxes = torch.tensor(np.concatenate([place[:, None], found.corners[boxes]], axis=1))
        metric.update(torch.tensor(found.scores[boxes]), SimpleNamespace(index=rows, image_boxes=image_boxes))
    metric.reduce()
    assert metric.compute() == {"map": pytest.approx(100 * GOLDEN["evaluate_ava_return"], abs=1e-7)}


@pytest.mark.parametrize("case", GOLDEN["average_precision"], ids=range(len(GOLDEN["average_precision"])))
def test_average_precision_equals_the_original(case):
    precision, recall = precision_recall(np.array(case["scores"]), np.array(case["is_tp"]), case["num_gt"])
    assert precision == pytest.approx(case["precision"])
    assert recall == pytest.approx(case["recall"])
    assert average_precision(precision, recall) == pytest.approx(case["ap"], abs=1e-12)


def test_files_are_read_as_the_original_reads_them(tmp_path):
    labels, excluded = tmp_path / "labels.pbtxt", tmp_path / "excluded.csv"
    labels.write_text(GOLDEN["read_labelmap"]["text"])
    excluded.write_text(GOLDEN["read_exclusions"]["text"])
    assert read_label_map(str(labels)) == {item["id"]: item["name"] for item in GOLDEN["read_labelmap"]["labelmap"]}
    keys = {f"{video},{second_text(second)}" for video, second in read_key_frames(str(excluded))}
    assert keys == set(GOLDEN["read_exclusions"]["keys"])
    for video, second, key in GOLDEN["make_image_key"]:
        assert f"{video},{second_text(float(second))}" == key


def test_files_are_written_as_the_original_writes_them(tmp_path):
    truth = golden_truth(tmp_path)
    lines = list(detection_lines(*golden_found(), range(1, 11)))
    assert [line.strip() for line in lines[:5]] == GOLDEN["detections_csv_first_5_lines"]
    lines = list(truth_lines(truth))
    assert [line.strip() for line in lines[:5]] == GOLDEN["groundtruth_csv_first_5_lines"]


# ------------------------------ rules, one by one ------------------------------

UNIT = [0.0, 0.0, 1.0, 1.0]


def in_one_image(found, truth):
    found, truth = np.array(found, dtype=float), np.array(truth, dtype=float)
    return match_boxes(np.zeros(len(found), int), found, np.zeros(len(truth), int), truth).tolist()


def test_the_first_detection_listed_takes_the_box_and_the_next_one_is_wrong():
    assert in_one_image([[0, 0, 1, 0.9], UNIT], [UNIT]) == [True, False]


def test_a_detection_means_only_its_best_box_even_if_that_is_taken():
    near = [0, 0, 1, 0.9]
    assert in_one_image([near, near], [near, UNIT]) == [True, False]


def test_of_equal_overlaps_the_first_true_box_is_meant():
    assert in_one_image([UNIT, UNIT], [UNIT, UNIT]) == [True, False]


def test_half_an_overlap_is_enough():
    assert in_one_image([[0, 0, 1, 0.5]], [UNIT]) == [True]
    assert in_one_image([[0, 0, 1, 0.4999]], [UNIT]) == [False]


def test_images_are_kept_apart():
    one = np.array([UNIT])
    assert match_boxes(np.array([7]), one, np.array([3]), one).tolist() == [False]


def test_of_equal_scores_the_later_one_comes_first():
    precision, _ = precision_recall(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert precision.tolist() == [0.0, 0.5]


def scored(corners, scores):
    return Scored(np.zeros(len(corners), int), np.array(corners, float), np.array(scores)[:, None])


def test_boxes_without_an_area_are_left_out():
    truth = Boxes(np.array([0]), np.array([UNIT]), np.array([1]))
    assert class_average_precision(scored([[1, 0, 1, 1], UNIT], [0.9, 0.1]), truth, 1) == 1.0
    assert class_average_precision(scored([[0, 0.5, 0.1, 1], UNIT], [0.9, 0.1]), truth, 1) == 0.5


def test_a_class_that_is_nowhere_true_has_no_value_and_one_never_found_has_zero():
    truth = Boxes(np.array([1]), np.array([UNIT]), np.array([1]))
    assert class_average_precision(scored([UNIT], [0.9]), truth, 1) == 0.0
    assert math.isnan(class_average_precision(scored([UNIT], [0.9]), truth, 2))


def naive_ap(found, truth, class_id):
    """The same from the rules, one detection after the other."""
    taken, marks = set(), []
    for image, box, scores in zip(found.images.tolist(), found.corners.tolist(), found.scores.tolist()):
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        best, meant = 0.0, None
        for row in np.flatnonzero((truth.images == image) & (truth.classes == class_id)):
            x1, y1, x2, y2 = truth.corners[row].tolist()
            width, height = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
            shared_area = max(width, 0) * max(height, 0)
            union = (x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - shared_area
            if meant is None or shared_area / union > best:
                best, meant = shared_area / union, row
        right = meant is not None and best >= 0.5 and meant not in taken
        if right:
            taken.add(meant)
        marks.append((scores[class_id - 1], right))
    marks.reverse()
    marks.sort(key=lambda mark: -mark[0])
    total = int((truth.classes == class_id).sum())
    hits, points = 0, []
    for number, (_, right) in enumerate(marks, start=1):
        hits += right
        points.append((hits / total, hits / number))
    return sum(max(p for _, p in points[i:]) / total for i in range(len(points)) if marks[i][1])


def test_equals_a_loop_over_random_crowds():
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 0.5, (300, 2))
    corners = np.concatenate([first, first + rng.uniform(0.2, 0.5, (300, 2))], axis=1)
    truth = Boxes(rng.integers(0, 40, 300), corners, rng.integers(1, 4, 300))
    rows = rng.integers(0, 300, 500)
    moved = corners[rows] + rng.normal(0, 0.05, (500, 4))
    images = truth.images[rows]
    order = np.argsort(images, kind="stable")
    found = Scored(images[order], moved[order], rng.integers(0, 20, (500, 3)) / 20)
    for class_id in (1, 2, 3):
        ap = class_average_precision(found, truth, class_id)
        assert 0.05 < ap == pytest.approx(naive_ap(found, truth, class_id), abs=1e-12)


# ------------------------------ the real annotations ------------------------------


def real_truth(folder):
    names = read_label_map(str(shared("ava/ava_action_list_v2.1_for_activitynet_2018.pbtxt")))
    (folder / "truth.csv").write_bytes(gzip.decompress(shared("ava/ava_val_v2.1.csv.gz").read_bytes()))
    excluded = str(shared("ava/ava_val_excluded_timestamps_v2.1.csv"))
    return GroundTruth.read(str(folder / "truth.csv"), names, excluded)


def test_real_annotations_have_the_published_counts_and_find_themselves(tmp_path):
    truth = real_truth(tmp_path)
    assert (len(truth.key_frames), len(truth.boxes.images), len(truth.class_names)) == (6470, 27140, 60)
    for class_id in truth.class_names:
        images, corners, _ = truth.boxes.where(truth.boxes.classes == class_id)
        if len(images):
            found = Scored(images, corners, np.ones((len(images), 80)))
            assert class_average_precision(found, truth.boxes, class_id) == pytest.approx(1)


# ------------------------------ ground truth, metric ------------------------------


def truth_of(*rows, names=None):
    keys = list(dict.fromkeys(row[0] for row in rows))
    images = np.array([keys.index(row[0]) for row in rows])
    boxes = Boxes(images, np.array([row[1] for row in rows], float), np.array([row[2] for row in rows]))
    return GroundTruth(keys, boxes, names or {1: "a", 2: "b"})


def test_found_where_nothing_is_true_counts_as_wrong_and_what_is_missed_too():
    truth = truth_of((("v", 1.0), UNIT, 1), (("v", 2.0), UNIT, 1))
    keys = [("v", 3.0), ("v", 1.0)]
    found = Scored(np.array([0, 1]), np.array([UNIT, UNIT]), np.array([[0.9, 0], [0.5, 0]]))
    one, other = truth.compare(keys, found)
    assert one.ap == 0.25  # half of the two found at a precision of one half
    assert (one.num_truth, other.num_truth) == (2, 0)
    assert math.isnan(other.ap)
    assert mean_ap([one, other]) == 0.25


def test_excluded_key_frames_count_on_neither_side():
    truth = truth_of((("v", 1.0), UNIT, 1), (("v", 2.0), UNIT, 1)).without([("v", 2.0), ("v", 3.0)])
    found = Scored(np.array([0, 1]), np.array([UNIT, UNIT]), np.array([[0.9, 0], [0.5, 0]]))
    assert truth.compare([("v", 3.0), ("v", 1.0)], found)[0].ap == 1.0


def test_every_fourth_second_is_kept():
    truth = truth_of(*((("v", second), UNIT, 1) for second in (900.0, 902.0, 904.0, 904.5)))
    assert truth.every(4).key_frames == [("v", 900.0), ("v", 904.0)]
    assert truth.every(4).boxes.images.tolist() == [0, 1]


def test_more_classes_to_judge_than_outputs_is_an_error_that_names_the_key():
    truth = truth_of((("v", 1.0), UNIT, 1), names={1: "a", 9: "b"})
    with pytest.raises(ValueError, match=r"class id 9 .* 2 outputs: set MODEL.NUM_CLASSES to 9"):
        truth.compare([("v", 1.0)], Scored(np.array([0]), np.array([UNIT]), np.zeros((1, 2))))


def small_metric(rows, truth=None):
    metric = FrameMAP(truth or truth_of(*((("v", float(s)), UNIT, 1) for s in range(5))), KEYS, 2)
    for row in rows:
        boxes = torch.tensor([[0.0, *UNIT]] * (row + 1))  # more and more of them
        scores = torch.tensor([[0.9 - 0.1 * row - 0.01 * box, 0.1] for box in range(row + 1)])
        metric.update(scores, SimpleNamespace(index=torch.tensor([row]), image_boxes=boxes))
    return metric


KEYS = [("v", float(second)) for second in range(5)]


def test_nothing_evaluated_and_nothing_to_find_are_errors():
    with pytest.raises(ValueError, match="no boxes"):
        small_metric([]).compute()
    with pytest.raises(ValueError, match="no true box to find"):
        small_metric([0], truth_of((("v", 1.0), UNIT, 1)).without([("v", 1.0)])).compute()


def test_scores_that_are_not_finite_are_named():
    metric = small_metric([0, 1])
    boxes = torch.tensor([[0.0, *UNIT]])
    metric.update(torch.tensor([[math.nan, 0.0]]), SimpleNamespace(index=torch.tensor([3]), image_boxes=boxes))
    with pytest.raises(ValueError, match="not finite, first v at 3 s"):
        metric.compute()


def test_a_skipped_key_frame_counts_on_neither_side():
    metric = small_metric([0, 1, 2, 4])
    assert metric.compute()["map"] < 80
    metric = small_metric([0, 1, 2, 4])
    metric.skip([3])
    assert metric.skipped == [("v", 3.0)]
    assert metric.judged_truth.key_frames == [KEYS[row] for row in (0, 1, 2, 4)]
    assert small_metric([0, 1, 2, 4]).compute()["map"] < metric.compute()["map"] < 100


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("truth", "v,1,0.1,0.1,0.2\n", "line 1: 5 columns instead of 7 or 8"),
        ("truth", "v,1,0.3,0.1,0.2,0.9,1\n", "ends before it begins"),
        ("truth", "v,x,0.1,0.1,0.2,0.9,1\n", "line 1: second 'x' is not a number"),
        ("labels", 'item {\n  name: "walk"\n}\n', "no name or no id"),
        ("labels", 'item { name: "a" id: 1 }\nitem { name: "b" id: 1 }', "id 1 stands there twice"),
        ("labels", "walk\nrun\n", "holds no class"),
        ("excluded", "v,1,2\n", "3 columns instead of 2"),
    ],
)
def test_a_bad_file_is_named_with_its_line(name, text, message, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    read = {"truth": lambda path: GroundTruth.read(path, {1: "a"}), "labels": read_label_map}
    with pytest.raises(ValueError, match=message) as error:
        read.get(name, read_key_frames)(str(file))
    assert str(file) in str(error.value)


def test_rows_without_a_class_and_of_unknown_classes_are_dropped(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("v,0902,0.1,0.1,0.2,0.9,\nv,902,0.1,0.1,0.2,0.9,5,3\n\nv,2.5,0.1,0.1,0.2,0.9,1,3\n")
    truth = GroundTruth.read(str(file), {1: "a"})
    assert truth.key_frames == [("v", 2.5)]
    assert [line.strip() for line in truth_lines(truth)] == ["v,2.5,0.100,0.100,0.200,0.900,1,1.0000"]
