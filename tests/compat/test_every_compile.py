"""Every family of networks becomes one graph under ``torch.compile``: a training step, and scores as without it.

Slow: some ten seconds each. What the graphs of gradients and machine code become is tested with the layers and
networks themselves (tests/models) and by the last test here, the only one here that needs a compiler of C++.
"""

import shutil

import pytest
import torch
from small import ROOT, batch_for, small

from slowfast.config import load_cfg
from slowfast.models import build_model
from slowfast.tasks import build_task
from slowfast.tasks.base import task_name
from slowfast.tasks.classification import Classification
from slowfast.tasks.detection import Detection

ONE, TWO = [[2]] * 4, [[2, 2]] * 4
R18 = ["RESNET.DEPTH", 18, "RESNET.WIDTH_PER_GROUP", 8, "RESNET.NUM_BLOCK_TEMP_KERNEL", ONE]
SF18 = [*R18[:4], "RESNET.NUM_BLOCK_TEMP_KERNEL", TWO]
NONLOCAL = ["NONLOCAL.LOCATION", [[[]], [[1]], [[]], [[]]]]
SHALLOW = ["MVIT.DEPTH", 3, "MVIT.DIM_MUL", [[1, 2.0]], "MVIT.HEAD_MUL", [[1, 2.0]]]
MVIT = [*SHALLOW, "MVIT.POOL_Q_STRIDE", [[1, 1, 2, 2]]]
VIT = ["MVIT.DEPTH", 2]
MASKED = [*VIT, "MASK.PRETRAIN_DEPTH", [1]]
X3D = ["X3D.DIM_C5", 32, "X3D.DEPTH_FACTOR", 1.0]
SIDE_32, SIDE_64 = ["DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32], []

FAMILIES = {
    "2D": ("ImageNet/RES_R50", [*R18, *SIDE_32]),
    "C2D": ("Kinetics/C2D_8x8_R50", [*R18, *SIDE_32]),
    "Slow": ("Kinetics/SLOW_8x8_R50", [*R18, *SIDE_32]),
    "I3D, non-local": ("Kinetics/I3D_NLN_8x8_R50", [*R18, *NONLOCAL, *SIDE_32]),
    "SlowFast": ("Kinetics/SLOWFAST_8x8_R50", [*SF18, *SIDE_32]),
    "SlowFast, sub-batch norm": (
        "Kinetics/SLOWFAST_8x8_R50",
        [*SF18, *SIDE_32, "BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", 2],
    ),
    "SlowFast, boxes": ("AVA/SLOWFAST_32x2_R50_SHORT", SF18),
    "X3D": ("Kinetics/X3D_S", [*X3D, *SIDE_32]),
    "MViT": ("Kinetics/MVIT_B_16x4_CONV", MVIT),
    "MViTv2": ("Kinetics/MVITv2_S_16x4", MVIT),
    "MViTv2 of images": ("ImageNet/MVITv2_T", [*MVIT, "MVIT.POOL_KV_STRIDE", [[1, 1, 2, 2]]]),
    "ViT": ("Motion/FINETUNE_VIT", VIT),
    "reversible ViT": ("Motion/REV_VIT", VIT),
    "reversible MViT": ("Kinetics/REV_MVIT_B_16x4_CONV", ["MODEL.DROPOUT_RATE", 0.0]),
    "MaskFeat": ("Motion/MASKFEAT_VIT", MASKED),
    "MAE": ("Motion/MAE_VIT", MASKED),
    "MoCo": ("Motion/MOCO_SLOW_R18", []),
    "BYOL": ("Motion/BYOL_SLOW_R18", []),
    "SwAV": ("Motion/SWAV_SLOW_R18", []),
    "PTV SlowFast": ("Kinetics/pytorchvideo/SLOWFAST_8x8_R50", SIDE_32),
    "PTV X3D": ("Kinetics/pytorchvideo/X3D_S", ["X3D.DEPTH_FACTOR", 1.0, *SIDE_32]),
    "PTV CSN": ("Kinetics/pytorchvideo/CSN_32x2_R101", ["RESNET.DEPTH", 50, *SIDE_32]),
    "PTV R(2+1)D": ("Kinetics/pytorchvideo/R2PLUS1D_16x4_R50", SIDE_32),
    "PTV MViT": ("Kinetics/pytorchvideo/MVIT_B_16x4_CONV", MVIT),
    "r3d_18": ("TorchVision/R3D_18", SIDE_32),
    "r2plus1d_18": ("TorchVision/R2PLUS1D_18", SIDE_32),
}


def make(family, tmp_path):
    """The small network, its task and a batch for it."""
    torch._dynamo.reset()
    name, opts = FAMILIES[family]
    file = f"configs/{name}.yaml"
    opts = [*small(file), *opts]
    if "boxes" in family:
        truth = tmp_path / "truth.csv"
        truth.write_text("v,0902,0.1,0.1,0.5,0.9,3,1\n")
        opts += ["AVA.GROUNDTRUTH_FILE", str(truth)]
    cfg = load_cfg(ROOT / file, opts)
    torch.manual_seed(0)
    return build_model(cfg), build_task(cfg), batch_for(cfg, task_name(cfg))


def check(family, tmp_path, backend):
    model, task, batch = make(family, tmp_path)
    compiled = torch.compile(model.train(), fullgraph=True, dynamic=False, backend=backend)
    for part in task.split(compiled, batch):
        result = task.loss(compiled, part, 0.5)
        assert torch.isfinite(result.total)
        result.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 4
    assert all(torch.isfinite(grad).all() for grad in grads)
    if isinstance(task, (Classification, Detection)):
        model.eval()
        scores = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(task.predict(scores, batch), task.predict(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_one_graph(family, tmp_path):
    check(family, tmp_path, "eager")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler of C++")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_vision_transformer_compiles_to_machine_code(tmp_path):
    check("ViT", tmp_path, "inductor")
