"""Files of other packages under our names: pytest tests/checkpoint/test_hub_names.py"""

import warnings
from pathlib import Path

import pytest
import torch
from scripts import load_script

from slowfast.checkpoint import load_initial_weights, load_weights
from slowfast.checkpoint.convert import fit_state
from slowfast.checkpoint.hub_names import from_hub, recognise
from slowfast.config import load_cfg
from slowfast.models import build_model

ROOT = Path(__file__).resolve().parents[2]


def load_tool():
    return load_script(ROOT / "tools" / "parity.py")


WITNESSES = {f"{witness.package} {witness.name}": witness for witness in load_tool().WITNESSES}
# Names depend on the kind of network only, so one X3D will do.
KINDS = [name for name in WITNESSES if "X3D" not in name or name.endswith("XS")]


def state_of(witness):
    """Its state dict, where its builder permits without memory behind it, so that no weight is drawn."""
    reads_numbers = witness.package == "pytorchvideo" and "MViT" in witness.name
    with warnings.catch_warnings(), torch.device("cpu" if reads_numbers else "meta"):
        warnings.simplefilter("ignore")
        return witness.build().state_dict()


@pytest.mark.parametrize("name", KINDS)
def test_every_name_has_its_counterpart(name):
    witness = WITNESSES[name]
    theirs = state_of(witness)
    opts = ["MODEL.NUM_CLASSES", 7, "DATA.NUM_FRAMES", witness.frames, *witness.opts]
    opts += ["DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64]
    cfg = load_cfg(ROOT / "configs" / f"{witness.config}.yaml", opts)
    with torch.device("meta"):
        ours = build_model(cfg).state_dict()
    assert recognise(theirs) is not None
    assert recognise(ours) is None
    converted = from_hub(theirs, ours)
    assert set(converted) == set(ours)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.items()}


GROWTH, STRIDES = [[1, 2.0], [3, 2.0]], [[1, 1, 2, 2], [3, 1, 2, 2]]
SMALL = ["DATA.NUM_FRAMES", 4, "DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 7]
SMALL_MVIT = [*SMALL, "MVIT.DEPTH", 4, "MVIT.EMBED_DIM", 32, "MVIT.DIM_MUL", GROWTH, "MVIT.HEAD_MUL", GROWTH]
SMALL_MVIT += ["MVIT.POOL_Q_STRIDE", STRIDES, "MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4], "NUM_GPUS", 0]


def small_mvit(*opts, folder=""):
    return build_model(load_cfg(ROOT / "configs/Kinetics" / folder / "MVIT_B_16x4_CONV.yaml", [*SMALL_MVIT, *opts]))


@pytest.fixture(scope="module")
def hub_mvit():
    """The release's MViT: q, k and v apart, each pooling layer under one name."""
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    network = create_multiscale_vision_transformers(
        spatial_size=32,
        temporal_size=4,
        depth=4,
        patch_embed_dim=32,
        embed_dim_mul=GROWTH,
        atten_head_mul=GROWTH,
        pool_q_stride_size=STRIDES,
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
        conv_patch_embed_padding=(1, 3, 3),
        head_dropout_rate=0.0,
        head_num_classes=7,
    ).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return network


def scores(network):
    clip = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(clip)


@pytest.mark.parametrize("separate", [False, True])
def test_mvit_of_the_hub_fits_joined_and_separate_projections(hub_mvit, separate):
    ours = small_mvit("MVIT.SEPARATE_QKV", separate)
    assert load_initial_weights(ours, hub_mvit.state_dict(), allow_partial=False).complete
    torch.testing.assert_close(scores(ours), scores(hub_mvit).softmax(-1), rtol=1e-4, atol=1e-6)


def test_pooling_layers_with_two_names(hub_mvit):
    twice, ours = small_mvit(folder="pytorchvideo"), small_mvit()
    assert load_initial_weights(twice, hub_mvit.state_dict(), allow_partial=False).complete
    wanted = fit_state(hub_mvit.state_dict(), ours.state_dict())
    newer = {name.removeprefix("model."): tensor for name, tensor in twice.state_dict().items()}
    assert any("_attention_pool_" in name for name in newer)
    for state in (newer, twice.state_dict()):
        assert load_initial_weights(ours, state, allow_partial=False).complete
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())
    again = fit_state(ours.state_dict(), twice.state_dict())
    assert again.keys() == twice.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in twice.state_dict().items())


@pytest.mark.parametrize("name", ["SLOW_8x8_R50", "SLOWFAST_8x8_R50"])
def test_weights_of_ptv_networks_go_to_ours_and_back(name):
    with torch.device("meta"):
        theirs = build_model(load_cfg(ROOT / f"configs/Kinetics/pytorchvideo/{name}.yaml", ["NUM_GPUS", 0]))
        ours = build_model(load_cfg(ROOT / f"configs/Kinetics/{name}.yaml", ["NUM_GPUS", 0]))
    theirs, ours = theirs.state_dict(), ours.state_dict()
    converted = from_hub(theirs, ours)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.items()}
    again = from_hub(converted, theirs)
    assert again.keys() == theirs.keys()
    assert all(again[place] is tensor for place, tensor in theirs.items())


def test_detector_of_the_hub_fits_ours():
    from pytorchvideo.models.hub import slow_r50_detection

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        theirs = slow_r50_detection(pretrained=False).state_dict()
        ours = build_model(load_cfg(ROOT / "configs/AVA/c2/SLOW_8x8_R50.yaml", ["NUM_GPUS", 0])).state_dict()
    converted = from_hub(theirs, ours)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.items()}


def test_image_resnet_of_torchvision_fits_ours_flat_and_inflated():
    from torchvision.models import resnet50

    theirs = resnet50(weights=None).eval()
    opts = ["DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64, "NUM_GPUS", 0]
    ours = build_model(load_cfg(ROOT / "configs/ImageNet/RES_R50.yaml", opts)).eval()
    assert load_initial_weights(ours, theirs.state_dict(), allow_partial=False).complete
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours([images[:, :, None]]), theirs(images).softmax(-1), rtol=1e-3, atol=1e-6)
    with torch.device("meta"):
        deep = build_model(load_cfg(ROOT / "configs/Kinetics/I3D_8x8_R50_IN1K.yaml", ["NUM_GPUS", 0])).state_dict()
    inflated = fit_state(theirs.state_dict(), deep, inflate=True)
    assert inflated.keys() == deep.keys()
    assert {name for name in deep if inflated[name].shape != deep[name].shape} == {
        "head.projection.weight",
        "head.projection.bias",
    }


def test_x3d_gets_norms_that_do_nothing():
    ours = {f"s2.pathway0_res0.branch1_bn.{leaf}": torch.rand(4) for leaf in ("weight", "bias", "running_mean")}
    ours["s2.pathway0_res0.branch1_bn.running_var"] = torch.rand(4)
    kernel = "blocks.1.res_blocks.0.branch1_conv.weight"
    theirs = {"blocks.0.conv.conv_t.weight": torch.ones(2), kernel: torch.ones(4, 4, 1, 1, 1)}
    bn = torch.nn.BatchNorm1d(4).eval()
    made = {name.rsplit(".", 1)[1]: tensor for name, tensor in from_hub(theirs, ours).items() if "branch1_bn" in name}
    bn.load_state_dict(made, strict=False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(bn(x), x)
    # Where the channels change, pytorchvideo has the norm too: there, the file has lost it.
    lost = from_hub(theirs | {kernel: torch.ones(4, 3, 1, 1, 1)}, ours)
    assert not any("branch1_bn" in name for name in lost)


def test_networks_with_their_names_keep_them():
    state = {"blocks.0.conv.weight": torch.ones(1), "blocks.1.res_blocks.0.branch1_conv.weight": torch.ones(1)}
    assert set(from_hub(state, {f"model.{name}": tensor for name, tensor in state.items()})) == {
        f"model.{name}" for name in state
    }
    assert from_hub(state, state) == state


def test_our_own_names_are_nobodys():
    state = {"s1.pathway0_stem.conv.weight": torch.ones(1)}
    assert recognise(state) is None
    assert from_hub(state, {}) == state


def test_weights_arrive_and_count():
    """The smallest real network there is, filled, through conversion and strict loading."""
    from torchvision.models.video import r3d_18

    theirs = r3d_18(weights=None, num_classes=7)
    ours = build_model(load_cfg(ROOT / "configs" / "TorchVision" / "R3D_18.yaml", ["MODEL.NUM_CLASSES", 7]))
    report = load_weights(ours, fit_state(theirs.state_dict(), ours.state_dict()))
    assert report.complete
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(clip), theirs.eval()(clip).softmax(-1))
