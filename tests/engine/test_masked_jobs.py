"""Masked pre-training from start to end on tiny real videos and images, and what fine-tuning makes of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slowfast.checkpoint import load_checkpoint
from slowfast.config import load_cfg
from slowfast.datasets import build_loader
from slowfast.engine import test as run_test
from slowfast.engine import train
from slowfast.engine.output import read_records
from slowfast.models import build_model
from slowfast.visualization.report import accuracy_table
from slowfast.visualization.results import read_job

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "configs" / "masked_ssl"

VIT = (
    *("MVIT.EMBED_DIM", 32, "MVIT.NUM_HEADS", 2, "MVIT.DEPTH", 2, "MVIT.PATCH_KERNEL", [2, 8, 8]),
    *("MVIT.PATCH_STRIDE", [2, 8, 8], "MVIT.PATCH_PADDING", [0, 0, 0], "MVIT.SEP_POS_EMBED", True),
    *("MODEL.DROPOUT_RATE", 0.0, "SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.BASE_LR", 1e-3),
)
PRETRAIN = (
    *VIT,
    *("TASK", "ssl", "MODEL.MODEL_NAME", "MaskMViT", "MODEL.ARCH", "maskmvit", "MODEL.LOSS_FUNC", "multi_mse"),
    *("MASK.ENABLE", True, "MASK.PRETRAIN_DEPTH", [1], "AUG.ENABLE", True, "AUG.RE_PROB", 0.0, "AUG.AA_TYPE", ""),
)
MAE = (
    *PRETRAIN,
    *("MASK.MAE_ON", True, "MASK.MAE_RND_MASK", True, "AUG.MASK_RATIO", 0.75, "DATA.TRAIN_CROP_NUM_TEMPORAL", 2),
    *("MASK.HEAD_TYPE", "separate_xformer", "MASK.DECODER_DEPTH", 1, "MASK.DECODER_EMBED_DIM", 64),
)
MASKFEAT = (
    *PRETRAIN,
    *("MASK.PRED_HOG", True, "AUG.GEN_MASK_LOADER", True, "AUG.MASK_RATIO", 0.4, "AUG.MASK_WINDOW_SIZE", [2, 4, 4]),
)


def values(folder, kind, name="loss"):
    records = read_records(folder)
    return [float(r[name]) for r in records if r.get("_type", r.get("split")) == kind and name in r]


@pytest.mark.parametrize("kind", [MAE, MASKFEAT])
def test_pretraining_is_judged_by_its_loss_and_fine_tuned(kind, tiny, tmp_path):
    out = tmp_path / "out"
    cfg = tiny(*kind)
    results = train(cfg)
    assert results.keys() == {"loss"}
    losses = values(out, "train_epoch")
    assert values(out, "train_epoch", "loss_0") == losses
    assert losses[1] < losses[0]
    assert values(out, "val_epoch")[1] == pytest.approx(results["loss"], abs=1e-5)
    assert (out / "checkpoints" / "ssl_checkpoint_epoch_00002.pyth").exists()

    tested = run_test(cfg)
    assert tested.keys() == {"loss"}
    again = tiny(*kind, "VIS_MASK.ENABLE", True)
    if kind is MAE:
        assert run_test(again) == tested  # the same masks again
        assert len(list((out / "reconstructions").glob("*.png"))) == 8
    else:
        with pytest.raises(ValueError, match=r"VIS_MASK\.ENABLE draws predicted pixels: .* MASK\.PRED_HOG False"):
            run_test(again)
    table = accuracy_table(read_job(out).accuracy_rows()).split("\n")
    assert table[0].split() == ["views", "loss"]
    assert table[2].split() == ["2", "x", "3", f"{tested['loss']:.5f}"]

    tune = (*VIT, "TASK", "ssl_eval", "MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "SOLVER.LAYER_DECAY", 0.75)
    fine = tiny(*tune, "TRAIN.CHECKPOINT_EPOCH_RESET", True, "SOLVER.MAX_EPOCH", 1)
    before = load_checkpoint(out / "checkpoints" / "ssl_checkpoint_epoch_00002.pyth")["model_state"]
    assert train(fine).keys() >= {"top1_err"}
    log = (out / "stdout.log").read_text()
    assert "weights from" in log
    assert "ssl_checkpoint_epoch_00002.pyth" in log
    after = load_checkpoint(out / "checkpoints" / "ssl_eval_checkpoint_epoch_00001.pyth")["model_state"]
    name = "blocks.0.mlp.fc1.weight"
    fresh = build_model(fine).state_dict()[name]
    assert (after[name] - before[name]).norm() < 0.2 * (after[name] - fresh).norm()  # it went on from there
    assert run_test(fine).keys() >= {"top1_acc"}


def test_masks_of_the_data_set_reach_the_network(tiny):
    batch = next(iter(build_loader(tiny(*MASKFEAT), "train"))).to("cpu")
    assert batch.mask.shape == (6, 2, 4, 4)
    assert (batch.mask.flatten(1).sum(1) == round(0.4 * 32)).all()
    model = build_model(tiny(*MASKFEAT))
    preds, _ = model(batch.clips, batch.mask)
    assert preds[0].shape == (6 * 13, 27)


@pytest.fixture
def images(tmp_path):
    """Class folders of small noisy pictures."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for kind, level in (("dark", 60), ("bright", 180)):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(level, 30, (48, 56, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("target", ["hog", "pixels"])
def test_images_are_pretrained_too(target, images, tmp_path):
    opts = [
        *("TRAIN.DATASET", "imagenet", "TEST.DATASET", "imagenet", "DATA.PATH_TO_DATA_DIR", str(images)),
        *("DATA.TRAIN_CROP_SIZE", 32, "DATA.TEST_CROP_SIZE", 32, "MODEL.NUM_CLASSES", 2, "TRAIN.BATCH_SIZE", 4),
        *("MVIT.EMBED_DIM", 32, "MVIT.NUM_HEADS", 2, "MVIT.DEPTH", 2, "MVIT.PATCH_KERNEL", [8, 8]),
        *("MVIT.PATCH_STRIDE", [8, 8], "MASK.PRETRAIN_DEPTH", [1], "MASK.PRED_HOG", target == "hog"),
        *("SOLVER.BASE_LR", 1e-3, "SOLVER.WARMUP_EPOCHS", 0.0, "SOLVER.MAX_EPOCH", 2, "TRAIN.EVAL_PERIOD", 1),
        *("DATA_LOADER.NUM_WORKERS", 0, "NUM_GPUS", 0, "NUM_SHARDS", 1, "OUTPUT_DIR", str(tmp_path / "out")),
        *("BN.USE_PRECISE_STATS", False, "TEST.BATCH_SIZE", 4),
    ]
    cfg = load_cfg(PUBLISHED / "in1k_VIT_B_MaskFeat_PT.yaml", opts)
    results = train(cfg)
    losses = values(tmp_path / "out", "train_epoch")
    assert losses[1] < losses[0]
    assert results["loss"] > 0
    assert run_test(cfg)["loss"] > 0
