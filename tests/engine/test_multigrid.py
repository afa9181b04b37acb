"""Multigrid training from start to end on real videos: shapes, batch norm, weights that move, exact resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from slowfast import engine
from slowfast.checkpoint import load_checkpoint
from slowfast.engine import train
from slowfast.engine.phases import phase_of, training_phases
from slowfast.engine.run import build_run
from slowfast.engine.stats import Recorder
from slowfast.models.norm import SubBatchNorm3d
from slowfast.solver import carry_state

LONG = (
    *("MULTIGRID.LONG_CYCLE", True, "MULTIGRID.LONG_CYCLE_FACTORS", [(0.5, 0.5), (1, 1)], "MULTIGRID.EVAL_FREQ", 1),
    *("SOLVER.LR_POLICY", "steps_with_relative_lrs", "SOLVER.STEPS", [0, 3], "SOLVER.MAX_EPOCH", 4),
    *("SOLVER.BASE_LR", 0.01, "SOLVER.MOMENTUM", 0.9, "MULTIGRID.EPOCH_FACTOR", 1.0, "MULTIGRID.BN_BASE_SIZE", 2),
    *("TRAIN.BATCH_SIZE", 1, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TRAIN_JITTER_SCALES", [64, 72], "BN.WEIGHT_DECAY", 0.0),
)
SHORT = ("MULTIGRID.SHORT_CYCLE", True)
MVIT = (
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "MVIT.NUM_HEADS", 1),
    *("MVIT.PATCH_KERNEL", [1, 8, 8], "MVIT.PATCH_STRIDE", [1, 8, 8], "MVIT.PATCH_PADDING", [0, 0, 0]),
    *("MVIT.CLS_EMBED_ON", True, "MVIT.USE_ABS_POS", True, "MVIT.SEP_POS_EMBED", True, "MVIT.MODE", "conv"),
    *("MVIT.REL_POS_SPATIAL", True, "MVIT.REL_POS_TEMPORAL", True, "MVIT.DROPPATH_RATE", 0.1),
)


def weights(cfg):
    (path,) = sorted(Path(cfg.OUTPUT_DIR, "checkpoints").iterdir())[-1:]
    return load_checkpoint(path)


def test_weights_and_momenta_move_by_name_between_kinds_of_norm(tiny):
    small, full = training_phases(tiny(*LONG))[:2]
    assert (small.cfg.TRAIN.BATCH_SIZE, small.cfg.DATA.NUM_FRAMES, small.cfg.BN.NUM_SPLITS) == (8, 2, 4)
    before = build_run(small.cfg)
    for number, param in enumerate(before.network.parameters()):
        before.optimizer.state[param]["momentum_buffer"] = torch.full_like(param, number)
    norm = before.network.s1.pathway0_stem.bn
    assert isinstance(norm, SubBatchNorm3d)
    norm.split_bn.running_mean.copy_(torch.arange(32.0))
    after = build_run(full.cfg, previous=before)
    assert torch.equal(after.network.s1.pathway0_stem.bn.running_mean, torch.arange(32.0).view(4, 8).mean(0))
    assert len(after.optimizer.param_groups) == 2 > len(before.optimizer.param_groups)
    momenta = {
        name: after.optimizer.state[param]["momentum_buffer"] for name, param in after.network.named_parameters()
    }
    for number, (name, param) in enumerate(before.network.named_parameters()):
        assert torch.equal(after.network.get_parameter(name), param)
        assert (momenta[name] == number).all()


def test_parameters_of_another_shape_start_without_momentum():
    old, new = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    source, target = (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (old, new))
    for param in old.parameters():
        source.state[param]["momentum_buffer"] = torch.ones_like(param)
    carry_state(source, old, target, new)
    assert not target.state


def test_an_epoch_lies_in_one_phase(tiny):
    phases = training_phases(tiny(*LONG))
    assert [phase_of(phases, epoch) is phase for phase in phases for epoch in phase.epochs()] == [True] * 4
    assert (phase_of(phases, -1), phase_of(phases, 99)) == (phases[0], phases[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LONG, (*LONG, *SHORT), (*LONG, *SHORT, *MVIT)], ids=["long", "both", "mvit"])
def test_a_multigrid_run_resumes_in_every_phase_with_the_same_bytes(kind, tiny, tmp_path):
    def job(out):
        return tiny(*kind, "TEST.ENABLE", True, "DATA.TEST_CROP_SIZE", 64, out=tmp_path / out)

    whole = job("whole")
    results = train(whole)
    saved = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert len(saved) >= 2
    for name in saved[:-1]:
        broken = job(name)
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "whole/checkpoints" / name, folder)
        assert train(broken) == results
        one, two = weights(whole), weights(broken)
        assert one["model_state"].keys() == two["model_state"].keys()
        assert all(torch.equal(one["model_state"][key], two["model_state"][key]) for key in one["model_state"])
    assert 0 <= engine.test(whole)["top1_acc"] <= 100


@pytest.mark.slow
def test_the_short_cycle_alone_trains_and_logs_every_epoch(tiny, monkeypatch):
    places, write = [], Recorder.write

    def noting(self, record, step, **options):
        places.append((record["_type"], step))
        write(self, record, step, **options)

    monkeypatch.setattr(Recorder, "write", noting)
    cfg = tiny(*SHORT, "TRAIN.BATCH_SIZE", 1, "DATA.TRAIN_CROP_SIZE", 64, "DATA.TRAIN_JITTER_SCALES", [64, 72])
    train(cfg)
    lines = Path(cfg.OUTPUT_DIR, "json_stats.log").read_text().splitlines()
    epochs = [json.loads(line.removeprefix("json_stats: ")) for line in lines if "train_epoch" in line]
    assert [record["epoch"] for record in epochs] == ["1/3", "2/3", "3/3"]  # 2 epochs times 1.5
    # The axis of curves counts steps of single clips, of which the twelve videos make twelve.
    assert [place for kind, place in places if kind == "train_epoch"] == [12, 24, 36]
    assert [place for kind, place in places if kind == "val_epoch"] == [0, 1, 2]
