#!/usr/bin/env python3
"""Make videos train fast: check and re-encode them, write lists, class names and a manifest.

    python tools/prepare_videos.py my/videos prepared                             class folders, or any folder of videos
    python tools/prepare_videos.py downloads prepared --kinetics train.csv val.csv          official Kinetics annotation
    python tools/prepare_videos.py my/videos prepared --lists my/lists                   lists of lines "path label"

The original files are only read. Stop it at any time, in any way: the same command goes on from there. Then train with
DATA.PATH_TO_DATA_DIR and DATA.PATH_PREFIX set to the output folder; docs/preparing_videos.md tells more.
"""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from slowfast.datasets.encode import Outcome, PreparationError, Settings
from slowfast.datasets.folders import SPLITS
from slowfast.datasets.prepare import alike, list_separator, measure_speed, prepare
from slowfast.datasets.prepare_plan import Plan, plan_folder, plan_kinetics, plan_lists
from slowfast.utils.tables import text_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    usual = Settings()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="the folder of the original videos")
    parser.add_argument("output", help="the folder to make")
    parser.add_argument("--kinetics", nargs="+", metavar="CSV", help="label,youtube_id,time_start,time_end,split")
    parser.add_argument(
        "--lists", metavar="FOLDER", help="of train.csv, val.csv, test.csv; paths relative to the input"
    )
    parser.add_argument("--separator", default=" ", help="between path and label in those lists; default a space")
    parser.add_argument("--class-names", default="", metavar="JSON", help='ids of the classes: {"name": id, ...}')
    parser.add_argument("--seed", type=int, default=0, help="draws the splits of a folder without; default %(default)s")
    parser.add_argument(
        "--short-side", type=int, default=usual.short_side, metavar="PIXELS", help="0: as it is; default %(default)s"
    )
    parser.add_argument(
        "--gop", type=int, default=usual.gop, metavar="FRAMES", help="key frame to key frame; default %(default)s"
    )
    parser.add_argument("--crf", type=int, default=usual.crf, help="quality: 0 lossless, 51 worst; default %(default)s")
    parser.add_argument("--preset", default=usual.preset, help="x264's effort; default %(default)s")
    parser.add_argument("--keep-audio", action="store_true", help="keep the sound")
    parser.add_argument(
        "--no-encode", action="store_true", help="only check that videos decode, and list them where they are"
    )
    parser.add_argument("--workers", type=int, default=cores, help="processes; default one per core (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="for one video; default %(default)g"
    )
    parser.add_argument("--retry", action="store_true", help="try videos again that an earlier run left out")
    parser.add_argument(
        "--speed-sample", type=int, default=8, metavar="VIDEOS", help="timed before and after; default %(default)s"
    )
    args = parser.parse_args(argv)
    if args.kinetics and args.lists:
        parser.error("--kinetics or --lists, not both")
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    if args.kinetics:
        return plan_kinetics(args.kinetics, args.input, args.class_names)
    if args.lists:
        return plan_lists(args.lists, args.input, args.separator)
    return plan_folder(args.input, args.seed, args.class_names)


def run(args: argparse.Namespace) -> int:
    """Prepare and report; the exit status: 0, or 3 if videos had to be left out."""
    settings = Settings(args.short_side, args.gop, args.crf, args.preset, args.keep_audio, not args.no_encode)
    plan = make_plan(args)

    def bar(items: Iterable, total: int, unit: str = "video") -> Iterable:
        return tqdm(items, total=total, unit=unit, desc="preparing" if unit == "video" else "timing", disable=None)

    outcomes = prepare(
        plan,
        args.output,
        settings,
        sources=[args.input, *([args.lists] if args.lists else [])],
        workers=args.workers,
        timeout_s=args.timeout,
        retry=args.retry,
        progress=bar,
    )
    made = [outcome for outcome in outcomes if not outcome.reason]
    print(split_table(plan, outcomes))
    if made:
        print(f"\n{size_table(made, settings)}")
    if made and settings.encode and args.speed_sample > 0:
        step = max(1, len(made) // args.speed_sample)
        pairs = [(one.source, str(Path(args.output, one.target))) for one in made[::step][: args.speed_sample]]
        speeds = measure_speed(pairs, settings.short_side, progress=lambda items, n: bar(items, n, "clip"))
        rows = [(s.clip, f"{s.before:.1f}", f"{s.after:.1f}", f"{s.after / s.before:.1f} x") for s in speeds]
        print(f"\n{text_table(('clips/s, one core', 'before', 'after', ''), rows)}")
    report_trouble(plan, outcomes, args.output)
    keys = f"DATA.PATH_TO_DATA_DIR {args.output} DATA.PATH_PREFIX {args.output if settings.encode else ''}".rstrip()
    separator = list_separator(plan, settings)
    keys += "" if separator == " " else f" DATA.PATH_LABEL_SEPARATOR {separator!r}"
    keys += f" MODEL.NUM_CLASSES {len(plan.class_ids)}" if plan.class_ids else ""
    print(f"\ntrain with   {keys}")
    return 3 if any(row.reason or outcomes[row.video].reason for row in plan.rows) else 0


def split_table(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """How many videos of each split are used."""
    rows = []
    for split in SPLITS:
        mine = [row for row in plan.rows if row.split == split]
        used = [row for row in mine if row.video is not None and not outcomes[row.video].reason]
        classes = len({row.label for row in used})
        rows.append((split, len(mine), len(used), len(mine) - len(used), classes))
    return text_table(("split", "listed", "used", "left out", "classes"), [row for row in rows if row[1]])


def size_table(made: Sequence[Outcome], settings: Settings) -> str:
    """Bytes, sizes of frames and likeness, before and after."""
    before, after = sum(one.source_bytes for one in made), sum(one.bytes for one in made)
    sides = [min(one.source_width, one.source_height) for one in made], [min(one.width, one.height) for one in made]
    spans = [f"{min(side)}" if min(side) == max(side) else f"{min(side)}-{max(side)}" for side in sides]
    frames = sum(one.source_frames for one in made), sum(one.frames for one in made)
    rows = [
        ("megabytes", f"{before / 1e6:.1f}", f"{after / 1e6:.1f}", f"{100 * after / before:.0f} %"),
        ("frames", *frames, ""),
        ("short side, pixels", *spans, ""),
    ]
    ratios = sorted(one.psnr_db for one in made if one.psnr_db is not None)
    if ratios:
        rows.append(("PSNR, dB", "", f"{sum(ratios) / len(ratios):.1f}", f"worst {ratios[0]:.1f}"))
    head = f"crf {settings.crf}, gop {settings.gop}" if settings.encode else "not encoded"
    return text_table((head, "before", "after", ""), rows)


def report_trouble(plan: Plan, outcomes: Sequence[Outcome], output: str) -> None:
    """Say which videos are left out and why, which are damaged, and which are in two splits."""
    reasons = Counter(row.reason or outcomes[row.video].reason for row in plan.rows)
    del reasons[""]
    if reasons:
        print(f"\nleft out (each in {Path(output, 'left_out.csv')}):")
        for reason, count in reasons.most_common(8):
            print(f"  {count:>6}  {reason}")
    noted = [outcome for outcome in outcomes if outcome.note]
    for one in noted[:8]:
        print(f"note: {one.source}: {one.note}")
    twins = alike(plan, outcomes)
    if twins:
        print(f"\n{len(twins)} videos are in two splits with the same bytes, the first: {twins[0][0]} = {twins[0][1]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 with a message for wrong input, 3 if videos were left out, 130 if interrupted."""
    args = parse_args(argv)
    tqdm.monitor_interval = 0  # no thread beside this one when processes are forked
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, PreparationError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
