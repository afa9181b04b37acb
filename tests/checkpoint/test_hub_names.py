"""Files of other packages under our names: pytest tests/checkpoint/test_hub_names.py"""

import warnings
from pathlib import Path

import pytest
import torch
from scripts import load_script

from slowfast.checkpoint import load_weights
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


def test_x3d_gets_norms_that_do_nothing():
    ours = {f"s2.pathway0_res0.branch1_bn.{leaf}": torch.rand(4) for leaf in ("weight", "bias", "running_mean")}
    ours["s2.pathway0_res0.branch1_bn.running_var"] = torch.rand(4)
    theirs = {"blocks.0.conv.conv_t.weight": torch.ones(2), "blocks.1.res_blocks.0.branch1_conv.weight": torch.ones(3)}
    bn = torch.nn.BatchNorm1d(4).eval()
    made = {name.rsplit(".", 1)[1]: tensor for name, tensor in from_hub(theirs, ours).items() if "branch1_bn" in name}
    bn.load_state_dict(made, strict=False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(bn(x), x)


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
