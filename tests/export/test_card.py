"""The card alone makes the clips that the configuration makes, for every published configuration."""

import json
from pathlib import Path

import pytest
import torch
from turned_video import write_turned_video

from slowfast.config import load_cfg
from slowfast.datasets.clips import Record
from slowfast.export import Card, build_card, build_clips_of
from slowfast.visualization.predictor import build_clips

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("Kinetics", "Charades", "SSv2", "Motion", "TorchVision")
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / "configs" / folder).rglob("*.yaml")
    if "_base" not in path.parts
)
OTHERS = ("ContrastiveModel", "MaskMViT")  # they classify nothing


def what_decides(dataset):
    """Everything of a data set but its records."""
    return {key: value for key, value in vars(dataset).items() if key not in ("records", "seed", "skip_bad")}


@pytest.mark.parametrize("name", CONFIGS)
def test_card_makes_the_same_clips(name):
    cfg = load_cfg(ROOT / name)
    if cfg.MODEL.MODEL_NAME in OTHERS:
        return
    card = build_card(cfg, [str(i) for i in range(cfg.MODEL.NUM_CLASSES)])
    card = Card.from_json(card.to_json(), "it")
    made, values = build_clips_of(card)
    assert what_decides(made) == what_decides(build_clips(cfg))
    assert (values["DATA.ENSEMBLE_METHOD"], values["TEST.BATCH_SIZE"]) == (
        cfg.DATA.ENSEMBLE_METHOD,
        cfg.TEST.BATCH_SIZE,
    )


def test_card_says_what_a_stranger_needs():
    opts = ["DATA.MEAN", [0.4, 0.5, 0.6], "DATA.STD", [0.1, 0.2, 0.3], "DATA.REVERSE_INPUT_CHANNEL", True]
    cfg = load_cfg(ROOT / "configs/Kinetics/X3D_XS.yaml", opts)
    card = build_card(cfg, ["a"] * 400)
    assert card.shape == (3, 4, 182, 182)
    assert (card.stride, card.fps, card.sampling, card.views) == (12, 30.0, "rate", (10, 3))
    # The data set normalises RGB and turns the channels around then.
    assert (card.channels, card.mean, card.std) == ("BGR", [0.6, 0.5, 0.4], [0.3, 0.2, 0.1])
    assert build_card(load_cfg(ROOT / "configs/SSv2/SLOWFAST_16x8_R50.yaml"), ["a"]).sampling == "spread"
    assert build_card(load_cfg(ROOT / "configs/Charades/SLOWFAST_16x8_R50.yaml"), ["a"]).multi_label


@pytest.mark.parametrize("upright", [True, False])
def test_a_turned_video_is_seen_as_the_configuration_says(tmp_path, upright):
    opts = ["MODEL.NUM_CLASSES", 3, "DATA.NUM_FRAMES", 2, "DATA.SAMPLING_RATE", 1, "DATA.TEST_CROP_SIZE", 32]
    cfg = load_cfg(
        ROOT / "configs/Motion/2D_R18.yaml", [*opts, "TEST.NUM_SPATIAL_CROPS", 3, "DATA.AUTOROTATE", upright]
    )
    records = [Record(str(write_turned_video(tmp_path / "x.mp4")), 0)]
    of_config, of_card = build_clips(cfg), build_clips_of(build_card(cfg, ["a", "b", "c"]))[0]
    of_config.records = of_card.records = records
    for view in range(3):
        assert torch.equal(of_card[view].clip, of_config[view].clip), view
    red = of_card[0].clip[0]  # of the crop at the left, or at the top
    first, last = (red[:, 2], red[:, -2]) if upright else (red[:, :, 2], red[:, :, -2])
    assert (first.mean() - last.mean()) > 1


def test_an_older_card_means_upright_videos():
    card = build_card(load_cfg(ROOT / "configs/Motion/2D_R18.yaml", ["DATA.AUTOROTATE", False]), ["a"] * 12)
    values = json.loads(card.to_json())
    del values["config"]["DATA.AUTOROTATE"]
    clips, _ = build_clips_of(Card.from_json(json.dumps(values), "a.pt2"))
    assert clips.open_options == build_clips(load_cfg(ROOT / "configs/Motion/2D_R18.yaml")).open_options


def test_views_may_change_and_the_input_may_not():
    card = build_card(load_cfg(ROOT / "configs/Kinetics/X3D_XS.yaml"), ["a"] * 400)
    clips, _ = build_clips_of(card, ["TEST.NUM_ENSEMBLE_VIEWS", "2", "TEST.NUM_SPATIAL_CROPS", 1])
    assert (clips.num_clips, clips.num_crops) == (2, 1)
    with pytest.raises(ValueError, match=r"DATA.NUM_FRAMES is fixed in an exported file.*TEST.NUM_ENSEMBLE_VIEWS"):
        build_clips_of(card, ["DATA.NUM_FRAMES", 8])


def test_other_text_is_no_card():
    for text in ("", "{}", "[1]", "nothing"):
        with pytest.raises(ValueError, match=r"a\.onnx has no card"):
            Card.from_json(text, "a.onnx")
    card = json.loads(build_card(load_cfg(ROOT / "configs/Kinetics/X3D_XS.yaml"), ["a"]).to_json())
    with pytest.raises(ValueError, match="a card of version 7, known here is 1"):
        Card.from_json(json.dumps({**card, "version": 7}), "a.onnx")
