"""Motion is what is learnt: SlowFast against a single-frame network of the same depth and width.

    python benchmarks/motion.py [--data data/motion] [--output output/motion] [--opts KEY VALUE ...]

Makes the built-in motion data set where it is missing, trains and tests ``configs/Motion/SLOWFAST_R18.yaml`` and
``configs/Motion/2D_R18.yaml`` through ``tools/run_net.py``, and prints the accuracy on test videos, whose textures
and backgrounds no training video has. The table also goes to ``benchmarks/results/motion.md``. The claim, checked at
the end: SlowFast reaches at least 90 %, and the single frame stays below twice chance, though it sees ten frames of
every video one by one. Run again, it continues where it was stopped.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"SlowFast, 8 frames": "SLOWFAST_R18", "2D, single frames": "2D_R18"}
WANTED_PERCENT = 90.0


def read_accuracy(job: Path) -> tuple[float, float, int]:
    """Top-1 in percent, its standard error and the number of videos, from the scores that a test left in ``job``."""
    (scores,) = job.glob("test_*.jsonl")
    right = [line["top"][0][0] == line["label"] for line in map(json.loads, scores.read_text().splitlines())]
    share = sum(right) / len(right)
    return 100 * share, 100 * (share * (1 - share) / len(right)) ** 0.5, len(right)


def describe_machine() -> str:
    """Processor, cores and PyTorch of this machine."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].split(": ")[1] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def main() -> int:
    """Make, train, test, compare; 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/motion"), help="folder of the data set")
    parser.add_argument("--output", type=Path, default=Path("output/motion"), help="folder of the two jobs")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "results" / "motion.md")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="configuration keys for both networks")
    args = parser.parse_args()
    subprocess.run([sys.executable, ROOT / "tools" / "make_motion_dataset.py", args.data], check=True)
    classes = len(json.loads((args.data / "class_names.json").read_text()))
    chance = 100 / classes
    lines = ["| network | views per video | test videos | top-1, % | training and test |", "|---|---|---|---|---|"]
    found = {}
    for title, name in NETWORKS.items():
        job = args.output / name
        start = time.perf_counter()
        keys = ["DATA.PATH_TO_DATA_DIR", args.data, "DATA.PATH_PREFIX", args.data, "OUTPUT_DIR", job, *args.opts]
        config = ROOT / "configs" / "Motion" / f"{name}.yaml"
        subprocess.run([sys.executable, ROOT / "tools" / "run_net.py", "--cfg", config, *map(str, keys)], check=True)
        minutes = (time.perf_counter() - start) / 60
        found[name], error, videos = read_accuracy(job)
        (views,) = job.glob("test_*.jsonl")
        lines.append(
            f"| {title} ([{name}](../../configs/Motion/{name}.yaml)) | {views.stem.removeprefix('test_')} "
            f"| {videos} | {found[name]:.1f} ± {error:.1f} | {minutes:.1f} min |"
        )
    lines.append(f"| chance | | | {chance:.1f} | |")
    slowfast, single = found["SLOWFAST_R18"], found["2D_R18"]
    text = "\n".join(
        [
            "# Only motion tells the classes apart",
            "",
            f"`python benchmarks/motion.py`: {classes} classes, test videos with textures that no training video has. "
            f"{describe_machine()}.",
            "",
            *lines,
            "",
            f"SlowFast is right {slowfast / max(single, 1e-9):.1f} times as often as the single-frame network.",
            "",
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text)
    print(f"\n{text}\nwritten to {args.table}")
    holds = slowfast >= WANTED_PERCENT and single < 2 * chance
    print(
        "the claim holds" if holds else f"the claim does not hold: wanted {WANTED_PERCENT} % and < {2 * chance:.1f} %"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
