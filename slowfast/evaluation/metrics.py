"""Metrics over a split: each process counts its own part, ``reduce`` merges once, ``compute`` gives numbers.

Counting stays on the device of the scores and never waits for it; only ``compute`` reads values.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics import confusion_matrix as _sklearn_confusion_matrix
from torch import Tensor

from slowfast.utils.distributed import all_gather_ragged, all_reduce_sum, get_world_size


class Metric(Protocol):
    """What the loops ask of a metric."""

    def update(self, scores: Tensor, batch: Any) -> None:
        """Take in the scores ``[B, K]`` of ``batch``, of which ``labels`` and perhaps ``index`` are read."""

    def reduce(self) -> None:
        """Merge over all processes; every process must call it, once, after its last update."""

    def compute(self) -> dict[str, float]:
        """The results by name."""


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label: scores ``[B, K]``, labels int64 ``[B]`` -> int64 ``[B]``.

    Among equal scores the class of the lower index comes first. A row with a NaN has rank K, which no top-k reaches.
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return before.sum(1).masked_fill(scores.isnan().any(1), scores.shape[1])


def topks_correct(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> Tensor:
    """Number of rows whose label is among the first k classes, for each k (capped by K): int64 ``[len(ks)]``."""
    ranks = label_ranks(scores, labels)
    return torch.stack([(ranks < min(k, scores.shape[1])).sum() for k in ks])


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the average precision, as a fraction; scores and binary labels ``[N, K]``.

    A class without positives is left out of the mean; without any positive the result is 0.
    """
    present = labels.any(axis=0)
    if not present.any():
        return 0.0
    return float(average_precision_score(labels[:, present], scores[:, present], average="macro"))


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """How many samples of each true class (rows) were given each class (columns): int64 ``[K, K]``."""
    return torch.from_numpy(
        _sklearn_confusion_matrix(labels.cpu().numpy(), predictions.cpu().numpy(), labels=range(num_classes))
    )


def to_collective(tensor: Tensor) -> Tensor:
    """``tensor`` where the processes can merge it: on the GPU of this rank, if they are several and have GPUs."""
    return tensor.cuda() if get_world_size() > 1 and torch.cuda.is_available() else tensor


class TopK:
    """Error in percent over everything counted: ``top1_err``, ``top5_err``, ...

    A k beyond the number of classes counts every sample as right, under its own name. With ``among``, only that many
    of the first classes are looked at, and labels must be among them.
    """

    def __init__(self, ks: Sequence[int] = (1, 5), *, among: int | None = None):
        self.ks, self.among = tuple(ks), among
        self.counts = torch.zeros(len(self.ks) + 1, dtype=torch.int64)  # right for each k; samples

    def update(self, scores: Tensor, batch: Any) -> None:
        """Count ``scores`` ``[B, K]`` against ``batch.labels``, int64 ``[B]``."""
        self.counts = self.counts.to(scores.device)
        if self.among is not None:
            highest = int(batch.labels.max())
            if highest >= self.among:
                raise ValueError(f"label {highest} is not among the first {self.among} classes, which alone are judged")
            scores = scores[:, : self.among]
        self.counts[:-1] += topks_correct(scores, batch.labels, self.ks)
        self.counts[-1] += len(scores)

    def reduce(self) -> None:
        """Sum the counts over processes."""
        self.counts = all_reduce_sum(to_collective(self.counts))

    def compute(self) -> dict[str, float]:
        """Percentages; ``ValueError`` if nothing was counted."""
        *correct, total = self.counts.tolist()
        if total == 0:
            raise ValueError("top-k error of no samples: the split gave no batch to evaluate")
        return {f"top{k}_err": 100.0 * (1.0 - right / total) for k, right in zip(self.ks, correct, strict=True)}


class MeanAP:
    """Mean average precision of multi-label scores in percent: ``map``."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, scores: Tensor, batch: Any) -> None:
        """Keep ``scores`` and ``batch.labels``, both ``[B, K]``."""
        self.scores.append(scores.detach().float())
        self.labels.append(batch.labels.float())

    def reduce(self) -> None:
        """Gather the rows of all processes."""
        self.scores, self.labels = (
            all_gather_ragged(to_collective(torch.cat(parts or [torch.zeros(0, self.num_classes)])))
            for parts in (self.scores, self.labels)
        )

    def compute(self) -> dict[str, float]:
        """The percentage; ``ValueError`` if nothing was kept."""
        if not any(map(len, self.scores)):
            raise ValueError("mean average precision of no samples: the split gave no batch to evaluate")
        scores, labels = torch.cat(self.scores).cpu().numpy(), torch.cat(self.labels).cpu().numpy()
        return {"map": 100.0 * mean_average_precision(scores, labels)}


class MeanLoss:
    """The mean of losses over clips: ``loss``."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # losses; clips

    def update(self, scores: Tensor, batch: Any) -> None:
        """Add the losses ``scores`` ``[B]``, one for each clip."""
        self.sums = self.sums.to(scores.device)
        self.sums += torch.stack([scores.double().sum(), scores.new_tensor(len(scores)).double()])

    def skip(self, videos: Iterable[int]) -> None:
        """Videos that could not be decoded have no part in the mean."""

    def reduce(self) -> None:
        """Sum over processes."""
        self.sums = all_reduce_sum(to_collective(self.sums))

    def compute(self) -> dict[str, float]:
        """The mean; ``ValueError`` if nothing was added."""
        total, clips = self.sums.tolist()
        if clips == 0:
            raise ValueError("mean loss of no clips: the split gave no batch to evaluate")
        return {"loss": total / clips}
