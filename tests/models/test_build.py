import pytest
import torch
from torch import nn

from slowfast.config import get_cfg
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
