"""Multigrid against a fixed clip shape: accuracy, processor time and epochs, from start to end on real training.

    python benchmarks/multigrid.py [--data data/motion] [--output output/multigrid] [--opts KEY VALUE ...]

Makes the built-in motion data set where it is missing, trains and tests ``configs/Motion/SLOWFAST_R18.yaml`` and
``configs/Motion/SLOWFAST_R18_multigrid.yaml`` through ``tools/run_net.py``, the same keys for both, and writes
``benchmarks/results/multigrid.md``. Time is that of the processor in all processes of a training, loading included,
so that other work on the machine counts less. Run again, it goes on where it was stopped; times are then not whole.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from motion import describe_machine, read_accuracy

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"fixed shape": "SLOWFAST_R18", "multigrid": "SLOWFAST_R18_multigrid"}


def processor_minutes() -> float:
    """Processor time of all finished child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 60


def run(config: Path, keys: list[object]) -> float:
    """Train or test; the processor time in minutes."""
    before = processor_minutes()
    subprocess.run([sys.executable, ROOT / "tools/run_net.py", "--cfg", config, *map(str, keys)], check=True)
    return processor_minutes() - before


def count_steps(job: Path) -> tuple[int, int]:
    """Epochs and updates of a training, from its log."""
    marker = "json_stats: "
    lines = (job / "stdout.log").read_text().splitlines()
    records = [json.loads(line.partition(marker)[2]) for line in lines if marker in line]
    updates = {}
    for record in records:
        if record.get("_type") == "train_iter_":
            updates[record["epoch"]] = int(str(record["iter"]).split("/")[1])
    return len(updates), sum(updates.values())


def main() -> None:
    """Make, train, test, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/motion"), help="folder of the data set")
    parser.add_argument("--output", type=Path, default=Path("output/multigrid"), help="folder of the two jobs")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks/results/multigrid.md")
    parser.add_argument("--videos-per-class", nargs=3, default=["100", "5", "20"], help="in train, val and test")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration keys for both trainings")
    args = parser.parse_args()
    make = [
        sys.executable,
        ROOT / "tools/make_motion_dataset.py",
        args.data,
        "--videos-per-class",
        *args.videos_per_class,
    ]
    subprocess.run(make, check=True)
    rows, minutes = [], {}
    for title, name in RECIPES.items():
        job, config = args.output / name, ROOT / "configs/Motion" / f"{name}.yaml"
        keys = ["DATA.PATH_TO_DATA_DIR", args.data, "DATA.PATH_PREFIX", args.data, "OUTPUT_DIR", job, "LOG_PERIOD", 1]
        keys += ["TENSORBOARD.ENABLE", False, *args.opts]
        minutes[title] = run(config, [*keys, "TEST.ENABLE", False])
        run(config, [*keys, "TRAIN.ENABLE", False])
        accuracy, error, videos = read_accuracy(job)
        epochs, updates = count_steps(job)
        rows.append(
            f"| {title} ([{name}](../../configs/Motion/{name}.yaml)) | {epochs} | {updates} | {minutes[title]:.1f} min "
            f"| {accuracy:.1f} ± {error:.1f} |"
        )
    saved = minutes["fixed shape"] / minutes["multigrid"]
    options = f" --videos-per-class {' '.join(args.videos_per_class)}"
    options += f" --opts {' '.join(args.opts)}" if args.opts else ""
    text = "\n".join(
        [
            "# Multigrid against a fixed clip shape",
            "",
            f"`python benchmarks/multigrid.py{options}`: {videos} test videos. {describe_machine()}.",
            "",
            "| training | epochs | updates | processor time of training | top-1, % |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Multigrid takes {1 / saved:.2f} times the processor time of the fixed shape.",
            "",
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text)
    print(f"\n{text}\nwritten to {args.table}")


if __name__ == "__main__":
    main()
