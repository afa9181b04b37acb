import io

import numpy as np
import pytest
from PIL import Image

from slowfast.visualization import plots


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_smoothing_keeps_a_constant_and_follows_a_step():
    np.testing.assert_allclose(plots.smooth([3.0, 3.0, 3.0], 10), 3.0)
    np.testing.assert_allclose(plots.smooth([1.0, 4.0], 3), [1.0, 3.0])  # keep 1/2: (1/2 + 4) / (1/2 + 1)
    np.testing.assert_allclose(plots.smooth([1.0, 5.0, 2.0], 1), [1.0, 5.0, 2.0])


def test_noisy_curve_is_drawn_faint_and_smoothed():
    x, y = list(range(1000)), [float(i % 2) for i in range(1000)]
    figure = plots.curves([plots.Panel("Loss", [plots.Curve("train", x, y, noisy=True)])])
    raw, course = figure.axes[0].lines
    assert raw.get_alpha() < 1
    assert len(raw.get_xdata()) <= plots.MAX_POINTS
    assert np.ptp(course.get_ydata()[20:]) < 0.2


@pytest.mark.parametrize(("num_classes", "numbers", "names"), [(4, True, True), (30, True, True), (400, False, False)])
def test_confusion_matrix_stays_readable(num_classes, numbers, names):
    class_names = [f"class {index} with quite a long name" for index in range(num_classes)]
    figure = plots.confusion_matrix(np.eye(num_classes, dtype=int) * 3, class_names)
    shown = texts(figure)
    assert shown == (["100"] * num_classes if numbers else [])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert all(len(label) <= 26 for label in labels)
    assert names == any("class" in label for label in labels)
    image = Image.open(io.BytesIO(plots.to_png(figure, dpi=50)))
    assert image.size == (400, 400)


def test_confusion_matrix_shows_percent_of_the_row_or_given_shares():
    assert texts(plots.confusion_matrix(np.array([[3, 1], [0, 2]]), ["a", "b"])) == ["75", "25", "100"]
    assert texts(plots.confusion_matrix(np.array([[0.3, 0.1], [0.0, 0.5]]), ["a", "b"], shares=True)) == [
        "30",
        "10",
        "50",
    ]


def test_class_bars_keep_best_and_worst():
    figure = plots.class_bars([f"c{i}" for i in range(100)], list(range(100)), max_bars=6)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["c99", "c98", "c97", "... 94 more ...", "c2", "c1", "c0"]


def test_histogram_has_the_most_frequent_answers_first():
    figure = plots.topk_histogram([0, 6, 3, 1], ["a", "b", "c", "d"], true_class=2, k=3)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "c", "d"]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [0.6, 0.3, 0.1])
    assert [text.get_text() for text in axes.texts] == ["60 %", "30 %", "10 %"]
    assert axes.get_title(loc="left") == "Predictions for c"


def test_histogram_leaves_out_answers_that_were_never_given():
    axes = plots.topk_histogram([0, 6, 0, 2], ["a", "b", "c", "d"], true_class=1, k=4).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "d"]
    axes = plots.topk_histogram([0, 0], ["a", "b"], true_class=1).axes[0]
    assert not axes.patches
    assert [text.get_text() for text in axes.texts] == ["no video of this class"]


def test_prediction_strip_has_frames_and_bars():
    frames = [np.full((20, 30, 3), 40 * i, dtype=np.uint8) for i in range(4)]
    figure = plots.prediction_strip(frames, [("right $1", 0.7, True), ("wrong", 0.2, False)], truth="right $1")
    assert len(figure.axes) == 5
    assert plots.to_png(figure).startswith(b"\x89PNG")


def test_svg_is_one_scalable_element_with_own_ids_and_real_text():
    panel = plots.Panel("Loss <1 & 2>", [plots.Curve("train", [0, 1], [1.0, 0.5])])
    first, second = (plots.to_svg(plots.curves([panel]), prefix) for prefix in ("a", "b"))
    assert first.startswith("<svg ")
    assert first.rstrip().endswith("</svg>")
    opening = first[: first.index(">")]
    assert "viewBox" in opening
    assert "width" not in opening
    assert 'id="a-figure_1"' in first
    assert "Loss &lt;1 &amp; 2&gt;" in first
    assert first.replace("a-", "b-").count('id="b-') == second.count('id="b-')


def test_frame_of_axes_is_where_they_are_drawn():
    figure = plots.confusion_matrix(np.eye(4), list("abcd"))
    frame = plots.axes_frame(figure)
    assert frame["x"] == [-0.5, 3.5]
    assert frame["y"] == [3.5, -0.5]
    assert frame["width"] == pytest.approx(frame["height"], abs=1e-3)  # a square matrix in a square figure
    assert 0 < frame["left"] < frame["left"] + frame["width"] <= 1
