"""Which weights a fine-tuning may lack: pytest tests/checkpoint/test_finetune.py"""

from pathlib import Path

import pytest
import torch
from torch import nn

from slowfast.checkpoint import CheckpointError, load_initial_weights
from slowfast.checkpoint.finetune import advice, may_differ
from slowfast.checkpoint.io import LoadReport, compare_weights
from slowfast.config import load_cfg
from slowfast.models import build_model

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def network(name, *opts):
    """A published network without memory behind it."""
    with torch.device("meta"):
        return build_model(load_cfg(CONFIGS / f"{name}.yaml", [*opts, "NUM_GPUS", 0]))


def start(source, target, *opts, **options):
    """Names of ``target`` that stay as they were when it starts from ``source``'s weights."""
    model = network(target, *opts)
    report = load_initial_weights(model, network(source).state_dict(), **options)
    return {*report.missing, *(name for name, _, _ in report.mismatched)}


HEAD = {"head.projection.weight", "head.projection.bias"}
NORM = {"norm.weight", "norm.bias"}
BACKBONE = {"clear_patterns": ["backbone."]}
IMAGES = {"image_init": True}
SSL = "contrastive_ssl"
PUBLISHED = [
    ("Kinetics/SLOW_8x8_R50", "AVA/SLOW_8x8_R50_SHORT", {}, HEAD),
    ("Kinetics/SLOWFAST_8x8_R50", "AVA/SLOWFAST_32x2_R50_SHORT", {}, HEAD),
    ("Kinetics/c2/SLOWFAST_8x8_R50", "SSv2/SLOWFAST_16x8_R50", {}, HEAD),
    ("Kinetics/c2/SLOWFAST_8x8_R50", "Charades/SLOWFAST_16x8_R50", {}, HEAD),
    ("Kinetics/MVITv2_S_16x4", "SSv2/MVITv2_S_16x4", {}, HEAD),
    ("ImageNet/RES_R50", "Kinetics/I3D_8x8_R50_IN1K", {"inflate": True}, HEAD),
    (f"{SSL}/BYOL_SlowR50_8x8", f"{SSL}/linear_k400_Slow_8x8_R50_syn0", BACKBONE, HEAD),
    (f"{SSL}/MoCo_SlowR50_8x8", f"{SSL}/finetune_ava_Slow_R50_syn0", BACKBONE, HEAD),
    (f"{SSL}/SimCLR_SlowR50_8x8", f"{SSL}/finetune_ucf_Slow_R50_syn8", BACKBONE, HEAD),
    (f"{SSL}/SwAV_Slow_R50_8x8", f"{SSL}/finetune_SSv2_Slow_R50_syn0", BACKBONE, HEAD),
    (f"{SSL}/linear_k400_Slow_8x8_R50_syn0", f"{SSL}/finetune_ucf_Slow_R50_syn8", BACKBONE, HEAD),
    ("masked_ssl/k400_VIT_B_16x4_MAE_PT", "masked_ssl/k400_VIT_B_16x4_FT", {}, HEAD),
    ("masked_ssl/k400_MVITv2_S_16x4_MaskFeat_PT", "masked_ssl/k400_MVITv2_S_16x4_FT", {}, HEAD | NORM),
    ("masked_ssl/in1k_VIT_B_MaskFeat_PT", "masked_ssl/in1k_VIT_B_MaskFeat_FT", {}, HEAD | NORM),
    ("Motion/MAE_VIT", "Motion/FINETUNE_VIT", {}, HEAD),
]


@pytest.mark.parametrize(("source", "target", "options", "fresh"), PUBLISHED)
def test_published_fine_tunings_start(source, target, options, fresh):
    assert start(source, target, **options) == fresh


def test_image_transformers_lack_time_and_class_token():
    fresh = start("ImageNet/MVITv2_S", "Kinetics/MVITv2_S_16x4", **IMAGES)
    assert {name.split(".")[-1] for name in fresh - HEAD} == {"cls_token", "rel_pos_t"}
    with pytest.raises(CheckpointError, match=r"set TRAIN.CHECKPOINT_IN_INIT True"):
        start("ImageNet/MVITv2_S", "Kinetics/MVITv2_S_16x4")


def test_nonlocal_blocks_may_be_new():
    fresh = start("ImageNet/RES_R50", "Kinetics/I3D_NLN_8x8_R50_IN1K", inflate=True)
    assert all("_nonlocal" in name for name in fresh - HEAD)
    with pytest.raises(CheckpointError, match="nonlocal"):
        start("Kinetics/I3D_NLN_8x8_R50", "Kinetics/I3D_8x8_R50")


def test_masked_pretraining_starts_from_a_classifier():
    fresh = start("masked_ssl/k400_VIT_B_16x4_FT", "masked_ssl/k400_VIT_B_16x4_MAE_PT")
    assert {name.split(".")[0] for name in fresh} == {"mask_token", "decoder_embed", "decoder_pos_embed", "pred_head"}
    fresh = start("masked_ssl/k400_MVITv2_S_16x4_FT", "masked_ssl/k400_MVITv2_S_16x4_MaskFeat_PT")
    assert {name.split(".")[0] for name in fresh} == {"mask_token", "hogs", "pred_head"}


def test_classifiers_of_pytorchvideo_networks_may_be_new():
    boxes = ("DETECTION.ENABLE", True, "MODEL.NUM_CLASSES", 80)
    fresh = start("Kinetics/pytorchvideo/SLOW_8x8_R50", "Kinetics/pytorchvideo/SLOW_8x8_R50", *boxes)
    assert fresh == {"detection_head.proj.weight", "detection_head.proj.bias"}
    fresh = start("Kinetics/pytorchvideo/SLOW_8x8_R50", "Kinetics/pytorchvideo/SLOW_8x8_R50", "MODEL.NUM_CLASSES", 5)
    assert fresh == {"model.blocks.5.proj.weight", "model.blocks.5.proj.bias"}


OTHERS = [
    ("Kinetics/SLOW_8x8_R50", "Kinetics/SLOWFAST_8x8_R50", "s1_fuse|not in the file"),
    ("Kinetics/SLOW_8x8_R50", "Kinetics/I3D_8x8_R101", "of another shape"),
    ("Kinetics/I3D_8x8_R101", "Kinetics/I3D_8x8_R50", "not in the model"),
    ("Kinetics/MVIT_B_16x4_CONV", "Kinetics/MVIT_B_32x3_CONV", "blocks"),
]


@pytest.mark.parametrize(("source", "target", "reason"), OTHERS)
def test_another_network_is_refused(source, target, reason):
    with pytest.raises(CheckpointError, match=rf"(?s){reason}.*compare MODEL.*TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN"):
        start(source, target)


def test_images_without_inflation_name_the_key():
    state = {name: t[:, :, 0] if t.ndim == 5 else t for name, t in network("ImageNet/RES_R50").state_dict().items()}
    with pytest.raises(CheckpointError, match=r"set TRAIN\.CHECKPOINT_INFLATE True"):
        load_initial_weights(network("Kinetics/I3D_8x8_R50_IN1K"), state)


def test_forgotten_pattern_is_named_though_the_head_fits():
    state = network("Kinetics/SLOW_8x8_R50").state_dict()
    state = {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in state.items()}
    model = network("Kinetics/SLOW_8x8_R50")
    with pytest.raises(CheckpointError, match=r"'backbone.' before ours: set .*CLEAR_NAME_PATTERN \['backbone.'\]"):
        load_initial_weights(model, state)
    assert load_initial_weights(model, state, **BACKBONE).complete


def test_file_with_a_classifier_alone_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="nothing of it to carry over"):
        load_initial_weights(model, {"1.weight": torch.zeros(2, 3)}, clear_patterns=["0."])


def test_part_that_a_pattern_names_is_left_as_it_is():
    source, model = (nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b", "head")}) for _ in range(2))
    before = model["b"].weight.clone()
    report = load_initial_weights(model, source.state_dict(), clear_patterns=["b."])
    assert set(report.missing) == {"b.weight", "b.bias"}
    assert set(report.unexpected) == {"weight", "bias"}
    assert torch.equal(model["b"].weight, before)
    assert torch.equal(model["a"].weight, source["a"].weight)


def test_what_may_differ_is_listed():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 3)})
    state = {"head.weight": torch.zeros(4, 2), "queue_x": torch.zeros(1), "backbone_hist.a": torch.zeros(1)}
    report = compare_weights(model, state | {"queuex": torch.zeros(1)})
    assert may_differ(model, state, report=report) == {"head.weight", "head.bias", "queue_x", "backbone_hist.a"}


def test_wrong_class_count_in_a_test_names_its_key():
    report = LoadReport(("a",), (), (), (("head.weight", (400, 2), (7, 2)), ("head.bias", (400,), (7,))))
    assert "set MODEL.NUM_CLASSES 400" in advice(report, training=False)


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("s1.stem.weight", (64, 3, 1, 7, 7), (64, 1, 1, 7, 7)),  # colours
        ("pos_embed", (1, 129, 16), (1, 1025, 16)),
        ("head.weight", (400, 2), (400, 3)),
    ],
)
def test_other_shapes_are_no_matter_of_classes(name, here, there):
    report = LoadReport(("a",), (), (), ((name, here, there),))
    assert "NUM_CLASSES" not in advice(report, training=False)
