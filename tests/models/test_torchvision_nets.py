"""The 3-D ResNets of 18 layers are torchvision's, and run from a YAML."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models.video import R2Plus1D_18_Weights, R3D_18_Weights, mc3_18, r2plus1d_18, r3d_18

from slowfast.checkpoint import CheckpointError, load_checkpoint, load_initial_weights, load_test_weights
from slowfast.config import load_cfg
from slowfast.models import TorchVisionResNet, build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "TorchVision"
BUILDERS = {"R3D_18": r3d_18, "MC3_18": mc3_18, "R2PLUS1D_18": r2plus1d_18}


def make_clips():
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def make_pair(name, *opts):
    """Our network of a YAML and torchvision's, drawn from the same seed."""
    torch.manual_seed(0)
    model = build_model(load_cfg(CONFIGS / f"{name}.yaml", opts))
    torch.manual_seed(0)
    return model, BUILDERS[name](num_classes=400)


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_names_and_numbers_are_those_of_torchvision(name):
    model, witness = make_pair(name)
    ours, theirs = model.state_dict(), witness.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    clips = make_clips()
    assert torch.equal(model.train()(clips), witness.train()(clips))
    with torch.no_grad():
        assert torch.equal(model.eval()([clips]), witness.eval()(clips).softmax(1))


@pytest.mark.parametrize("name", BUILDERS)
def test_published_weight_counts(name):
    with torch.device("meta"):
        model = build_model(load_cfg(CONFIGS / f"{name}.yaml"))
    counts = {"R3D_18": 33371472, "MC3_18": 11695440, "R2PLUS1D_18": 31505325}
    assert sum(p.numel() for p in model.parameters()) == counts[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_clips_are_prepared_as_torchvision_says(name):
    cfg = load_cfg(CONFIGS / f"{name}.yaml")
    preset = R3D_18_Weights.KINETICS400_V1.transforms()
    assert (preset.mean, preset.std) == (cfg.DATA.MEAN, cfg.DATA.STD)
    assert [cfg.DATA.TEST_CROP_SIZE] * 2 == preset.crop_size == [cfg.DATA.TRAIN_CROP_SIZE] * 2
    assert cfg.DATA.TRAIN_JITTER_SCALES[0] == preset.resize_size[0]
    assert (cfg.DATA.NUM_FRAMES, cfg.DATA.TARGET_FPS / cfg.DATA.SAMPLING_RATE) == (16, 15)
    assert (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.MODEL.NUM_CLASSES) == (5, 400)
    assert cfg.MODEL.ARCH in cfg.MODEL.SINGLE_PATHWAY_ARCH


def test_class_names_are_those_of_the_weights():
    names = json.loads((CONFIGS / "kinetics400_class_names.json").read_text())
    assert sorted(names, key=names.get) == R2Plus1D_18_Weights.KINETICS400_V1.meta["categories"]
    assert sorted(names.values()) == list(range(400))


def test_a_weight_file_of_torchvision_is_tested_as_it_is(tmp_path):
    source = mc3_18(num_classes=400).eval()
    torch.save(source.state_dict(), tmp_path / "mc3_18.pth")
    model = build_model(load_cfg(CONFIGS / "MC3_18.yaml")).eval()
    start = load_test_weights(model, output_dir=tmp_path / "out", test_path=str(tmp_path / "mc3_18.pth"))
    assert not start.report.missing
    assert not start.report.unexpected
    clips = make_clips()
    with torch.no_grad():
        assert torch.equal(model(clips), source(clips).softmax(1))


def test_fine_tuning_takes_all_but_the_classifier(tmp_path):
    source = mc3_18(num_classes=400)
    torch.save(source.state_dict(), tmp_path / "mc3_18.pth")
    model = build_model(load_cfg(CONFIGS / "MC3_18.yaml", ["MODEL.NUM_CLASSES", 7]))
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        load_test_weights(model, output_dir=tmp_path / "out", test_path=str(tmp_path / "mc3_18.pth"))
    report = load_initial_weights(model, load_checkpoint(tmp_path / "mc3_18.pth")["model_state"])
    assert {name for name, *_ in report.mismatched} == {"fc.weight", "fc.bias"}
    assert torch.equal(model.layer4[1].conv2[0].weight, source.layer4[1].conv2[0].weight)
    assert model.train()(make_clips()).shape == (2, 7)


def test_dropout_acts_in_training_only():
    model = TorchVisionResNet("mc3_18", num_classes=3, dropout=0.5, act="none")
    clips = make_clips()
    with torch.no_grad():
        assert not torch.equal(model.train()(clips), model(clips))
        assert torch.equal(model.eval()(clips), model(clips))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ARCH", "slow"], "MODEL.ARCH='slow' .*allowed are r3d_18, mc3_18, r2plus1d_18"),
        (["MODEL.HEAD_ACT", "relu"], "MODEL.HEAD_ACT='relu': allowed are softmax, sigmoid, none"),
        (["DATA.INPUT_CHANNEL_NUM", [1]], r"DATA.INPUT_CHANNEL_NUM=\[1\] .*allowed is \[3\]"),
        (["BN.NORM_TYPE", "sub_batchnorm"], "BN.NORM_TYPE='sub_batchnorm' .*allowed is 'batchnorm'"),
        (["MODEL.DETACH_FINAL_FC", True], "MODEL.DETACH_FINAL_FC=True .*allowed is False"),
        (["DETECTION.ENABLE", True], "DETECTION.ENABLE=True .*allowed is False"),
    ],
)
def test_keys_that_cannot_be_followed_are_refused(opts, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(load_cfg(CONFIGS / "R3D_18.yaml", opts))


def test_boxes_are_refused():
    with torch.device("meta"):
        model = TorchVisionResNet("r3d_18", num_classes=5)
        with pytest.raises(ValueError, match="given boxes but classifies whole clips"):
            model(torch.zeros(1, 3, 4, 32, 32), torch.zeros(1, 5))
