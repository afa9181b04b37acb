"""ClipDataset: records -> source -> frame indices -> transform -> Sample.

The one idea: a sample is a pure function of its ``Request``. All randomness comes from
(seed, epoch, row), so workers, ranks and resumed runs change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slowfast.datasets.batch import BadVideo, Request, Sample
from slowfast.datasets.sampling import (
    CENTRE_VIEW,
    ClipSpec,
    FrameChoice,
    View,
    choose_by_count,
    choose_by_span,
    choose_by_stride,
)
from slowfast.datasets.sources import ClipSource, DecodeError, VideoInfo, open_source
from slowfast.datasets.transforms.presets import ClipTransform

logger = logging.getLogger(__name__)

MAX_TRIES = 10
# Frames of one video that a worker keeps for its other views, in bytes; larger videos are read in parts.
FRAMES_IN_MEMORY = 256 << 20


class Record(NamedTuple):
    """One row of annotation. Data sets of another kind give their own, with the same names."""

    path: str
    label: int | Tensor  # of the whole video

    def open(self, *, short_side: int | None = None, threads: int = 1) -> ClipSource:
        """The frames."""
        return open_source(self.path, short_side=short_side, threads=threads)

    def label_of(self, choice: FrameChoice) -> int | Tensor:
        """The label of one training clip: that of the video, unless a kind of record knows better."""
        return self.label


class FrameRule(Protocol):
    """Which frames of a source make a clip: at ``view``, or at random where it is None."""

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
        spec = self.spec
        if view is None and self.max_stride > spec.stride:
            spec = replace(spec, stride=int(rng.integers(int(spec.stride), self.max_stride, endpoint=True)))
        if view is None and self.fps_jitter:
            spec = replace(spec, fps=spec.fps + float(rng.uniform(0.0, self.fps_jitter)))
        if info.timeline is None:
            return choose_by_count(spec, info.fps or spec.fps, info.num_frames, view, rng, self.use_offset)
        return CHOOSERS[self.backend](spec, info.timeline, view, rng, self.use_offset)


class ClipDataset(Dataset):
    """Clips of the videos in ``records``.

    ``views`` = (temporal clips, spatial crops) makes a test set: row r is view r % num_views of
    video r // num_views, and each video is decoded once for all its views as long as they are asked
    for one after another. Otherwise a row is a video: a random clip of it, or the centre one with ``centre``.

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
        self.threads = threads
        self.repeat_first = repeat_first
        self._video: _HeldVideo | None = None
        self._first: Sample | None = None

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

    def __getitem__(self, request: Request | int) -> Sample:
        if not isinstance(request, Request):
            request = Request(int(request), epoch=0)
        if not 0 <= request.index < len(self):
            raise IndexError(f"row {request.index} of {len(self)}")
        if self.repeat_first and self._first is not None:
            return replace(self._first, index=request.index)
        sample = self._test_sample(request) if self.is_test else self._video_sample(request)
        if self.repeat_first:
            self._first = sample
        return sample

    # ------------------------------------------------------------ training, validation

    def _video_sample(self, request: Request) -> Sample:
        bad: list[BadVideo] = []
        index, seed = request.index, (self.seed, request.epoch, request.index)
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng(seed if attempt == 0 else (*seed, attempt))
            if attempt:
                index = int(rng.integers(len(self.records)))
            record = self.records[index]
            try:
                source = self._open(record, request.crop_size)
                choice = self.rule(source.info, CENTRE_VIEW if self.centre else None, rng)
                frames = source.read(choice.indices)
            except DecodeError as error:
                bad.append(BadVideo(index, record.path, error.reason))
                continue
            clip = self.transform(frames, rng, view=None, crop_size=request.crop_size)
            return Sample(clip, record.label_of(choice), index, _time(choice), tuple(bad))
        tried = "; ".join(f"{video.path}: {video.reason}" for video in bad)
        raise RuntimeError(f"row {request.index}: {MAX_TRIES} videos in a row cannot be decoded ({tried})")

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
                held.clip = self.transform.scaled(self._frames(held, view.clip))
                held.clip_index = view.clip
        except DecodeError as error:
            held.error = error
            if self.skip_bad:
                bad = BadVideo(request.index, record.path, error.reason)
                return Sample(None, record.label, request.index, bad=(bad,))
            where = f"(clip {view.clip} of {view.num_clips}, crop {view.crop} of {view.num_crops})"
            hint = "TEST.SKIP_BAD_VIDEOS True leaves such videos out and reports them"
            raise DecodeError(record.path, f"{error.reason} {where}; {hint}") from error
        clip = self.transform.cropped(held.clip, view)
        return Sample(clip, record.label, request.index, _time(held.choices[view.clip]))

    def _hold(self, index: int, record: Record) -> _HeldVideo:
        try:
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
        return held.frames[torch.searchsorted(held.union, held.choices[clip].indices)]

    def _open(self, record: Record, crop_size: int | None = None) -> ClipSource:
        short_side = self.transform.short_side(crop_size) if self.decode_scaled else None
        return record.open(short_side=short_side, threads=self.threads)


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


def _time(choice: FrameChoice) -> Tensor:
    """float64 [1, 3]: start, end, gap to the clip before (none)."""
    return torch.tensor([[choice.start, choice.end, 0.0]], dtype=torch.float64)
