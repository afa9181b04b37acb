#!/usr/bin/env python3
"""What is happening in videos: classes and scores of files, folders of them, or folders of images; who does what.

    python tools/predict.py yoga.mp4 --zoo slowfast_8x8_r50
    python tools/predict.py clips/ --cfg A.yaml --checkpoint model.pyth --json out.json --csv out.csv
    python tools/predict.py clips/ --exported model.onnx
    python tools/predict.py long.mp4 --cfg A.yaml --checkpoint model.pyth --window 4 --stride 2 --timeline out.png
    python tools/predict.py --webcam 0 --seconds 20 --zoo slowfast_8x8_r50 --out-video out.mp4
    python tools/predict.py street.mp4 --zoo slowfast_8x8_r101_ava --detector torchvision --out-video out.mp4

A video is seen as a test sees it (TEST.NUM_ENSEMBLE_VIEWS clips, TEST.NUM_SPATIAL_CROPS crops each). With --window,
--stride, --timeline, --out-video or --features, windows slide over it instead, each of them seen in the same way, and
the scores of the video are merged over its windows. Cameras, pipes and network streams are always seen in windows. A
network that scores boxes (DETECTION.ENABLE) tells what each person does, at key frames. With several videos, each
picture or video that is written carries the name of its own. Exit status: 0, 1 if a video could not be used or a result
not be written (the others are), 2 for a wrong option, 130 after Ctrl-C; what is finished then is written all the same.
"""

import argparse
import csv
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Threads that wait for one another sleep instead of spinning. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
MAX_ROWS = 40  # of a video in the printed table


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO", help="files, addresses, folders of videos or images, - (standard input)"
    )
    parser.add_argument("--webcam", metavar="N", help="a camera, by number or name; the same as webcam:N")
    parser.add_argument("--seconds", type=float, metavar="S", help="of a camera or stream; default: until Ctrl-C")
    network = parser.add_argument_group("the network")
    network.add_argument("--zoo", metavar="NAME", help="a published one (python tools/zoo.py list)")
    network.add_argument("--cfg", metavar="FILE", help="the configuration that it was trained with")
    network.add_argument("--checkpoint", metavar="FILE", default="", help="its weights; default: as the file says")
    network.add_argument("--exported", metavar="FILE", help="one that tools/export.py wrote, in place of all these")
    network.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="keys of the configuration")
    network.add_argument("--labels", metavar="FILE", help='class names: {"name": id}, ["name", ...] or lines of text')
    network.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    network.add_argument("--batch-size", type=int, metavar="N", help="clips at once; default: TEST.BATCH_SIZE")
    boxes = parser.add_argument_group("people, for a network that scores boxes")
    boxes.add_argument("--boxes", metavar="CSV", help="rows video, second, x1, y1, x2, y2[, class[, score]], as in AVA")
    boxes.add_argument("--detector", metavar="NAME", help="torchvision (published weights), or a file of such weights")
    boxes.add_argument("--least", type=float, metavar="SCORE", help="of a person; default: DEMO.DETECTRON2_THRESH")
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
    if options.webcam is not None:
        options.videos.append(f"webcam:{options.webcam}")
    if not options.videos:
        parser.error("name a VIDEO, or a camera with --webcam N")
    if options.boxes and options.detector:
        parser.error("--boxes and --detector both say where people are: give one")
    if options.least is not None and not options.detector:
        parser.error("--least is of the people that a --detector finds: name one")
    if sum(map(bool, (options.zoo, options.cfg, options.exported))) != 1:
        parser.error("name the network: --zoo NAME, --cfg FILE with --checkpoint FILE, or --exported FILE")
    if options.checkpoint and not options.cfg:
        parser.error("--checkpoint goes with --cfg; --zoo and --exported bring their own weights")
    if options.exported and options.features:
        parser.error("--features looks into the network, an exported one is closed: name it by --cfg or --zoo")
    for name in ("top_k", "batch_size", "window", "stride", "seconds"):
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

    decode = ["DATA_LOADER.ENABLE_MULTI_THREAD_DECODE", True]  # one process, and all its cores may decode
    if options.exported:
        from slowfast.export import exported_predictor

        return exported_predictor(
            options.exported,
            opts=[*decode, *options.opts],
            labels=options.labels,
            device=options.device,
            batch_size=options.batch_size,
        )
    config, checkpoint, opts = options.cfg, options.checkpoint, []
    if options.zoo:
        config, checkpoint, opts = zoo.classifier(options.zoo, ROOT)
    return Predictor.from_checkpoint(
        config,
        checkpoint,
        opts=[*opts, "NUM_GPUS", 0, *decode, *options.opts],
        labels=options.labels,
        device=options.device,
        batch_size=options.batch_size,
        features=options.features[0] if options.features else None,
    )


def find_box_network(options: argparse.Namespace):
    """The configuration and the weights, where the options name a network that scores boxes; else None."""
    from slowfast import zoo
    from slowfast.config import load_cfg

    if options.zoo:
        entry = zoo.find(options.zoo)
        if entry.task != "detection":
            return None
        cfg = load_cfg(str(zoo.config_file(entry, ROOT)), [*entry.opts.split(), "NUM_GPUS", 0, *options.opts])
        return cfg, lambda: str(zoo.download(entry))
    if not options.cfg:
        return None
    cfg = load_cfg(options.cfg, ["NUM_GPUS", 0, *options.opts])
    return (cfg, lambda: options.checkpoint) if cfg.DETECTION.ENABLE else None


def build_box_predictor(cfg, checkpoint: Callable[[], str], options: argparse.Namespace):
    """The network that scores boxes, with its weights and its detector."""
    from slowfast import zoo
    from slowfast.datasets.ava import BoxLists
    from slowfast.utils.files import pathmgr
    from slowfast.visualization.box_predictor import BoxPredictor
    from slowfast.visualization.people import PersonDetector

    refused = [name for name in ("window", "timeline", "features") if getattr(options, name)]
    if refused:
        raise ValueError(f"--{refused[0]} is for networks that classify: this one scores boxes at key frames")
    if not (options.boxes or options.detector):
        raise ValueError("this network scores boxes: give --boxes FILE.csv, or --detector torchvision to find people")
    options.first_second, options.least_box = cfg.AVA.FIRST_SECOND, cfg.AVA.DETECTION_SCORE_THRESH
    if options.boxes:
        if not pathmgr.isfile(options.boxes):
            raise ValueError(f"--boxes {options.boxes}: there is no such file")
        # What is wrong with the whole list is said before anything is predicted.
        BoxLists().read(options.boxes, min_score=options.least_box, num_classes=cfg.MODEL.NUM_CLASSES)
    device, detector = options.device or default_device(), None
    if options.detector:
        file = str(zoo.download_detector()) if options.detector == "torchvision" else options.detector
        least = cfg.DEMO.DETECTRON2_THRESH if options.least is None else options.least
        detector = PersonDetector.from_file(file, least_score=least, device=device)
    options.batch_size = options.batch_size or cfg.TEST.BATCH_SIZE
    return BoxPredictor.from_cfg(cfg, checkpoint(), labels=options.labels, detector=detector, device=device)


def default_device() -> str:
    """A GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------- one video after another


def predict_all(predictor, videos: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[dict, list[dict]]]:
    """A result for each video, printed as soon as it is known, and its features; some may be errors."""
    import av
    from tqdm import tqdm

    from slowfast.datasets import DecodeError
    from slowfast.visualization.video_io import names_of_outputs

    pictures = names_of_outputs(options.timeline, videos) if options.timeline else [None] * len(videos)
    drawn = names_of_outputs(options.out_video, videos) if options.out_video else [None] * len(videos)
    for number, path in enumerate(tqdm(videos, desc="videos", unit="video", disable=None if len(videos) > 1 else True)):
        try:
            result, kept = predict_one(predictor, path, options, pictures[number], drawn[number])
        except (DecodeError, OSError, ValueError, av.FFmpegError) as error:
            reason = str(error)
            tqdm.write(f"{path} cannot be used: {reason.removeprefix(f'{path}: ')}", file=sys.stderr)
            yield {"video": path, "error": reason}, []
            continue
        tqdm.write(table_of(result) + "\n", file=sys.stdout)
        yield result, kept
        if result.get("stopped"):
            raise KeyboardInterrupt


def predict_one(
    predictor, path: str, options: argparse.Namespace, picture: Path | None, drawn: Path | None
) -> tuple[dict, list[dict]]:
    """The result of one video and its features, a row each; its picture and its annotated video are written."""
    from slowfast.visualization.box_predictor import BoxPredictor
    from slowfast.visualization.live import is_live

    if isinstance(predictor, BoxPredictor):
        return watch_people(predictor, path, options, drawn), []
    live = is_live(path)
    if not (live or options.window or options.stride or picture or drawn or options.features):
        prediction = predictor.predict(path, progress=None)
        clips, crops = prediction.views
        return describe(prediction, f"{clips}x{crops} views", options.top_k), []
    from slowfast.visualization import plots, timeline

    if live:
        windows = watch_classes(predictor, path, options, drawn)
    else:
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
        picture.write_bytes(plots.to_png(figure))
        result["timeline"] = str(picture)
    if drawn:
        if not live:
            draw_video(predictor, path, windows, drawn, options.top_k)
        result["annotated"] = str(drawn)
    kept = [{"path": path, "start_s": w.start_s, "end_s": w.end_s, "features": w.features} for w in windows]
    return result, kept if options.features else []


def watch_classes(predictor, path: str, options: argparse.Namespace, drawn: Path | None) -> list:
    """The windows of a camera or stream; it is drawn on while it is watched, for it comes only once."""
    from slowfast.visualization.live import open_stream
    from slowfast.visualization.watch import ClassWatcher

    stream = open_stream(path, fps=predictor.fps)
    span_s = options.window or ClassWatcher(predictor).span_of(stream)
    watcher = ClassWatcher(predictor, span_s=span_s, hop_s=options.stride or span_s / 2)
    return watch_stream(stream, watcher, options, drawn).predictions


def watch_people(predictor, path: str, options: argparse.Namespace, drawn: Path | None) -> dict:
    """The result of one video, file or live, with a network that scores boxes."""
    from slowfast.visualization import watch_results
    from slowfast.visualization.box_predictor import read_given_boxes
    from slowfast.visualization.live import open_stream
    from slowfast.visualization.watch import BoxWatcher

    stream, given = open_stream(path, upright=predictor.upright), None
    hop_s = options.stride or predictor.span_s(stream.fps) / 2
    if options.boxes:
        bounds = {"first_second": options.first_second, "min_score": options.least_box}
        given = read_given_boxes(options.boxes, path, num_classes=len(predictor.class_names), **bounds)
        hop_s = min((b.key_s - a.key_s for a, b in itertools.pairwise(given)), default=hop_s)
    watcher = BoxWatcher(predictor, given=given, hop_s=hop_s, reach=half(hop_s, stream.fps))
    found, length_s, stopped = watch_stream(stream, watcher, options, drawn)
    result = {
        "video": path,
        "length_s": round(length_s, 3),
        "seen": f"{len(found)} key frames",
        "key_frames": [watch_results.line_of(prediction, options.top_k) for prediction in found],
        "people": watch_results.people_of(found, options.top_k),
    }
    result |= {"stopped": True} if stopped else {}
    return {**result, "annotated": str(drawn)} if drawn else result


class Watched(NamedTuple):
    """What a network saw in a stream of that length, and whether Ctrl-C ended a file before its end."""

    predictions: list
    length_s: float
    stopped: bool


def watch_stream(stream, watcher, options: argparse.Namespace, drawn: Path | None) -> Watched:
    """What a network sees in a stream, up to Ctrl-C; written with that on it where ``drawn`` is given."""
    from tqdm import tqdm

    from slowfast.visualization.drawing import DrawStyle, LabelRule
    from slowfast.visualization.live import stopped_by_ctrl_c
    from slowfast.visualization.watch import check_output, watch, write_drawn

    predictions, length_s = [], 0.0
    bar = tqdm(desc=stream.name, total=stream.num_frames, unit="frame", leave=False, disable=None)

    def noted(found):
        nonlocal length_s
        for clip, prediction in found:
            predictions.extend([prediction] if prediction is not None else [])
            length_s = clip.fresh[-1].time_s + 1 / stream.fps if clip.fresh else length_s
            bar.update(len(clip.fresh))
            yield clip, prediction

    with stopped_by_ctrl_c() as stop, bar:
        limited = stream.until(seconds=options.seconds if stream.live else None, stopped=stop.is_set)
        found = noted(watch(limited, [watcher], batch_size=options.batch_size or 1))
        if drawn:
            check_output(drawn, stream.name)
            style = DrawStyle(LabelRule(top_k=min(options.top_k, 3)), reach=half(watcher.hop_s, stream.fps))
            write_drawn(drawn, found, style, fps=stream.fps)
        else:
            for _ in found:
                pass
    return Watched(predictions, length_s, stop.is_set() and not stream.live)


def half(hop_s: float, fps: float) -> int:
    """Frames from one key frame halfway to the next: so far each is drawn."""
    return max(1, round(hop_s * fps / 2))


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
    from slowfast.visualization.watch_results import people_table

    head = f"{result['video']}  ({result['length_s']:.1f} s, {result['seen']})"
    if "people" in result:
        written = [f"annotated: {result['annotated']}"] if "annotated" in result else []
        found = people_table(result["people"], most=MAX_ROWS) if result["people"] else "nobody was found"
        return "\n".join([head, found, *written])
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
    """A row for each class shown of each video or, where there are some, of each window or person."""
    from slowfast.visualization.watch_results import BOX_COLUMNS, box_rows

    results = [result for result in results if "error" not in result]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if any("people" in result for result in results):
            writer.writerow(BOX_COLUMNS)
            for result in results:
                writer.writerows(box_rows(result["video"], result["key_frames"]))
            return
        writer.writerow(("video", "start_s", "end_s", "rank", "class", "index", "score"))
        for result in results:
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


def write_results(done: Sequence[tuple[dict, list[dict]]], options: argparse.Namespace) -> bool:
    """Write the results and features of ``done`` as the options say; False where one cannot be written."""
    results = [result for result, _ in done]
    features = [row for _, kept in done for row in kept]
    writers: list[tuple[str | None, Callable[[Path], None]]] = [
        (options.json, lambda path: write_json(results, path)),
        (options.csv, lambda path: write_csv(results, path)),
    ]
    if features:
        layer, file = options.features
        writers.append((file, lambda path: write_features(features, layer, path)))
    whole = True
    for name, write in writers:
        if name:
            try:
                write(Path(name))
            except OSError as error:
                print(f"predict.py: error: {name} cannot be written: {error.strerror or error}", file=sys.stderr)
                whole = False
            else:
                print(name)
    return whole


# ---------------------------------------------------------------- the command


def check_outputs(options: argparse.Namespace, videos: Sequence[str]) -> None:
    """Make the folders of what will be written; ``ValueError`` where it cannot be, before anything is predicted."""
    from slowfast.visualization.video_io import WRITABLE_SUFFIXES, names_of_outputs

    if options.out_video and not options.out_video.lower().endswith(WRITABLE_SUFFIXES):
        raise ValueError(f"--out-video {options.out_video}: it must end in one of {', '.join(WRITABLE_SUFFIXES)}")
    if options.timeline and not options.timeline.lower().endswith(".png"):
        raise ValueError(f"--timeline {options.timeline}: it must end in .png")
    named = {"--json": options.json, "--csv": options.csv, "--features": (options.features or [None])[-1]}
    outputs = [(option, Path(name)) for option, name in named.items() if name]
    for option, name in (("--timeline", options.timeline), ("--out-video", options.out_video)):
        outputs += [(option, path) for path in names_of_outputs(name, videos)] if name else []
    for option, path in outputs:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{option} {path}: {path.parent} cannot be made a folder: {error.strerror}") from error
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder: name a file")
        # A video grows under another name beside its own.
        if not os.access(path if path.exists() and option != "--out-video" else path.parent, os.W_OK):
            raise ValueError(f"{option} {path} cannot be written: permission denied")


def prepare(options: argparse.Namespace):
    """The network and the videos that the options name. ``ValueError`` and others where they do not go together."""
    from slowfast.visualization.live import is_live
    from slowfast.visualization.video_io import find_videos

    videos = find_videos(options.videos)
    check_outputs(options, videos)
    if options.features and any(map(is_live, videos)):
        raise ValueError("--features reads files only: a camera or stream comes once")
    if options.seconds is not None and not any(map(is_live, videos)):
        raise ValueError("--seconds ends a camera or stream: there is none, and files are watched whole")
    boxes = find_box_network(options)
    if boxes is None and (options.boxes or options.detector):
        raise ValueError("--boxes and --detector are for networks that score boxes (DETECTION.ENABLE)")
    return build_box_predictor(*boxes, options) if boxes else build_predictor(options), videos


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if a video could not be used, 2 for a wrong option or network, 130 after Ctrl-C."""
    options = parse_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        predictor, videos = prepare(options)
    except (ValueError, KeyError, OSError, NotImplementedError, ImportError) as error:  # ConfigError, ZooError too
        print(f"predict.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the first video", file=sys.stderr)
        return 130
    done: list[tuple[dict, list[dict]]] = []
    interrupted, written = False, True
    try:
        for item in predict_all(predictor, videos, options):
            done.append(item)
    except KeyboardInterrupt:
        interrupted = True
    finally:  # whatever happened: what is finished is not lost
        if done:
            written = write_results(done, options)
    failed = [result["video"] for result, _ in done if "error" in result]
    if failed:
        print(f"{len(failed)} of {len(videos)} videos could not be used: {', '.join(failed)}", file=sys.stderr)
    if interrupted:
        print(f"interrupted: {len(done)} of {len(videos)} videos are done", file=sys.stderr)
        return 130
    return 0 if written and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
