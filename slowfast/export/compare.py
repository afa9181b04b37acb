"""What an exported network has in common with the one that it was made of: scores, right answers, size, time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slowfast.evaluation.metrics import mean_average_precision
from slowfast.visualization.predictor import merge_scores

Scores = Callable[[Tensor], Tensor]  # clips [B, C, T, H, W] -> [B, K]

# The largest difference of a score that rounding explains, as a part of the largest score or of 1.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Comparison:
    """Of one exported network with the original, on the same clips and the same machine."""

    clips: int
    largest_difference: float  # of any score
    largest_score: float
    same_best: int  # clips whose best class is the same
    size_bytes: int
    latency_ms: float  # median, one clip
    eager_latency_ms: float


def compare(
    original: Scores, exported: Scores, path: str | os.PathLike, clips: Tensor, *, batch_size: int = 3, rounds: int = 10
) -> Comparison:
    """Scores of ``clips`` [N, C, T, H, W], ``batch_size`` at once, by both; then each is timed with one clip."""
    with torch.no_grad():
        wanted, found = (
            torch.cat([network(part) for part in clips.split(batch_size)]).float().cpu()
            for network in (original, exported)
        )
        times = latencies([original, exported], clips[:1], rounds=rounds)
    return Comparison(
        clips=len(clips),
        largest_difference=float((wanted - found).abs().max()),
        largest_score=float(wanted.abs().max()),
        same_best=int((wanted.argmax(1) == found.argmax(1)).sum()),
        size_bytes=file_size(path),
        latency_ms=times[1],
        eager_latency_ms=times[0],
    )


def file_size(path: str | os.PathLike) -> int:
    """Bytes of an exported file, with the file of weights that very large networks have beside it."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


@torch.no_grad()
def latencies(networks: Sequence[Scores], clips: Tensor, *, rounds: int = 10, warmup: int = 2) -> list[float]:
    """Median milliseconds of each network for ``clips``; they take turns, so that a busy machine is busy for all."""
    for _ in range(warmup):
        for network in networks:
            network(clips)
    taken: list[list[float]] = [[] for _ in networks]
    for _ in range(rounds):
        for row, network in zip(taken, networks):
            start = time.perf_counter()
            network(clips).cpu()
            row.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(row) for row in taken]


@torch.no_grad()
def percent_right(networks: Mapping[str, Scores], dataset: Dataset, *, merge: str = "sum") -> dict[str, float]:
    """Percent of the videos of a test set whose best class is right, by each network, merged over the views.

    Where a video has several labels, the mean average precision in percent. Every video is read once.
    """
    views = dataset.num_views
    scores: dict[str, list[Tensor]] = {name: [] for name in networks}
    labels = []
    for first in range(0, len(dataset), views):
        samples = [dataset[row] for row in range(first, first + views)]
        if any(sample.clip is None for sample in samples):
            continue  # cannot be read, and TEST.SKIP_BAD_VIDEOS passes over it
        clips = torch.stack([sample.clip for sample in samples])
        labels.append(torch.as_tensor(samples[0].label))
        for name, network in networks.items():
            scores[name].append(merge_scores(network(clips).float().cpu(), merge))
    if not labels:
        raise ValueError("the test list has no video that can be read")
    truth = torch.stack(labels)
    if truth.ndim > 1:
        return {
            name: 100 * mean_average_precision(torch.stack(rows).numpy(), truth.numpy())
            for name, rows in scores.items()
        }
    return {name: 100 * float((torch.stack(rows).argmax(1) == truth).double().mean()) for name, rows in scores.items()}
