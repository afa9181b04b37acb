"""Frames as they come, each read once: of a file, a folder of images, a camera, a pipe or a network stream.

The one idea: a camera and a file are the same thing. Nobody looks ahead, goes back or asks for a length; what is
still needed of the past is held, and no more than a few clips of it.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from slowfast.datasets.sampling import Timeline
from slowfast.datasets.sources import (
    DecodeError,
    VideoFile,
    VideoInfo,
    convert_frame,
    open_source,
    quarter_turns,
    scaled_size,
)
from slowfast.visualization.video_io import Span, frame_times

logger = logging.getLogger(__name__)

CAMERA = "webcam:"  # followed by a number or the name of a device
# What FFmpeg reads from its beginning to its end, once.
LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "tcp://", "srt://", "unix:", "pipe:")
_CAMERA_FORMATS = {"darwin": "avfoundation", "win32": "dshow"}  # elsewhere Video for Linux
_NANOSECOND = Fraction(1, 10**9)
_SLACK_S = 1e-6
_PLAIN_FRAMES = 32  # given out at once where nothing is to be predicted
_reformatters = threading.local()


# ---------------------------------------------------------------- frames


@dataclass(frozen=True)
class Shot:
    """One frame of a stream, as the decoder gave it: half as large as its picture."""

    index: int
    time_s: float  # after the first frame
    frame: av.VideoFrame
    upright: bool = True

    def picture(self, short_side: int | None = None) -> np.ndarray:
        """RGB, uint8 [H, W, 3], ``upright`` or as it is stored; with ``short_side`` scaled to it as a data set does."""
        width, height = scaled_size(self.frame.width, self.frame.height, short_side)
        out = np.empty((height, width, 3), dtype=np.uint8)
        if not hasattr(_reformatters, "own"):
            _reformatters.own = VideoReformatter()  # prepared for one size, and not for several threads
        convert_frame(self.frame, out, _reformatters.own, area=short_side is not None)
        turns = quarter_turns(self.frame) if self.upright else 0
        return np.ascontiguousarray(np.rot90(out, turns)) if turns else out


@dataclass(frozen=True)
class FrameStream:
    """Frames in the order of time. ``live`` ones come when they come; only of others ``num_frames`` may be known."""

    name: str
    fps: float
    shots: Iterable[Shot]
    live: bool = False
    num_frames: int | None = None

    def until(self, *, seconds: float | None = None, stopped: Callable[[], bool] | None = None) -> FrameStream:
        """The same, but at most ``seconds`` of it, and no more from when ``stopped`` is true."""

        def is_on(shot: Shot) -> bool:
            return not (seconds is not None and shot.time_s >= seconds) and not (stopped is not None and stopped())

        number = self.num_frames
        if number is not None and seconds is not None:
            number = min(number, int(np.ceil(seconds * self.fps)))
        return replace(self, shots=itertools.takewhile(is_on, self.shots), num_frames=number)


def is_live(name: str) -> bool:
    """Whether ``name`` is read once from its beginning: a camera, a network stream, ``-`` (standard input), a pipe."""
    if name == "-" or name.startswith((CAMERA, *LIVE_SCHEMES)):
        return True
    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False


def open_stream(
    name: str, *, fps: float = 30.0, size: tuple[int, int] | None = None, upright: bool = True
) -> FrameStream:
    """The frames of a file or folder, of ``webcam:0`` (or ``webcam:/dev/video2``), or of whatever ``is_live``.

    ``fps`` counts where no times are known (images); ``size`` (width, height) is asked of a camera. Files marked as
    turned are given as they are stored unless ``upright``. ``DecodeError`` where there is no such thing, or no picture
    in it.
    """
    if name.startswith(CAMERA):
        file, form = camera_device(name.removeprefix(CAMERA))
        options = {"video_size": f"{size[0]}x{size[1]}"} if size else {}
        return _open_once(name, file, fps, form=form, options=options)
    if is_live(name):
        return _open_once(name, "pipe:0" if name == "-" else name, fps)
    source = open_source(name, threads=0)
    times, info = frame_times(source.info, fps), source.info
    shots = _file_shots(source, times, upright) if isinstance(source, VideoFile) else _image_shots(source, times)
    return FrameStream(name, info.fps or fps, shots, num_frames=info.num_frames)


def camera_device(name: str, platform: str = sys.platform) -> tuple[str, str]:
    """File and format by which FFmpeg opens a camera, given as a number or by its name."""
    form = _CAMERA_FORMATS.get(platform, "v4l2")
    if form == "dshow":  # knows names only; the older way knows numbers
        return (name, "vfwcap") if name.isdigit() else (f"video={name}", form)
    if form == "v4l2" and name.isdigit():
        return f"/dev/video{name}", form
    return name, form


def _open_once(
    name: str, file: str, fps: float, *, form: str | None = None, options: dict[str, str] | None = None
) -> FrameStream:
    try:
        container = av.open(file, format=form, options=options or {}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(name, _why_not(name, file, form, error)) from error
    if not container.streams.video:
        container.close()
        raise DecodeError(name, "no video stream")
    stream = container.streams.video[0]
    rate = float(stream.average_rate or stream.guessed_rate or fps)
    return FrameStream(name, rate, _decoded_once(name, container, stream, rate), live=True)


def _why_not(name: str, file: str, form: str | None, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if form is None:
        return reason
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return f"this build of PyAV cannot read cameras ({form}): pipe one in, ffmpeg -f {form} -i ... -f nut - | ... -"
    if form != "v4l2":
        return f"no camera opens as {file!r} ({form}): {reason}"
    devices = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
    return f"no camera opens as {file}: {reason}. There are: {devices}"


def _decoded_once(name: str, container: Any, stream: Any, fps: float) -> Iterator[Shot]:
    """What can be decoded, packet by packet; a stream that breaks off ends there."""
    number, first, before = 0, None, 0.0
    with container:
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    logger.debug("%s: a packet cannot be decoded: %s", name, error)
                    continue
                for frame in frames:
                    time = frame.time if frame.time is not None else number / fps
                    first = time if first is None else first
                    before = max(before, time - first)
                    yield Shot(number, before, frame)
                    number += 1
        except (av.FFmpegError, OSError) as error:
            logger.warning("%s ends after %d frames: %s", name, number, error)
    if not number:
        raise DecodeError(name, "it gave no frame")


def _file_shots(source: VideoFile, times: np.ndarray, upright: bool) -> Iterator[Shot]:
    seen = -1
    for index, frame in source.sound_frames():
        if index > seen:
            seen = index
            yield Shot(index, float(times[index]), frame, upright)
    if seen < 0:
        raise DecodeError(source.path, "no frame can be decoded")


def _image_shots(source: Any, times: np.ndarray) -> Iterator[Shot]:
    for index, time in enumerate(times.tolist()):
        picture = source.read([index])[0].numpy()
        yield Shot(index, time, av.VideoFrame.from_ndarray(picture, format="rgb24"))


@contextmanager
def stopped_by_ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of stopping the program at once; a second Ctrl-C does that."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- clips


class Moment(NamedTuple):
    """What is to be looked at: a stretch of time around ``key_s``, and what is known of it beforehand."""

    start_s: float
    end_s: float
    key_s: float
    known: Any = None


@dataclass(frozen=True)
class LiveClip:
    """The frames of a moment, and those that no earlier clip has brought; without a moment only these."""

    moment: Moment | None
    shots: Sequence[Shot] = ()
    key: Shot | None = None
    fresh: Sequence[Shot] = ()


def info_of(shots: Sequence[Shot], length_s: float, fps: float) -> VideoInfo:
    """Frames of a stream described as a video of their own, ``length_s`` long."""
    times = np.array([shot.time_s for shot in shots])
    timeline = Timeline(
        pts=np.rint((times - times[0]) / float(_NANOSECOND)).astype(np.int64),
        fps=fps,
        guessed_fps=fps,
        time_base=_NANOSECOND,
        duration=max(round(length_s / _NANOSECOND), 1),
        header_frames=len(shots),
    )
    frame = shots[0].frame
    return VideoInfo(len(shots), frame.width, frame.height, fps, timeline)


def shown_at(shots: Sequence[Shot], times_s: Sequence[float]) -> list[int]:
    """Of each moment, the row of the frame that is shown then; before the first and after the last, these."""
    starts = np.array([shot.time_s for shot in shots])
    return (np.searchsorted(starts, np.asarray(times_s) + 1e-9, side="right") - 1).clip(0).tolist()


def sliding_clips(stream: FrameStream, span_s: float, hop_s: float) -> Iterator[LiveClip]:
    """Clips of ``span_s`` seconds every ``hop_s``, the last one moved back to end with the stream.

    A shorter stream is one clip. These are the windows of ``sliding_windows``, without knowing the length.
    """

    def moments() -> Iterator[Moment]:
        for number in itertools.count():
            start = number * hop_s
            yield Moment(start, start + span_s, start + span_s / 2)

    def rest(moment: Moment, length_s: float) -> Iterator[Moment]:
        while moment.end_s < length_s - 1e-9:
            yield moment
            moment = Moment(moment.start_s + hop_s, moment.end_s + hop_s, moment.key_s + hop_s)
        start = max(length_s - span_s, 0.0)
        yield Moment(start, length_s, (start + length_s) / 2)

    return _Cutter(stream, span_s).cut(moments(), rest)


def keyed_clips(stream: FrameStream, moments: Sequence[Moment], reach_s: float = 0.0) -> Iterator[LiveClip]:
    """Clips at given ``moments``, which ascend. Those whose key comes after the end are left out, with a warning.

    Frames farther than ``reach_s``, or the moment's own start, before the next key come on their own.
    """
    waiting = iter(moments)
    reach_s = max([reach_s, *[moment.key_s - moment.start_s for moment in moments]])
    span_s = max([0.0, *[moment.end_s - moment.start_s for moment in moments]])

    def rest(moment: Moment, length_s: float) -> Iterator[Moment]:
        left = list(itertools.chain([moment], waiting))
        inside = [item for item in left if item.key_s < length_s + _SLACK_S]
        if len(inside) < len(left):
            missed = f"{len(left) - len(inside)} of {len(moments)} key frames come after its end"
            logger.warning("%s is %.2f s long: %s", stream.name, length_s, missed)
        yield from inside

    return _Cutter(stream, span_s, reach_s).cut(waiting, rest)


@dataclass
class _Cutter:
    """Holds the frames that are still needed."""

    stream: FrameStream
    span_s: float
    reach_s: float = float("inf")  # before a key: from there on, frames wait for it
    held: list[Shot] = field(default_factory=list)
    fresh: list[Shot] = field(default_factory=list)

    def cut(self, moments: Iterator[Moment], rest: Callable[[Moment, float], Iterator[Moment]]) -> Iterator[LiveClip]:
        """A clip for each moment as soon as its frames are there; ``rest`` says which come when the stream ends."""
        moment, count, last = next(moments, None), 0, 0.0
        for shot in self.stream.shots:
            while moment is not None and shot.time_s >= moment.end_s - _SLACK_S:
                yield self._clip(moment, shot)
                moment = next(moments, None)
            self._forget(moment, shot.time_s)
            self.held.append(shot)
            self.fresh.append(shot)
            count, last = count + 1, shot.time_s
            soonest = float("inf") if moment is None else moment.key_s - self.reach_s
            if len(self.fresh) >= _PLAIN_FRAMES and last < soonest:
                yield LiveClip(None, fresh=self._take_fresh())
        if moment is not None and count:
            step = last / (count - 1) if count > 1 and last > 0 else 1 / self.stream.fps
            for item in rest(moment, last + step):
                yield self._clip(item, None)
        if self.fresh:
            yield LiveClip(None, fresh=self._take_fresh())

    def _clip(self, moment: Moment, following: Shot | None) -> LiveClip:
        first, end = moment.start_s - _SLACK_S, moment.end_s - _SLACK_S
        inside = [shot for shot in self.held if first <= shot.time_s < end]
        if not inside or inside[0].time_s > first + 2 * _SLACK_S:  # what is shown when it begins
            inside = [*[shot for shot in self.held if shot.time_s < first][-1:], *inside]
        shots = inside or [shot for shot in (following, *self.held[-1:]) if shot is not None][:1]
        # A quarter of a frame later: times in files are rounded, to milliseconds in some.
        (row,) = shown_at(shots, [moment.key_s + 0.25 / self.stream.fps])
        return LiveClip(moment, shots, shots[row], self._take_fresh())

    def _take_fresh(self) -> list[Shot]:
        taken, self.fresh = self.fresh, []
        return taken

    def _forget(self, moment: Moment | None, now_s: float) -> None:
        """Frames from before the next moment, and from before the last span, which the end may ask for."""
        start = now_s - self.span_s - _SLACK_S
        start = start if moment is None else min(start, moment.start_s - _SLACK_S)
        drop = 0
        while drop + 1 < len(self.held) and self.held[drop + 1].time_s <= start:
            drop += 1  # the one that is shown at ``start`` stays
        del self.held[:drop]


def read_pictures(shots: Sequence[Shot], rows: Sequence[int] | Tensor, short_side: int | None = None) -> Tensor:
    """Frames by row: uint8 [T, H, W, 3], RGB; each is converted once."""
    wanted, place = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    pictures = np.stack([shots[row].picture(short_side) for row in wanted.tolist()])
    return torch.from_numpy(pictures)[torch.from_numpy(place.reshape(-1))]


def within(shots: Sequence[Shot], span: Span) -> Sequence[Shot]:
    """The frames that begin in ``span``, or the first one of all where none does."""
    inside = [shot for shot in shots if span.start_s - _SLACK_S <= shot.time_s < span.end_s - _SLACK_S]
    return inside or shots[:1]
