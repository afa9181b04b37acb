#!/usr/bin/env python3
"""Write the built-in data set with boxes: short videos of squares, each moving in its own way, in the form of AVA.

    python tools/make_boxes_dataset.py data/boxes
    python tools/run_net.py --cfg configs/Boxes/SLOWFAST_R18.yaml

The folder gets videos/, train.csv and val.csv (true boxes with classes), detected.csv (boxes as a detector would find
them in val), labels.pbtxt, and overview.png to look at. docs/detection.md explains the files and how to make your own.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slowfast.datasets.moving_boxes import CLASSES, KEY_SECONDS, BoxesSpec, make_video, write_boxes_dataset
from slowfast.visualization import plots


def draw_overview(spec: BoxesSpec, file: Path, rows: int = 4) -> None:
    """A picture of the key frames of the first training videos, with their boxes."""
    frames, captions = [], []
    for number in range(rows):
        video, squares, _ = make_video(spec, "train", number)
        for second in KEY_SECONDS:
            index = round(second * spec.fps)
            true = [(s.corners[index] / spec.side, s.motion + (", flicker" if s.flickers else "")) for s in squares]
            frames.append(plots.BoxedFrame(video[index], found=[], true=true))
            captions.append(f"train_{number:04d}, second {second:g}")
    file.write_bytes(plots.to_png(plots.boxed_frames(frames, captions, columns=len(KEY_SECONDS))))


def main(argv: list[str] | None = None) -> int:
    """Write the set, its overview, and say what it holds."""
    default = BoxesSpec()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument("--videos", type=int, nargs=2, metavar=("TRAIN", "VAL"), default=default.videos)
    parser.add_argument("--side", type=int, default=default.side, help="pixels, even; default %(default)s")
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    args = parser.parse_args(argv)
    spec = BoxesSpec(tuple(args.videos), args.side, seed=args.seed)
    with tqdm(total=sum(spec.videos), unit="video", disable=None) as bar:
        write_boxes_dataset(args.output, spec, on_video=bar.update)
    draw_overview(spec, args.output / "overview.png", rows=min(4, spec.videos[0]))
    for split in ("train", "val"):
        rows = [line.split(",") for line in (args.output / f"{split}.csv").read_text().splitlines()]
        boxes = {tuple(row[:6]) for row in rows}
        counts = np.bincount([int(row[6]) for row in rows], minlength=len(CLASSES) + 1)[1:]
        shares = ", ".join(f"{name} {count}" for name, count in zip(CLASSES, counts, strict=True))
        print(f"{split}: {len(boxes)} boxes in {len({row[0] for row in boxes})} videos ({shares})")
    print(f"{args.output}: look at overview.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
