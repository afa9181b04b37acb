"""What a test says about its classes in text, counted by hand."""

import numpy as np

from slowfast.visualization.class_summary import class_summary

NAMES = ["zero", "one", "two", "none"]


def test_weakest_classes_and_pairs():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    scores = np.eye(4)[[0, 0, 0, 1, 2, 2, 2, 0]]
    lines = class_summary(scores, labels, NAMES, limit=2).splitlines()
    assert [line.split() for line in lines] == [
        ["2", "weakest", "of", "3", "classes", "videos", "top-1", "%"],
        ["-" * 22, "-" * 6, "-" * 7],
        ["one", "2", "0.0"],
        ["two", "2", "50.0"],
        [],
        ["most", "confused", "taken", "for", "videos", "%", "of", "class"],
        ["-" * 13, "-" * 9, "-" * 6, "-" * 10],
        ["one", "two", "2", "100"],
        ["two", "zero", "1", "50"],
    ]


def test_no_mistake_is_said():
    text = class_summary(np.eye(4)[[0, 1]], np.array([0, 1]), NAMES)
    assert text.startswith("all classes")
    assert text.endswith("no video was taken for another class")


def test_several_labels_go_by_average_precision():
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0.0]])
    scores = np.array([[0.9, 0.8, 0, 0], [0.8, 0.7, 0, 0], [0.1, 0.1, 0, 0]])
    # Class 1: true at ranks 2 and 3: (1/2 + 2/3) / 2 = 58.3.
    rows = [line.split() for line in class_summary(scores, labels, NAMES).splitlines()[2:]]
    assert rows == [["one", "2", "58.3"], ["zero", "2", "100.0"]]
