"""Reading and writing videos for prediction: which files, when each frame is shown, parts of a video, a writer.

The one idea: a part of a video is described as a video of its own, so whatever rule chooses the frames of a clip can
choose them within that part too.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from torch import Tensor

from slowfast.datasets.records import VIDEO_SUFFIXES
from slowfast.datasets.sources import (
    IMAGE_SUFFIXES,
    ClipSource,
    DecodeError,
    VideoFile,
    VideoInfo,
    open_source,
    quarter_turns,
)
from slowfast.utils.files import pathmgr

Item = TypeVar("Item")

TICKS = 90_000  # per second, of the times in a written video
WRITABLE_SUFFIXES = (".mp4", ".mkv", ".mov")
_WAIT_S = 0.1


# ---------------------------------------------------------------- which files


def find_videos(paths: Iterable[str | os.PathLike]) -> list[str]:
    """The videos that ``paths`` name: files as they are, and of each folder all videos in and below it, sorted.

    A folder that holds images and no video is one video, frame by frame. ``ValueError`` for a folder with neither;
    an address (``http://...``) and a file that does not exist are kept, for whoever opens them. Addresses that the
    path manager has a handler for (``slowfast.utils.files.pathmgr``) are brought here by it.
    """
    found: list[str] = []
    for name in map(os.fspath, paths):
        path = Path(name)
        if "://" in name or not path.is_dir():
            found.append(pathmgr.get_local_path(name) if "://" in name and pathmgr.exists(name) else name)
            continue
        inside = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
        if not inside and any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir()):
            inside = [str(path)]
        if not inside:
            raise ValueError(f"{path} holds no video ({', '.join(VIDEO_SUFFIXES)}) and no image")
        found += inside
    return found


# ---------------------------------------------------------------- times and parts


def frame_times(info: VideoInfo, fps: float) -> np.ndarray:
    """When each frame is shown, float64 [N] in seconds after the first; ``fps`` counts where no times are known."""
    if info.timeline is None:
        return np.arange(info.num_frames) / (info.fps or fps)
    pts = np.maximum.accumulate(info.timeline.pts)  # a damaged file may step back
    return (pts - pts[0]) * float(info.timeline.time_base)


def video_length(times: np.ndarray, fps: float) -> float:
    """Seconds from the first frame to the end of the last, which is shown as long as the others on average."""
    return float(times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 and times[-1] > 0 else 1 / fps))


def part_of(info: VideoInfo, first: int, last: int) -> VideoInfo:
    """Frames ``first`` up to but not including ``last`` as a video of their own."""
    timeline = info.timeline
    if timeline is not None:
        pts = timeline.pts[first : last + 1] - timeline.pts[first]
        count = last - first
        # To the frame after the part, or where there is none as long as the average of those within.
        duration = pts[count] if len(pts) > count else round(pts[-1] * count / max(count - 1, 1))
        timeline = replace(timeline, pts=pts[:count], duration=max(int(duration), 1), header_frames=count)
    return replace(info, num_frames=last - first, timeline=timeline)


class Span(NamedTuple):
    """A stretch of a video, in seconds."""

    start_s: float
    end_s: float


def sliding_windows(length_s: float, window_s: float, stride_s: float) -> list[Span]:
    """Windows at every ``stride_s``, the last one moved back to end with the video; one where it is no longer.

    ``ValueError`` where a length is not positive.
    """
    for name, value in (("window", window_s), ("stride", stride_s)):
        if not value > 0:
            raise ValueError(f"{name} {value} s is not more than 0")
    last = length_s - window_s
    if last <= 0:
        return [Span(0.0, length_s)]
    count = int(np.ceil(last / stride_s - 1e-9))  # windows before the last
    return [Span(start, start + window_s) for start in (*(number * stride_s for number in range(count)), last)]


# ---------------------------------------------------------------- reading ahead


def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """``items``, made by a thread of their own, at most ``depth`` before they are asked for.

    What goes wrong there is raised here. The thread ends when the items do, or when nobody asks for more.
    """
    for bunch in ahead_in_bunches(items, depth, most=1):
        yield from bunch


def ahead_in_bunches(items: Iterable[Item], depth: int = 2, *, most: int | None = None) -> Iterator[list[Item]]:
    """Like ``ahead``, but all that is ready at once, at least one and no more than ``most``."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def hand_over(entry: tuple[str, object]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over(("item", item)):
                    return
            hand_over(("end", None))
        except BaseException as error:  # whatever it is, it belongs to whoever asked
            hand_over(("error", error))

    thread = threading.Thread(target=work, name="reading ahead", daemon=True)
    thread.start()
    try:
        while True:
            bunch: list = []
            kind, value = ready.get()
            while kind == "item":
                bunch.append(value)
                if len(bunch) == most or ready.empty():
                    break
                kind, value = ready.get()
            if bunch:
                yield bunch
            if kind == "end":
                return
            if kind == "error":
                raise value
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- all frames, for drawing


def all_frames(path: str, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """Time in seconds and picture (RGB, uint8 [H, W, 3]) of every sound frame, in order; one is held at a time.

    Frames are upright and of the size of the file; ``fps`` counts where no times are known.
    """
    source: ClipSource = open_source(path)
    times = frame_times(source.info, fps)
    if not isinstance(source, VideoFile):
        for index, time in enumerate(times.tolist()):
            yield time, source.read([index])[0].numpy()
        return
    seen = -1
    for index, frame in source.sound_frames():
        if index > seen:
            seen = index
            picture = frame.to_ndarray(format="rgb24")
            turns = quarter_turns(frame)
            yield float(times[index]), np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
    if seen < 0:
        raise DecodeError(path, "no frame can be decoded")


class VideoWriter:
    """Pictures and their times to an H.264 file: ``with VideoWriter(path) as writer: writer.write(frame, time_s)``.

    The file grows under another name and gets its own when all went well. An odd width or height loses one pixel.
    """

    def __init__(self, path: str | os.PathLike, *, fps: float = 30.0, quality: int = 20) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise ValueError(f"{path}: a video is written as one of {', '.join(WRITABLE_SUFFIXES)}")
        self._part = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")
        self._fps, self._quality = fps, quality
        self._last_tick = -1
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w")
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None and self._stream is not None:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, frame: np.ndarray | Tensor, time_s: float) -> None:
        """Append ``frame`` (RGB, uint8 [H, W, 3], all of one size), shown from ``time_s`` on."""
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
        if self._stream is None:
            options = {"crf": str(self._quality), "preset": "veryfast", "x264-params": "log-level=error"}
            rate = Fraction(self._fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, TICKS)
        elif (self._stream.width, self._stream.height) != (width, height):
            raise ValueError(
                f"{self.path}: a frame of {width}x{height} after {self._stream.width}x{self._stream.height}"
            )
        self._last_tick = max(round(time_s * TICKS), self._last_tick + 1)
        picture.pts, picture.time_base = self._last_tick, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(picture))


def names_of_outputs(out: str | os.PathLike, videos: Sequence[str]) -> list[Path]:
    """One file per video: ``out`` itself for a single one, else its name with that of the video, each name once."""
    out = Path(out)
    if len(videos) == 1:
        return [out]
    names: list[Path] = []
    taken: set[str] = set()
    for video in videos:
        stem, number = Path(video).stem, 1
        name = stem
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names.append(out.with_name(f"{out.stem}-{name}{out.suffix}"))
    return names
