"""Two tests class by class: numbers counted by hand, intervals checked against drawing video by video."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from slowfast.visualization.compare_classes import (
    ScoredVideos,
    average_precisions,
    compare,
    comparison_page,
    difference_figure,
    missing_notes,
    paired_interval,
    read_scored,
    shown_rows,
)
from slowfast.visualization.plots import to_png
from slowfast.visualization.result_pickle import read_pickle

LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
GUESSES_A = [0, 0, 1, 1, 1, 1, 1, 0, 2, 2]  # right: 2 of 4, 3 of 3, 2 of 3
GUESSES_B = [0, 0, 0, 0, 1, 1, 2, 0, 1, 2]  # right: 4 of 4, 2 of 3, 1 of 3


def lines(guesses, labels=LABELS, paths=None):
    """A file of results whose best class is the guess."""
    text = ""
    for row, (guess, label) in enumerate(zip(guesses, labels)):
        scores = [0.2] * 3
        scores[guess] = 0.6
        path = paths[row] if paths else f"videos/{row}.mp4"
        line = {"path": path, "label": label, "views": 2, "top": [[guess, 0.6]], "scores": scores}
        text += json.dumps(line) + "\n"
    return text


@pytest.fixture
def both(tmp_path):
    for name, guesses in (("a", GUESSES_A), ("b", GUESSES_B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_2x3.jsonl").write_text(lines(guesses))
        (tmp_path / name / "test_1x1.jsonl").write_text(lines([2] * 10))  # fewer views: not looked at
    return tmp_path / "a", tmp_path / "b"


def test_classes_from_the_largest_loss_to_the_largest_gain(both):
    comparison = compare(*map(read_scored, both), class_names=["zero", "one", "two"])
    rows = [(row.name, row.videos, round(row.a, 1), round(row.b, 1)) for row in comparison.classes]
    assert rows == [("one", 3, 100.0, 66.7), ("two", 3, 66.7, 33.3), ("zero", 4, 50.0, 100.0)]
    (top1,) = comparison.overall  # of three classes, five best say nothing
    assert (top1.name, top1.a, top1.b, top1.difference) == ("top-1", 70.0, 70.0, 0.0)
    assert top1.low < 0 < top1.high
    assert not top1.clear
    assert (comparison.common, missing_notes(comparison)) == (10, [])


def test_names_are_those_that_either_run_left(both):
    a, b = both
    (b / "class_names.json").write_text('{"zero": 0, "one": 1, "two": 2}')
    with (b / "results.pkl").open("wb") as file:
        pickle.dump([torch.rand(10, 3), torch.tensor(LABELS)], file)
    assert sorted(row.name for row in compare(read_scored(a), read_scored(b)).classes) == ["one", "two", "zero"]
    assert read_scored(b / "test_2x3.jsonl").class_names == ("zero", "one", "two")
    assert read_scored(b / "results.pkl").class_names == ("zero", "one", "two")
    (b / "class_names.json").write_text('["one"]')  # of some other run
    assert {row.name for row in compare(read_scored(a), read_scored(b)).classes} == {"0", "1", "2"}


def test_the_interval_is_that_of_drawing_videos(both):
    differences = np.array([1] * 30 + [-1] * 10 + [0] * 160)
    low, high = paired_interval(differences, np.random.default_rng(0), 20_000)
    rng = np.random.default_rng(1)
    means = [100 * rng.choice(differences, len(differences)).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.55)
    # Mean 10 %, standard deviation sqrt((.2 - .01) / 200) = 3.08 %: 1.96 of them to each side.
    assert (low, high) == pytest.approx((10 - 6.04, 10 + 6.04), abs=0.3)


def test_the_same_seed_gives_the_same_interval(both):
    a, b = map(read_scored, both)
    assert compare(a, b, seed=3).overall == compare(a, b, seed=3).overall
    assert compare(a, a).overall[0].low == compare(a, a).overall[0].high == 0


def test_only_common_videos_count_and_others_are_named(both, tmp_path):
    paths = [f"videos/{row}.mp4" for row in range(3, 10)] + ["videos/new.mp4"]
    (tmp_path / "c.jsonl").write_text(lines([*GUESSES_B[3:], 0], [*LABELS[3:], 0], paths))
    comparison = compare(read_scored(both[0]), read_scored(tmp_path / "c.jsonl"))
    assert comparison.common == 7
    assert comparison.overall[0].a == pytest.approx(100 * 5 / 7)
    assert missing_notes(comparison, shown=2) == [
        "3 videos are in A only and left out: videos/0.mp4, videos/1.mp4, and 1 more",
        "1 videos are in B only and left out: videos/new.mp4",
    ]


def test_lists_that_lie_elsewhere_are_matched_below_their_folder(both, tmp_path):
    elsewhere = [f"/data/set/{row}.mp4" for row in range(10)]
    (tmp_path / "c.jsonl").write_text(lines(GUESSES_B, paths=elsewhere))
    assert compare(read_scored(both[0]), read_scored(tmp_path / "c.jsonl")).common == 10


def test_a_video_listed_twice_counts_twice(tmp_path):
    (tmp_path / "c.jsonl").write_text(lines([0, 1], [0, 0], ["v.mp4", "v.mp4"]))
    assert read_scored(tmp_path / "c.jsonl").keys == ("v.mp4", "v.mp4 (2)")


def as_pickle(guesses, path):
    scores = torch.full((len(guesses), 3), 0.2).scatter_(1, torch.tensor(guesses)[:, None], 0.6)
    path.write_bytes(pickle.dumps([scores, torch.tensor(LABELS)]))


def test_pickles_are_matched_by_rows(both, tmp_path):
    as_pickle(GUESSES_B, tmp_path / "b.pkl")
    comparison = compare(read_scored(both[0]), read_scored(tmp_path / "b.pkl"))
    assert [row.difference for row in comparison.classes] == pytest.approx([-100 / 3, -100 / 3, 50])
    as_pickle(GUESSES_B, tmp_path / "a.pkl")
    scores, labels = read_pickle(tmp_path / "a.pkl")
    (tmp_path / "short.pkl").write_bytes(pickle.dumps([scores[:4], labels[:4]]))
    with pytest.raises(ValueError, match=r"10 videos and .* 4, and a pickle does not name them"):
        compare(read_scored(tmp_path / "a.pkl"), read_scored(tmp_path / "short.pkl"))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_runs_nothing(tmp_path, capsys):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps([Evil(), Evil()]))
    with pytest.raises(ValueError, match=r"builtins.print, but only tensors"):
        read_scored(tmp_path / "evil.pkl")
    inner = io.BytesIO()
    torch.save({"x": Evil()}, inner)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    (tmp_path / "inner.pkl").write_bytes(pickle.dumps([Storage(), Storage()]))
    with pytest.raises(ValueError, match="neither"):
        read_scored(tmp_path / "inner.pkl")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("labels", "paths", "message"),
    [
        ([1, *LABELS[1:]], None, "1 videos carry other labels"),
        (LABELS, [f"other/{row}.avi" for row in range(10)], "no video is in both"),
    ],
)
def test_what_cannot_be_compared_is_refused(both, tmp_path, labels, paths, message):
    (tmp_path / "c.jsonl").write_text(lines(GUESSES_B, labels, paths))
    with pytest.raises(ValueError, match=message):
        compare(read_scored(both[0]), read_scored(tmp_path / "c.jsonl"))


def test_folders_without_a_test_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="test first"):
        read_scored(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        read_scored(tmp_path / "gone")


def test_average_precision_counts_videos_several_times_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 4)) / 5  # with ties
    labels = rng.random((40, 4)) < 0.3
    labels[:, 3] = False
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=3)
    found = average_precisions(scores, labels, weights)
    for row, weight in enumerate(weights):
        for index in range(3):
            repeated = np.repeat(np.arange(40), weight)
            expected = average_precision_score(labels[repeated, index], scores[repeated, index])
            assert found[row, index] == pytest.approx(100 * expected)
    assert np.isnan(found[:, 3]).all()


def test_several_labels_are_compared_by_average_precision():
    rng = np.random.default_rng(1)
    labels = rng.random((60, 3)) < 0.4
    noise = rng.random((2, 60, 3))
    keys = tuple(map(str, range(60)))
    weak = ScoredVideos("a", keys, True, labels, 0.3 * labels + noise[0], ("x", "y", "z"))
    strong = ScoredVideos("b", keys, True, labels, 0.9 * labels + noise[1])
    comparison = compare(weak, strong, draws=300)
    (overall,) = comparison.overall
    assert (comparison.measure, overall.name, comparison.draws) == ("average precision", "mAP", 300)
    assert overall.b == pytest.approx(
        100 * np.mean([average_precision_score(labels[:, k], strong.scores[:, k]) for k in range(3)])
    )
    assert 0 < overall.low < overall.difference < overall.high
    assert overall.clear
    assert {row.name for row in comparison.classes} == {"x", "y", "z"}


def test_page_and_picture_show_every_class(both):
    comparison = compare(*map(read_scored, both), class_names=["zero", "o<ne", "$two$"])
    text = comparison_page(comparison)
    assert "o&lt;ne" in text
    assert "+50.0" in text
    assert text.count("<tr>") == 1 + 1 + 1 + 3  # two heads, one overall, three classes
    figure = difference_figure(comparison)
    assert to_png(figure).startswith(b"\x89PNG")
    assert figure.get_suptitle() == f"A: {comparison.names[0]}\nB: {comparison.names[1]}".replace("$", r"\$")
    long = difference_figure(replace(comparison, names=("x" * 200 + "/a", "b")))
    assert long.get_suptitle() == "A: …" + "x" * 87 + "/a\nB: b"
    assert shown_rows(comparison.classes, 2) == [comparison.classes[0], None, comparison.classes[-1]]
