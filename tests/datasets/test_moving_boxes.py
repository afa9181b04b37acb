"""The built-in set with boxes: what it promises."""

import numpy as np
import pytest

from slowfast.datasets.ava import BoxLists
from slowfast.datasets.moving_boxes import (
    CLASSES,
    KEY_SECONDS,
    MOTIONS,
    BoxesSpec,
    draw_squares,
    make_video,
    write_boxes_dataset,
)
from slowfast.datasets.sources import VideoFile
from slowfast.evaluation.ava import read_label_map

SPEC = BoxesSpec(videos=(2, 1))


def many_squares(count=120):
    return [s for number in range(count) for s in draw_squares(SPEC, np.random.default_rng(number))]


def test_squares_move_as_their_class_says_and_stay_in_the_frame():
    for square in many_squares(30):
        way = square.corners[-1, :2] - square.corners[0, :2]
        assert np.sign(np.round(way, 6)).tolist() == list(MOTIONS[square.motion])
        assert square.corners.min() >= 0
        assert square.corners.max() <= SPEC.side


def test_every_motion_and_flicker_come_about_equally_often():
    squares = many_squares()
    for motion in MOTIONS:
        assert 0.13 < np.mean([square.motion == motion for square in squares]) < 0.27
    assert 0.4 < np.mean([square.flickers for square in squares]) < 0.6


def test_the_place_in_the_middle_of_the_video_does_not_tell_the_motion():
    places = {motion: [] for motion in MOTIONS}
    for square in many_squares(120):
        middle = (square.corners[11] + square.corners[12]) / 2
        places[square.motion].append((middle[:2] + middle[2:]) / 2)
    for motion, centres in places.items():
        spread = np.std(centres, axis=0) / len(centres) ** 0.5
        assert (np.abs(np.mean(centres, axis=0) - SPEC.side / 2) < 4 * spread).all(), motion


def test_a_box_shows_its_square():
    frames, squares, _ = make_video(SPEC, "train", 1)
    square = squares[-1]  # drawn last, so nothing lies on it
    before = frames[0].astype(int)
    x1, y1, x2, y2 = np.rint(square.corners[0]).astype(int)
    size = len(square.texture)
    inside = before[y1 : y1 + size, x1 : x1 + size]
    if not square.flickers:
        assert np.abs(inside - square.texture[: inside.shape[0], : inside.shape[1]]).mean() < 6
    assert abs(x2 - x1 - size) <= 1
    assert abs(y2 - y1 - size) <= 1


def test_videos_are_functions_of_their_number():
    assert np.array_equal(make_video(SPEC, "val", 3)[0], make_video(SPEC, "val", 3)[0])
    assert not np.array_equal(make_video(SPEC, "val", 3)[0], make_video(SPEC, "train", 3)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    write_boxes_dataset(root, SPEC)
    return root


def test_the_files_are_those_of_ava(folder):
    assert read_label_map(str(folder / "labels.pbtxt")) == dict(enumerate(CLASSES, start=1))
    lists = BoxLists()
    lists.read(str(folder / "train.csv"), num_classes=len(CLASSES))
    assert {second for _, second in lists.boxes} == set(KEY_SECONDS)
    assert lists.videos() == ["train_0000", "train_0001"]
    boxes = lists.boxes["train_0000", 1.0]
    assert 2 <= len(boxes) <= 3
    assert all(1 <= len(labels) <= 2 for labels in boxes.values())
    found = BoxLists()
    found.read(str(folder / "detected.csv"), min_score=0.0)
    assert len(found.boxes["val_0000", 1.0]) >= 2
    assert VideoFile(folder / "videos" / "val_0000.mp4").info.num_frames == SPEC.frames
