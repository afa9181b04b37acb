"""When: which frames of a video make a clip. Numbers in, numbers out.

No pixels, no files, no global state: randomness comes in as a NumPy generator, so every rule
can be tested by a table. "Frames" are frames of the source video unless said otherwise; a
position may be fractional, an index is not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import LongTensor


@dataclass(frozen=True)
class ClipSpec:
    """The clip a network wants: ``num_frames`` frames, ``stride`` apart at ``fps`` frames per second."""

    num_frames: int
    stride: float
    fps: float


class View(NamedTuple):
    """One of the places where a test looks at a video: a temporal clip and a spatial crop of it."""

    clip: int
    num_clips: int
    crop: int
    num_crops: int

    @classmethod
    def of_row(cls, row: int, num_clips: int, num_crops: int) -> View:
        """The view at position ``row`` of a video; the crops of a clip are neighbours."""
        clip, crop = divmod(row, num_crops)
        return cls(clip, num_clips, crop, num_crops)


CENTRE_VIEW = View(0, 1, 0, 1)


class Place(NamedTuple):
    """A clip whose place is known: its first frame. Stands where a view of a test would."""

    start: float


@dataclass(frozen=True)
class Timeline:
    """When the frames of one video are shown, and what its container says about itself."""

    pts: np.ndarray  # int64 [N]: time of every frame, in ``time_base`` seconds, in the decoder's order
    fps: float  # the average rate
    guessed_fps: float  # the rate that suits most frames
    time_base: Fraction
    duration: int | None  # in ``time_base`` seconds; None where the container does not say
    header_frames: int  # number of frames the container claims; 0 where it does not say


class FrameChoice(NamedTuple):
    """The frames of one clip: ``indices`` [T] into the frames of the source, and the clip's place in it."""

    indices: LongTensor
    start: float
    end: float


# ---------------------------------------------------------------- clips of a given rate


def clip_span(spec: ClipSpec, video_fps: float) -> float:
    """Length of one clip in frames of the source video, at least 1.

    The clip covers ``num_frames * stride`` frames at ``spec.fps``; a video of another rate
    needs proportionally more or fewer of its own frames.
    """
    return max(1.0, spec.num_frames * spec.stride / spec.fps * video_fps)


def clip_start(
    total: float,
    span: float,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> float:
    """First frame of a clip of ``span`` in a video of ``total`` frames; random where ``view`` is None.

    Test clips lie at equal distances. Plainly, the last one ends before the video does (clip i of V
    starts at i / V of the free room); with ``use_offset`` first and last clip touch the ends, on
    whole frames, and a single clip lies in the middle.
    """
    room = max(total - span, 0.0)
    if view is None:
        if rng is None:
            raise ValueError("a clip needs a view (its place in a test) or rng (a random place)")
        return float(rng.uniform(0.0, room))
    if isinstance(view, Place):
        return min(view.start, room)
    if not use_offset:
        return room * view.clip / view.num_clips
    if view.num_clips == 1:
        return float(room // 2)
    return float(view.clip * (room // (view.num_clips - 1)))


def clip_indices(start: float, span: float, num_frames: int, total: int) -> LongTensor:
    """Indices [T] of ``num_frames`` frames spread over ``span``, cut to the ``total`` that there are."""
    positions = torch.linspace(start, start + span - 1, num_frames)  # float32: its rounding decides the index
    return positions.clamp(0, total - 1).long()


def spaced_clips(
    total: float,
    spans: Sequence[float],
    min_gap: float,
    max_gap: float,
    rng: np.random.Generator,
) -> list[tuple[float, float]]:
    """Random (start, end) of several clips in temporal order, gaps between neighbours within bounds.

    A clip that does not fit beside those already placed is drawn again up to 100 times, then the
    whole set up to 100 times; if none fits, the set that breaks the bounds least is given.
    A gap is negative where clips overlap.
    """
    best: list[tuple[float, float]] = []
    least = math.inf
    for _ in range(100):
        clips: list[tuple[float, float]] = []
        excess = 0.0
        for span in spans:
            for _ in range(100):
                start = clip_start(total, span, rng=rng)
                placed = sorted([*clips, (start, start + span - 1)])
                excess = _gap_excess(placed, min_gap, max_gap)
                if excess == 0:
                    break
            clips = placed
        if excess < least:
            best, least = clips, excess
        if least == 0:
            break
    return best


def _gap_excess(clips: list[tuple[float, float]], min_gap: float, max_gap: float) -> float:
    """By how many frames in all the gaps between neighbouring clips are too small or too large."""
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(clips)]
    return sum(max(min_gap - gap, 0.0) + max(gap - max_gap, 0.0) for gap in gaps)


# ---------------------------------------------------------------- frames by their time


def choose_by_span(
    spec: ClipSpec,
    timeline: Timeline,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> FrameChoice:
    """The rule of ``DATA.DECODING_BACKEND torchvision``: a clip spans T strides.

    The clip's place is found from rate and duration; the frames shown between its two ends are
    kept and the clip's T frames taken from those. Where the container has no duration, the video is
    not longer than the clip, or nothing is shown in the range, the place is found among all frames.
    """
    found = span_range(spec, timeline, view, rng, use_offset)
    if found is not None:
        start, first_pts, last_pts = found
        kept = np.flatnonzero((timeline.pts >= first_pts) & (timeline.pts <= last_pts))
        if len(kept):
            return _choose_among(kept, start, spec, timeline.guessed_fps)
    return choose_by_count(spec, timeline.guessed_fps, len(timeline.pts), view, rng, use_offset)


def span_range(
    spec: ClipSpec,
    timeline: Timeline,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> tuple[float, int, int] | None:
    """(first frame, first pts, last pts) of a clip, or None where all frames have to be looked at."""
    total = timed_frames(timeline)
    if total is None or total <= spec.num_frames * spec.stride:
        return None
    span = clip_span(spec, timeline.guessed_fps)
    start = clip_start(total, span, view, rng, use_offset)
    ticks, per_tick = timeline.time_base.denominator, timeline.time_base.numerator * timeline.guessed_fps
    return start, int(start * ticks / per_tick), int((start + span - 1) * ticks / per_tick)


def timed_frames(timeline: Timeline) -> float | None:
    """Length of a video in frames by its rate and duration; None where the container has no duration."""
    if not timeline.duration or timeline.duration < 0:
        return None
    return timeline.guessed_fps * float(timeline.duration * timeline.time_base)


def choose_by_stride(
    spec: ClipSpec,
    timeline: Timeline,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> FrameChoice:
    """The rule of ``DATA.DECODING_BACKEND pyav``: a clip spans T - 1 strides.

    Frames are kept from the clip's first moment up to and including the first one after its last
    moment. The T frames are then spread over the span of ``choose_by_span``, so the last index is
    usually cut to the last frame kept. Where the container has no duration, the place is found among all frames.
    """
    found = stride_range(spec, timeline, view, rng, use_offset)
    if found is not None:
        start, first_pts, last_pts = found
        kept = np.flatnonzero(timeline.pts >= first_pts)
        beyond = np.flatnonzero(timeline.pts[kept] > last_pts)
        kept = kept[: beyond[0] + 1] if len(beyond) else kept
        if len(kept):
            return _choose_among(kept[np.argsort(timeline.pts[kept], kind="stable")], start, spec, timeline.fps)
    return choose_by_count(spec, timeline.fps, len(timeline.pts), view, rng, use_offset)


def stride_range(
    spec: ClipSpec,
    timeline: Timeline,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> tuple[float, int, int] | None:
    """(first frame, first pts, last pts) of a clip, or None where all frames have to be looked at."""
    total = timeline.header_frames or len(timeline.pts)
    if not timeline.duration or timeline.duration < 0 or not total:
        return None
    span = max(1.0, math.ceil(spec.stride * (spec.num_frames - 1) / spec.fps * timeline.fps))
    start = clip_start(total, span, view, rng, use_offset)
    ticks = timeline.duration / total
    return start, int(start * ticks), int((start + span - 1) * ticks)


def choose_by_count(
    spec: ClipSpec,
    video_fps: float,
    total: int,
    view: View | Place | None = None,
    rng: np.random.Generator | None = None,
    use_offset: bool = False,
) -> FrameChoice:
    """A clip placed by counting: for frame folders, and for videos whose times say too little."""
    span = clip_span(spec, video_fps)
    start = clip_start(total, span, view, rng, use_offset)
    return FrameChoice(clip_indices(start, span, spec.num_frames, total), start, start + span - 1)


def _choose_among(kept: np.ndarray, start: float, spec: ClipSpec, video_fps: float) -> FrameChoice:
    span = clip_span(spec, video_fps)
    within = clip_indices(0.0, span, spec.num_frames, len(kept))
    return FrameChoice(torch.from_numpy(kept)[within], start, start + span - 1)


# ---------------------------------------------------------------- clips of frame lists


def segment_indices(total: int, num_frames: int, rng: np.random.Generator | None = None) -> LongTensor:
    """One frame [T] of each of ``num_frames`` equal parts of the video: random, or the middle one without ``rng``.

    (Something-Something: the whole video is one clip.)
    """
    edges = np.round((total - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)  # half to even
    low, high = edges[:-1], edges[1:]
    chosen = (low + high) // 2 if rng is None else rng.integers(low, high, endpoint=True)
    return torch.from_numpy(chosen)


def strided_indices(
    total: int,
    num_frames: int,
    stride: int,
    view: View | None = None,
    rng: np.random.Generator | None = None,
) -> LongTensor:
    """Every ``stride``-th frame [T] from a start that is random or, given a view, spread over the video.

    Indices beyond the video repeat its ends. A single test clip lies in the middle. (Charades.)
    """
    room = total - ((num_frames - 1) * stride + 1)
    if view is None:
        if rng is None:
            raise ValueError("a clip needs a view (its place in a test) or rng (a random place)")
        start = int(rng.integers(min(room, 0), max(room, 0), endpoint=True))
    elif view.num_clips == 1:
        start = max(room, 0) // 2
    else:
        start = round(max(room, 0) / (view.num_clips - 1) * view.clip)
    return (start + torch.arange(num_frames) * stride).clamp(0, total - 1)


def centered_indices(center: int, num_frames: int, stride: int, total: int) -> LongTensor:
    """Every ``stride``-th frame [T] around frame ``center``; beyond the video its ends repeat. (AVA.)"""
    start = center - num_frames * stride // 2
    return (start + torch.arange(num_frames) * stride).clamp(0, total - 1)
