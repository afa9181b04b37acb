#!/usr/bin/env python3
"""Copy the videos of lists or class folders into tar shards, for object stores and slow network disks.

    python tools/make_shards.py prepared shards --prefix prepared
    python tools/run_net.py --cfg A.yaml TRAIN.DATASET shards TEST.DATASET shards DATA.PATH_TO_DATA_DIR shards

The first folder holds train.csv, val.csv, test.csv ("path label") or class folders. A shard can be read over http(s).
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from slowfast.datasets.folders import SPLITS, load_class_folders
from slowfast.datasets.kinetics import has_lists, load_records
from slowfast.datasets.records import CLASS_NAMES_FILE, class_ids
from slowfast.datasets.shards import INDEX, write_shards
from slowfast.utils.tables import text_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", help="the folder of the lists, or of class folders")
    parser.add_argument("output", help="the folder to write the shards to")
    parser.add_argument("--prefix", default="", metavar="FOLDER", help="in front of listed paths")
    parser.add_argument("--separator", default=" ", help="between path and label; default a space")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default all that there are")
    parser.add_argument("--megabytes", type=float, default=64.0, help="of a shard; default %(default)g")
    parser.add_argument("--seed", type=int, default=0, help="shuffles the training videos; default %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Write the shards of every split, the class names, and a table."""
    rows = []
    for split in args.splits:
        index = os.path.join(args.output, INDEX.format(split=split))
        if os.path.exists(index) and not args.overwrite:
            raise ValueError(f"{index} is there already: choose another output, or --overwrite")
    for split in args.splits:
        if has_lists(args.lists):
            file = os.path.join(args.lists, f"{split}.csv")
            if not os.path.isfile(file):
                continue
            records, prefix = load_records(file, args.separator, args.prefix), args.prefix
        else:
            records, prefix = load_class_folders(args.lists, split, args.seed), args.lists
        shards, missing = write_shards(
            records,
            args.output,
            split,
            prefix=prefix,
            shard_bytes=round(args.megabytes * 1e6),
            shuffle_seed=args.seed if split == "train" else None,
            progress=lambda items, n, split=split: tqdm(items, total=n, desc=split, unit="video", disable=None),
        )
        rows.append((split, len(records) - len(missing), len(missing), shards))
        ids = {name: number for number, name in enumerate(records.class_names or ())} or class_ids((), args.lists)
        if ids:
            Path(args.output, CLASS_NAMES_FILE).write_text(json.dumps(ids, indent=1) + "\n")
    print(text_table(("split", "videos", "missing", "shards"), rows))
    print(f"train with   TRAIN.DATASET shards TEST.DATASET shards DATA.PATH_TO_DATA_DIR {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 with a message for wrong input, 130 if interrupted."""
    args = parse_args(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print("\ninterrupted; run it again", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
