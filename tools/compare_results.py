#!/usr/bin/env python3
"""Compare two tests class by class, and say how sure the overall difference is.

    python tools/compare_results.py output/baseline output/longer
    python tools/compare_results.py a/test_10x3.jsonl b/test_10x3.jsonl --csv classes.csv --html both.html

A and B are output folders (of several tests in one, that with the most views), test_<clips>x<crops>.jsonl files, or
pickles of TEST.SAVE_RESULTS_PATH, which do not name their videos and are matched by rows. Videos that only one of the
two has are named and left out. Exit status: 0, or 2 where the two cannot be compared.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

ROWS = 30  # classes in the printed table


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("a", metavar="A", help="the test that is compared with")
    parser.add_argument("b", metavar="B", help="the test whose gain or loss is shown")
    parser.add_argument("--labels", metavar="FILE", help='class names: {"name": id}, ["name", ...] or lines of text')
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; default %(default)s")
    parser.add_argument("--draws", type=int, metavar="N", help="of the bootstrap; default 10000, for mAP 1000")
    parser.add_argument("--all", action="store_true", help="print every class, however many there are")
    parser.add_argument("--csv", metavar="OUT", help="all classes as a table")
    parser.add_argument("--html", metavar="OUT", help="a page with everything")
    parser.add_argument("--png", metavar="OUT", help="a picture of the difference per class")
    options = parser.parse_args(args)
    if options.draws is not None and options.draws < 100:
        parser.error("--draws is 100 or more")
    return options


def print_comparison(comparison, *, everything: bool) -> None:
    """Overall numbers, then classes from the largest loss to the largest gain."""
    from slowfast.utils.tables import text_table
    from slowfast.visualization.compare_classes import missing_notes, shown_rows

    print(f"A: {comparison.names[0]}\nB: {comparison.names[1]}\n{comparison.common} videos are in both")
    for text in missing_notes(comparison):
        print(text)
    rows = [
        (
            row.name,
            f"{row.a:.2f}",
            f"{row.b:.2f}",
            f"{row.difference:+.2f}",
            f"{row.low:+.2f} to {row.high:+.2f}",
            "" if row.clear else "may be chance",
        )
        for row in comparison.overall
    ]
    print("\n" + text_table(("", "A %", "B %", "B - A", "95 % interval", ""), rows) + "\n")
    classes = shown_rows(comparison.classes, len(comparison.classes) if everything else ROWS)
    hidden = len(comparison.classes) - sum(row is not None for row in classes)
    cells = [
        (f"... {hidden} more ...", "", "", "", "")
        if row is None
        else (row.name, row.videos, f"{row.a:.1f}", f"{row.b:.1f}", f"{row.difference:+.1f}")
        for row in classes
    ]
    print(text_table((f"class, by {comparison.measure}", "videos", "A %", "B %", "B - A"), cells))


def write_csv(comparison, path: Path) -> None:
    """A row per class, from the largest loss to the largest gain."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "id", "videos", "a_percent", "b_percent", "difference"))
        for row in comparison.classes:
            numbers = (f"{value:.4f}" for value in (row.a, row.b, row.difference))
            writer.writerow((row.name, row.index, row.videos, *numbers))


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the two cannot be compared."""
    options = parse_args(args)
    from slowfast.visualization import plots
    from slowfast.visualization.class_names import load_class_names
    from slowfast.visualization.compare_classes import compare, comparison_page, difference_figure, read_scored

    try:
        a, b = read_scored(options.a), read_scored(options.b)
        names = load_class_names(options.labels, a.scores.shape[1]) if options.labels else ()
        comparison = compare(a, b, seed=options.seed, draws=options.draws, class_names=names)
        print_comparison(comparison, everything=options.all)
        for name in (options.csv, options.html, options.png):
            if name:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
        if options.csv:
            write_csv(comparison, Path(options.csv))
        if options.html:
            Path(options.html).write_text(comparison_page(comparison), encoding="utf-8")
        if options.png:
            Path(options.png).write_bytes(plots.to_png(difference_figure(comparison)))
    except (ValueError, OSError) as error:
        print(f"compare_results.py: error: {error}", file=sys.stderr)
        return 2
    for name in (options.csv, options.html, options.png):
        if name:
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
