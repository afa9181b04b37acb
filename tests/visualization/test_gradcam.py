"""Grad-CAM as derived by hand, for every network, and where the thing is that decides the class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_input, fill_model
from torch import nn
from torch.nn import functional as F

from slowfast.config import get_cfg, load_cfg
from slowfast.models import build_model
from slowfast.models.fold import FusedBlock, for_inference
from slowfast.visualization.gradcam import class_activation, default_layers, explain, overlay

ROOT = Path(__file__).resolve().parents[2]
PTV = json.loads((ROOT / "tests" / "golden" / "models_ptv" / "forward.json").read_text())
SMALL = ["MODEL.NUM_CLASSES", 5, "DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64]
RESNET = [*SMALL, "RESNET.DEPTH", 18, "RESNET.WIDTH_PER_GROUP", 8, "RESNET.TRANS_FUNC", "basic_transform"]
ONE = ["DATA.INPUT_CHANNEL_NUM", [3]]
MVIT = [
    *["DATA.NUM_FRAMES", 8, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "MODEL.NUM_CLASSES", 5],
    *["MVIT.EMBED_DIM", 16, "MVIT.DEPTH", 4, "MVIT.DIM_MUL", [[1, 2.0], [3, 2.0]]],
    *["MVIT.HEAD_MUL", [[1, 2.0], [3, 2.0]], "MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [1, 1, 2, 2], [3, 1, 2, 2]]],
    *["MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]],
]
NETWORKS = {
    "SlowFast": ("", [*RESNET, "SLOWFAST.ALPHA", 4]),
    "SlowFast, detached": ("", [*RESNET, "SLOWFAST.ALPHA", 4, "MODEL.DETACH_FINAL_FC", True]),
    "I3D": ("", [*RESNET, *ONE, "MODEL.MODEL_NAME", "ResNet", "MODEL.ARCH", "i3d", "MODEL.ACT_CHECKPOINT", True]),
    "X3D": (
        "",
        [
            *("MODEL.MODEL_NAME", "X3D", "MODEL.ARCH", "x3d", "RESNET.TRANS_FUNC", "x3d_transform", "X3D.DIM_C5", 32),
            *("X3D.BOTTLENECK_FACTOR", 2.25, *SMALL, *ONE),
        ],
    ),
    "R3D": ("", [*SMALL, *ONE, "DATA.NUM_FRAMES", 2, "MODEL.MODEL_NAME", "TorchVisionResNet", "MODEL.ARCH", "r3d_18"]),
    "MViT": ("configs/Kinetics/MVIT_B_16x4_CONV.yaml", [*MVIT, "MODEL.ACT_CHECKPOINT", True]),
    "MViTv2": ("configs/Kinetics/MVITv2_S_16x4.yaml", MVIT),
    "reversible": ("configs/Kinetics/REV_MVIT_B_16x4_CONV.yaml", [*MVIT, "MVIT.REV.BUFFER_LAYERS", [1, 3]]),
    **{
        name.removeprefix("variant:"): (entry["config"], entry["opts"])
        for name, entry in PTV.items()
        if name.startswith("variant:") and not name.endswith(("detection", "96"))
    },
}


def make(name):
    path, opts = NETWORKS[name]
    cfg = load_cfg(ROOT / path, opts) if path else get_cfg()
    if not path:
        cfg.merge_from_list(opts)
    return fill_model(build_model(cfg)).eval(), fill_input("gradcam", (2, 3, cfg.DATA.NUM_FRAMES, 64, 64))


def normalised(maps, size):
    """[B, t, h, w] in the space of the clip, from 0 to 1."""
    maps = F.interpolate(maps[:, None], size=size, mode="trilinear")[:, 0]
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - low) / (high - low)


class Colours(nn.Module):
    """Scores from how much of each colour there is; what follows the layer overwrites its output."""

    def __init__(self, weights, stride=1):
        super().__init__()
        self.layer = nn.Conv3d(3, 3, 1, (1, stride, stride), bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, len(weights), bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1))
            self.head.weight.copy_(torch.tensor(weights))

    def forward(self, x):
        return self.head(self.relu(self.layer(x).mul_(2.0)).mean((2, 3, 4)))


def test_class_activation_by_hand():
    value = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[3.0, -1.0], [1.0, 1.0]]]).view(1, 2, 2, 1, 2)  # [B, C, t, h, w]
    gradient = torch.tensor([[[1.0, 3.0], [0.0, 2.0]], [[-1.0, 1.0], [4.0, -6.0]]]).view(1, 2, 2, 1, 2)
    # Means over space: channel 0: 2 at t=0, 1 at t=1; channel 1: 0 at t=0, -1 at t=1.
    expected = torch.tensor([[2 * 1.0, 2 * 2.0], [0.0, 4.0 - 1.0]])  # at t=1: 0 - 1 < 0 gives 0
    assert torch.equal(class_activation(value, gradient)[0, :, 0], expected)


def test_a_hand_made_network_has_the_map_that_follows_from_its_weights():
    network = Colours([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]]).eval()
    clip = torch.rand(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1)) - 0.2
    found = explain(network, clip, [0, 1], ["layer"])
    # d logit / d layer = weight * 2 / (T H W) where positive; its mean over space weighs the layer's output.
    gradient = (clip > 0) * network.head.weight[[0, 1]].detach().view(2, 3, 1, 1, 1) * 2 / (4 * 6 * 6)
    expected = (gradient.mean((3, 4), keepdim=True) * clip).sum(1).relu()
    assert list(found.maps) == ["clip"]
    assert found.frames == {"clip": (0, 1, 2, 3)}
    torch.testing.assert_close(found.maps["clip"], normalised(expected, (4, 6, 6)))
    with torch.no_grad():
        assert torch.equal(found.scores, network(clip))


def moving_patch(colour, size=32, frames=8):
    """A clip of dim noise with a patch of 8 x 8 that moves 3 pixels per frame, and the mask of the patch."""
    clip = 0.05 * torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(frames, size, size, dtype=torch.bool)
    for t in range(frames):
        mask[t, 4:12, 3 * t : 3 * t + 8] = True
    clip[0, colour][mask] = 1.0
    return clip, mask


def test_the_map_follows_a_patch_that_decides_the_class_and_not_one_that_speaks_against_it():
    network = Colours([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]], stride=2).eval()
    clip, mask = moving_patch(colour=1)
    found = explain(network, clip, layers=["layer"])
    assert found.targets == (1,)
    heat = found.maps["clip"][0]
    assert heat[mask].mean() > 0.8
    assert heat[~mask].mean() < 0.1
    for t in range(8):
        y, x = divmod(int(heat[t].argmax()), 32)
        assert mask[t, y, x]
    against = explain(network, clip, 0, layers=["layer"]).maps["clip"][0]
    assert against[mask].mean() < 0.05 < against[~mask].mean()


def test_no_evidence_gives_an_empty_map():
    network = Colours([[-1.0, -1.0, -1.0]]).eval()
    assert explain(network, torch.ones(1, 3, 2, 4, 4), layers=["layer"]).maps["clip"].eq(0).all()


def test_maps_of_slowfast_follow_from_its_features_and_classifier():
    network, clip = make("SlowFast")
    features = []
    handle = network.s5.register_forward_hook(lambda module, args, output: features.extend(output))
    with torch.no_grad():
        scores = network(clip)
    handle.remove()
    found = explain(network, clip, target=3)
    torch.testing.assert_close(found.scores, scores)
    assert found.frames == {"slow": (0, 7), "fast": tuple(range(8))}
    assert found.layers == {"slow": "s5", "fast": "s5"}
    widths = [x.shape[1] for x in features]
    for pathway, x, weight in zip(("slow", "fast"), features, network.head.projection.weight[3].split(widths)):
        expected = (weight.detach().view(1, -1, 1, 1, 1) * x).sum(1).relu()  # pooling divides every place alike
        size = (len(found.frames[pathway]), 64, 64)
        torch.testing.assert_close(found.maps[pathway], normalised(expected, size), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_explained_and_left_as_it_was(name):
    network, clip = make(name)
    with torch.no_grad():
        scores = network(clip)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = explain(network, clip)
    torch.testing.assert_close(found.scores, scores)
    assert found.targets == tuple(scores.argmax(1).tolist())
    paths = {"slow", "fast"} if "lowFast" in name or name == "ptv_slowfast" else {"clip"}
    assert set(found.maps) == paths | ({"rollout"} if "iT" in name or name in ("reversible", "ptv_mvit") else set())
    for pathway, maps in found.maps.items():
        assert maps.shape == (2, len(found.frames[pathway]), 64, 64)
        assert maps.min() == 0
        torch.testing.assert_close(maps.amax((1, 2, 3)), torch.ones(2))
        assert not maps.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        assert torch.equal(network(clip), scores)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["SlowFast", "X3D", "MViTv2", "reversible", "ptv_mvit"])
def test_a_gpu_gives_the_same_maps(name):
    network, clip = make(name)
    expected = explain(network, clip, 1)
    found = explain(network.cuda(), clip.cuda(), 1)
    for pathway in expected.maps:
        assert found.maps[pathway].is_cuda
        torch.testing.assert_close(found.maps[pathway].cpu(), expected.maps[pathway], atol=0.02, rtol=0.02)
        assert found.on_every_frame(pathway, clip.shape[2]).is_cuda


@pytest.mark.parametrize("name", ["SlowFast", "I3D", "X3D"])
def test_a_folded_network_has_the_same_maps(name):
    network, clip = make(name)
    expected = explain(network, clip, 1)
    folded = for_inference(network)
    assert any(isinstance(module, FusedBlock) for module in folded.modules())
    found = explain(folded, clip, 1)
    for pathway in expected.maps:
        torch.testing.assert_close(found.maps[pathway], expected.maps[pathway], atol=1e-3, rtol=1e-2)


def test_a_detached_head_is_seen_through():
    (plain, clip), (detached, _) = make("SlowFast"), make("SlowFast, detached")
    assert detached.head.detach
    expected, found = explain(plain, clip, 2), explain(detached, clip, 2)
    assert all(torch.equal(found.maps[pathway], expected.maps[pathway]) for pathway in ("slow", "fast"))
    assert detached.head.detach


def test_layers_are_named_one_per_pathway():
    network, clip = make("SlowFast")
    found = explain(network, clip, layers=["s4/pathway0_res1", "module/s3/pathway1_res0/branch2/a_bn"])
    assert list(found.maps) == ["slow", "fast"]
    assert found.layers["slow"] == "s4.pathway0_res1"
    last = explain(network, clip)
    assert not torch.allclose(found.maps["slow"], last.maps["slow"])


def test_gradients_reach_an_early_layer_by_way_of_a_later_one_that_is_looked_at_too():
    network, clip = make("SlowFast")
    early = "s3.pathway1_res1"  # its features reach the scores also through the lateral connection to "s5"
    alone = explain(network, clip, 1, [early]).maps["clip"]
    assert torch.equal(explain(network, clip, 1, ["s5.pathway0_res1", early]).maps["fast"], alone)


def test_tokens_within_a_block_find_their_places():
    network, clip = make("MViTv2")
    found = explain(network, clip, layers=["blocks.3.norm1"])
    assert found.maps["clip"].shape == (2, 8, 64, 64)


def test_frames_between_the_slices_of_a_pathway_take_the_nearest():
    network, clip = make("SlowFast")
    found = explain(network, clip)
    maps = found.on_every_frame("slow", 8)
    assert maps.shape == (2, 8, 64, 64)
    assert torch.equal(maps[:, 3], found.maps["slow"][:, 0])
    assert torch.equal(maps[:, 4], found.maps["slow"][:, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["s9"]}, "has no layer 's9'"),
        ({"layers": ["s5.pathway0_res9"]}, "did you mean s5.pathway0_res"),
        ({"layers": ["head"]}, "no places in the clip"),
        ({"target": 5}, "a class from 0 to 4"),
        ({"target": [1, 2, 3]}, "one for each of 2 clips"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    network, clip = make("SlowFast")
    with pytest.raises(ValueError, match=message):
        explain(network, clip, **arguments)
    assert all(not module._forward_hooks for module in network.modules())


def test_networks_without_classes_are_refused():
    network, clip = make("SlowFast")
    with pytest.raises(ValueError, match="training mode"):
        explain(network.train(), clip)
    with pytest.raises(ValueError, match="name the layers"):
        default_layers(Colours([[1.0, 0.0, 0.0]]))
    entry = PTV["variant:ptv_slow_detection"]
    detector = build_model(load_cfg(ROOT / entry["config"], entry["opts"])).eval()
    with pytest.raises(ValueError, match="scores boxes"):
        explain(detector, clip)


def test_overlay_mixes_the_colours_of_the_map_into_the_frame():
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    maps = torch.zeros(2, 4, 4)
    maps[1] = 1.0
    mixed = overlay(frames, maps, "viridis", alpha=0.5)
    assert mixed[0, 0, 0].tolist() == [84, 51, 92]  # viridis begins with (68, 1, 84)
    assert mixed[1, 0, 0].tolist() == [177, 166, 68]  # and ends with (253, 231, 36)
    assert np.array_equal(overlay(frames, maps, alpha=0.0), frames)
    assert overlay(frames, torch.zeros(2, 1, 1)).shape == frames.shape
    with pytest.raises(ValueError, match="no colour map 'rainbows'"):
        overlay(frames, maps, "rainbows")
    with pytest.raises(ValueError, match="needed are uint8"):
        overlay(frames[:1], maps)
