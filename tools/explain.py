#!/usr/bin/env python3
"""Where in a video a network sees what it says: frames under Grad-CAM of each pathway, or attention of transformers.

    python tools/explain.py yoga.mp4 --zoo slowfast_8x8_r50 --out sheet.png
    python tools/explain.py clip.mp4 --cfg A.yaml --checkpoint model.pyth --out sheet.png --target "zoom in"
    python tools/explain.py long.mp4 --cfg A.yaml --checkpoint model.pyth --from 12 --to 15 --video see.mp4

One clip is explained: the one in the middle of the video, or of the stretch from --from to --to, as a test would crop
it in its centre. How it works and what it cannot say: docs/explain.md. Exit status: 0, 1 if the video could not be
used, 2 for a wrong option.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Threads that wait for one another sleep instead of spinning. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
RATE = 4.0  # pictures per second of a written video


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video", metavar="VIDEO", help="a file, an address, or a folder of images")
    network = parser.add_argument_group("the network")
    network.add_argument("--zoo", metavar="NAME", help="a published one (python tools/zoo.py list)")
    network.add_argument("--cfg", metavar="FILE", help="the configuration that it was trained with")
    network.add_argument("--checkpoint", metavar="FILE", default="", help="its weights; default: as the file says")
    network.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="keys of the configuration")
    network.add_argument("--labels", metavar="FILE", help='class names: {"name": id}, ["name", ...] or lines of text')
    network.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    what = parser.add_argument_group("what is explained")
    what.add_argument("--target", metavar="CLASS", help="a name or number; default: the best class")
    what.add_argument("--layers", nargs="+", metavar="LAYER", help="one per pathway; default: its last stage")
    what.add_argument("--from", dest="start", type=float, default=0.0, metavar="SECONDS", help="start of a stretch")
    what.add_argument("--to", dest="end", type=float, metavar="SECONDS", help="its end; default: that of the video")
    results = parser.add_argument_group("results")
    results.add_argument("--out", metavar="OUT.png", help="the sheet; default: explained.png")
    results.add_argument("--video", dest="out_video", metavar="OUT.mp4", help="the clip's frames beside their maps")
    results.add_argument("--frames", type=int, default=8, metavar="N", help="frames on the sheet; default %(default)s")
    results.add_argument("--top-k", type=int, default=5, metavar="K", help="classes shown; default %(default)s")
    results.add_argument("--colormap", default="viridis", help="of matplotlib; default %(default)s")
    results.add_argument("--alpha", type=float, default=0.5, help="share of the colours; default %(default)s")
    options = parser.parse_args(args)
    if bool(options.zoo) == bool(options.cfg):
        parser.error("name the network: --zoo NAME, or --cfg FILE with --checkpoint FILE")
    if options.zoo and options.checkpoint:
        parser.error("--checkpoint goes with --cfg; --zoo brings its own weights")
    if options.frames < 1 or options.top_k < 1:
        parser.error("--frames and --top-k are 1 or more")
    if options.end is not None and options.end <= options.start:
        parser.error(f"--to {options.end:g} is not after --from {options.start:g}")
    if len(options.opts) % 2:
        parser.error(f"--opts takes pairs of KEY VALUE, {len(options.opts)} words were given")
    options.out = options.out or "explained.png"
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
    opts = [*opts, "NUM_GPUS", 0, "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE", True, *options.opts]
    named = {"labels": options.labels, "device": options.device}
    return Predictor.from_checkpoint(config, checkpoint, opts=opts, **named)


def class_id(target: str | None, names: Sequence[str]) -> int | None:
    """The class that ``target`` names or numbers."""
    if target is None:
        return None
    if target in names:
        return names.index(target)
    if target.isdigit() and int(target) < len(names):
        return int(target)
    import difflib

    close = difflib.get_close_matches(target, names, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"there are {len(names)}, such as {names[0]}"
    raise ValueError(f"--target {target}: no class is called so; {hint}")


def explain_video(predictor, options: argparse.Namespace) -> None:
    """Write the sheet and the video, and print what was explained."""
    from slowfast.utils.tables import text_table
    from slowfast.visualization import plots, sheets, timeline
    from slowfast.visualization.gradcam import explain
    from slowfast.visualization.reconstruction import to_pixels

    target = class_id(options.target, predictor.class_names)
    clip, times = predictor.clip_of(options.video, start_s=options.start, end_s=options.end)
    explanation = explain(predictor.network, clip, target, options.layers)
    normalize = predictor.clips.transform.normalize
    pixels = to_pixels(clip[0], normalize.mean, normalize.std, reverse_channels=normalize.reverse_channels)
    frames = pixels.cpu().numpy()
    name = predictor.class_names[explanation.targets[0]]
    guesses = sheets.best_shares(explanation.scores[0], predictor.class_names, options.top_k)
    print(f"{options.video}: {times.min():.2f} to {times.max():.2f} s, explained is {name!r}")
    print(text_table(("class", "score"), [(guess[0], f"{guess[1]:.3f}") for guess in guesses]))
    look = {"colormap": options.colormap, "alpha": options.alpha}
    rows = sheets.explained_rows(frames, explanation, columns=options.frames, **look)
    heading = f"{Path(options.video).name}, {times.min():.2f} to {times.max():.2f} s: where is {name}?"
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(plots.to_png(sheets.sheet(rows, guesses, heading=heading)))
    print(out)
    if options.out_video:
        explained = sheets.explained_frames(frames, explanation, **look)
        pictures = sheets.side_by_side(frames, explained, explanation, times_s=times, class_name=name)
        timeline.write_annotated(options.out_video, ((t / RATE, p) for t, p in enumerate(pictures)), fps=RATE)
        print(options.out_video)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if the video could not be used, 2 for a wrong option or network."""
    options = parse_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    import av

    from slowfast.datasets import DecodeError

    try:
        if not options.out.lower().endswith(".png"):
            raise ValueError(f"--out {options.out}: it must end in .png")
        predictor = build_predictor(options)
        explain_video(predictor, options)
    except DecodeError as error:
        print(f"{options.video} cannot be used: {error.reason}", file=sys.stderr)
        return 1
    except av.FFmpegError as error:
        print(f"{options.video} cannot be used: {error}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, OSError, NotImplementedError) as error:  # ConfigError, CheckpointError, ZooError too
        print(f"explain.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
