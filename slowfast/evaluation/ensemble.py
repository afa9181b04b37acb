"""From the scores of many views to one score per video.

Each process adds into its own tables, one row per video; the tables are merged once at the end. Because every view
is evaluated exactly once somewhere, the merged table is the same on any number of processes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from slowfast.evaluation.metrics import mean_average_precision, to_collective, topks_correct
from slowfast.utils.distributed import all_reduce_max, all_reduce_sum

Method = Literal["sum", "max"]


class VideoEnsemble:
    """A Metric over videos: view scores summed or maximised per video, then accuracy in percent.

    Gives ``top1_acc``, ``top5_acc`` (any ``ks``, capped by the number of classes), or ``map`` if ``multi_label``.
    Row r of the split (``batch.index``) belongs to video ``r // num_views``. Sums are kept in double precision, so
    that the order in which views arrive does not show.
    """

    def __init__(
        self,
        num_videos: int,
        num_views: int,
        num_classes: int,
        *,
        method: Method = "sum",
        multi_label: bool = False,
        ks: Sequence[int] = (1, 5),
    ):
        if method not in ("sum", "max"):
            raise ValueError(f"DATA.ENSEMBLE_METHOD={method!r} is unknown; choose sum or max")
        self.num_views = num_views
        self.method = method
        self.multi_label = multi_label
        self.ks = tuple(ks)
        shape, kind = ((num_videos, num_classes), torch.float32) if multi_label else ((num_videos,), torch.int64)
        lowest_label = torch.full(shape, -torch.inf if multi_label else torch.iinfo(kind).min, dtype=kind)
        self._tables = {
            "scores": torch.full(
                (num_videos, num_classes), 0.0 if method == "sum" else -torch.inf, dtype=torch.float64
            ),
            "counts": torch.zeros(num_videos, dtype=torch.int64),
            "skipped": torch.zeros(num_videos, dtype=torch.int64),
            # The largest label seen of each video, and the largest negated one: they differ where views disagree.
            "label": lowest_label,
            "negated_label": lowest_label.clone(),
        }

    def update(self, scores: Tensor, batch: Any) -> None:
        """Add view scores ``[B, K]`` by ``batch.index`` (int64 ``[B]``) and keep ``batch.labels``."""
        tables = self._tables = {name: table.to(scores.device) for name, table in self._tables.items()}
        video = batch.index.to(scores.device) // self.num_views
        scores = scores.detach().to(tables["scores"])
        labels = batch.labels.to(tables["label"])
        if self.method == "sum":
            tables["scores"].index_add_(0, video, scores)
        else:
            _maximise(tables["scores"], video, scores)
        tables["counts"].index_add_(0, video, torch.ones_like(video))
        _maximise(tables["label"], video, labels)
        _maximise(tables["negated_label"], video, -labels)

    def skip(self, videos: Iterable[int]) -> None:
        """Leave these videos (rows of the table) out of the metric, whatever was seen of them."""
        skipped = self._tables["skipped"]
        skipped[torch.tensor(list(videos), dtype=torch.int64, device=skipped.device)] = 1

    def reduce(self) -> None:
        """Merge the tables of all processes; call it once, on every process, after the last update."""
        summed = ("counts", "scores") if self.method == "sum" else ("counts",)
        for name, table in self._tables.items():
            merge = all_reduce_sum if name in summed else all_reduce_max
            self._tables[name] = merge(to_collective(table))

    @property
    def counts(self) -> Tensor:
        """Views seen of each video, int64 ``[videos]`` (on the CPU, like all of these)."""
        return self._tables["counts"].cpu()

    @property
    def skipped(self) -> Tensor:
        """Which videos are left out, bool ``[videos]``."""
        return self._tables["skipped"].bool().cpu()

    @property
    def scores(self) -> Tensor:
        """Summed or maximal scores, float32 ``[videos, K]``; zeros where no view was seen."""
        return self._tables["scores"].cpu().masked_fill(self.counts[:, None] == 0, 0.0).float()

    @property
    def labels(self) -> Tensor:
        """Int64 ``[videos]``, or float32 ``[videos, K]`` if multi-label; -1 where no view was seen."""
        labels = self._tables["label"].cpu()
        unseen = (self.counts == 0).view(-1, *[1] * (labels.ndim - 1))
        return labels.masked_fill(unseen, -1)

    def check(self) -> None:
        """``ValueError`` naming videos without exactly their views, with labels that disagree or scores not finite."""
        kept = ~self.skipped
        counts = self.counts
        wrong = (kept & (counts != self.num_views)).nonzero().flatten().tolist()
        if wrong:
            shown = _some(f"{video} ({counts[video]})" for video in wrong)
            raise ValueError(
                f"{len(wrong)} of {len(counts)} videos did not get each of their {self.num_views} views "
                f"(TEST.NUM_ENSEMBLE_VIEWS x TEST.NUM_SPATIAL_CROPS) exactly once; "
                f"row in the list (views seen): {shown}"
            )
        differs = (self._tables["label"] != -self._tables["negated_label"]).cpu()
        differs = differs.any(1) if self.multi_label else differs
        wrong = (kept & differs).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"views of one video carry different labels; row in the list: {_some(map(str, wrong))}")
        wrong = (kept & ~self.scores.isfinite().all(1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"scores that are not finite for {len(wrong)} videos; row in the list: {_some(map(str, wrong))}"
            )

    def compute(self) -> dict[str, float]:
        """Percentages over all videos that are not skipped, after :meth:`check`."""
        self.check()
        kept = ~self.skipped
        scores, labels = self.scores[kept], self.labels[kept]
        if len(scores) == 0:
            raise ValueError("accuracy of no videos: every one was skipped, or the list is empty")
        if self.multi_label:
            return {"map": 100.0 * mean_average_precision(scores.numpy(), labels.numpy())}
        correct = topks_correct(scores, labels, self.ks).tolist()
        return {f"top{k}_acc": 100.0 * right / len(scores) for k, right in zip(self.ks, correct, strict=True)}


def _maximise(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """``table[rows[i]] = max(table[rows[i]], values[i])`` for all i, in place; rows may repeat."""
    index = rows.view(-1, *[1] * (values.ndim - 1)).expand_as(values)  # [B] -> shape of values
    table.scatter_reduce_(0, index, values, "amax")


def _some(items: Iterable[str], limit: int = 8) -> str:
    listed = list(items)
    more = f", and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
