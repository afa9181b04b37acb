"""Where from: frames of a video file or of a folder of images, by index.

The one idea: a source knows its frames before it decodes any. A video's packets are read once,
undecoded, which tells when each frame is shown; ``read`` then decodes from the key frame before
each wanted frame and converts only the wanted ones.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from slowfast.datasets.sampling import Timeline

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Packets of a video up to this many bytes stay in memory between indexing and decoding.
PACKETS_IN_MEMORY = 256 << 20
# A damaged video is used as long as this share of its frames can be decoded.
LEAST_DECODABLE = 0.9
_PLAIN_FORMATS = ("yuv420p", "yuv422p", "yuv444p")
# Newer versions of PyAV convert with several threads unless told otherwise.
_ONE_THREAD = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
_BAD_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # PIL tells of broken PNGs by SyntaxError
_UNREADABLE = (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError)


class DecodeError(RuntimeError):
    """A video that cannot be used: ``path`` and ``reason``."""

    def __init__(self, path: str, reason: str = "") -> None:
        # NOTE: callable with one argument, because a loader re-raises a worker's error from its text.
        super().__init__(f"{path}: {reason}" if reason else path)
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """What a source knows about its frames; ``width`` and ``height`` are those of the frames it gives."""

    num_frames: int
    width: int
    height: int
    fps: float | None = None  # None for frame folders, and where a container does not tell
    timeline: Timeline | None = None  # None likewise


class ClipSource(Protocol):
    """Frames by index, wherever they come from."""

    info: VideoInfo

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The frames at ``indices`` (any order, repeats allowed): uint8 [T, H, W, 3], RGB."""
        ...


def open_source(
    path: str, *, short_side: int | None = None, threads: int = 1, decoder: str = "pyav", upright: bool = True
) -> ClipSource:
    """A folder of images, a single image or a video file, whichever ``path`` is; the options: see ``open_video``."""
    if Path(path).is_dir():
        return FrameFolder(path, short_side=short_side)
    if path.lower().endswith(IMAGE_SUFFIXES):
        return FrameList([path], short_side=short_side)
    return open_video(path, short_side=short_side, threads=threads, decoder=decoder, upright=upright)


def open_video(
    path: str,
    *,
    short_side: int | None = None,
    threads: int = 1,
    data: bytes | None = None,
    decoder: str = "pyav",
    upright: bool = True,
) -> VideoFile:
    """A video file, decoded by ``pyav`` or ``torchcodec``; the frames are the same. Options: ``VideoFile``."""
    kind = {"pyav": VideoFile, "torchcodec": TorchcodecFile}[decoder]
    return kind(path, short_side=short_side, threads=threads, data=data, upright=upright)


def check_decoder(name: str) -> None:
    """``ValueError`` where ``DATA.VIDEO_DECODER`` cannot be ``name``: unknown, or not installed."""
    if name not in ("pyav", "torchcodec"):
        raise ValueError(f"DATA.VIDEO_DECODER={name!r} is not one of pyav, torchcodec")
    if name == "torchcodec":
        reason = why_not_torchcodec()
        if reason:
            raise ValueError(
                "DATA.VIDEO_DECODER needs torchcodec (pip install torchcodec) and the shared libraries of "
                f"FFmpeg (apt install ffmpeg), or set it to 'pyav': {reason}"
            )


def why_not_torchcodec() -> str:
    """Why torchcodec cannot decode here; empty if it can. Its import alone does not look for FFmpeg's libraries."""
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(b"no video")
    except (ImportError, OSError) as error:
        return str(error).strip().splitlines()[0]
    except (RuntimeError, ValueError) as error:
        if "libtorchcodec" in str(error):
            return str(error).strip().splitlines()[0]
    return ""


def scaled_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the shorter one brought to ``short_side``, the other rounded to the nearest integer."""
    shorter = min(width, height)
    if short_side is None or shorter == short_side:
        return width, height
    return tuple(max(1, math.floor(side * short_side / shorter + 0.5)) for side in (width, height))


class VideoFile:
    """A video file, decoded with PyAV.

    With ``short_side`` the frames are scaled (area average) while they are converted to RGB. Frames that the file says
    are turned (a telephone held upright) are given upright, unless ``upright`` is False; ``info`` has their size from
    the first ``read`` on.
    ``threads`` is the number of decoder threads, 0 one per core; with many loader workers one each is best.
    With ``data``, the bytes of the file, nothing is opened and ``path`` only stands in messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        short_side: int | None = None,
        threads: int = 1,
        data: bytes | None = None,
        upright: bool = True,
    ) -> None:
        self.path = str(path)
        self._upright = upright
        self._data = data
        try:
            self._open(threads)
            self._read_packets()
        except DecodeError:
            raise
        except FileNotFoundError as error:
            raise DecodeError(self.path, "no such file") from error
        except _UNREADABLE as error:
            empty = not data if data is not None else os.path.isfile(self.path) and not os.path.getsize(self.path)
            raise DecodeError(self.path, "the file is empty" if empty else _reason(error)) from error
        self._size = scaled_size(self._codec.width, self._codec.height, short_side)
        self._area = short_side is not None
        self._reformatter = VideoReformatter()
        self._keys_back = 0  # key frames before the nearest one from which pictures are whole
        self._turns = 0  # quarters of a turn, counterclockwise, as the frames decoded last ask for
        # None where the packets tell every frame's time; else the frames' times in the decoder's order.
        self._decoded_pts = None if self._packets_tell_times() else self._decode_times()
        pts = np.sort(self._pts[self._shown]) if self._decoded_pts is None else self._decoded_pts
        if not len(pts):
            raise DecodeError(self.path, "no frame can be decoded")
        self.info = self._describe(pts)

    def _open(self, threads: int) -> None:
        self._container = self._open_container()
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise DecodeError(self.path, "no video stream")
        best = self._container.streams.best("video")
        self._stream = best if best in streams else streams[0]
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise DecodeError(self.path, "no decoder for its video codec")
        self._codec.thread_count = threads
        self._codec.thread_type = "NONE" if threads == 1 else "AUTO"
        if self._codec.width <= 0 or self._codec.height <= 0:
            raise DecodeError(self.path, "the video stream has no frame size")

    def _open_container(self) -> av.container.InputContainer:
        return av.open(self.path if self._data is None else io.BytesIO(self._data), metadata_errors="replace")

    def _describe(self, pts: np.ndarray) -> VideoInfo:
        stream, (width, height) = self._stream, self._size
        rate, guessed = stream.average_rate or stream.guessed_rate, stream.guessed_rate or stream.average_rate
        if not rate:
            return VideoInfo(len(pts), width, height)
        timeline = Timeline(
            pts=pts if self._guesses_times() else pts - pts.min(),  # what is guessed stays as the original takes it
            fps=float(rate),
            guessed_fps=float(guessed),
            time_base=stream.time_base,
            duration=stream.duration,
            header_frames=stream.frames or 0,
        )
        return VideoInfo(len(pts), width, height, float(rate), timeline)

    # ------------------------------------------------------------ index

    def _read_packets(self) -> None:
        """Times and key flags of all packets in file order, and the packets themselves unless they are too large."""
        held: list[av.Packet] | None = []
        pts, dts, keys, shown, size = [], [], [], [], 0
        try:
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                pts.append(packet.pts)
                dts.append(packet.dts)
                keys.append(packet.is_keyframe)
                shown.append(not packet.is_discard)
                size += packet.size
                if held is not None:
                    held.append(packet)
                    held = held if size <= PACKETS_IN_MEMORY else None
        except av.FFmpegError as error:
            if not pts:
                raise
            logger.debug("%s ends early: %s", self.path, _reason(error))
        if not pts:
            raise DecodeError(self.path, "the video stream holds no frames")
        self._held, self._dts = held, dts
        self._timed = None not in pts
        self._pts = np.array(pts if self._timed else range(len(pts)), dtype=np.int64)
        self._shown = np.array(shown)
        self._keys = np.flatnonzero(keys)

    def _packets_tell_times(self) -> bool:
        """Whether every frame is one packet and carries the time at which it is shown."""
        alone = bool(len(self._keys)) and len(np.unique(self._pts)) == len(self._pts)
        return self._timed and alone and not self._guesses_times()

    def _guesses_times(self) -> bool:
        """AVI stores no times; with frames out of order the reader guesses them, wrongly for some files."""
        return "avi" in self._container.format.name and any(
            pts != dts for pts, dts in zip(self._pts.tolist(), self._dts)
        )

    def _decode_times(self) -> np.ndarray:
        """Times of all frames in the decoder's order; counted where a frame has none."""
        pts = [frame.pts for frame in self._decode(0)]
        if None not in pts:
            return np.array(pts, dtype=np.int64)
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(1)
        return (np.arange(len(pts)) / float(rate * self._stream.time_base)).astype(np.int64)

    # ------------------------------------------------------------ decode

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The frames at ``indices`` (any order, repeats allowed): uint8 [T, H, W, 3], RGB.

        Each is decoded and converted once. In a damaged video the nearest frame that can be
        decoded stands in for one that cannot; ``DecodeError`` where too few are left.
        """
        wanted, place = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= self.info.num_frames):
            raise IndexError(f"{self.path}: frames {wanted[0]} to {wanted[-1]} asked of {self.info.num_frames}")
        width, height = self._size
        frames = np.empty((len(wanted), height, width, 3), dtype=np.uint8)
        try:
            self._fill(frames, wanted)
        except av.FFmpegError as error:
            raise DecodeError(self.path, _reason(error)) from error
        if self._turns and self._upright:
            frames = np.ascontiguousarray(np.rot90(frames, self._turns, axes=(1, 2)))
            self.info = replace(self.info, width=frames.shape[2], height=frames.shape[1])
        result = torch.from_numpy(frames)
        return result if len(wanted) == len(place) and (np.diff(place) > 0).all() else result[torch.from_numpy(place)]

    def _fill(self, frames: np.ndarray, wanted: np.ndarray) -> None:
        if self._decoded_pts is not None:
            found = self._fill_by_count(frames, wanted)
        else:
            found = self._fill_by_time(frames, np.sort(self._pts[self._shown])[wanted])
        if not found.all():
            self._fill_damaged(frames, wanted)

    def _fill_by_time(self, frames: np.ndarray, pts: np.ndarray) -> np.ndarray:
        """Convert the frames shown at ``pts`` (ascending) into ``frames``; which of them were found.

        What the key frame before does not give, the one before that may, or the first: with an intra refresh all but
        the first are none, and pictures are whole only some frames later.
        """
        found = np.zeros(len(pts), dtype=bool)
        last = max(len(self._keys) - 1, 0)
        for back in sorted({0, min(1, last), last}):
            if back >= self._keys_back:
                self._fill_from(frames, pts, found, back)
                if found.all():
                    self._keys_back = back
                    break
        return found

    def _fill_from(self, frames: np.ndarray, pts: np.ndarray, found: np.ndarray, keys_back: int) -> None:
        """Fill what is not ``found``, from ``keys_back`` key frames before the nearest one."""
        key_pts = self._pts[self._keys]
        # The last key packet shown no later than the frame; packets before any key frame start at 0.
        key_of = np.searchsorted(np.maximum.accumulate(key_pts), pts, side="right") - 1
        key_of = np.where(key_of > 0, np.maximum(key_of - keys_back, 0), key_of)
        rows = {time: row for row, time in enumerate(pts.tolist()) if not found[row]}
        for key in np.unique(key_of[~found]):
            times = set(pts[(key_of == key) & ~found].tolist())
            for frame in self._decode(int(self._keys[key]) if key >= 0 else 0, times):
                row = rows.get(frame.pts)
                if row is not None and frame.pts in times and not frame.is_corrupt:
                    self._convert(frame, frames[row])
                    found[row] = True

    def _fill_by_count(self, frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        found = np.zeros(len(wanted), dtype=bool)
        rows = {index: row for row, index in enumerate(wanted.tolist())}
        for number, frame in enumerate(self._decode(0)):
            row = rows.get(number)
            if row is not None and not frame.is_corrupt:
                self._convert(frame, frames[row])
                found[row] = True
            if number >= wanted[-1]:
                break
        self._codec.flush_buffers()
        return found

    def sound_frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Index and picture of each frame that can be decoded undamaged, as the file has it, in the order of time."""
        by_time = self._decoded_pts is None
        number_of = {time: number for number, time in enumerate(np.sort(self._pts[self._shown]).tolist())}
        for number, frame in enumerate(self._decode(0)):
            index = number_of.get(frame.pts) if by_time else number
            if index is not None and not frame.is_corrupt:
                yield index, frame

    def _fill_damaged(self, frames: np.ndarray, wanted: np.ndarray) -> None:
        """Decode everything; frames that cannot be had are replaced by the nearest ones that can."""
        sound = np.unique([index for index, _ in self.sound_frames()]).astype(np.int64)
        if len(sound) < LEAST_DECODABLE * self.info.num_frames:
            raise DecodeError(self.path, f"damaged: {len(sound)} of {self.info.num_frames} frames can be decoded")
        if len(sound) < self.info.num_frames:
            logger.warning("%s is damaged: %d of %d frames can be decoded", self.path, len(sound), self.info.num_frames)
        after = np.searchsorted(sound, wanted).clip(0, len(sound) - 1)
        before = (after - 1).clip(0)
        nearest = np.where(np.abs(sound[before] - wanted) <= np.abs(sound[after] - wanted), before, after)
        stand_in = sound[nearest]
        for index, frame in self.sound_frames():
            for row in np.flatnonzero(stand_in == index):
                self._convert(frame, frames[row])

    def _decode(self, first: int, times: set[int] | None = None) -> Iterator[av.VideoFrame]:
        """Frames from packet ``first`` on; with ``times``, at least those shown then and no more than needed.

        Frames that nothing refers to and nobody wants are not decoded at all. Packets that the
        decoder refuses are passed over.
        """
        codec, pending = self._codec, None if times is None else len(times)
        codec.flush_buffers()
        for packet in self._packets_from(first):
            wanted = times is None or packet.pts in times
            codec.skip_frame = "DEFAULT" if wanted else "NONREF"
            try:
                yield from codec.decode(packet)
            except av.FFmpegError as error:
                logger.debug("%s: packet at %s: %s", self.path, packet.pts, _reason(error))
            if times is not None and wanted:
                pending -= 1
                if not pending:
                    break
        codec.skip_frame = "DEFAULT"
        try:
            yield from codec.decode(None)
        except av.FFmpegError as error:
            logger.debug("%s: at its end: %s", self.path, _reason(error))
        codec.flush_buffers()

    def _packets_from(self, first: int) -> Iterator[av.Packet]:
        """The packets from ``first`` on: those held in memory, or of the file opened anew."""
        if self._held is not None:
            yield from self._held[first:]
            return
        start = self._dts[first] if first else None
        with self._open_container() as container:
            stream = container.streams[self._stream.index]
            if start is not None:
                container.seek(start, stream=stream, backward=True)
            for packet in container.demux(stream):
                if packet.size and (start is None or packet.dts is None or packet.dts >= start):
                    yield packet

    def _convert(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        self._turns = quarter_turns(frame)
        convert_frame(frame, out, self._reformatter, area=self._area)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Quarters of a turn, counterclockwise, that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def convert_frame(frame: av.VideoFrame, out: np.ndarray, reformatter: VideoReformatter, *, area: bool) -> None:
    """Write ``frame`` into ``out`` (RGB, uint8 [H, W, 3]), scaled to its size; ``area``: by area averages."""
    height, width, _ = out.shape
    interpolation = "AREA" if area else "BILINEAR"
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation=interpolation, **_ONE_THREAD)
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    out[:] = rows[:height, : width * 3].reshape(height, width, 3)


class TorchcodecFile(VideoFile):
    """A video file, decoded with torchcodec where that gives the frames that PyAV gives, and with PyAV elsewhere.

    Elsewhere: frames that are scaled, turned, of more than 8 bits, or whose times the packets do not tell, and damage.
    """

    def __init__(self, path: str | Path, **options) -> None:
        super().__init__(path, **options)
        self._threads = options.get("threads", 1)
        self._decoder = None
        scaled = self._size != (self._codec.width, self._codec.height)
        self._alike = not scaled and self._decoded_pts is None and self._codec.pix_fmt in _PLAIN_FORMATS

    def _fill(self, frames: np.ndarray, wanted: np.ndarray) -> None:
        if not (self._alike and self._fill_alike(frames, wanted)):
            self._alike = False
            super()._fill(frames, wanted)

    def _fill_alike(self, frames: np.ndarray, wanted: np.ndarray) -> bool:
        """Whether torchcodec has decoded the frames, and those of the same times."""
        from torchcodec.decoders import VideoDecoder

        try:
            if self._decoder is None:
                self._decoder = VideoDecoder(
                    self.path if self._data is None else self._data,
                    stream_index=self._stream.index,
                    dimension_order="NHWC",
                    num_ffmpeg_threads=self._threads,
                )
            found = self._decoder.get_frames_at(wanted.tolist())
        except (RuntimeError, ValueError, IndexError) as error:
            logger.debug("%s: not by torchcodec: %s", self.path, _reason(error))
            return False
        times = np.sort(self._pts[self._shown])[wanted] * float(self._stream.time_base)
        if found.data.shape != frames.shape or not np.allclose(found.pts_seconds.numpy(), times, rtol=0, atol=1e-4):
            return False
        frames[:] = found.data.numpy()
        return True


class FrameList:
    """Images, one per frame, in the order given; ``path`` stands for all of them in messages.

    With ``short_side`` the images are scaled (bilinear, antialiased) after decoding.
    """

    def __init__(self, files: Sequence[str], *, short_side: int | None = None, path: str | Path | None = None) -> None:
        if not len(files):
            raise DecodeError(str(path), "no frame is listed")
        self.path = str(path if path is not None else files[0])
        self._files = files
        self._short_side = short_side
        try:
            with Image.open(files[0]) as first:
                width, height = scaled_size(*first.size, short_side)
        except _BAD_IMAGE as error:
            raise self._error(files[0], error) from error
        self.info = VideoInfo(len(files), width, height)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at ``indices`` (any order, repeats allowed): uint8 [T, H, W, 3], RGB; each is read once."""
        wanted, place = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        images = []
        for index in wanted:
            image = self._image(self._files[index])
            if tuple(image.shape[:2]) != (self.info.height, self.info.width):
                first = f"{self.info.width}x{self.info.height}"
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise self._error(self._files[index], f"{size} pixels, the first has {first}")
            images.append(image)
        return torch.stack(images)[torch.from_numpy(place)]

    def _image(self, file: str) -> Tensor:
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except _BAD_IMAGE as error:
            raise self._error(file, error) from error
        size = scaled_size(*image.size, self._short_side)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image))

    def _error(self, file: str, cause: BaseException | str) -> DecodeError:
        if isinstance(cause, UnidentifiedImageError):
            reason = "not an image" if os.path.getsize(file) else "the file is empty"
        else:
            reason = cause if isinstance(cause, str) else "no such file" if _is_missing(cause) else _reason(cause)
        return DecodeError(self.path, reason if file == self.path else f"{os.path.basename(file)}: {reason}")


class FrameFolder(FrameList):
    """A folder of images, one per frame, in natural order of their names; hidden files are none."""

    def __init__(self, path: str | Path, *, short_side: int | None = None) -> None:
        try:
            names = [name for name in os.listdir(path) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
        except OSError as error:
            raise DecodeError(str(path), "no such folder" if _is_missing(error) else _reason(error)) from error
        if not names:
            raise DecodeError(str(path), f"the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
        files = [str(Path(path) / name) for name in sorted(names, key=_natural_order)]
        super().__init__(files, short_side=short_side, path=path)


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError)


def _natural_order(name: str) -> list:
    """Sorting key in which frame_2 comes before frame_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
