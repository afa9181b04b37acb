"""Batch samplers: which rows make which batch, as functions of (seed, epoch, position).

World size and number of workers decide who reads a row, never which rows make a global batch.
Both samplers yield lists of ``Request`` and can start in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from slowfast.datasets.batch import Request


class _PositionedSampler(Sampler[list[Request]]):
    """A batch sampler that knows its epoch and where in it to start."""

    def __init__(self) -> None:
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next pass is that of ``epoch``, without its first ``start_batch`` batches.

        The length stays that of a whole epoch.
        """
        self.epoch, self.start_batch = epoch, start_batch


class TrainBatchSampler(_PositionedSampler):
    """Shuffled batches of equal size.

    The order of an epoch is a permutation from (seed, epoch), global batch b is its b-th slice of
    ``batch_size * world_size`` rows, and each rank takes its contiguous part of the slice. Rows that do not
    fill a global batch are left out.
    """

    def __init__(self, num_rows: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        if not len(self):
            raise ValueError(
                f"a batch of {batch_size * world_size} clips is more than the {num_rows} videos of the training list: "
                "lower TRAIN.BATCH_SIZE"
            )

    def __len__(self) -> int:
        return self.num_rows // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Request]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows)
        for batch in range(self.start_batch, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [Request(int(row), self.epoch) for row in order[first : first + self.batch_size]]


class EvalBatchSampler(_PositionedSampler):
    """Every view exactly once over all ranks: no shuffling, no padding.

    Each rank owns a contiguous block of whole videos, and so does each loader worker within it:
    batch k goes to worker k modulo ``num_workers``, so each worker meets all views of a video one after
    another and decodes it once. Batches may be smaller than ``batch_size`` to keep the workers in step.
    """

    def __init__(
        self,
        num_videos: int,
        num_views: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        first, last = share(num_videos, rank, world_size)
        # With one view per video there is nothing to share, and plain batches are fuller.
        parts = max(1, min(num_workers, last - first)) if num_views > 1 else 1
        blocks = [share(last - first, part, parts) for part in range(parts)]
        rows = [(stop - start) * num_views for start, stop in blocks]
        batches = -(-max(rows) // batch_size)
        self._streams = [
            _cut((first + start) * num_views, count, min(count, batches)) for (start, _), count in zip(blocks, rows)
        ]

    def __len__(self) -> int:
        return sum(len(stream) for stream in self._streams)

    def __iter__(self) -> Iterator[list[Request]]:
        longest = max(len(stream) for stream in self._streams)
        turns = [stream[turn] for turn in range(longest) for stream in self._streams if turn < len(stream)]
        for rows in turns[self.start_batch :]:
            yield [Request(row, self.epoch) for row in rows]


def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """(first, last) of the ``part``-th of ``parts`` contiguous shares that differ by at most one."""
    return count * part // parts, count * (part + 1) // parts


def _cut(first: int, count: int, pieces: int) -> list[range]:
    """``count`` rows from ``first`` on in ``pieces`` contiguous ranges of nearly equal length."""
    shares = [share(count, piece, pieces) for piece in range(pieces)]
    return [range(first + start, first + stop) for start, stop in shares]
