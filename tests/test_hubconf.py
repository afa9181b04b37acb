"""The networks through torch.hub, from this folder: pytest tests/test_hubconf.py"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from scripts import load_script

from slowfast import zoo

ROOT = str(Path(__file__).resolve().parents[1])


@pytest.fixture
def hubconf():
    return load_script(Path(ROOT) / "hubconf.py")


def test_hub_offers_the_networks_that_can_be_built(hubconf):
    offered = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert offered == set(zoo.records())


def test_help_says_what_a_network_is(hubconf):
    assert "SlowFast R50 8x8" in hubconf.slowfast_8x8_r50.__doc__
    assert "configs/Kinetics/c2/SLOWFAST_8x8_R50.yaml" in hubconf.slowfast_8x8_r50.__doc__


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slow_4x16_r50_ava", r"boxes \[R, 5\]"),
        ("vit_b_maskfeat_in1k", "and a mask of its tokens"),
        ("vit_b_16x4_mae", "of which it hides a part"),
        ("slow_8x8_r50_moco_rho2", "features out"),
        ("x3d_s", "scores out"),
    ],
)
def test_help_says_what_goes_in_and_what_comes_out(hubconf, name, words):
    assert re.search(words, getattr(hubconf, name).__doc__)


def test_dependencies_are_modules_that_are_there(hubconf):
    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)


def test_network_comes_in_eval_mode_with_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOWFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("SLOWFAST_OFFLINE", "1")
    path = tmp_path / zoo.find("x3d_xs").file
    with pytest.raises(zoo.ZooError, match="SLOWFAST_OFFLINE"):
        torch.hub.load(ROOT, "x3d_xs", pretrained=True, source="local")
    model = torch.hub.load(ROOT, "x3d_xs", source="local", opts=["DATA.TRAIN_CROP_SIZE", 64])
    assert not model.training
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 4, 64, 64))
    assert scores.shape == (1, 400)
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))  # activated scores

    path.parent.mkdir(parents=True)
    torch.save({"model_state": model.state_dict()}, path)
    same = torch.hub.load(ROOT, "x3d_xs", pretrained=True, source="local")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
