#!/usr/bin/env python3
"""Write the built-in motion data set: short H.264 videos whose class is how something moves.

    python tools/make_motion_dataset.py data/motion
    python tools/make_motion_dataset.py data/load --size 640x360 --frames 300 --gop 30 --videos-per-class 500 20 20
    python tools/make_motion_dataset.py --contact-sheet sheet.png

The first makes about 1500 videos in train, val and test with their lists (`path label`, relative paths) and
class_names.json; train on it with DATA.PATH_TO_DATA_DIR and DATA.PATH_PREFIX set to the folder, as the files under
configs/Motion do. The second is a load generator. The third only draws an overview. Run again, the tool completes
what is there. slowfast/datasets/motion.py tells how the set is built, and why one frame says nothing about the class.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from slowfast.datasets.motion import MOTIONS, SPLITS, MotionSpec, film_strips, write_dataset


def parse_size(text: str) -> tuple[int, int]:
    """``96x72`` as (width, height)."""
    width, _, height = text.partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write WIDTHxHEIGHT, such as 96x72") from None


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    default = MotionSpec()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", help="folder of the data set")
    parser.add_argument(
        "--videos-per-class",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=[default.scenes(split) for split in SPLITS],
        help="default: %(default)s",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", default=list(MOTIONS), help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=parse_size,
        default=(default.width, default.height),
        help="WIDTHxHEIGHT in pixels, even; default 96x72",
    )
    parser.add_argument("--frames", type=int, default=default.frames, help="frames per video; default %(default)s")
    parser.add_argument("--fps", type=int, default=default.fps, help="frames per second; default %(default)s")
    parser.add_argument(
        "--gop",
        type=int,
        default=default.gop,
        help="frames from one intra frame to the next; default %(default)s: no frame knows its neighbours",
    )
    parser.add_argument(
        "--qp", type=int, default=default.qp, help="H.264 quantiser, 0 (lossless) to 51; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    parser.add_argument("--overwrite", action="store_true", help="replace a motion data set made with other parameters")
    parser.add_argument(
        "--contact-sheet", metavar="FILE", help="draw an overview picture of the classes into FILE (.png)"
    )
    args = parser.parse_args(argv)
    if not args.output and not args.contact_sheet:
        parser.error("name the folder of the data set, or a --contact-sheet")
    return args


def contact_sheet(spec: MotionSpec, *, columns: int = 6, zoom: float = 1.0) -> Image.Image:
    """The classes in pairs side by side, each with ``columns`` frames over time; a pair starts from the same frame."""
    gap, margin, caption = 3, 14, 26
    width, height = round(spec.width * zoom), round(spec.height * zoom)
    strips = film_strips(spec, columns)
    block = columns * width + (columns - 1) * gap, height + caption
    rows = (len(strips) + 1) // 2
    sheet = Image.new("RGB", (2 * block[0] + 3 * margin, rows * (block[1] + margin // 2) + margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (name, frames) in enumerate(strips):
        x = margin + (i % 2) * (block[0] + margin)
        y = margin // 2 + (i // 2) * (block[1] + margin // 2)
        draw.text((x, y + 4), name.replace("_", " "), fill=(20, 24, 32), font=font)
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x + column * (width + gap), y + caption))
    return sheet


def describe(root: Path, spec: MotionSpec, seconds: float) -> str:
    """A table of what lies under ``root``."""
    lines = [f"{'split':<6} {'videos':>7} {'per class':>10} {'frames':>9} {'minutes':>8} {'MB':>7}"]
    for split in SPLITS:
        sizes = [(root / video.path).stat().st_size for video in spec.videos(split)]
        frames = len(sizes) * spec.frames
        lines.append(
            f"{split:<6} {len(sizes):>7} {spec.scenes(split):>10} {frames:>9} "
            f"{frames / spec.fps / 60:>8.1f} {sum(sizes) / 1e6:>7.1f}"
        )
    video = f"{spec.width}x{spec.height}, {spec.frames} frames at {spec.fps}/s, an intra frame every {spec.gop}"
    return "\n".join([*lines, "", f"{len(spec.classes)} classes, {video}; {seconds:.1f} s; in {root}"])


def main(argv: list[str] | None = None) -> int:
    """Make what the command line asks for; the exit status."""
    args = parse_args(argv)

    def bar(counts: Iterable[int], total: int) -> Iterator[int]:
        with tqdm(total=total, desc="motion videos", unit="video", disable=None) as shown:
            for count in counts:
                shown.update(count)
                yield count

    try:
        spec = MotionSpec(
            *args.videos_per_class,
            classes=tuple(args.classes),
            width=args.size[0],
            height=args.size[1],
            frames=args.frames,
            fps=args.fps,
            gop=args.gop,
            qp=args.qp,
            seed=args.seed,
        )
        if args.output:
            start = time.perf_counter()
            write_dataset(args.output, spec, workers=args.workers, overwrite=args.overwrite, progress=bar)
            print(describe(Path(args.output), spec, time.perf_counter() - start))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.contact_sheet:
        picture = contact_sheet(spec)
        picture.quantize(256, dither=Image.Dither.NONE).save(args.contact_sheet, optimize=True)
        print(f"{args.contact_sheet}: {picture.width} x {picture.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
