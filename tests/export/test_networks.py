"""Every kind of network gives the same scores out of a file, for other numbers of clips than it was traced with."""

from pathlib import Path

import pytest
import torch
from fill import fill_input, fill_model

from slowfast.config import load_cfg
from slowfast.export import build_card, load_exported, write_exported
from slowfast.models import build_model
from slowfast.models.fold import for_inference

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["MODEL.NUM_CLASSES", 7, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64]
RESNET = ["RESNET.WIDTH_PER_GROUP", 8, "DATA.NUM_FRAMES", 4]
PTV = [*SMALL, "DATA.NUM_FRAMES", 8, "RESNET.WIDTH_PER_GROUP", 8]
BLOCKS = [
    *(*SMALL, "DATA.NUM_FRAMES", 8, "MVIT.DEPTH", 3, "MVIT.EMBED_DIM", 16),
    *("MVIT.DIM_MUL", [[1, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0]], "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4]),
]
X3D = [*SMALL, "X3D.WIDTH_FACTOR", 1.0, "X3D.DEPTH_FACTOR", 1.0, "X3D.DIM_C5", 96]


def resnet(arch, *opts):
    return "Motion/2D_R18", ["MODEL.ARCH", arch, *SMALL, *RESNET, *opts]


def nonlocal_resnet(instantiation):
    places = ["NONLOCAL.LOCATION", [[[]], [[1]], [[]], [[]]], "NONLOCAL.INSTANTIATION", instantiation]
    return resnet("i3d", *places)


NETWORKS = {
    "2d": resnet("2d"),
    "c2d": resnet("c2d"),
    "i3d": resnet("i3d"),
    "slow": resnet("slow"),
    "nonlocal, softmax": nonlocal_resnet("softmax"),
    "nonlocal, dot product": nonlocal_resnet("dot_product"),
    "slowfast": ("Motion/SLOWFAST_quickstart", [*SMALL, "RESNET.WIDTH_PER_GROUP", 8]),
    "multi-label": ("Motion/SLOWFAST_quickstart", [*SMALL, "RESNET.WIDTH_PER_GROUP", 8, "MODEL.HEAD_ACT", "sigmoid"]),
    "x3d": ("Kinetics/X3D_XS", X3D),
    "mvit 1": ("Kinetics/MVIT_B_16x4_CONV", [*BLOCKS, "MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2]]]),
    "mvit 2": (
        "Kinetics/MVITv2_S_16x4",
        [*BLOCKS, "MVIT.POOL_Q_STRIDE", [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1]]],
    ),
    "vit": ("Motion/FINETUNE_VIT", [*SMALL, "MVIT.DEPTH", 2]),
    "vit, class token": ("Motion/FINETUNE_VIT", [*SMALL, "MVIT.DEPTH", 2, "MVIT.USE_MEAN_POOLING", False]),
    "reversible vit": ("Motion/REV_VIT", [*SMALL, "MVIT.DEPTH", 2]),
    "reversible mvit": (
        "Kinetics/REV_MVIT_B_16x4_CONV",
        [*BLOCKS, "MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2]], "MVIT.REV.BUFFER_LAYERS", [1]],
    ),
    "r3d": ("TorchVision/R3D_18", [*SMALL, "DATA.NUM_FRAMES", 4]),
    "mc3": ("TorchVision/MC3_18", [*SMALL, "DATA.NUM_FRAMES", 4]),
    "r2plus1d": ("TorchVision/R2PLUS1D_18", [*SMALL, "DATA.NUM_FRAMES", 4]),
    "ptv slow": ("Kinetics/pytorchvideo/SLOW_8x8_R50", PTV),
    "ptv slowfast": ("Kinetics/pytorchvideo/SLOWFAST_8x8_R50", [*PTV, "RESNET.WIDTH_PER_GROUP", 16]),
    "ptv x3d": ("Kinetics/pytorchvideo/X3D_S", [*X3D, "DATA.NUM_FRAMES", 8]),
    "ptv csn": ("Kinetics/pytorchvideo/CSN_32x2_R101", [*PTV, "RESNET.DEPTH", 50]),
    "ptv r2plus1d": ("Kinetics/pytorchvideo/R2PLUS1D_16x4_R50", PTV),
    "ptv mvit": (
        "Kinetics/pytorchvideo/MVIT_B_16x4_CONV",
        [*BLOCKS, "MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2]], "MVIT.POOL_KV_STRIDE", None],
    ),
}
QUICK = ("2d",)  # the others take some seconds each


def make(name):
    """A small network, its configuration and five clips."""
    config, opts = NETWORKS[name]
    cfg = load_cfg(ROOT / "configs" / f"{config}.yaml", opts)
    network = fill_model(build_model(cfg), 0.3 if "dot" in name else 0.7).eval()
    size = cfg.DATA.TEST_CROP_SIZE
    return cfg, network, fill_input(name, (5, 3, cfg.DATA.NUM_FRAMES, size, size))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in NETWORKS])
def test_file_scores_as_the_network(name, suffix, tmp_path):
    cfg, network, clips = make(name)
    with torch.no_grad():
        wanted = network(clips)
    assert float(wanted.std(0).max()) > 1e-6  # clips are told apart
    card = build_card(cfg, list("abcdefg"))
    write_exported(for_inference(network), tmp_path / f"net{suffix}", card)
    exported = load_exported(tmp_path / f"net{suffix}", device="cpu")
    assert exported.card == card
    for count in (1, 2, 5):
        found = exported(clips[:count])
        assert found.shape == (count, 7)
        torch.testing.assert_close(found, wanted[:count], rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(network(clips), wanted)  # the network itself is as before
