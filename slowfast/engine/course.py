"""How far a training is over phases of different shapes: the axis of its curves, and the time that is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from slowfast.datasets.build import build_short_cycle
from slowfast.engine.output import epoch_of
from slowfast.engine.phases import Phase
from slowfast.engine.run import Plan
from slowfast.utils import distributed


@dataclass
class Course:
    """All epochs of a training.

    ``steps`` is in how many steps the full shape sees the clips of an epoch, ``pixels`` the mean number of pixels of a
    clip in each epoch, and ``evaluated`` are the epochs that an evaluation follows, of which one takes
    ``evaluation`` seconds (0 as long as none was seen).
    """

    steps: int
    pixels: tuple[float, ...]
    evaluated: frozenset[int] = frozenset()
    evaluation: float = 0.0

    def place(self, epoch: int, share: float) -> int:
        """In how many steps the full shape sees the clips seen after ``share`` of ``epoch``.

        Without multigrid these are the steps that were made; with it, this grows evenly over all phases.
        """
        return round((epoch + share) * self.steps)

    def seconds_left(self, epoch: int, share: float, *, like: int, computing: float, waiting: float) -> float:
        """What is still to come after ``share`` of ``epoch``.

        An epoch like ``like`` takes ``computing`` seconds, which go with the pixels, and ``waiting`` for data, which
        go with the clips.
        """
        epochs = len(self.pixels) - epoch - share
        work = sum(self.pixels[epoch:]) - share * sum(self.pixels[epoch : epoch + 1])
        evaluations = sum(number >= epoch for number in self.evaluated)
        return computing * work / self.pixels[like] + waiting * epochs + self.evaluation * evaluations


def build_course(phases: Sequence[Phase], loader: DataLoader, records: Sequence[Mapping[str, Any]] = ()) -> Course:
    """The course of ``phases``, one of which ``loader`` is for; ``records`` tell how long the last evaluation took."""
    pixels: list[float] = []
    evaluated: set[int] = set()
    for phase in phases:
        plan = Plan.from_cfg(phase.cfg, phase.milestones)
        pixels += [build_clip_size(phase.cfg)] * len(phase.epochs())
        evaluated.update(epoch for epoch in phase.epochs() if plan.evaluation_due(epoch))
    cfg = phases[-1].cfg
    steps = len(loader)
    if cfg.MULTIGRID.LONG_CYCLE or cfg.MULTIGRID.SHORT_CYCLE:
        own = cfg.MULTIGRID.DEFAULT_B // distributed.get_local_world_size()
        steps = max(len(loader.dataset) // max(own * distributed.get_world_size(), 1), 1)
    times = [record["time_diff"] for record in records if record.get("_type") == "val_epoch" and epoch_of(record)]
    return Course(steps, tuple(pixels), frozenset(evaluated), float(times[-1]) if times else 0.0)


def build_clip_size(cfg) -> float:
    """Pixels of a clip, as the mean over the clips of a short cycle."""
    cycle = build_short_cycle(cfg, cfg.TRAIN.BATCH_SIZE) if cfg.MULTIGRID.SHORT_CYCLE else [(1, None)]
    areas = [clips * (crop or cfg.DATA.TRAIN_CROP_SIZE) ** 2 for clips, crop in cycle]
    return cfg.DATA.NUM_FRAMES * sum(areas) / sum(clips for clips, _ in cycle)
