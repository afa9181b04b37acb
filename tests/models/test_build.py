import pickle

import pytest
import torch
from small import ROOT, small
from torch import nn

from slowfast.config import get_cfg, load_cfg
from slowfast.models import MODEL_REGISTRY, ResNet, SlowFast, build_model


class Upstream(nn.Module):
    """A user's model in the original's style: takes cfg, expects a list of pathways."""

    def __init__(self, cfg):
        super().__init__()
        self.projection = nn.Linear(3, cfg.MODEL.NUM_CLASSES)

    def forward(self, inputs, boxes=None):
        assert isinstance(inputs, list)
        self.seen = [tuple(x.shape) for x in inputs]
        return self.projection(inputs[0].mean((2, 3, 4)))


@pytest.fixture
def user_model():
    MODEL_REGISTRY._do_register("UpstreamStyle", Upstream)
    yield
    del MODEL_REGISTRY._obj_map["UpstreamStyle"]


def make_cfg(**keys):
    cfg = get_cfg()
    cfg.MODEL.MODEL_NAME = "UpstreamStyle"
    for key, value in keys.items():
        cfg.MODEL[key] = value
    cfg.freeze()
    return cfg


@pytest.mark.usefixtures("user_model")
def test_a_user_model_gets_the_list_of_pathways():
    clips = torch.zeros(2, 3, 16, 4, 4)
    model = build_model(make_cfg(ARCH="slowfast"))
    assert model(clips).shape == (2, 400)
    assert model.seen == [(2, 3, 2, 4, 4), (2, 3, 16, 4, 4)]
    model = build_model(make_cfg(ARCH="slow"))
    model(clips)
    assert model.seen == [(2, 3, 16, 4, 4)]


@pytest.mark.usefixtures("user_model")
def test_a_list_reaches_a_user_model_untouched():
    model = build_model(make_cfg(ARCH="slowfast"))
    model([torch.zeros(1, 3, 4, 4, 4)], torch.zeros(1, 5))
    assert model.seen == [(1, 3, 4, 4, 4)]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"'SlowFst' is not in the MODEL registry. Did you mean 'SlowFast'"):
        build_model(make_cfg(MODEL_NAME="SlowFst"))


def test_models_are_on_the_cpu_and_unwrapped():
    assert MODEL_REGISTRY.get("ResNet") is ResNet
    with torch.device("meta"):
        assert type(build_model(make_cfg(MODEL_NAME="SlowFast", ARCH="slowfast"))) is SlowFast


@pytest.mark.parametrize(
    "name",
    [
        "Kinetics/SLOWFAST_8x8_R50",
        "Kinetics/X3D_S",
        "Kinetics/MVITv2_S_16x4",
        "Kinetics/REV_MVIT_B_16x4_CONV",
        "Kinetics/pytorchvideo/SLOW_4x16_R50",
        "Kinetics/pytorchvideo/X3D_S",
        "masked_ssl/k400_VIT_B_16x4_MAE_PT",
        "contrastive_ssl/MoCo_SlowR50_8x8",
        "TorchVision/R3D_18",
        "AVA/SLOWFAST_32x2_R50_SHORT",
    ],
)
def test_a_network_can_be_pickled_whole(name):
    """As passing it to another process does."""
    name = f"configs/{name}.yaml"
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / name, small(name)))
    same = pickle.loads(pickle.dumps(model))
    assert list(same.state_dict()) == list(model.state_dict())
