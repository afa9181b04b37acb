"""Weights cut up over two processes: the same losses, sharded checkpoints, resume, export."""

from functools import partial
from pathlib import Path

import pytest
import torch
from scripts import load_script

from slowfast import engine
from slowfast.checkpoint import CheckpointError, load_checkpoint
from slowfast.checkpoint.sharded import shards_folder
from slowfast.engine import launch, train
from slowfast.engine.parallel import Wrapping

ROOT = Path(__file__).parents[2]
# No batch statistics and no dropout: what two processes compute does not depend on how weights are kept.
MVIT = (
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "MVIT.DEPTH", 2, "MVIT.EMBED_DIM", 16, "MVIT.NUM_HEADS", 1),
    *("MVIT.PATCH_KERNEL", [1, 8, 8], "MVIT.PATCH_STRIDE", [1, 8, 8], "MVIT.PATCH_PADDING", [0, 0, 0]),
    *("MVIT.CLS_EMBED_ON", True, "MVIT.USE_ABS_POS", True, "MVIT.SEP_POS_EMBED", True, "MVIT.MODE", "conv"),
    *("MODEL.DROPOUT_RATE", 0.0, "SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.BASE_LR", 0.001, "SOLVER.MAX_EPOCH", 2),
    *("SOLVER.CLIP_GRAD_L2NORM", 1.0, "NUM_GPUS", 0, "TRAIN.BATCH_SIZE", 6, "TRAIN.MIXED_PRECISION", False),
)


def epochs(folder):
    return sorted(path for path in (folder / "checkpoints").iterdir() if path.suffix == ".pyth")


def export_tool():
    return load_script(ROOT / "tools/export_checkpoint.py")


@pytest.mark.slow
def test_sharded_training_equals_the_ordinary_one_and_resumes_and_exports(tiny, tmp_path):
    results, jobs = {}, {}
    for fsdp in (False, True):
        jobs[fsdp] = tiny(*MVIT, "MODEL.FSDP", fsdp, out=tmp_path / f"fsdp_{fsdp}")
        results[fsdp] = launch(partial(train, jobs[fsdp]), processes=2)
    assert results[True] == pytest.approx(results[False], abs=1e-3)
    plain, sharded = (load_checkpoint(epochs(tmp_path / f"fsdp_{fsdp}")[-1]) for fsdp in (False, True))
    assert shards_folder(epochs(tmp_path / "fsdp_True")[-1]).is_dir()
    for name, value in plain["model_state"].items():
        torch.testing.assert_close(sharded["model_state"][name], value, rtol=1e-3, atol=1e-4)
    momenta = sharded["optimizer_state"]["state"]
    assert momenta.keys() == plain["optimizer_state"]["state"].keys()
    assert all(
        momenta[index]["exp_avg"].shape == entry["exp_avg"].shape
        for index, entry in plain["optimizer_state"]["state"].items()
    )

    # Resumed after the first epoch: the same bytes.
    last = epochs(tmp_path / "fsdp_True")[-1]
    before = load_checkpoint(last)
    last.unlink()
    assert launch(partial(train, jobs[True]), processes=2) == results[True]
    after = load_checkpoint(last)
    assert all(torch.equal(after["model_state"][name], value) for name, value in before["model_state"].items())

    # Exported, it is an ordinary file; the sharded one is tested directly too.
    whole = tmp_path / "whole.pyth"
    assert export_tool().main([str(last), str(whole)]) == 0
    exported = load_checkpoint(whole)
    assert all(torch.equal(exported["model_state"][name], value) for name, value in after["model_state"].items())
    assert engine.test(jobs[True]) == engine.test(
        tiny(*MVIT, "TEST.CHECKPOINT_FILE_PATH", str(whole), out=tmp_path / "exported")
    )

    # A damaged folder is named.
    for piece in shards_folder(last).glob("*.distcp"):
        piece.write_bytes(piece.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is not whole: its folder of shards"):
        load_checkpoint(last)


def test_an_average_is_exported_alone(tmp_path, capsys):
    source, target = tmp_path / "in.pyth", tmp_path / "out.pyth"
    content = {"model_state": {"a": torch.zeros(2)}, "cfg": "", "ema_state": {"weights": {"a": torch.ones(2)}}}
    torch.save(content, source)
    tool = export_tool()
    assert tool.main([str(source), str(target), "--average"]) == 0
    assert load_checkpoint(target)["model_state"]["a"].tolist() == [1, 1]
    assert tool.main([str(source), str(target)]) == 1
    assert "exists already" in capsys.readouterr().err
    torch.save({"model_state": content["model_state"]}, source)
    assert tool.main([str(source), str(tmp_path / "b.pyth"), "--average"]) == 1
    assert "trained without TRAIN.EMA_DECAY" in capsys.readouterr().err


@pytest.mark.parametrize("other", [("TRAIN.EMA_DECAY", 0.9), ("MODEL.BF16_ALLREDUCE", True)])
def test_what_does_not_go_with_sharding_names_its_key(other, tiny):
    with pytest.raises(ValueError, match=rf"MODEL.FSDP .*{other[0]}"):
        Wrapping.from_cfg(tiny("MODEL.FSDP", True, *other))
