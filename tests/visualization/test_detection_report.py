"""The report of a test of boxes."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from slowfast.visualization import plots
from slowfast.visualization.detections import box_figures, choose, read_box_test
from slowfast.visualization.report import write_pictures, write_report

STATS = '{"split": "test_final", "views": "1x1", "key_frames": 3, "boxes": 7, "map": "42.50", "top1_acc": "42.50"}'


@pytest.fixture
def job(tmp_path):
    """What a job leaves: three classes, of which one has no box; two key frames, of which one is gone."""
    (tmp_path / "json_stats.log").write_text(f"json_stats: {STATS}\n")
    (tmp_path / "ap_per_class.csv").write_text(
        "id,name,true_boxes,ap_percent\n1,walk,10,60.0\n2,sit <down>,5,25.0\n5,fly,0,\n"
    )
    Image.fromarray(np.full((60, 80, 3), 90, dtype=np.uint8)).save(tmp_path / "frame.png")
    found = [{"box": [0.1, 0.2, 0.5, 0.9], "top": [["walk", 0.91], ["sit <down>", 0.02]]}]
    true = [{"box": [0.1, 0.2, 0.6, 0.9], "classes": ["walk", "sit <down>"]}]
    lines = [
        {"video": "v", "second": 902.0, "file": str(tmp_path / "frame.png"), "frame": 0, "found": found, "true": true},
        {"video": "w", "second": 1.5, "file": str(tmp_path / "gone.png"), "frame": 0, "found": [], "true": true},
    ]
    (tmp_path / "key_frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_report_shows_map_classes_and_key_frames(job):
    text = write_report(job).read_text()
    assert "42.5 %" in text
    assert "key frames" in text
    assert "2 of 3 classes have true boxes" in text
    assert text.index("sit &lt;down&gt;") < text.index(">walk<")  # the weakest first
    assert "v, second 902" in text
    assert "w, second 1.5 cannot be read any more" in text
    assert "walk 0.91" in text
    assert "Confusion matrix" not in text


def test_pictures_are_those_of_boxes(job, tmp_path):
    names = [path.name for path in write_pictures(job, tmp_path / "pictures")]
    assert names == ["classes.png", "key_frames.png"]


def test_results_are_read_as_they_were_written(job):
    test = read_box_test(job)
    assert [item.num_truth for item in test.classes] == [10, 5, 0]
    assert math.isnan(test.classes[2].ap)
    assert test.mean == 42.5
    assert read_box_test(job / "nowhere") is None
    (job / "key_frames.jsonl").unlink()
    assert set(box_figures(read_box_test(job))) == {"classes"}


def test_key_frames_are_chosen_evenly():
    assert choose(list(range(10)), 4) == [0, 3, 6, 9]
    assert choose([7, 8], 4) == [7, 8]
    assert choose([], 4) == []


def test_boxes_are_drawn_where_they_are():
    frame = np.full((90, 120, 3), 255, dtype=np.uint8)
    figure = plots.boxed_frames(
        [plots.BoxedFrame(frame, [([0.25, 0.3, 0.75, 0.9], "a")], [])] * 4, ["one"] * 4, columns=3
    )
    assert len(figure.axes) == 6
    (box,) = figure.axes[0].patches
    assert (box.get_x(), box.get_y()) == (0.25, 0.3)
    assert (box.get_width(), box.get_height()) == pytest.approx((0.5, 0.6))
    assert figure.axes[0].get_title(loc="left") == "one"
    assert plots.to_png(figure).startswith(b"\x89PNG")
