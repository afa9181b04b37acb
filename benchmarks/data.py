"""How fast one core feeds a network: this project's loader against three plain ones, in one run.

    python benchmarks/data.py [--videos FOLDER] [--work FOLDER] [--rounds 5] [--table benchmarks/results/data.md]

``--videos`` holds any videos: each is cut or repeated to 10 seconds of 340x256 (H.264, x264's defaults), which is what
the published copies of Kinetics hold; those that are so already are used as they are.

Sides: (a) ``plain``: PyAV, the rules of PySlowFast followed to the letter (each view decoded on its own, every frame of
the span converted, float arithmetic on full frames); (b) ``pytorchvideo``: its LabeledVideoDataset; (c) ``decord`` and
``torchcodec`` used plainly where they can be imported; and ``ours``: ``build_dataset`` with the same recipe. Tasks: a
training sample of SlowFast (32 frames, stride 2) and of Slow (8 frames, stride 8) at 224 pixels, and 10 x 3-view
testing of SlowFast at 256. "prepared" is our loader on the same clips as ``tools/prepare_videos.py`` writes them.

Every side runs in a fork of its own on one thread, and the sides take turns. Times are processor time, medians over
rounds; a ratio is the median of the ratios within a round. Memory is how much the resident set grew. Our clips leave a
worker as bytes and are normalised on the device; "ours, normalised" does that on the same core too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from slowfast.config import load_cfg
from slowfast.datasets import build_dataset, clips, collate, sources
from slowfast.datasets.batch import Batch, Request
from slowfast.datasets.encode import Settings, prepare_video
from slowfast.datasets.prepare_plan import Video
from slowfast.datasets.sampling import ClipSpec, View, clip_span, clip_start
from slowfast.datasets.sources import why_not_torchcodec
from slowfast.datasets.transforms import geometry, presets

ROOT = Path(__file__).resolve().parents[1]
SIZE, SECONDS = (340, 256), 10
MEAN, STD = 0.45, 0.225
VIEWS, CROPS = 10, 3


@dataclass(frozen=True)
class Task:
    """What is asked of a loader: training samples, or all views of a video."""

    name: str
    config: str
    spec: ClipSpec
    test: bool = False

    @property
    def clips(self) -> int:
        """Clips that one video gives."""
        return VIEWS * CROPS if self.test else 1


TASKS = [
    Task("training, 32 frames x 2", "SLOWFAST_8x8_R50", ClipSpec(32, 2, 30)),
    Task("training, 8 frames x 8", "SLOW_8x8_R50", ClipSpec(8, 8, 30)),
    Task("testing 10 x 3, 32 frames x 2", "SLOWFAST_8x8_R50", ClipSpec(32, 2, 30), test=True),
]


# ---------------------------------------------------------------- sides: videos to clips [B, C, T, H, W]


def plain_clip(path: str, spec: ClipSpec, view: View | None, rng: np.random.Generator) -> Tensor:
    """One clip: every frame of its span is converted, then made float and normalised as a whole."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        fps, base = float(stream.guessed_rate), stream.time_base
        span = clip_span(spec, fps)
        start = clip_start(fps * float(stream.duration * base), span, view, rng)
        first, last = (int(at * base.denominator / (base.numerator * fps)) for at in (start, start + span - 1))
        container.seek(first, stream=stream, backward=True)
        frames = []
        for frame in container.decode(stream):
            if frame.pts > last:
                break
            if frame.pts >= first:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    chunk = torch.stack(frames)
    chosen = torch.linspace(0, span - 1, spec.num_frames).clamp(0, len(chunk) - 1).long()
    clip = (chunk[chosen].float() / 255 - MEAN) / STD
    clip = clip.permute(3, 0, 1, 2)
    return plain_crop(clip, rng) if view is None else geometry.uniform_crop(clip, 256, view.crop)[0]


def plain_crop(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """Random short side of 256 to 320, crop of 224 and flip on full float frames [C, T, H, W]."""
    height, width = clip.shape[-2:]
    size = geometry.short_side_size(height, width, round(rng.uniform(256, 320)))
    clip = F.interpolate(clip, size=size, mode="bilinear", align_corners=False)
    return geometry.random_flip(geometry.random_crop(clip, 224, rng)[0], rng)[0]


def run_plain(paths: list[str], task: Task, rng: np.random.Generator) -> Tensor:
    """Side (a)."""
    views = [View.of_row(row, VIEWS, CROPS) for row in range(task.clips)] if task.test else [None]
    return torch.stack([plain_clip(path, task.spec, view, rng) for path in paths for view in views])


def run_pytorchvideo(paths: list[str], task: Task, rng: np.random.Generator) -> Tensor:
    """Side (b): its iterable data set with its clip samplers, and the same work on frames."""
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler
    from torch.utils.data import SequentialSampler

    seconds = task.spec.num_frames * task.spec.stride / task.spec.fps
    sampler = (
        make_clip_sampler("constant_clips_per_video", seconds, VIEWS, CROPS)
        if task.test
        else make_clip_sampler("random", seconds)
    )

    def transform(item: dict) -> Tensor:
        frames = item["video"]  # float [C, T, H, W]: all of the span
        chosen = torch.linspace(0, frames.shape[1] - 1, task.spec.num_frames).long()
        clip = (frames[:, chosen] / 255 - MEAN) / STD
        return geometry.uniform_crop(clip, 256, item["aug_index"])[0] if task.test else plain_crop(clip, rng)

    dataset = LabeledVideoDataset(
        [(path, {"label": 0}) for path in paths], sampler, SequentialSampler, transform, decode_audio=False
    )
    return torch.stack(list(dataset))


def run_reader(paths: list[str], task: Task, rng: np.random.Generator, open_reader: Callable) -> Tensor:
    """Side (c): a clip is read by its indices; the crops of a test clip share its frames."""
    found = []
    for path in paths:
        total, fps, read = open_reader(path)
        span = clip_span(task.spec, fps)
        for view in range(VIEWS) if task.test else [None]:
            place = None if view is None else View(view, VIEWS, 0, CROPS)
            start = clip_start(total, span, place, rng)
            chosen = torch.linspace(start, start + span - 1, task.spec.num_frames).clamp(0, total - 1).long()
            clip = (read(chosen.tolist()).float() / 255 - MEAN) / STD
            clip = clip.permute(3, 0, 1, 2)  # [T, H, W, C] -> [C, T, H, W]
            if task.test:
                found += [geometry.uniform_crop(clip, 256, crop)[0] for crop in range(CROPS)]
            else:
                found.append(plain_crop(clip, rng))
    return torch.stack(found)


def open_torchcodec(path: str):
    """(frames, rate, function from indices to uint8 [T, H, W, C])."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return len(decoder), decoder.metadata.average_fps, lambda chosen: decoder.get_frames_at(chosen).data


def open_decord(path: str):
    """The same of decord."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return len(reader), reader.get_avg_fps(), lambda chosen: torch.from_numpy(reader.get_batch(chosen).asnumpy())


def run_ours(paths: list[str], task: Task, rng: np.random.Generator) -> Batch:
    """This project's data set, from annotation to batch."""
    dataset = our_dataset(paths, task)
    epoch = int(rng.integers(1 << 30))
    if task.test:
        batches = [[dataset[row] for row in range(video * 30, video * 30 + 30)] for video in range(len(paths))]
        return [collate(samples) for samples in batches][-1]
    return collate([dataset[Request(video, epoch)] for video in range(len(paths))])


def run_ours_normalised(paths: list[str], task: Task, rng: np.random.Generator) -> Batch:
    """The same with what is left to the device."""
    return run_ours(paths, task, rng).to("cpu")


def our_dataset(paths: list[str], task: Task):
    """The data set of ``task`` over ``paths``."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            (Path(folder) / f"{split}.csv").write_text("".join(f"{path} 0\n" for path in paths))
        keys = ["DATA.PATH_TO_DATA_DIR", folder, "DATA.PATH_PREFIX", "", "DATA.TEST_CROP_SIZE", 256]
        cfg = load_cfg(ROOT / "configs" / "Kinetics" / f"{task.config}.yaml", keys)
        dataset = build_dataset("kinetics", cfg, "test" if task.test else "train")
    dataset.as_bytes = True  # as ``build_loader`` sets it
    return dataset


# ---------------------------------------------------------------- measuring


class Stages:
    """Seconds of processor time per stage: what a stage calls of another one counts there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[list] = []

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of ``owner.name`` as ``stage``."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            entered = time.process_time()
            self._running.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - entered
                self.seconds[stage] += spent - self._running.pop()
                if self._running:
                    self._running[-1] += spent

        setattr(owner, name, timed)


def measure(run: Callable, paths: list[str], task: Task, seed: int, profile: bool = False) -> tuple[float, float, dict]:
    """(processor seconds per video, growth of memory in MiB, seconds per stage) in a fork of this process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        run(paths[:1], task, np.random.default_rng(seed))
        stages = wrap_stages() if profile else Stages()
        before = resident_bytes()
        started = time.process_time()
        run(paths, task, np.random.default_rng(seed))
        spent = (time.process_time() - started) / len(paths)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sender.send((spent, (peak - before) / 2**20, {k: v / len(paths) for k, v in stages.seconds.items()}))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"a side of the benchmark died: {run}") from None
    finally:
        process.join()


def wrap_stages() -> Stages:
    """Clocks around the parts of our loader."""
    stages = Stages()
    stages.wrap(sources.VideoFile, "_open", "open")
    stages.wrap(sources.VideoFile, "_read_packets", "seek (index)")
    stages.wrap(sources.VideoFile, "_fill", "decode")
    stages.wrap(sources.VideoFile, "_convert", "convert")
    stages.wrap(geometry, "resize_bytes", "resize")
    stages.wrap(presets.TrainTransform, "pixels", "augment")
    stages.wrap(presets.EvalTransform, "part", "augment")
    stages.wrap(sys.modules[__name__], "collate", "collate")
    stages.wrap(clips.ClipDataset, "__getitem__", "other")
    return stages


def resident_bytes() -> int:
    """The resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- clips


def make_clips(videos: Path, folder: Path) -> list[str]:
    """The clips of ``videos``: 10 seconds of 340x256; files that cannot be decoded are left out."""
    found = []
    for path in sorted(videos.iterdir()):
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                rate = stream.guessed_rate
                ready = (stream.width, stream.height) == SIZE and abs(container.duration / 1e6 - SECONDS) < 0.1
                frames = [] if ready else [frame.reformat(*SIZE, "yuv420p") for frame in container.decode(stream)]
        except (av.FFmpegError, IndexError, OSError, TypeError):
            continue
        if ready:
            found.append(shutil.copy(path, folder))
        elif len(frames) >= 100:  # at least a third of it is not repeated
            found.append(encode(frames, rate, folder / f"{path.stem}.mp4"))
    if not found:
        raise SystemExit(f"no video of {videos} can be decoded; name others with --videos, or clips with --clips")
    return found


def prepare(path: str, folder: Path) -> None:
    """The clip as ``tools/prepare_videos.py`` stores it."""
    outcome = prepare_video(Video(path, f"{Path(path).stem}.mp4"), str(folder), Settings())
    if outcome.reason:
        raise SystemExit(f"{path} cannot be prepared: {outcome.reason}")


def encode(frames: list, rate, path: Path) -> str:
    """H.264 of ``frames`` with x264's defaults, repeated to 10 seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"x264-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(round(SECONDS * rate)):
            lap, place = divmod(number, len(frames))
            frame = frames[len(frames) - 1 - place if lap % 2 else place]  # forth and back: no cut at the end
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, av.video.frame.PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


# ---------------------------------------------------------------- table


def why_not_import(name: str) -> str:
    """Why ``name`` cannot be imported; empty if it can."""
    try:
        __import__(name)
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def available_sides() -> tuple[dict[str, Callable], list[str]]:
    """The sides that can run here, and why others cannot."""
    sides: dict[str, Callable] = {"plain (a)": run_plain, "pytorchvideo (b)": run_pytorchvideo}
    absent = []
    for name, opener in {"decord": open_decord, "torchcodec": open_torchcodec}.items():
        reason = why_not_torchcodec() if name == "torchcodec" else why_not_import(name)
        if reason:
            absent.append(f"{name} cannot be used ({reason})")
        else:
            sides[f"{name} (c)"] = lambda paths, task, rng, opener=opener: run_reader(paths, task, rng, opener)
    return {**sides, "ours, normalised": run_ours_normalised, "ours": run_ours}, absent


def compare(task: Task, as_is: list[str], prepared: list[str], rounds: int, samples: int) -> list[str]:
    """Rows of the table of one task, and where our time goes."""
    sides, _ = available_sides()
    runs = {name: (run, as_is) for name, run in sides.items()} | {"ours, prepared files": (run_ours, prepared)}
    seconds: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = defaultdict(list)
    count = max(2, samples // (8 if task.test else 1))
    for turn in tqdm(range(rounds), desc=task.name, unit="round", leave=False):
        for name, (run, paths) in runs.items():
            chosen = [paths[(turn * count + number) % len(paths)] for number in range(count)]
            spent, grown, _ = measure(run, chosen, task, seed=turn)
            seconds[name].append(spent / task.clips)
            memory[name].append(grown)
    others = [name for name in runs if not name.startswith("ours")]

    def against(name: str, other: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[other]))

    best = min(others, key=lambda name: statistics.median(seconds[name]))
    lines = [f"## {task.name}", "", f"The best of (a)-(c) is {best}.", ""]
    lines += [
        "| loader | clips/s of one core | ms per clip | against plain | against the best of (a)-(c) | memory, MiB |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name in runs:
        middle = statistics.median(seconds[name])
        lines.append(
            f"| {name} | {1 / middle:.1f} | {1000 * middle:.1f} | {against(name, 'plain (a)'):.1f}x | "
            f"{against(name, best):.1f}x | {statistics.median(memory[name]):.0f} |"
        )
    for title, paths in (("files as they are", as_is), ("prepared files", prepared)):
        stages = measure(run_ours, (paths * samples)[:count], task, seed=0, profile=True)[2]
        total = sum(stages.values())
        parts = ", ".join(
            f"{name} {1000 * s / task.clips:.2f}" for name, s in sorted(stages.items(), key=lambda x: -x[1])
        )
        lines += ["", f"Where our time goes, {title} (ms per clip, {1000 * total / task.clips:.2f} in all): {parts}."]
    return [*lines, ""]


def main() -> None:
    """Make the clips, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared" / "videos", help="videos to cut clips of")
    parser.add_argument("--work", type=Path, help="folder that keeps the clips for the next time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=12, help="videos per round and side")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--table", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cut, done = (args.work or Path(scratch)) / "clips", (args.work or Path(scratch)) / "prepared"
        if not done.exists():
            cut.mkdir(parents=True)
            made = make_clips(args.videos, cut)
            done.mkdir()
            for path in tqdm(made, desc="prepare", leave=False):
                prepare(path, done)
        as_is, prepared = (sorted(map(str, folder.glob("*.mp4"))) for folder in (cut, done))
        bytes_per_clip = [sum(os.path.getsize(path) for path in paths) / len(paths) for paths in (as_is, prepared)]
        lines = [
            "# Clips per second of one core",
            "",
            f"`python benchmarks/data.py --rounds {args.rounds} --samples {args.samples}`: {len(as_is)} clips of 10 s, "
            f"{SIZE[0]}x{SIZE[1]}, {bytes_per_clip[0] / 1e3:.0f} kB each ({bytes_per_clip[1] / 1e3:.0f} kB prepared). "
            f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}, PyAV {av.__version__}. "
            "Processor time of one thread, medians.",
            "",
            *available_sides()[1],
        ]
        for task in TASKS:
            if args.only in task.name:
                rows = compare(task, as_is, prepared, args.rounds, args.samples)
                print("\n".join(rows), flush=True)
                lines += rows
    if args.table:
        args.table.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
