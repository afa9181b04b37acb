"""Contrastive pre-training from start to end on tiny real videos, what it leaves for fine-tuning, and exact resume."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from slowfast import engine
from slowfast.checkpoint import CheckpointError, load_checkpoint
from slowfast.engine import launch, train
from slowfast.engine.output import read_records
from slowfast.models import build_model
from slowfast.tasks import Contrastive

PRETRAIN = (
    *("TASK", "ssl", "MODEL.MODEL_NAME", "ContrastiveModel", "MODEL.LOSS_FUNC", "contrastive_loss"),
    *("MODEL.NUM_CLASSES", 8, "MODEL.HEAD_ACT", "none", "MODEL.DROPOUT_RATE", 0.0, "CONTRASTIVE.DIM", 8),
    *("CONTRASTIVE.NUM_CLASSES_DOWNSTREAM", 3, "CONTRASTIVE.NUM_MLP_LAYERS", 2, "CONTRASTIVE.MLP_DIM", 16),
    *("DATA.TRAIN_CROP_NUM_TEMPORAL", 3, "CONTRASTIVE.MOMENTUM", 0.9, "CONTRASTIVE.MOMENTUM_ANNEALING", True),
    *("CONTRASTIVE.QUEUE_LEN", 12, "CONTRASTIVE.SEQUENTIAL", True, "CONTRASTIVE.T", 0.1),
    *("CONTRASTIVE.DELTA_CLIPS_MAX", 4.0, "DATA.SSL_COLOR_JITTER", True, "DATA.SSL_MOCOV2_AUG", True),
)
KINDS = {
    "moco": ("CONTRASTIVE.TYPE", "moco", "CONTRASTIVE.MOCO_MULTI_VIEW_QUEUE", True),
    "byol": ("CONTRASTIVE.TYPE", "byol", "CONTRASTIVE.PREDICTOR_DEPTHS", [2], "CONTRASTIVE.BN_MLP", True),
    "simclr": ("CONTRASTIVE.TYPE", "simclr", "SOLVER.LARS_ON", True),
    "swav": ("CONTRASTIVE.TYPE", "swav", "CONTRASTIVE.SEQUENTIAL", False),
    "mem": ("CONTRASTIVE.TYPE", "mem", "CONTRASTIVE.SEQUENTIAL", False, "DATA.TRAIN_CROP_NUM_TEMPORAL", 1),
}


def state_of(folder, name="ssl_checkpoint_epoch_00002.pyth"):
    return load_checkpoint(Path(folder) / "checkpoints" / name)["model_state"]


def records_of(folder, kind):
    return [record for record in read_records(folder) if record.get("_type", record.get("split")) == kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_pretraining_repeats_the_unbroken_one(kind, tiny, tmp_path):
    """Every epoch is judged by neighbours; a resume within the second epoch changes no bit."""

    def job(out):
        return tiny(*PRETRAIN, *KINDS[kind], "TRAIN.CHECKPOINT_PERIOD_STEPS", 1, out=tmp_path / out)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = train(job("whole"))
    assert set(results) == {"top1_err", "top5_err"}
    assert [record["epoch"] for record in records_of(whole, "val_epoch")] == ["1/2", "2/2"]
    assert '"_type": "train_epoch_ssl"' in (whole / "json_stats.log").read_text()
    assert all(abs(record["loss"]) < 100 for record in records_of(whole, "train_epoch"))
    assert ("top1_err" in records_of(whole, "train_epoch")[0]) == (kind in ("moco", "mem"))
    after = state_of(whole)
    assert after["knn_mem.memory"].shape == (12, 1, 8)
    torch.testing.assert_close(after["knn_mem.memory"].norm(dim=2), torch.ones(12, 1))

    cfg, steps, untouched = job("broken"), [], Contrastive.after_backward

    def stop_in_the_fourth(self, *args):
        steps.append(args)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return untouched(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contrastive, "after_backward", stop_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    left = sorted(path.name for path in (broken / "checkpoints").iterdir())
    assert left
    assert "ssl_checkpoint_epoch_00002.pyth" not in left
    assert train(cfg) == results
    again = state_of(broken)
    assert list(again) == list(after)
    for name, value in after.items():
        assert torch.equal(value, again[name]), name


def test_a_test_votes_and_a_linear_classifier_starts_from_the_features(tiny, tmp_path):
    out = tmp_path / "out"
    cfg = tiny(*PRETRAIN, *KINDS["simclr"], "SOLVER.MAX_EPOCH", 1)
    train(cfg)
    final = engine.test(cfg)
    assert 0 <= final["top1_acc"] <= 100
    (record,) = records_of(out, "test_final")
    assert record["videos"] == 9
    state = state_of(out, "ssl_checkpoint_epoch_00001.pyth")
    features = {name.removeprefix("backbone."): value for name, value in state.items()}

    linear = (
        "MODEL.DETACH_FINAL_FC",
        True,
        "MODEL.FROZEN_BN",
        True,
        "BN.WEIGHT_DECAY",
        0.0,
        "SOLVER.WEIGHT_DECAY",
        0.0,
    )
    clear = ("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", ["backbone."], "TRAIN.CHECKPOINT_EPOCH_RESET", True)
    train(tiny("TASK", "ssl_eval", *linear, *clear, "SOLVER.MAX_EPOCH", 1))
    after = state_of(out, "ssl_eval_checkpoint_epoch_00001.pyth")
    kept = [name for name in after if not name.startswith("head.")]
    assert kept
    for name in kept:
        assert torch.equal(after[name], features[name]), name
    assert "weights from" in (out / "stdout.log").read_text()


@pytest.mark.slow
def test_the_first_steps_fill_the_queue_and_move_no_weight(tiny, tmp_path):
    cfg = tiny(*PRETRAIN, *KINDS["moco"], "CONTRASTIVE.QUEUE_LEN", 12, "SOLVER.MAX_EPOCH", 1)
    train(cfg)  # two steps of six videos: as many as fill it
    state = state_of(tmp_path / "out", "ssl_checkpoint_epoch_00001.pyth")
    torch.manual_seed(cfg.RNG_SEED)
    fresh = dict(build_model(cfg).named_parameters())
    assert all(torch.equal(state[name], value) for name, value in fresh.items())
    assert state["iter"].item() == 2
    torch.testing.assert_close(state["queue_x"].norm(dim=1), torch.ones(12))


def test_without_neighbours_there_is_nothing_to_judge(tiny, tmp_path):
    cfg = tiny(*PRETRAIN, *KINDS["simclr"], "CONTRASTIVE.KNN_ON", False, "SOLVER.MAX_EPOCH", 1)
    assert train(cfg) == {}
    assert records_of(tmp_path / "out", "val_epoch") == []
    assert "knn_mem.memory" not in state_of(tmp_path / "out", "ssl_checkpoint_epoch_00001.pyth")
    assert engine.test(cfg) == {}


@pytest.mark.slow
def test_features_of_another_list_are_refused(tiny, videos, tmp_path):
    cfg = tiny(*PRETRAIN, *KINDS["simclr"], "SOLVER.MAX_EPOCH", 1)
    train(cfg)
    shorter = tmp_path / "shorter"
    shutil.copytree(videos, shorter)
    lines = (shorter / "train.csv").read_text().splitlines()
    (shorter / "train.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointError, match=r"knn_mem.memory is \[12, 1, 8\] in the file, \[11, 1, 8\]"):
        engine.test(tiny(*PRETRAIN, *KINDS["simclr"], data=shorter))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moco", "swav"])
def test_two_processes_train_and_test(kind, tiny, tmp_path):
    cfg = tiny(*PRETRAIN, *KINDS[kind], "NUM_GPUS", 2, "SOLVER.MAX_EPOCH", 2)
    results = launch(partial(train, cfg), processes=2)
    assert set(results) == {"top1_err", "top5_err"}
    state = state_of(tmp_path / "out")
    torch.testing.assert_close(state["knn_mem.memory"].norm(dim=2), torch.ones(12, 1))  # each video was seen
    again = tiny(*PRETRAIN, *KINDS[kind])
    assert 0 <= engine.test(again)["top1_acc"] <= 100
