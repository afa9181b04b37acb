"""Batch samplers: which rows make which batch, as functions of (seed, epoch, position).

World size and number of workers decide who reads a row, never which rows make a global batch.
Both samplers yield lists of ``Request`` and can start in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from slowfast.datasets.batch import Request


class _PositionedSampler(Sampler[list[Request]]):
    """A batch sampler that knows its epoch and where in it to start."""

    def __init__(self) -> None:
        self.epoch = 0
        self.start_batch = 0
        self.turn = 0  # goes up with every ``set_epoch``

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next pass is that of ``epoch``, without its first ``start_batch`` batches.

        The length stays that of a whole epoch.
        """
        self.epoch, self.start_batch = epoch, start_batch
        self.turn += 1

    def state(self, batch: int) -> dict[str, Any]:
        """The place before ``batch`` of the present epoch, for ``load_state``: plain numbers."""
        return {"epoch": self.epoch, "batch": batch, "shape": self.layout()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Start the next pass at ``state``; ``ValueError`` where that counted other batches."""
        if list(state["shape"]) != self.layout():
            raise ValueError(
                f"a loader at batch {state['batch']} of epoch {state['epoch']} had (rows, batch sizes, processes) = "
                f"{state['shape']}, and has {self.layout()} now: go on with the same list, batch size and number of "
                "processes, or from the start of an epoch"
            )
        self.set_epoch(state["epoch"], state["batch"])

    def layout(self) -> list[int]:
        """What the number of a batch means nothing without."""
        raise NotImplementedError


class CycleStep(NamedTuple):
    """One batch of a short cycle: clips per process, and their crop in pixels (None: the full one)."""

    batch_size: int
    crop_size: int | None = None


class TrainBatchSampler(_PositionedSampler):
    """Shuffled batches of equal size, or of sizes that come round in a cycle.

    The order of an epoch is a permutation from (seed, epoch), global batch b is its b-th slice of
    ``batch_size * world_size`` rows, and each rank takes its contiguous part of the slice. Rows that do not
    fill a global batch are left out. With a short cycle (multigrid training) batch b has size and crop of step
    b modulo the number of its steps.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int | Sequence[CycleStep],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.num_rows, self.seed = num_rows, seed
        self.rank, self.world_size = rank, world_size
        self.cycle = (CycleStep(batch_size),) if isinstance(batch_size, int) else tuple(batch_size)
        # Rows before each step of a cycle, and after its last one.
        self._ends = [0, *accumulate(step.batch_size * world_size for step in self.cycle)]
        if not len(self):
            raise ValueError(
                f"a batch of {self._ends[1]} clips is more than the {num_rows} videos of the training list: "
                "lower TRAIN.BATCH_SIZE"
            )

    @property
    def batch_size(self) -> int:
        """Clips per process in a batch of full crops."""
        return self.cycle[-1].batch_size

    def layout(self) -> list[int]:
        """Rows, and where the batches of a cycle end in them."""
        return [self.num_rows, *self._ends[1:]]

    def __len__(self) -> int:
        cycles, rest = divmod(self.num_rows, self._ends[-1])
        return cycles * len(self.cycle) + sum(end <= rest for end in self._ends[1:])

    def __iter__(self) -> Iterator[list[Request]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows)
        for batch in range(self.start_batch, len(self)):
            cycle, step = divmod(batch, len(self.cycle))
            size, crop = self.cycle[step]
            first = cycle * self._ends[-1] + self._ends[step] + self.rank * size
            yield [Request(int(row), self.epoch, crop) for row in order[first : first + size]]


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
        self._videos = share(num_videos, rank, world_size)
        self.num_videos, self.num_views, self.batch_size, self.world_size = (
            num_videos,
            num_views,
            batch_size,
            world_size,
        )
        # With one view per video there is nothing to share, and plain batches are fuller.
        self._own_parts = max(1, min(num_workers, self._videos[1] - self._videos[0])) if num_views > 1 else 1
        self._divide(self._own_parts)

    def _divide(self, parts: int) -> None:
        """Cut this rank's rows into the streams of ``parts`` workers."""
        first, last = self._videos
        blocks = [share(last - first, part, parts) for part in range(parts)]
        rows = [(stop - start) * self.num_views for start, stop in blocks]
        batches = -(-max(rows) // self.batch_size)
        self._streams = [
            _cut((first + start) * self.num_views, count, min(count, batches))
            for (start, _), count in zip(blocks, rows)
        ]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """See above; batches are those of this number of workers."""
        super().set_epoch(epoch, start_batch)
        self._divide(self._own_parts)

    def state(self, batch: int) -> dict[str, Any]:
        """See above."""
        return {**super().state(batch), "parts": len(self._streams)}

    def load_state(self, state: dict[str, Any]) -> None:
        """See above; batches are those of the other number of workers, until ``set_epoch``."""
        super().load_state(state)
        self._divide(state["parts"])

    def layout(self) -> list[int]:
        """Views, those of a batch, and the number of processes."""
        return [self.num_videos * self.num_views, self.batch_size, self.world_size]

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
