"""What one process computes, two compute together: every metric, with parts of unequal length."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from slowfast.evaluation import MeanAP, TopK, VideoEnsemble
from slowfast.evaluation.ava import Boxes, FrameMAP, GroundTruth

VIDEOS, VIEWS, CLASSES = 5, 3, 4


KEYS = [("v", float(row)) for row in range(VIDEOS * VIEWS)]  # rows as key frames, each with one box


def frame_map():
    boxes = Boxes(np.arange(len(KEYS)), np.tile([0.1, 0.1, 0.9, 0.8], (len(KEYS), 1)), np.arange(len(KEYS)) % 3 + 1)
    return FrameMAP(GroundTruth(KEYS, boxes, {1: "a", 2: "b", 3: "c"}), KEYS, CLASSES)


def metrics():
    return {
        "topk": TopK((1, 5)),
        "map": MeanAP(CLASSES),
        "sum": VideoEnsemble(VIDEOS, VIEWS, CLASSES),
        "max": VideoEnsemble(VIDEOS, VIEWS, CLASSES, method="max"),
        "multi": VideoEnsemble(VIDEOS, VIEWS, CLASSES, method="max", multi_label=True),
        "frames": frame_map(),
    }


def evaluate(videos):
    """All results over ``videos``, of which the fourth is declared bad by whoever has it."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(VIDEOS * VIEWS, CLASSES, generator=generator)
    classes = torch.randint(CLASSES, (VIDEOS,), generator=generator)
    tags = (torch.rand(VIDEOS, CLASSES, generator=generator) > 0.4).float()
    found = metrics()
    for video in videos:
        rows = torch.arange(video * VIEWS, (video + 1) * VIEWS)
        for name, metric in found.items():
            if video == 3 and hasattr(metric, "skip"):
                metric.skip(rows.tolist() if name == "frames" else [video])
                continue
            labels = tags if name in ("map", "multi") else classes
            boxes = torch.tensor([[row, 0.1, 0.2 + 0.1 * row, 0.8, 0.9] for row in range(VIEWS)])
            given = SimpleNamespace(index=rows, labels=labels[rows // VIEWS], image_boxes=boxes)
            metric.update(scores[rows], given)
    for metric in found.values():
        metric.reduce()
    results = {name: metric.compute() for name, metric in found.items()}
    tables = [table for name in ("sum", "max", "multi") for table in (found[name].scores, found[name].labels)]
    tables += map(torch.tensor, found["frames"].found())
    return results, tables


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(evaluate([0, 1, 2, 3] if rank == 0 else [4]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    results, tables = evaluate(range(VIDEOS))
    for rank in range(2):
        other_results, other_tables = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert other_results == results
        assert all(torch.equal(one, other) for one, other in zip(tables, other_tables, strict=True))
