#!/usr/bin/env python3
"""Draw loss, error, learning rate, throughput and waiting for data of one or several trainings, finished or running."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a training (its OUTPUT_DIR)")
    parser.add_argument(
        "--out", metavar="FILE", help="the picture, .png (default: curves.png in the folder of the first run)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with a message where there is nothing to draw."""
    options = parse_args(argv)
    from slowfast.utils.tables import text_table
    from slowfast.visualization.compare import compare_panels, compare_rows
    from slowfast.visualization.plots import curves_of_runs, to_png
    from slowfast.visualization.results import read_job

    jobs = [read_job(run) for run in options.runs]
    empty = [run for run, job in zip(options.runs, jobs, strict=True) if not job.history("train")]
    if empty:
        print(f"{empty[0]}: no training here (no records in json_stats.log or stdout.log)", file=sys.stderr)
        return 1
    path = Path(options.out or Path(options.runs[0]) / "curves.png")
    try:
        path.write_bytes(to_png(curves_of_runs(compare_panels(jobs))))
    except OSError as error:
        print(f"{path}: {error.strerror}; --out says where the picture goes", file=sys.stderr)
        return 1
    print(text_table(*compare_rows(jobs)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
