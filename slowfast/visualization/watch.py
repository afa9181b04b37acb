"""A video or camera watched from beginning to end: clips in, predictions and drawn frames out.

The one idea: generators, one behind the other, each in a thread of its own and a little ahead of the next:
read -> cut into clips and transform -> network (on each device in turn) -> draw -> write. What goes wrong in any of
them is raised at the end of the chain.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from slowfast.datasets.sources import DecodeError, VideoInfo
from slowfast.visualization.box_predictor import BoxPrediction, BoxPredictor, GivenBoxes
from slowfast.visualization.drawing import Drawn, DrawStyle, overlaid, timed
from slowfast.visualization.live import (
    FrameStream,
    LiveClip,
    info_of,
    keyed_clips,
    read_pictures,
    sliding_clips,
    within,
)
from slowfast.visualization.people import PersonLinks
from slowfast.visualization.predictor import ClipPrediction, Predictor
from slowfast.visualization.timeline import write_annotated
from slowfast.visualization.video_io import Span, ahead, ahead_in_bunches

Item = TypeVar("Item")
Result = TypeVar("Result")
Prediction = BoxPrediction | ClipPrediction
Found = tuple[LiveClip, Prediction | None]

HELD_BYTES = 512 << 20  # of frames that wait for their batch
_WAITING_CLIPS = 8  # between the reader and a network that takes only the newest


class Watcher(Protocol):
    """A network that can be shown clips of a stream."""

    def clips(self, stream: FrameStream) -> Iterator[LiveClip]:
        """What it wants to see."""
        ...

    def look(self, clip: LiveClip, fps: float) -> Any:
        """What its network gets of a clip."""
        ...

    def score(self, clips: Sequence[LiveClip], looks: Sequence[Any]) -> list[Prediction]:
        """A prediction for each clip."""
        ...


# ---------------------------------------------------------------- two kinds of networks


class ClassWatcher:
    """A network that classifies clips.

    ``shared`` frames are seen by a clip and by the next one too, at most half a clip; or clips of ``span_s`` seconds
    follow each other every ``hop_s``. ``span_frames`` is the length of a clip for networks that look at whole videos.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        shared: int = 0,
        span_frames: int | None = None,
        span_s: float | None = None,
        hop_s: float | None = None,
    ) -> None:
        self.predictor, self.shared, self.span_frames = predictor, shared, span_frames
        self.span_s, self.hop_s = span_s, hop_s

    def clips(self, stream: FrameStream) -> Iterator[LiveClip]:
        """Clips one after another."""
        span_s = self.span_s or self.span_of(stream)
        return sliding_clips(stream, span_s, self.hop_s or hop_of(span_s, self.shared, stream.fps))

    def span_of(self, stream: FrameStream) -> float:
        """Seconds that one clip of the network covers."""
        try:
            return self.predictor.clip_seconds(VideoInfo(stream.num_frames or 1, 1, 1, stream.fps))
        except ValueError:
            if self.span_frames is None:
                raise
            return self.span_frames / stream.fps

    def look(self, clip: LiveClip, fps: float) -> Any:
        """The views of a clip, as a test sees a video of that length."""
        moment = clip.moment
        shots = within(clip.shots, Span(moment.start_s, moment.end_s))
        length_s, side = moment.end_s - moment.start_s, self.predictor.short_side
        return self.predictor.look(
            info_of(shots, length_s, fps), length_s, lambda rows: read_pictures(shots, rows, side)
        )

    def score(self, clips: Sequence[LiveClip], looks: Sequence[Any]) -> list[ClipPrediction]:
        """Scores of each clip."""
        names = self.predictor.class_names
        return [
            ClipPrediction(clip.moment.start_s, clip.moment.end_s, scores, names)
            for clip, scores in zip(clips, self.predictor.score(looks))
        ]


class BoxWatcher:
    """A network that scores boxes: those ``given``, else those of its detector in the middle of each clip.

    Such clips share ``shared`` frames, or follow each other every ``hop_s`` seconds. ``reach`` is that of the drawing.
    """

    def __init__(
        self,
        predictor: BoxPredictor,
        *,
        given: Sequence[GivenBoxes] | None = None,
        shared: int = 0,
        hop_s: float | None = None,
        reach: int = 0,
    ) -> None:
        self.predictor, self.given, self.shared, self.hop_s, self.reach = predictor, given, shared, hop_s, reach

    def clips(self, stream: FrameStream) -> Iterator[LiveClip]:
        """Clips around the key frames that are given, or one after another."""
        span_s = self.predictor.span_s(stream.fps)
        if self.given is None:
            return sliding_clips(stream, span_s, self.hop_s or hop_of(span_s, self.shared, stream.fps))
        reach_s = (self.reach + 1) / stream.fps
        return keyed_clips(stream, self.predictor.moments(self.given, stream.fps), reach_s)

    def look(self, clip: LiveClip, fps: float) -> Any:
        """The clip and its key frame."""
        return self.predictor.look(clip, fps)

    def score(self, clips: Sequence[LiveClip], looks: Sequence[Any]) -> list[BoxPrediction]:
        """Boxes and scores of each clip."""
        names = self.predictor.class_names
        return [
            BoxPrediction(
                clip.moment.start_s,
                clip.moment.end_s,
                clip.key.time_s if clip.moment.known is None else clip.moment.known.key_s,
                *found,
                names,
            )
            for clip, found in zip(clips, self.predictor.score(looks))
        ]


def hop_of(span_s: float, shared: int, fps: float) -> float:
    """Seconds from one clip to the next, which share so many frames."""
    if not 0 <= shared <= span_s * fps / 2 + 1e-6:
        raise ValueError(
            f"DEMO.BUFFER_SIZE={shared} is not within 0 and half a clip, "
            f"which has {span_s * fps:.0f} frames at {fps:g} a second"
        )
    return span_s - shared / fps


# ---------------------------------------------------------------- the chain


def watch(
    stream: FrameStream,
    watchers: Sequence[Watcher],
    *,
    batch_size: int = 1,
    skip: int = 0,
) -> Iterator[Found]:
    """Every clip of ``stream`` with what was found in it, in order.

    The ``watchers`` are one network on several devices; batches go to each in turn. Of the clips, one in ``skip`` + 1
    is looked at; with ``skip`` -1 the newest that there is whenever the network is ready. The frames of the others
    come without a prediction.
    """
    if skip < -1:
        raise ValueError(f"DEMO.NUM_CLIPS_SKIP={skip} is not -1 or more")
    first, fps = watchers[0], stream.fps
    clips = first.clips(stream)

    chosen = newest(clips) if skip < 0 else every(clips, skip + 1)
    looked = ((replace(clip, shots=()), first.look(clip, fps) if wanted else None) for clip, wanted in chosen)

    def scorer(watcher: Watcher) -> Callable[[list[tuple[LiveClip, Any]]], list[Found]]:
        def score(batch: list[tuple[LiveClip, Any]]) -> list[Found]:
            asked = [(clip, look) for clip, look in batch if look is not None]
            scored = iter(watcher.score(*zip(*asked)) if asked else ())
            return [(clip, None if look is None else next(scored)) for clip, look in batch]

        return score

    links = PersonLinks()
    alone = stream.live or skip < 0  # nothing waits for others
    grouped = batches(looked if skip < 0 else ahead(looked), 1 if alone else batch_size)
    for found in in_turn(grouped, list(map(scorer, watchers))):
        for clip, prediction in found:
            if isinstance(prediction, BoxPrediction):
                prediction = replace(prediction, people=links(prediction.boxes))
            yield clip, prediction


def batches(items: Iterable[tuple[LiveClip, Any]], size: int) -> Iterator[list[tuple[LiveClip, Any]]]:
    """Neighbours together: at most ``size`` to look at, and not too many frames in memory."""
    waiting: list[tuple[LiveClip, Any]] = []
    count = held = 0
    for clip, look in items:
        waiting.append((clip, look))
        count += look is not None
        held += sum(shot.frame.width * shot.frame.height * 3 // 2 for shot in clip.fresh)
        if count >= size or held >= HELD_BYTES or (size == 1 and look is None):
            yield waiting
            waiting, count, held = [], 0, 0
    if waiting:
        yield waiting


def newest(clips: Iterable[LiveClip]) -> Iterator[tuple[LiveClip, bool]]:
    """All clips, and whether to look at them: whenever several wait, only at the last one."""
    for bunch in ahead_in_bunches(clips, _WAITING_CLIPS):
        last = max((row for row, clip in enumerate(bunch) if clip.moment is not None), default=-1)
        yield from ((clip, row == last) for row, clip in enumerate(bunch))


def every(clips: Iterable[LiveClip], step: int) -> Iterator[tuple[LiveClip, bool]]:
    """All clips, and whether to look at them: at one in ``step``."""
    number = 0
    for clip in ahead(clips):
        yield clip, clip.moment is not None and number % step == 0
        number += clip.moment is not None


def in_turn(items: Iterable[Item], workers: Sequence[Callable[[Item], Result]]) -> Iterator[Result]:
    """What ``workers`` make of ``items``, in order: each has a thread of its own, and they work side by side."""
    pools = [ThreadPoolExecutor(1, thread_name_prefix="watching") for _ in workers]
    waiting: deque[Future[Result]] = deque()
    try:
        for item, (pool, worker) in zip(items, itertools.cycle(zip(pools, workers))):
            waiting.append(pool.submit(worker, item))
            if len(waiting) > len(pools):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def write_drawn(
    out: str | os.PathLike,
    found: Iterable[Found],
    style: DrawStyle,
    *,
    fps: float,
    output_fps: float = -1,
    slow_motion: int = 1,
    painters: int = 2,
    truth: Sequence[GivenBoxes] = (),
    class_names: Sequence[str] = (),
    on_frame: Callable[[], object] | None = None,
) -> int:
    """Write the stream with what was found drawn on it; the number of frames written."""

    def paint(frame: Drawn) -> tuple[Drawn, np.ndarray]:
        return frame, frame.picture()

    frames = overlaid(ahead(found), style, fps=fps, truth=truth, class_names=class_names)
    painted = in_turn(frames, [paint] * max(1, painters))

    def counted() -> Iterator[tuple[Drawn, np.ndarray]]:
        for item in ahead(painted):
            if on_frame is not None:
                on_frame()
            yield item

    rate = output_fps if output_fps > 0 else fps
    return write_annotated(out, timed(counted(), fps=fps, output_fps=output_fps, slow_motion=slow_motion), fps=rate)


def check_output(out: str | os.PathLike, source: str) -> None:
    """``DecodeError`` where writing ``out`` would overwrite what is read."""
    if Path(out).exists() and os.path.exists(source) and os.path.samefile(source, out):
        raise DecodeError(source, f"the video to write, {out}, is the video itself: name another file")
