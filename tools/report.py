"""Write the HTML report of a finished (or running) job and print its accuracy table."""

import argparse
import sys
from collections.abc import Sequence


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the job, as in its OUTPUT_DIR key")
    parser.add_argument("--out", metavar="FILE", help="where the report goes (default: OUTPUT_DIR/report.html)")
    parser.add_argument("--num-videos", type=int, default=8, metavar="N", help="test videos to show (default: 8)")
    parser.add_argument("--pictures", metavar="FOLDER", help="also save the figures there, as PNG files")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with a message where there is nothing to report."""
    options = parse_args(args)
    from slowfast.visualization.report import accuracy_table, write_pictures, write_report
    from slowfast.visualization.results import read_job

    try:
        path = write_report(options.output_dir, options.out, num_videos=options.num_videos)
        pictures = write_pictures(options.output_dir, options.pictures) if options.pictures else []
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(accuracy_table(read_job(options.output_dir).accuracy_rows()))
    for written in (path, *pictures):
        print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
