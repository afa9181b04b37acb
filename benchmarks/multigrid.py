"""Multigrid against a fixed clip shape: accuracy, processor time and epochs, from start to end on real training.

    python benchmarks/multigrid.py [--epochs 6] [--data data/motion] [--output output/multigrid] [--opts KEY VALUE ...]

Makes the built-in motion data set where it is missing, trains and tests ``configs/Motion/SLOWFAST_R18.yaml`` and
``configs/Motion/SLOWFAST_R18_multigrid.yaml`` (the short cycle alone, and both cycles) through ``tools/run_net.py``,
the same keys for all and equally many epochs, so that all see equally many clips, and writes
``benchmarks/results/multigrid.md``. Time is that of the processor in all processes of a training, loading included, so
that other work on the machine counts less. The claim, checked at the end: fixed shape and short cycle are right at
least three times as often as chance, and the short cycle takes less time. The long cycle needs longer trainings to pay:
in six epochs it makes a quarter of the updates, half of them on few frames. Ten minutes on two cores. Run again, what
is complete in ``--output`` is not done again; of a training that was stopped on the way only the rest is timed.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from motion import describe_machine, read_accuracy

ROOT = Path(__file__).resolve().parents[1]
LEAST_TIMES_CHANCE = 3.0
FIXED, SHORT, BOTH = "fixed shape", "multigrid, short cycle", "multigrid, long and short cycle"
RECIPES = {
    FIXED: ("SLOWFAST_R18", []),
    SHORT: ("SLOWFAST_R18_multigrid", ["MULTIGRID.LONG_CYCLE", False]),
    BOTH: ("SLOWFAST_R18_multigrid", []),
}


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


def schedule(epochs: int) -> list[object]:
    """Keys that give both trainings ``epochs`` epochs; multigrid has one long cycle in the first two thirds of them."""
    return ["SOLVER.MAX_EPOCH", epochs, "SOLVER.STEPS", [0, 2 * epochs // 3], "MULTIGRID.EPOCH_FACTOR", 1.0]


def holds(accuracy: dict[str, float], minutes: dict[str, float], chance: float) -> bool:
    """Whether fixed shape and short cycle learnt (in percent, against chance), the latter in less time."""
    return min(accuracy[FIXED], accuracy[SHORT]) >= LEAST_TIMES_CHANCE * chance and minutes[SHORT] < minutes[FIXED]


def main() -> int:
    """Make, train, test, compare; 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of both trainings")
    parser.add_argument("--data", type=Path, default=Path("data/motion"), help="folder of the data set")
    parser.add_argument("--output", type=Path, default=Path("output/multigrid"), help="folder of the two jobs")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks/results/multigrid.md")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration keys for both trainings")
    args = parser.parse_args()
    subprocess.run([sys.executable, ROOT / "tools/make_motion_dataset.py", args.data], check=True)
    chance = 100 / len(json.loads((args.data / "class_names.json").read_text()))
    clips = len((args.data / "train.csv").read_text().splitlines())
    rows, minutes, accuracy = [], {}, {}
    for number, (title, (name, own)) in enumerate(RECIPES.items()):
        job, config = args.output / f"{number}_{name}", ROOT / "configs/Motion" / f"{name}.yaml"
        keys = ["DATA.PATH_TO_DATA_DIR", args.data, "DATA.PATH_PREFIX", args.data, "OUTPUT_DIR", job, "LOG_PERIOD", 1]
        keys += ["TENSORBOARD.ENABLE", False, "TEST.NUM_SPATIAL_CROPS", 1, *schedule(args.epochs), *own, *args.opts]
        timed = job / "processor_minutes.txt"
        if not timed.exists():
            spent = run(config, [*keys, "TEST.ENABLE", False])
            run(config, [*keys, "TRAIN.ENABLE", False])
            timed.write_text(f"{spent}\n")
        minutes[title] = float(timed.read_text())
        accuracy[title], error, videos = read_accuracy(job)
        epochs, updates = count_steps(job)
        rows.append(
            f"| {title} ([{name}](../../configs/Motion/{name}.yaml)) | {epochs} | {epochs * clips} | {updates} "
            f"| {minutes[title]:.1f} min | {accuracy[title]:.1f} ± {error:.1f} |"
        )
    options = f" --epochs {args.epochs}" + (f" --opts {' '.join(args.opts)}" if args.opts else "")
    text = "\n".join(
        [
            "# Multigrid against a fixed clip shape",
            "",
            f"`python benchmarks/multigrid.py{options}`: {videos} test videos, 3 x 1 views. {describe_machine()}.",
            "",
            "| training | epochs | clips seen | updates | processor time of training | top-1, % |",
            "|---|---|---|---|---|---|",
            *rows,
            f"| chance | | | | | {chance:.1f} |",
            "",
            f"For as many clips, the short cycle takes {minutes[SHORT] / minutes[FIXED]:.2f} times the processor time "
            f"of the fixed shape, both cycles {minutes[BOTH] / minutes[FIXED]:.2f} times. The long cycle needs longer "
            "trainings than this to learn: half of its few updates are made on few frames.",
            "",
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text)
    print(f"\n{text}\nwritten to {args.table}")
    right = holds(accuracy, minutes, chance)
    print("the claim holds" if right else "the claim does not hold: see the first lines of this file")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
