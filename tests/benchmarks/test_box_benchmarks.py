"""The benchmarks of boxes: both sides count alike, and chance is what it should be."""

from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from slowfast.config import load_cfg
from slowfast.datasets.moving_boxes import CLASSES, KEY_SECONDS, BoxesSpec, write_boxes_dataset

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    return load_script(ROOT / "benchmarks" / f"{name}.py")


def test_the_loop_and_the_vectorised_count_agree():
    ava_map = load("ava_map")
    rng = np.random.default_rng(1)
    truth = ava_map.draw_annotations(rng)
    found = ava_map.make_detections(truth, 8_000, rng)
    ours = ava_map.our_map(truth, found)
    assert 0 < ours == pytest.approx(ava_map.loop_map(truth, found), abs=1e-12)


def test_random_scores_find_as_many_as_there_are(tmp_path):
    write_boxes_dataset(tmp_path, BoxesSpec(videos=(1, 12)))
    percent = load("boxes").chance(tmp_path, draws=5)
    assert 15 < percent < 55  # few boxes: the mean of precision lies above the share of each class


def test_the_recipe_fits_the_data_set():
    cfg, spec = load_cfg(str(ROOT / "configs/Boxes/SLOWFAST_R18.yaml")), BoxesSpec()
    assert len(CLASSES) == cfg.MODEL.NUM_CLASSES
    assert cfg.AVA.DETECTION_SCORE_THRESH == load("boxes").SCORE
    assert not cfg.DATA.RANDOM_FLIP  # it would turn left into right
    assert spec.side == cfg.DATA.TEST_CROP_SIZE
    reach = cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE / 2
    for second in KEY_SECONDS:  # clips lie within the videos
        assert reach <= second * spec.fps <= spec.frames - reach + 1
