"""The number of processes and of loader workers changes who does what, not what is done.

pytest tests/engine/test_elastic.py
"""

import json
from functools import partial

import pytest
from faults import Fault, Launched, records, run_job, terminate, train_and_test_noting_order

from slowfast.checkpoint import list_positions
from slowfast.engine.interrupt import EXIT_CODE

# A network without batch statistics and dropout; twelve videos in global batches of six make two steps per epoch.
OPTIONS = (
    *("MODEL.MODEL_NAME", "MViT", "MODEL.ARCH", "mvit", "MVIT.DEPTH", 1, "MVIT.EMBED_DIM", 16, "MVIT.NUM_HEADS", 2),
    *("MVIT.DROPPATH_RATE", 0.0, "MVIT.DROPOUT_RATE", 0.0, "MODEL.DROPOUT_RATE", 0.0, "MVIT.PATCH_KERNEL", [3, 7, 7]),
    *("MVIT.PATCH_STRIDE", [2, 4, 4], "MVIT.PATCH_PADDING", [1, 3, 3], "MVIT.POOL_KVQ_KERNEL", [1, 1, 1]),
    *("AUG.ENABLE", True, "AUG.NUM_SAMPLE", 2, "TRAIN.BATCH_SIZE", 6, "SOLVER.MAX_EPOCH", 3, "SOLVER.BASE_LR", 0.01),
)


def order(folder):
    """(epoch, rows, checksums of clips) of every global batch."""
    parts = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("order_*.jsonl"))
    ]
    found = {}
    for lines in parts:
        for line in lines:
            rows, clips = found.setdefault(line["epoch"], ([], []))
            rows += line["rows"]
            clips += line["clips"]
    return found


def losses(folder):
    return [record["loss"] for record in records(folder) if record.get("_type") == "train_epoch"]


def results(folder):
    return [
        (record["top1_err"], record["top5_err"]) for record in records(folder) if record.get("_type") == "val_epoch"
    ]


@pytest.mark.slow
def test_one_two_and_three_processes_do_the_same(tiny_of, tmp_path):
    folders = {count: tmp_path / str(count) for count in (1, 2, 3)}
    for count, folder in folders.items():
        weights = ("TEST.CHECKPOINT_FILE_PATH", str(folders[1] / "checkpoints/checkpoint_epoch_00003.pyth"))
        test_cfg = tiny_of(folder, *OPTIONS, *weights)
        workers = ("DATA_LOADER.NUM_WORKERS", {1: 0, 2: 1, 3: 2}[count])
        job = partial(train_and_test_noting_order, tiny_of(folder, *OPTIONS, *workers), test_cfg)
        assert run_job(Launched(job, count)) == 0
    one = folders.pop(1)
    assert len(order(one)) == 6
    for folder in folders.values():
        assert order(folder) == order(one)
        assert losses(folder) == pytest.approx(losses(one), abs=3e-5)
        assert results(folder) == results(one)
        assert (folder / "test_2x3.jsonl").read_text() == (one / "test_2x3.jsonl").read_text()
        assert records(folder)[-1] == records(one)[-1]
        assert records(folder)[-1]["split"] == "test_final"


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(tiny_of, tmp_path):
    one, changing = tmp_path / "one", tmp_path / "changing"
    for folder in (one, changing):
        folder.mkdir()
    assert run_job(partial(train_and_test_noting_order, tiny_of(one, *OPTIONS))) == 0
    job = partial(train_and_test_noting_order, tiny_of(changing, *OPTIONS))
    stop = Fault("slowfast.engine.train:seed_step", 3, terminate)
    assert run_job(job, [stop]) == EXIT_CODE
    assert list_positions(changing)[-1][0] == (1, 1)
    assert run_job(Launched(job, 2)) == 0
    assert order(changing) == order(one)
    assert losses(changing) == pytest.approx(losses(one), abs=3e-5)
