"""Thirty steps of one network of each family, compared with losses that were recorded: python THIS_FILE records anew.

Each line of ``tests/golden/engine/losses.json`` is the loss of one step in float32 on the CPU. They are ours, not the
original's: they tell when a change of code, or of PyTorch, changes training.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fill import fill_input, fill_model  # noqa: E402
from small_run import bare_run  # noqa: E402

from slowfast.config import load_cfg  # noqa: E402
from slowfast.datasets.batch import Batch  # noqa: E402
from slowfast.engine.train import seed_step, train_step  # noqa: E402
from slowfast.models import build_model  # noqa: E402

GOLDEN = ROOT / "tests/golden/engine/losses.json"
STEPS, BATCHES, CLIPS = 30, 3, 4

CNN = ["RESNET.WIDTH_PER_GROUP", 8, "DATA.NUM_FRAMES", 8, "MODEL.DROPOUT_RATE", 0.0, "DATA.TRAIN_CROP_SIZE", 32]
X3D = [
    "MODEL.DROPOUT_RATE",
    0.0,
    "X3D.WIDTH_FACTOR",
    1.0,
    "X3D.DIM_C5",
    64,
    "DATA.NUM_FRAMES",
    4,
    "X3D.DEPTH_FACTOR",
    1.0,
]
TRANSFORMER = ["MVIT.EMBED_DIM", 16, "MVIT.DROPPATH_RATE", 0.1, "DATA.NUM_FRAMES", 8, "SOLVER.WARMUP_EPOCHS", 0.0]
TRANSFORMER += ["MIXUP.ENABLE", False, "MODEL.LOSS_FUNC", "cross_entropy", "SOLVER.BASE_LR", 1e-4]
TRANSFORMER += ["SOLVER.COSINE_END_LR", 1e-6, "SOLVER.WARMUP_START_LR", 1e-6]
MASKED = ["DATA.NUM_FRAMES", 8, "MVIT.EMBED_DIM", 32, "MVIT.NUM_HEADS", 2, "MVIT.DEPTH", 4, "MASK.PRETRAIN_DEPTH", [3]]
MASKED += ["MASK.DECODER_DEPTH", 1, "SOLVER.WARMUP_EPOCHS", 0.0, "SOLVER.BASE_LR", 1e-4]
MASKED += ["SOLVER.COSINE_END_LR", 1e-6, "SOLVER.WARMUP_START_LR", 1e-6]
CONTRASTIVE = [*CNN, "DATA.NUM_FRAMES", 4, "MODEL.NUM_CLASSES", 128, "CONTRASTIVE.QUEUE_LEN", 8]
CONTRASTIVE += ["CONTRASTIVE.MLP_DIM", 64, "CONTRASTIVE.KNN_ON", False, "TRAIN.MIXED_PRECISION", False]
# Family: configuration and what makes it small. Rates are low, so that rounding is not blown up from step to step.
FAMILIES = {
    "c2d": ("Kinetics/C2D_8x8_R50", CNN),
    "i3d": ("Kinetics/I3D_8x8_R50", [*CNN, "SOLVER.WARMUP_START_LR", 1e-4]),
    "slow": ("Kinetics/SLOW_8x8_R50", CNN),
    "slowfast": ("Kinetics/SLOWFAST_8x8_R50", [*CNN, "DATA.NUM_FRAMES", 16, "SOLVER.WARMUP_START_LR", 1e-4]),
    "x3d": ("Kinetics/X3D_S", X3D),
    "mvit_v1": ("Kinetics/MVIT_B_16x4_CONV", [*TRANSFORMER, "MVIT.DEPTH", 16]),
    "mvit_v2": ("Kinetics/MVITv2_S_16x4", [*TRANSFORMER, "MVIT.DEPTH", 16]),
    "reversible": ("Kinetics/REV_MVIT_B_16x4_CONV", [*TRANSFORMER, "MVIT.DEPTH", 16]),
    "masked": ("masked_ssl/k400_VIT_B_16x4_MAE_PT", MASKED),
    "contrastive": ("contrastive_ssl/MoCo_SlowR50_8x8", CONTRASTIVE),
}


def config(family):
    name, opts = FAMILIES[family]
    common = ["NUM_GPUS", 0, "TRAIN.BATCH_SIZE", CLIPS, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TEST_CROP_SIZE", 64]
    common += ["MODEL.NUM_CLASSES", 5, "SOLVER.MAX_EPOCH", 10, "SOLVER.BASE_LR", 5e-3, "SOLVER.WARMUP_START_LR", 1e-3]
    return load_cfg(ROOT / f"configs/{name}.yaml", [*common, "BN.USE_PRECISE_STATS", False, *opts])


def make_batch(cfg, number, dtype):
    """The clips of one step, two views of each where views are compared."""
    size = cfg.DATA.TRAIN_CROP_SIZE
    views = 2 if cfg.TASK == "ssl" else 1
    shape = (CLIPS, 3, cfg.DATA.NUM_FRAMES, size, size)
    clips = [fill_input(f"losses:{number}", shape).to(dtype)]
    clips += [clips[0] + 0.5 * fill_input(f"losses:{number}:{view}", shape).to(dtype) for view in range(1, views)]
    labels = (torch.arange(CLIPS) + number) % cfg.MODEL.NUM_CLASSES
    return Batch(clips if views > 1 else clips[0], labels, torch.arange(CLIPS))


def losses(family, dtype=torch.float32):
    """The loss of each of the steps, in training mode with stochastic depth on."""
    cfg = config(family)
    model = fill_model(build_model(cfg), 0.7).to(dtype).train()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("branch2.c_bn.weight"):
                param.zero_()  # residual networks start as shallow ones, which do not blow up rounding
    run = bare_run(cfg, model)
    values = []
    for step in range(STEPS):
        batch = make_batch(cfg, step % BATCHES, dtype)
        seed_step(0, 0, step)
        scalars = train_step(run, batch, step / BATCHES, step)
        values.append(float(scalars["loss"]))
    return values


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_thirty_steps_give_the_recorded_losses(family):
    golden = json.loads(GOLDEN.read_text())[family]
    # "rounding" is what float32 costs, measured against float64 where it was recorded.
    assert losses(family) == pytest.approx(golden["losses"], rel=max(1e-3, 10 * golden["rounding"]))


def test_the_records_show_networks_that_learn():
    records = json.loads(GOLDEN.read_text())
    assert list(records) == list(FAMILIES)
    for family, record in records.items():
        assert len(record["losses"]) == STEPS
        assert record["rounding"] < 5e-3, family
        second_pass = record["losses"][BATCHES : 2 * BATCHES]  # in the first one a queue of features still fills
        assert sum(record["losses"][-BATCHES:]) < sum(second_pass), family


def record_all():
    """Write the file anew; "rounding" is the largest relative distance to the same steps in float64."""
    records = {}
    for family in sys.argv[1:] or FAMILIES:
        single, double = losses(family), losses(family, torch.float64)
        rounding = max(abs(one / two - 1) for one, two in zip(single, double, strict=True))
        records[family] = {"rounding": float(f"{rounding:.1e}"), "losses": [round(value, 6) for value in single]}
        print(f"{family:14} {single[0]:.4f} -> {single[-1]:.4f}, float64 differs by {rounding:.1e}")
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    ordered = {family: {**kept, **records}[family] for family in FAMILIES if family in {**kept, **records}}
    rows = ",\n".join(f" {json.dumps(family)}: {json.dumps(record)}" for family, record in ordered.items())
    GOLDEN.write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    record_all()
