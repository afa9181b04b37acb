#!/usr/bin/env python3
"""What is happening in videos: classes and scores of files, folders of them, or folders of images.

    python tools/predict.py yoga.mp4 --zoo slowfast_8x8_r50
    python tools/predict.py clips/ --cfg A.yaml --checkpoint model.pyth --json out.json --csv out.csv
    python tools/predict.py long.mp4 --cfg A.yaml --checkpoint model.pyth --window 4 --stride 2 --timeline out.png

A video is seen as a test sees it (TEST.NUM_ENSEMBLE_VIEWS clips, TEST.NUM_SPATIAL_CROPS crops each). With --window,
--stride, --timeline, --out-video or --features, windows slide over it instead, each of them seen in the same way, and
the scores of the video are merged over its windows. With several videos, each picture or video that is written carries
the name of its own. Exit status: 0, 1 if a video could not be used (the others are done), 2 for a wrong option.
"""

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# Threads that wait for one another sleep instead of spinning. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
MAX_ROWS = 40  # of a video in the printed table


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, addresses, folders of videos or images")
    network = parser.add_argument_group("the network")
    network.add_argument("--zoo", metavar="NAME", help="a published one (python tools/zoo.py list)")
    network.add_argument("--cfg", metavar="FILE", help="the configuration that it was trained with")
    network.add_argument("--checkpoint", metavar="FILE", default="", help="its weights; default: as the file says")
    network.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="keys of the configuration")
    network.add_argument("--labels", metavar="FILE", help='class names: {"name": id}, ["name", ...] or lines of text')
    network.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    network.add_argument("--batch-size", type=int, metavar="N", help="clips at once; default: TEST.BATCH_SIZE")
    windows = parser.add_argument_group("windows")
    windows.add_argument("--window", type=float, metavar="SECONDS", help="length; default: that of a clip")
    windows.add_argument("--stride", type=float, metavar="SECONDS", help="from one to the next; default: half a window")
    results = parser.add_argument_group("results")
    results.add_argument("--top-k", type=int, default=5, metavar="K", help="classes shown; default %(default)s")
    results.add_argument("--json", metavar="OUT", help="all results, with times in seconds")
    results.add_argument("--csv", metavar="OUT", help="the same as a table: a row for each class shown")
    results.add_argument("--timeline", metavar="OUT.png", help="a picture of the classes over time")
    results.add_argument("--out-video", metavar="OUT.mp4", help="the video with times, classes and scores on it")
    results.add_argument(
        "--features", nargs=2, metavar=("LAYER", "OUT.npz"), help="what a layer gives, a vector for each window"
    )
    options = parser.parse_args(args)
    if bool(options.zoo) == bool(options.cfg):
        parser.error("name the network: --zoo NAME, or --cfg FILE with --checkpoint FILE")
    if options.zoo and options.checkpoint:
        parser.error("--checkpoint goes with --cfg; --zoo brings its own weights")
    for name in ("top_k", "batch_size", "window", "stride"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} {value} is not more than 0")
    if len(options.opts) % 2:
        parser.error(f"--opts takes pairs of KEY VALUE, {len(options.opts)} words were given")
    return options


def build_predictor(options: argparse.Namespace):
    """The network that the options name, with its weights."""
    from slowfast import zoo
    from slowfast.visualization.predictor import Predictor

    config, checkpoint, opts = options.cfg, options.checkpoint, []
    if options.zoo:
        entry = zoo.find(options.zoo)
        if entry.task not in ("classification", "multi-label"):
            raise ValueError(f"--zoo {entry.name} is for {entry.task}: name one that classifies videos")
        config, opts = str(zoo.config_file(entry, ROOT)), entry.opts.split()
        checkpoint = str(zoo.download(entry))
    return Predictor.from_checkpoint(
        config,
        checkpoint,
        # One process, and all its cores may decode.
        opts=[*opts, "NUM_GPUS", 0, "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE", True, *options.opts],
        labels=options.labels,
        device=options.device,
        batch_size=options.batch_size,
        features=options.features[0] if options.features else None,
    )


# ---------------------------------------------------------------- one video after another


def predict_all(predictor, videos: Sequence[str], options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """A result for each video, printed as soon as it is known, and the features of each; some may be errors."""
    import av
    from tqdm import tqdm

    from slowfast.datasets import DecodeError
    from slowfast.visualization.video_io import names_of_outputs

    pictures = names_of_outputs(options.timeline, videos) if options.timeline else [None] * len(videos)
    drawn = names_of_outputs(options.out_video, videos) if options.out_video else [None] * len(videos)
    results, features = [], []
    for number, path in enumerate(tqdm(videos, desc="videos", unit="video", disable=None if len(videos) > 1 else True)):
        try:
            result, kept = predict_one(predictor, path, options, pictures[number], drawn[number])
        except (DecodeError, OSError, av.FFmpegError) as error:
            reason = str(error)
            tqdm.write(f"{path} cannot be used: {reason.removeprefix(f'{path}: ')}", file=sys.stderr)
            results.append({"video": path, "error": reason})
            continue
        tqdm.write(table_of(result) + "\n", file=sys.stdout)
        results.append(result)
        features += kept
    return results, features


def predict_one(
    predictor, path: str, options: argparse.Namespace, picture: Path | None, drawn: Path | None
) -> tuple[dict, list[dict]]:
    """The result of one video and its features, a row each; its picture and its annotated video are written."""
    if not (options.window or options.stride or picture or drawn or options.features):
        prediction = predictor.predict(path, progress=None)
        clips, crops = prediction.views
        return describe(prediction, f"{clips}x{crops} views", options.top_k), []
    from slowfast.visualization import plots, timeline

    windows = list(predictor.predict_windows(path, window_s=options.window, stride_s=options.stride, progress=None))
    prediction = predictor.merged(path, windows)
    result = describe(prediction, f"{len(windows)} windows", options.top_k)
    result["windows"] = [
        {"start_s": round(w.start_s, 3), "end_s": round(w.end_s, 3), "top": ranked(w, options.top_k)} for w in windows
    ]
    result["stretches"] = [
        {
            "start_s": round(part.start_s, 3),
            "end_s": round(part.end_s, 3),
            "class": part.name,
            "index": part.index,
            "score": round(part.score, 5),
        }
        for part in timeline.stretches(windows)
    ]
    if picture:
        figure = timeline.timeline_figure(windows, top_k=options.top_k, title=Path(path).name)
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(plots.to_png(figure))
        result["timeline"] = str(picture)
    if drawn:
        draw_video(predictor, path, windows, drawn, options.top_k)
        result["annotated"] = str(drawn)
    kept = [{"path": path, "start_s": w.start_s, "end_s": w.end_s, "features": w.features} for w in windows]
    return result, kept if options.features else []


def draw_video(predictor, path: str, windows: Sequence, out: Path, top_k: int) -> None:
    """Write the video with the scores of its windows."""
    from tqdm import tqdm

    from slowfast.datasets.sources import open_source
    from slowfast.visualization import timeline
    from slowfast.visualization.video_io import ahead

    if out.exists() and os.path.exists(path) and os.path.samefile(path, out):
        raise OSError(f"--out-video {out} is the video itself: name another file")
    info = open_source(path).info
    rate, look = info.fps or predictor.fps, timeline.Look(top_k=min(top_k, 5))
    frames = ahead(timeline.annotated_frames(path, windows, fps=predictor.fps, look=look))
    bar = tqdm(frames, total=info.num_frames, desc=out.name, unit="frame", leave=False, disable=None)
    timeline.write_annotated(out, bar, fps=rate)


def describe(prediction, seen: str, top_k: int) -> dict:
    """A result as plain values."""
    return {
        "video": prediction.path,
        "length_s": round(prediction.length_s, 3),
        "seen": seen,
        "top": ranked(prediction, top_k),
    }


def ranked(prediction, top_k: int) -> list[dict]:
    """The best classes as plain values."""
    return [
        {"class": guess.name, "index": guess.index, "score": round(guess.score, 5)} for guess in prediction.top(top_k)
    ]


# ---------------------------------------------------------------- written down


def table_of(result: dict) -> str:
    """One video as text: its best classes, then what happens when."""
    from slowfast.utils.tables import text_table

    head = f"{result['video']}  ({result['length_s']:.1f} s, {result['seen']})"
    parts = [head, text_table(("class", "score"), [(row["class"], f"{row['score']:.3f}") for row in result["top"]])]
    stretches = result.get("stretches", [])
    if len(stretches) > 1:
        rows = [
            (row["class"], f"{row['start_s']:.1f}", f"{row['end_s']:.1f}", f"{row['score']:.3f}")
            for row in stretches[:MAX_ROWS]
        ]
        parts.append(text_table(("over time", "from s", "to s", "score"), rows))
        if len(stretches) > MAX_ROWS:
            parts.append(f"and {len(stretches) - MAX_ROWS} more: --json and --csv have all")
    parts += [f"{kind}: {result[kind]}" for kind in ("timeline", "annotated") if kind in result]
    return "\n".join(parts)


def write_json(results: Sequence[dict], path: Path) -> None:
    """All results, errors among them."""
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(results: Iterable[dict], path: Path) -> None:
    """A row for each class shown of each video or, where there are some, of each window."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "start_s", "end_s", "rank", "class", "index", "score"))
        for result in results:
            if "error" in result:
                continue
            whole = [{"start_s": 0.0, "end_s": result["length_s"], "top": result["top"]}]
            for part in result.get("windows", whole):
                for rank, row in enumerate(part["top"], start=1):
                    place = (result["video"], part["start_s"], part["end_s"], rank)
                    writer.writerow((*place, row["class"], row["index"], row["score"]))


def write_features(rows: Sequence[dict], layer: str, path: Path) -> None:
    """Arrays ``features`` [N, D], ``start_s`` and ``end_s`` [N], ``video`` [N] (rows of ``paths``), and ``layer``."""
    import numpy as np

    paths = list(dict.fromkeys(row["path"] for row in rows))
    number = {video: place for place, video in enumerate(paths)}
    with path.open("wb") as file:  # by name alone, NumPy would add a suffix
        np.savez(
            file,
            features=np.stack([row["features"] for row in rows]).astype(np.float32),
            start_s=np.array([row["start_s"] for row in rows]),
            end_s=np.array([row["end_s"] for row in rows]),
            video=np.array([number[row["path"]] for row in rows]),
            paths=np.array(paths),
            layer=np.array(layer),
        )


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if a video could not be used, 2 for a wrong option or network."""
    options = parse_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from slowfast.visualization.video_io import WRITABLE_SUFFIXES, find_videos

    try:
        if options.out_video and not options.out_video.lower().endswith(WRITABLE_SUFFIXES):
            raise ValueError(f"--out-video {options.out_video}: it must end in one of {', '.join(WRITABLE_SUFFIXES)}")
        if options.timeline and not options.timeline.lower().endswith(".png"):
            raise ValueError(f"--timeline {options.timeline}: it must end in .png")
        videos = find_videos(options.videos)
        predictor = build_predictor(options)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:  # ConfigError, CheckpointError, ZooError too
        print(f"predict.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    try:
        results, features = predict_all(predictor, videos, options)
    except ValueError as error:
        print(f"predict.py: error: {error}", file=sys.stderr)
        return 2
    writers: list[tuple[str | None, Callable[[Path], None]]] = [
        (options.json, lambda path: write_json(results, path)),
        (options.csv, lambda path: write_csv(results, path)),
    ]
    if features:
        layer, file = options.features
        writers.append((file, lambda path: write_features(features, layer, path)))
    for name, write in writers:
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            write(Path(name))
            print(name)
    failed = [result["video"] for result in results if "error" in result]
    if failed:
        print(f"{len(failed)} of {len(results)} videos could not be used: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
