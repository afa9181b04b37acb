"""pytest tests/visualization/test_class_names.py"""

import pytest
import torch

from slowfast.config import load_cfg
from slowfast.visualization.class_names import (
    build_box_class_names,
    build_class_names,
    build_known_names,
    kinetics_names,
    load_class_names,
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"run": 1, "jump": 0}'),
        ("a.json", '{"0": "jump", "1": "run"}'),
        ("a.json", '["jump", "run"]'),
        ("a.txt", "jump\nrun\n"),
    ],
)
def test_names_come_in_any_of_the_usual_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_class_names(tmp_path / name, 2) == ["jump", "run"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"run": 1, "jump": 1}', "ids are not 0 to 1"),
        ('["jump"]', "names 1 classes, the network has 2"),
        ('"jump"', "is none of"),
        ('{"a": "b"}', "is neither"),
        ("jump", "is not JSON"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, text, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_class_names(tmp_path / "a.json", 2)


@pytest.fixture
def run(tmp_path):
    """The folder of a run with names in its checkpoint, beside it and with its data, each time others."""
    for folder in ("run/checkpoints", "data", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/class_names.json").write_text('{"r0": 0, "r1": 1}')
    (tmp_path / "data/class_names.json").write_text('{"d1": 1, "d0": 0}')
    (tmp_path / "other/class_names.json").write_text('["o0", "o1"]')
    (tmp_path / "own.txt").write_text("x\ny\n")
    torch.save({"model_state": {}, "class_names": ["c0", "c1"]}, tmp_path / "run/checkpoints/a.pyth")
    torch.save({"model_state": {}}, tmp_path / "run/checkpoints/without.pyth")
    return tmp_path


def config(root, *options):
    return load_cfg(None, ["MODEL.NUM_CLASSES", 2, "DATA.PATH_TO_DATA_DIR", str(root / "data"), *options])


def test_names_are_looked_for_in_order(run):
    cfg, nowhere = config(run), config(run, "DATA.PATH_TO_DATA_DIR", "")
    own, other, checkpoint = run / "own.txt", run / "other", run / "run/checkpoints/a.pyth"
    assert build_class_names(cfg, own, [other], checkpoint=checkpoint) == ["x", "y"]
    for key in ("DEMO.LABEL_FILE_PATH", "TENSORBOARD.CLASS_NAMES_PATH"):
        assert build_class_names(config(run, key, str(own)), None, [other], checkpoint=checkpoint) == ["x", "y"]
        assert build_class_names(config(run, key, "gone.txt"), None, [other], checkpoint=checkpoint) == ["c0", "c1"]
    without = checkpoint.with_name("without.pyth")
    assert build_class_names(cfg, None, [other], checkpoint=without) == ["r0", "r1"]
    (run / "run/class_names.json").unlink()
    assert build_class_names(cfg, None, [other], checkpoint=without) == ["o0", "o1"]
    assert build_class_names(cfg, checkpoint=without) == ["d0", "d1"]
    assert build_class_names(nowhere, checkpoint=without) == ["class 0", "class 1"]
    assert build_known_names(nowhere, checkpoint=without) == []


def test_names_of_another_number_of_classes_are_passed_over(run, caplog):
    cfg = config(run, "MODEL.NUM_CLASSES", 400)
    assert build_class_names(cfg, None, [run / "other"], checkpoint=run / "run/checkpoints/a.pyth") == kinetics_names()
    assert "other/class_names.json names 2 classes, the network has 400" in caplog.text
    assert kinetics_names()[5:7] == ["archery", "arm wrestling"]


@pytest.mark.parametrize("options", [("MASK.ENABLE", True), ("MODEL.MODEL_NAME", "ContrastiveModel")])
def test_what_does_not_classify_has_no_names(run, options):
    assert build_known_names(config(run, *options), checkpoint=run / "run/checkpoints/a.pyth") == []


def test_names_of_boxes_follow_the_checkpoint_too(run):
    (run / "map.pbtxt").write_text('item { name: "walk" id: 1 }\n')
    cfg = config(run, "DETECTION.ENABLE", True, "AVA.ANNOTATION_DIR", str(run), "AVA.LABEL_MAP_FILE", "map.pbtxt")
    assert build_box_class_names(cfg, checkpoint=run / "run/checkpoints/a.pyth") == ["c0", "c1"]
    assert build_box_class_names(cfg, checkpoint=run / "run/checkpoints/without.pyth") == ["r0", "r1"]
    assert build_box_class_names(cfg) == build_known_names(cfg) == ["walk", "class 2"]
