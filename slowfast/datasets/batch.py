"""What travels from a sampler to a network: a request, a sample, a batch.

The one idea: everything has a name. A sampler asks by ``Request``, a data set answers with a
``Sample``, and ``collate`` makes a ``Batch`` of what the workers answered. Clips may travel as bytes, a quarter of
the memory; ``Batch.to`` normalises them on the device, so a network sees normalised floats in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

hands_on = False  # True in a loader worker: batches are made in the memory that is handed to the main process


class Request(NamedTuple):
    """One row a sampler asks for, and what its randomness and shape depend on."""

    index: int  # row of the data set (a view of a video, when testing)
    epoch: int  # seeds the sample's randomness
    crop_size: int | None = None  # a smaller crop in pixels, asked for by short-cycle training


class BadVideo(NamedTuple):
    """A video that could not be decoded: the row that asked for it, its path, and why."""

    index: int
    path: str
    reason: str


class Patch(NamedTuple):
    """A rectangle of a clip, in pixels, and what it holds after normalisation (random erasing)."""

    top: int
    left: int
    height: int
    width: int
    values: Tensor  # float32, broadcast to [C, T, height, width]
    view: int = 0  # of the sample, where it has several

    def apply(self, clip: Tensor) -> None:
        """Overwrite the rectangle of a normalised ``clip`` [C, T, H, W]."""
        rectangle = clip[..., self.top : self.top + self.height, self.left : self.left + self.width]
        rectangle.copy_(self.values.to(clip.device, non_blocking=True))


class Shift(NamedTuple):
    """What is added to each channel of a clip after normalisation (lighting)."""

    values: Tensor  # float32 [C]
    view: int = 0  # of the sample, where it has several

    def apply(self, clip: Tensor) -> None:
        """Add to a normalised ``clip`` [C, T, H, W]."""
        clip += self.values.to(clip.device, non_blocking=True)[:, None, None, None]


@dataclass
class Sample:
    """One clip with what is known about it; ``clip`` is None only for a test view that was skipped."""

    # [C, T, H, W], or one per view of the same video: normalised; with ``normalize``, uint8 or float32 of 0..255
    clip: Tensor | list[Tensor] | None
    label: int | Tensor
    index: int
    time: Tensor | None = None  # float64 [views, 3]: start, end, gap to the clip before, in source frames
    bad: tuple[BadVideo, ...] = ()  # videos that failed before this one was found
    # For detection: boxes of this clip, without a batch row in front.
    boxes: Tensor | None = None  # [R, 4]: x1, y1, x2, y2 in clip pixels
    image_boxes: Tensor | None = None  # [R, 4]: the same as fractions of the image
    keyframes: Tensor | None = None  # float64 [R, 2]: number of the video, second
    mask: Tensor | None = None  # bool [t, h, w]; True is hidden
    # What is left to do on the device: normalise, then each of these in order.
    normalize: Callable[[Tensor], Tensor] | None = None
    patches: tuple[Patch | Shift, ...] = ()


@dataclass
class Batch:
    """Clips of one step, with everything a task may need beside them."""

    clips: Tensor | list[Tensor]  # [B, C, T, H, W], or one per view in self-supervised learning;
    # whole frames of different sizes, for detection: [C, T, H, W] of each sample
    labels: Tensor  # int64 [B], or float [B, K] if multi-label, [R, K] for detection
    index: Tensor  # int64 [B]
    times: Tensor | None = None  # [B, V, 3]: start, end, gap in source frames
    boxes: Tensor | None = None  # [R, 5]: batch row, x1, y1, x2, y2 in clip pixels
    image_boxes: Tensor | None = None  # [R, 5]: batch row and x1, y1, x2, y2 as fractions of the image
    keyframes: Tensor | None = None  # float64 [R, 2]: number of the video, second
    mask: Tensor | None = None  # bool [B, t, h, w]; True is hidden
    bad: list[BadVideo] = field(default_factory=list)
    # What ``to`` does to the clips: [..., C, T, H, W] of 0..255 to normalised float32, then (row, patch) in order.
    normalize: Callable[[Tensor], Tensor] | None = None
    patches: list[tuple[int, Patch | Shift]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with every tensor on ``device``, and the clips normalised."""
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.normalize is None or not len(self):
            return batch
        several = isinstance(batch.clips, list)
        clips = [self.normalize(clip) for clip in batch.clips] if several else self.normalize(batch.clips)
        for row, patch in self.patches:
            patch.apply(clips[patch.view][row] if several else clips[row])
        return replace(batch, clips=clips, normalize=None, patches=[])

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the loader calls this where a GPU is used."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                changed[item.name] = [function(tensor) for tensor in value]
        return replace(self, **changed)


def as_views(samples: Sequence[Sample]) -> Sample:
    """The first of ``samples``, which are all of one video, with the clips and times of all of them."""
    times = [sample.time for sample in samples]
    return replace(
        samples[0],
        clip=[sample.clip for sample in samples],
        time=None if times[0] is None else torch.cat(times),
        patches=tuple(patch._replace(view=view) for view, sample in enumerate(samples) for patch in sample.patches),
    )


def collate(samples: Sequence[Sample | list[Sample]]) -> Batch:
    """One batch of ``samples``; those without a clip are left out, but their ``bad`` entries stay.

    Several samples of one row, given as a list, become neighbours in the batch. A batch whose samples were all
    skipped has length 0.
    """
    samples = [sample for item in samples for sample in (item if isinstance(item, list) else [item])]
    bad = [video for sample in samples for video in sample.bad]
    kept = [sample for sample in samples if sample.clip is not None]
    if not kept:
        return Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), bad=bad)
    labels = [sample.label for sample in kept]
    if isinstance(labels[0], Tensor):
        labels = torch.cat(labels) if kept[0].boxes is not None else torch.stack(labels)
    return Batch(
        clips=_stack_equal([sample.clip for sample in kept], may_differ=kept[0].boxes is not None),
        labels=torch.as_tensor(labels),
        index=torch.tensor([sample.index for sample in kept]),
        times=_stack_where_given([sample.time for sample in kept]),
        boxes=_with_batch_row([sample.boxes for sample in kept]),
        image_boxes=_with_batch_row([sample.image_boxes for sample in kept]),
        keyframes=None if kept[0].keyframes is None else torch.cat([sample.keyframes for sample in kept]),
        mask=_stack_where_given([sample.mask for sample in kept]),
        bad=bad,
        normalize=kept[0].normalize,
        patches=[(row, patch) for row, sample in enumerate(kept) for patch in sample.patches],
    )


def _stack(clips: list[Tensor | list[Tensor]]) -> Tensor | list[Tensor]:
    """``torch.stack``, of each view where there are several; inside a worker straight into the memory handed on."""
    if isinstance(clips[0], list):
        return [_stack(list(view)) for view in zip(*clips, strict=True)]
    channels, *rest = clips[0].shape
    as_frames = clips[0].stride(0) == 1 < channels  # [T, H, W, C] in memory, as decoded: stays so
    # NOTE: a clip that had to be resized is of floats, its neighbour of another video may be of bytes.
    dtype = reduce(torch.promote_types, (clip.dtype for clip in clips))
    out = _empty((len(clips), *rest, channels) if as_frames else (len(clips), channels, *rest), dtype)
    out = out.movedim(-1, 1) if as_frames else out  # [B, C, T, H, W]
    for row, clip in zip(out, clips):
        row.copy_(clip)
    return out


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty``, in a loader worker in the memory that is handed to the main process."""
    if not hands_on and get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


def _stack_equal(clips: list[Tensor], *, may_differ: bool) -> Tensor | list[Tensor]:
    """[B, C, T, H, W]; or the clips as they are where they ``may_differ`` in size and do."""
    return clips if may_differ and len({clip.shape for clip in clips}) > 1 else _stack(clips)


def _stack_where_given(tensors: list[Tensor | None]) -> Tensor | None:
    return None if tensors[0] is None else torch.stack(tensors)


def _with_batch_row(boxes: list[Tensor | None]) -> Tensor | None:
    """[R_i, 4] of every sample -> [sum R_i, 5] with the sample's place in the batch in front."""
    if boxes[0] is None:
        return None
    rows = [torch.cat([item.new_full((len(item), 1), row), item], dim=1) for row, item in enumerate(boxes)]
    return torch.cat(rows)
