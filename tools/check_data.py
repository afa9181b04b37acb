#!/usr/bin/env python3
"""Look at a configuration's data before training on it: lists, labels, files, classes.

    python tools/check_data.py --cfg configs/Kinetics/SLOW_8x8_R50.yaml DATA.PATH_TO_DATA_DIR lists
    python tools/check_data.py --cfg A.yaml --all --whole --same-bytes --out findings.csv

Exit status: 0 nothing wrong, 1 errors were found (with --strict also warnings), 2 the configuration is wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from slowfast.config import ConfigError, load_cfg
from slowfast.utils.logging import print_any_name


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to it")
    parser.add_argument(
        "--sample", type=int, default=64, metavar="N", help="videos decoded per split; default %(default)s"
    )
    parser.add_argument("--all", action="store_true", help="decode every video")
    parser.add_argument("--whole", action="store_true", help="decode all of its frames, not three")
    parser.add_argument(
        "--same-bytes", action="store_true", help="also find equal files of different names in two splits"
    )
    parser.add_argument("--workers", type=int, default=cores, help="processes; default one per core (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for one video; default %(default)g"
    )
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument(
        "--out", default="data_check.json", metavar="FILE", help="everything found, .json or .csv; default %(default)s"
    )
    options = parser.parse_intermixed_args(argv)
    for name in ("workers", "timeout"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} {getattr(options, name)} is not more than 0")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """See the text above."""
    options = parse_args(argv)
    print_any_name()
    try:
        cfg = load_cfg(options.cfg, options.opts)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    from tqdm import tqdm

    from slowfast.datasets.check import build_data_check

    tqdm.monitor_interval = 0  # no thread beside this one when processes are forked
    try:
        check = build_data_check(
            cfg,
            sample=None if options.all else options.sample,
            whole=options.whole,
            same_bytes=options.same_bytes,
            workers=options.workers,
            timeout_s=options.timeout,
            progress=lambda items, total: tqdm(items, total=total, desc="decoding", unit="video", disable=None),
        )
        check.write(options.out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(check.summary())
    print(f"all of it: {options.out}")
    return 1 if not check.ok or (options.strict and check.findings) else 0


if __name__ == "__main__":
    sys.exit(main())
