"""ClipDataset: records -> source -> frame indices -> transform -> Sample.

The one idea: a sample is a pure function of its ``Request``. All randomness comes from
(seed, epoch, row), so workers, ranks and resumed runs change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slowfast.datasets.batch import BadVideo, Request, Sample, as_views
from slowfast.datasets.containment import watched
from slowfast.datasets.sampling import (
    CENTRE_VIEW,
    ClipSpec,
    FrameChoice,
    Place,
    View,
    choose_by_count,
    choose_by_span,
    choose_by_stride,
    clip_span,
    spaced_clips,
    timed_frames,
)
from slowfast.datasets.sources import ClipSource, DecodeError, VideoInfo, open_source
from slowfast.datasets.transforms.color import time_difference
from slowfast.datasets.transforms.presets import ONE_CLIP, ClipTransform

logger = logging.getLogger(__name__)

MAX_TRIES = 10
# Frames of one video that a worker keeps for its other views, in bytes; larger videos are read in parts.
FRAMES_IN_MEMORY = 256 << 20


class Record(NamedTuple):
    """One row of annotation. Data sets of another kind give their own, with the same names."""

    path: str
    label: int | Tensor  # of the whole video

    def open(
        self, *, short_side: int | None = None, threads: int = 1, decoder: str = "pyav", upright: bool = True
    ) -> ClipSource:
        """The frames."""
        return open_source(self.path, short_side=short_side, threads=threads, decoder=decoder, upright=upright)

    def label_of(self, choice: FrameChoice) -> int | Tensor:
        """The label of one training clip: that of the video, unless a kind of record knows better."""
        return self.label


class FrameRule(Protocol):
    """Which frames of a source make a clip: at ``view``, or at random where it is None.

    A rule that can place several clips in one video has a method ``several`` like that of ``RateRule``.
    """

    def __call__(self, info: VideoInfo, view: View | None, rng: np.random.Generator | None) -> FrameChoice:
        """The frames of one clip."""
        ...


CHOOSERS = {"torchvision": choose_by_span, "pyav": choose_by_stride}


@dataclass(frozen=True)
class RateRule:
    """Clips of a given frame rate (Kinetics): ``backend`` names the original's rule, see ``DATA.DECODING_BACKEND``."""

    spec: ClipSpec
    backend: str = "torchvision"
    use_offset: bool = False
    fps_jitter: float = 0.0  # random clips: added to the frame rate, at most
    max_stride: int = 0  # random clips: the stride is drawn from [spec.stride, max_stride]

    def __call__(self, info: VideoInfo, view: View | None, rng: np.random.Generator | None) -> FrameChoice:
        """The frames of one clip of a video or, by counting, of a frame folder."""
        return self._choose(self._drawn_spec(rng) if view is None else self.spec, info, view, rng)

    def several(
        self, info: VideoInfo, count: int, min_gap: float, max_gap: float, rng: np.random.Generator
    ) -> list[FrameChoice]:
        """``count`` random clips of one rate in temporal order, ``min_gap`` to ``max_gap`` frames between neighbours.

        Where the video has no room for that, the gaps are as near to it as was found. A gap is negative where
        clips overlap.
        """
        spec = self._drawn_spec(rng)
        total, fps = info.num_frames, info.fps or spec.fps
        if info.timeline is not None:
            fps, timed = info.timeline.guessed_fps, timed_frames(info.timeline)
            total = timed if timed is not None and timed > spec.num_frames * spec.stride else total
        placed = spaced_clips(total, [clip_span(spec, fps)] * count, min_gap, max_gap, rng)
        return [self._choose(spec, info, Place(start), rng) for start, _ in placed]

    def _drawn_spec(self, rng: np.random.Generator) -> ClipSpec:
        """The clip wanted, with a random stride and rate where there is a range of them."""
        spec = self.spec
        if self.max_stride > spec.stride:
            spec = replace(spec, stride=int(rng.integers(int(spec.stride), self.max_stride, endpoint=True)))
        if self.fps_jitter:
            spec = replace(spec, fps=spec.fps + float(rng.uniform(0.0, self.fps_jitter)))
        return spec

    def _choose(
        self, spec: ClipSpec, info: VideoInfo, view: View | Place | None, rng: np.random.Generator | None
    ) -> FrameChoice:
        if info.timeline is None:
            return choose_by_count(spec, info.fps or spec.fps, info.num_frames, view, rng, self.use_offset)
        return CHOOSERS[self.backend](spec, info.timeline, view, rng, self.use_offset)


class ClipDataset(Dataset):
    """Clips of the videos in ``records``.

    A training row gives one sample, or with a ``plan`` of the transform that asks for several clips or augmented
    copies a list of samples, or one sample of several views; the video is opened and decoded once for all of them.

    ``views`` = (temporal clips, spatial crops) makes a test set: row r is view r % num_views of
    video r // num_views, and each video is decoded once for all its views as long as they are asked
    for one after another. Otherwise a row is a video: a random clip of it, or the centre one with ``centre``.

    With ``as_bytes`` set, as a loader does, clips are normalised later, by ``Batch.to``, wherever the transform allows.

    A video that cannot be decoded is replaced by one drawn from (seed, epoch, row, attempt), at most
    ``MAX_TRIES`` times, and reported in ``Sample.bad``. In a test set it raises ``DecodeError`` with the
    view, or with ``skip_bad`` gives a sample without a clip.
    """

    def __init__(
        self,
        records: Sequence[Record],
        rule: FrameRule,
        transform: ClipTransform,
        *,
        seed: int = 0,
        views: tuple[int, int] | None = None,
        centre: bool = False,
        decode_scaled: bool = True,
        skip_bad: bool = False,
        threads: int = 1,
        decoder: str = "pyav",
        upright: bool = True,
        repeat_first: bool = False,
    ) -> None:
        self.records = records
        self.rule = rule
        self.transform = transform
        self.seed = seed
        self.num_clips, self.num_crops = views or (1, 1)
        self.is_test = views is not None
        self.centre = centre
        self.decode_scaled = decode_scaled
        self.skip_bad = skip_bad
        # Records of other kinds need not know of decoders: only what is not the default is named to them.
        unusual = {"decoder": decoder} if decoder != "pyav" else {}
        self.open_options = {"threads": threads, **unusual, **({} if upright else {"upright": False})}
        self.repeat_first = repeat_first
        self.as_bytes = False
        self.plan = getattr(transform, "plan", ONE_CLIP)
        if self.plan.num_clips > 1 and not hasattr(rule, "several"):
            raise ValueError(
                f"DATA.TRAIN_CROP_NUM_TEMPORAL={self.plan.num_clips}: this data set takes one clip of a video (1)"
            )
        self._video: _HeldVideo | None = None
        self._first: Sample | list[Sample] | None = None

    @property
    def num_views(self) -> int:
        """Rows per video."""
        return self.num_clips * self.num_crops

    @property
    def num_videos(self) -> int:
        """Number of rows, views included; the original's name for the length."""
        return len(self)

    def __len__(self) -> int:
        return len(self.records) * self.num_views

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_video": None, "_first": None}  # what is held belongs to one process

    def __getitem__(self, request: Request | int) -> Sample | list[Sample]:
        if not isinstance(request, Request):
            request = Request(int(request), epoch=0)
        if not 0 <= request.index < len(self):
            raise IndexError(f"row {request.index} of {len(self)}")
        if self.repeat_first and self._first is not None:
            if isinstance(self._first, list):
                return [replace(sample, index=request.index) for sample in self._first]
            return replace(self._first, index=request.index)
        sample = self._test_sample(request) if self.is_test else self._video_sample(request)
        if self.repeat_first:
            self._first = sample
        return sample

    # ------------------------------------------------------------ training, validation

    def _video_sample(self, request: Request) -> Sample | list[Sample]:
        bad: list[BadVideo] = []
        index, seed = request.index, (self.seed, request.epoch, request.index)
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng(seed if attempt == 0 else (*seed, attempt))
            if attempt:
                index = int(rng.integers(len(self.records)))
            record = self.records[index]
            try:
                with watched(index, record.path):
                    source = self._open(record, request.crop_size)
                    placed = self._place_clips(source.info, rng)
                    clips = self._read_clips(source, [choice for choice, _ in placed], rng)
            except DecodeError as error:
                bad.append(BadVideo(index, record.path, error.reason))
                continue
            samples = []
            for (choice, time), frames in zip(placed, clips):
                for _ in range(self.plan.copies):
                    made = self._transformed(frames, rng, request.crop_size)
                    mask = self._mask(request, rng)
                    samples.append(Sample(label=record.label_of(choice), index=index, time=time, mask=mask, **made))
            samples[0].bad = tuple(bad)
            if self.plan.as_views:
                return as_views(samples)
            return samples if self.plan.num_samples > 1 else samples[0]
        tried = "; ".join(f"{video.path}: {video.reason}" for video in bad)
        raise RuntimeError(f"row {request.index}: {MAX_TRIES} videos in a row cannot be decoded ({tried})")

    def _transformed(self, frames: Tensor, rng: np.random.Generator, crop_size: int | None) -> dict[str, Any]:
        """``clip`` of a sample, and what is left to do to it."""
        if not self._defers:
            return {"clip": self.transform(frames, rng, view=None, crop_size=crop_size)}
        clip, patches = self.transform.pixels(frames, rng, view=None, crop_size=crop_size)
        return {"clip": clip, "patches": patches, "normalize": self.transform.normalize}

    @property
    def _defers(self) -> bool:
        return self.as_bytes and getattr(self.transform, "can_defer", False)

    def _place_clips(self, info: VideoInfo, rng: np.random.Generator) -> list[tuple[FrameChoice, Tensor]]:
        """The clips of one video and the times of each; several are given in random order, times by the clock."""
        plan = self.plan
        if plan.num_clips == 1:
            choice = self.rule(info, CENTRE_VIEW if self.centre else None, rng)
            return [(choice, _time(choice))]
        choices = self.rule.several(info, plan.num_clips, plan.min_gap, plan.max_gap, rng)
        times = [_time(choice, before) for before, choice in zip([None, *choices], choices)]
        return [(choices[place], times[place]) for place in rng.permutation(plan.num_clips)]

    def _read_clips(self, source: ClipSource, choices: list[FrameChoice], rng: np.random.Generator) -> list[Tensor]:
        """Frames [T, H, W, 3] of each clip, decoded together; float32 where they are differences over time."""
        indices = [choice.indices for choice in choices]
        differs = [self.plan.time_difference > 0 and rng.random() < self.plan.time_difference for _ in choices]
        last = source.info.num_frames - 1
        for row, wanted in enumerate(indices):
            if differs[row]:  # each frame and the next; the last one repeats the difference before it
                first = wanted.clamp(max=max(last - 1, 0))
                indices[row] = torch.cat([first, (first + 1).clamp(max=last)])
        frames = source.read(torch.cat(indices)).split([len(wanted) for wanted in indices])
        return [time_difference(*clip.chunk(2)) if apart else clip for clip, apart in zip(frames, differs)]

    def _mask(self, request: Request, rng: np.random.Generator | None = None) -> Tensor | None:
        """The mask of one clip; that of a clip at a fixed place depends on its row alone."""
        if self.plan.mask is None:
            return None
        if rng is None or self.centre:
            rng = np.random.default_rng((self.seed, 0, request.index))
        return self.plan.mask(rng)

    # ------------------------------------------------------------ testing

    def _test_sample(self, request: Request) -> Sample:
        video, row = divmod(request.index, self.num_views)
        record = self.records[video]
        view = View.of_row(row, self.num_clips, self.num_crops)
        if self._video is None or self._video.index != video:
            self._video = None  # frees the frames of the last video before the next are read
            self._video = self._hold(video, record)
        held = self._video
        try:
            if held.error is not None:
                raise held.error
            if held.clip_index != view.clip:
                with watched(video, record.path):
                    frames = self._frames(held, view.clip)
                held.clip = self.transform.scaled(frames)
                held.clip_index = view.clip
        except DecodeError as error:
            held.error = error
            if self.skip_bad:
                bad = BadVideo(request.index, record.path, error.reason)
                return Sample(None, record.label, request.index, bad=(bad,))
            where = f"(clip {view.clip} of {view.num_clips}, crop {view.crop} of {view.num_crops})"
            hint = "TEST.SKIP_BAD_VIDEOS True leaves such videos out and reports them"
            raise DecodeError(record.path, f"{error.reason} {where}; {hint}") from error
        time, mask = _time(held.choices[view.clip]), self._mask(request)
        if self._defers:
            clip = self.transform.part(held.clip, view)
            return Sample(clip, record.label, request.index, time, mask=mask, normalize=self.transform.normalize)
        return Sample(self.transform.cropped(held.clip, view), record.label, request.index, time, mask=mask)

    def _hold(self, index: int, record: Record) -> _HeldVideo:
        try:
            with watched(index, record.path):
                source = self._open(record)
            views = [View(clip, self.num_clips, 0, self.num_crops) for clip in range(self.num_clips)]
            return _HeldVideo(index, source, [self.rule(source.info, view, None) for view in views])
        except DecodeError as error:
            return _HeldVideo(index, error=error)

    def _frames(self, held: _HeldVideo, clip: int) -> Tensor:
        """Frames [T, H, W, 3] of one temporal clip; reads those of the following clips along with them."""
        if clip not in held.clips_read:
            info = held.source.info
            room = max(1, FRAMES_IN_MEMORY // (info.width * info.height * 3))
            last, union = clip, held.choices[clip].indices.unique()
            while last + 1 < self.num_clips:
                more = torch.cat([union, held.choices[last + 1].indices]).unique()
                if len(more) > room:
                    break
                last, union = last + 1, more
            held.frames = None
            held.frames = held.source.read(union)
            held.union, held.clips_read = union, range(clip, last + 1)
            if clip == 0 and last + 1 == self.num_clips:
                held.source = None  # nothing is left to read: closes the file
        return _rows_of(held.frames, torch.searchsorted(held.union, held.choices[clip].indices))

    def _open(self, record: Record, crop_size: int | None = None) -> ClipSource:
        short_side = self.transform.short_side(crop_size) if self.decode_scaled else None
        return record.open(short_side=short_side, **self.open_options)


@dataclass
class _HeldVideo:
    """The video whose views a worker is serving: its frames, and the temporal clip made last."""

    index: int
    source: ClipSource | None = None
    choices: list[FrameChoice] = field(default_factory=list)
    error: DecodeError | None = None
    frames: Tensor | None = None  # uint8 [U, H, W, 3]
    union: Tensor | None = None  # [U] frame indices, ascending
    clips_read: range = range(0)  # temporal clips whose frames are among ``frames``
    clip: Tensor | None = None  # [C, T, H, W], scaled
    clip_index: int = -1


def _rows_of(frames: Tensor, rows: Tensor) -> Tensor:
    """``frames[rows]`` for ascending rows, without a copy where they are evenly spaced."""
    steps = rows.diff()
    if len(steps) and steps[0] > 0 and bool((steps == steps[0]).all()):
        return frames[int(rows[0]) : int(rows[-1]) + 1 : int(steps[0])]
    return frames.index_select(0, rows)


def _time(choice: FrameChoice, before: FrameChoice | None = None) -> Tensor:
    """float64 [1, 3]: start, end, gap to the clip before (0 where there is none)."""
    gap = 0.0 if before is None else choice.start - before.end
    return torch.tensor([[choice.start, choice.end, gap]], dtype=torch.float64)
