"""One video made into one that decodes fast: H.264 of small frames with many key frames, at the original's times.

The one idea: a frame keeps its time, its colours and its number; what changes is what it costs to reach it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from slowfast.datasets.prepare_plan import Video
from slowfast.datasets.sources import LEAST_DECODABLE, DecodeError, VideoFile, quarter_turns, scaled_size

PARTIAL = ".partial"  # folder of the files that are not complete
# Codecs that an mp4 file may hold as they are; other audio is encoded again.
_MP4_AUDIO = ("aac", "mp3", "opus", "ac3", "eac3", "alac", "flac")
_CUT_SLACK_S = 2.0  # a video this much longer than its annotated part is taken to be uncut
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_PROBES = 8  # frames of a video that are compared with the original
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # errors that are no video's fault


class PreparationError(RuntimeError):
    """What stops all of the preparation, not only a video: a folder that cannot be used, a full disk."""


@dataclass(frozen=True)
class Settings:
    """How videos are encoded: H.264 that decodes fast, key frames every ``gop`` frames, all others skippable alone."""

    short_side: int = 256  # larger videos are scaled down to it; 0: none is scaled
    gop: int = 16
    crf: int = 23  # x264's quality: 0 lossless, 18 hardly visible, 23 usual, 51 worst
    preset: str = "medium"  # x264's effort
    keep_audio: bool = False
    encode: bool = True  # False: nothing is written, every video is only decoded

    def __post_init__(self) -> None:
        if self.short_side < 0 or 0 < self.short_side < 16:
            raise ValueError(f"short side {self.short_side}: 16 or more, or 0 to scale nothing")
        if self.gop < 1:
            raise ValueError(f"{self.gop} frames from key frame to key frame: at least 1")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf {self.crf} is not 0 (lossless) to 51")
        if self.preset not in _PRESETS:
            raise ValueError(f"preset {self.preset!r} is not one of {', '.join(_PRESETS)}")

    def fingerprint(self) -> str:
        """The same text for the same settings."""
        return " ".join(f"{name}={value}" for name, value in sorted(asdict(self).items()))


@dataclass(frozen=True)
class Outcome:
    """What became of a video: a line of the manifest."""

    source: str
    target: str
    settings: str
    reason: str = ""  # why it is left out; empty where it is not
    note: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    bytes: int = 0
    sha256: str = ""
    psnr_db: float | None = None
    source_frames: int = 0
    source_width: int = 0
    source_height: int = 0
    source_bytes: int = -1
    source_mtime_ns: int = 0
    source_sha256: str = ""


def prepare_video(video: Video, folder: str, settings: Settings) -> Outcome:
    """Encode one video, or with ``settings.encode`` False only decode it; what is its own fault is not raised."""
    outcome = {"source": video.source, "target": video.target, "settings": settings.fingerprint()}
    try:
        outcome |= source_state(video.source)
        outcome["source_sha256"] = hash_of(video.source)
        reader = VideoFile(video.source)
        info = reader.info
        outcome |= {"source_frames": info.num_frames, "source_width": info.width, "source_height": info.height}
        if settings.encode:
            outcome |= _encode(video, reader, Path(folder), settings)
        else:
            outcome |= _decode(reader)
    except DecodeError as error:
        outcome["reason"] = error.reason
    except (OSError, av.FFmpegError) as error:
        if error.errno in _DISK:
            raise PreparationError(f"{folder}: {error.strerror}") from error
        outcome["reason"] = error.strerror or str(error)
    return Outcome(**outcome)


def source_state(path: str) -> dict[str, int]:
    """By what a changed source is known."""
    try:
        found = os.stat(path)
    except OSError:
        return {"source_bytes": -1, "source_mtime_ns": 0}
    return {"source_bytes": found.st_size, "source_mtime_ns": found.st_mtime_ns}


def hash_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _decode(reader: VideoFile) -> dict:
    info, sound = reader.info, sum(1 for _ in reader.sound_frames())
    note = _damage(reader, sound, info.num_frames)
    return {
        "note": note,
        "frames": info.num_frames,
        "fps": info.fps or 0.0,
        "width": info.width,
        "height": info.height,
        "seconds": info.num_frames / info.fps if info.fps else 0.0,
        "bytes": os.path.getsize(reader.path),
    }


def _damage(reader: VideoFile, sound: int, total: int) -> str:
    """What to note of a video with ``sound`` frames of ``total``; ``DecodeError`` where they are too few to use it."""
    if sound < max(1, LEAST_DECODABLE * total):
        raise DecodeError(reader.path, f"damaged: {sound} of {total} frames can be decoded")
    return "" if sound == total else f"damaged: {sound} of {total} frames can be decoded"


def _encode(video: Video, reader: VideoFile, folder: Path, settings: Settings) -> dict:
    partial_file = folder / PARTIAL / f"{hashlib.sha256(os.fsencode(video.target)).hexdigest()[:24]}.{os.getpid()}.mp4"
    partial_file.parent.mkdir(exist_ok=True)
    try:
        first, last = _wanted_frames(reader, video.part_s)
        probes = np.unique(np.linspace(first, last, _PROBES).round().astype(int))
        encoder = _Encoder(reader, str(partial_file), settings, first)
        with encoder:
            originals = {}  # by the number of the frame among those written
            for index, frame in reader.sound_frames():
                if index > last:
                    break
                if index >= first:
                    given = encoder.write(index, _upright(frame))
                    if index in probes:
                        originals[encoder.frames - 1] = given.to_ndarray(format="rgb24")
            note = _damage(reader, encoder.frames, last - first + 1)
            if settings.keep_audio:
                encoder.write_audio(last)
        result = VideoFile(partial_file)
        if result.info.num_frames != encoder.frames:
            raise PreparationError(f"{video.source}: {encoder.frames} frames became {result.info.num_frames}")
        facts = {
            "note": note or ("" if last - first + 1 == reader.info.num_frames else "cut out of a longer video"),
            "frames": result.info.num_frames,
            "fps": result.info.fps,
            "width": result.info.width,
            "height": result.info.height,
            "seconds": result.info.num_frames / result.info.fps,
            "bytes": partial_file.stat().st_size,
            "sha256": hash_of(partial_file),
            "psnr_db": psnr(np.stack([*originals.values()]), result.read([*originals]).numpy()),
        }
        target = folder / video.target
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial_file, target)
        return facts
    finally:
        with contextlib.suppress(OSError):
            partial_file.unlink(missing_ok=True)


def _wanted_frames(reader: VideoFile, part_s: tuple[float, float] | None) -> tuple[int, int]:
    """The first and the last frame to keep: all, unless the video is longer than the part of it that is meant."""
    total, timeline = reader.info.num_frames, reader.info.timeline
    if part_s is None or timeline is None:
        return 0, total - 1
    seconds = np.asarray(timeline.pts, dtype=np.float64) * float(timeline.time_base)
    start, end = part_s
    if seconds[-1] <= end - start + _CUT_SLACK_S:
        return 0, total - 1
    inside = np.flatnonzero((seconds >= start) & (seconds < end))
    if not len(inside):
        raise DecodeError(reader.path, f"{seconds[-1]:.0f} s long: nothing of it lies in {start:g} to {end:g} s")
    return int(inside[0]), int(inside[-1])


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures of the same shape in dB, at most 99."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float(min(99.0, 10 * np.log10(255**2 / max(error, 1e-12))))


class _Encoder:
    """An mp4 file in the making. Frames keep their times, so that a video's rate and length stay what they were."""

    def __init__(self, reader: VideoFile, path: str, settings: Settings, first: int) -> None:
        if "libx264" not in av.codecs_available:
            raise PreparationError(
                "this PyAV has no H.264 encoder (libx264): install it from its wheel, pip install av"
            )
        self._reader, self._path, self._settings = reader, path, settings
        timeline = reader.info.timeline
        self._rate = Fraction(reader.info.fps or 25).limit_denominator(1001)
        if timeline is None:
            times, base = np.arange(reader.info.num_frames), 1 / self._rate
        else:
            times, base = np.asarray(timeline.pts), Fraction(timeline.time_base)
        if base.numerator != 1 or base.denominator > 1_000_000:  # what an mp4 file cannot count in
            times, base = np.round(times.astype(np.float64) * float(base) * 90_000), Fraction(1, 90_000)
        # Two frames of one time become neighbours.
        self._times = np.maximum.accumulate(times.astype(np.int64) - np.arange(len(times))) + np.arange(len(times))
        self._first_s = float((self._times[first] - self._times[0]) * base)
        self._times -= self._times[first]
        self._base = base
        self._reformatter = VideoReformatter()
        self.frames = 0
        self._stream = self._audio = None

    def __enter__(self) -> _Encoder:
        self._output = av.open(self._path, "w", options={"movflags": "faststart"})
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._output.mux(self._stream.encode())
        finally:
            self._output.close()

    def write(self, index: int, frame: av.VideoFrame) -> av.VideoFrame:
        """Append frame ``index`` of the source; what was handed to the encoder."""
        small = self._reformatter.reformat(frame, *self._size(frame), "yuv420p", interpolation="AREA")
        small.pts, small.time_base = int(self._times[index]), self._base
        small.pict_type = PictureType.NONE  # the encoder chooses, not the source
        if self._stream is None:
            self._start(small)
        self._output.mux(self._stream.encode(small))
        self.frames += 1
        return small

    def _size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(width, height) of all frames written: both even, as 4:2:0 colour has it."""
        if self._stream is not None:
            return self._stream.width, self._stream.height
        side = self._settings.short_side
        shrink = side and min(frame.width, frame.height) > side
        return tuple(_even(x) for x in scaled_size(frame.width, frame.height, side if shrink else None))

    def _start(self, frame: av.VideoFrame) -> None:
        settings = self._settings
        options = {
            "crf": str(settings.crf),
            "preset": settings.preset,
            "tune": "fastdecode",
            "threads": "1",
            # Frames between others are referred to by none: a decoder may skip all that are not wanted.
            "x264-params": "b-pyramid=none:log-level=error",
        }
        self._stream = self._output.add_stream("libx264", rate=self._rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = frame.width, frame.height, "yuv420p"
        codec = self._stream.codec_context
        codec.time_base, codec.gop_size = self._base, settings.gop
        codec.color_range, codec.colorspace = frame.color_range, frame.colorspace
        if settings.keep_audio:
            self._add_audio()

    def _add_audio(self) -> None:
        with av.open(self._reader.path, metadata_errors="replace") as container:
            audio = container.streams.best("audio")
            if audio is None or audio.codec_context is None:
                return
            if audio.codec_context.codec.canonical_name in _MP4_AUDIO:
                self._audio = self._output.add_stream_from_template(audio)
            else:
                self._audio = self._output.add_stream("aac", rate=audio.codec_context.sample_rate)

    def write_audio(self, last: int) -> None:
        """Append the sound from the first to the ``last`` frame, if there is any."""
        if self._audio is None:
            return
        with av.open(self._reader.path, metadata_errors="replace") as container:
            audio, pictures = container.streams.best("audio"), container.streams.best("video")
            first_s = self._first_s + float((pictures.start_time or 0) * pictures.time_base)
            end_s = first_s + float(self._times[last] * self._base + 1 / self._rate)
            copied = audio.codec_context.codec.canonical_name in _MP4_AUDIO
            clock = Fraction(1, audio.codec_context.sample_rate)  # AVI's counts whole packets: too coarse
            for packet in container.demux(audio):
                if not packet.size or packet.pts is None:
                    continue
                at = float(packet.pts * packet.time_base)
                if not first_s <= at < end_s:
                    continue
                shift = round(first_s / packet.time_base)
                if copied:
                    packet.pts -= shift
                    packet.dts = packet.pts
                    packet.stream = self._audio
                    self._output.mux(packet)
                else:
                    for frame in packet.decode():
                        if frame.pts is not None:
                            frame.pts = round((frame.pts - shift) * frame.time_base / clock)
                            frame.time_base = clock
                        self._output.mux(self._audio.encode(frame))
            if not copied:
                self._output.mux(self._audio.encode())


def _even(number: int) -> int:
    return max(2, round(number / 2) * 2)


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame as it is meant to be looked at, where the file says that it is turned."""
    turns = quarter_turns(frame)
    if not turns:
        return frame
    turned = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return av.VideoFrame.from_ndarray(turned, format="rgb24")
