#!/usr/bin/env python3
"""How a training survives: kills and signals at random moments, and whether the result is the same to the last bit.

    python benchmarks/faults.py --faults 50 --output benchmarks/results/faults.md

A small network is trained on videos made here, with everything on that draws random numbers. First without a fault,
then again and again: each training is hurt several times, at moments drawn at random, and started again by the same
command until it ends. Compared are all tensors of the last checkpoint (weights, statistics, optimizer) and all records
of json_stats.log without times. A step is lost when it had to be done twice.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # before this folder: the injector is tests/faults.py

import av  # noqa: E402
import numpy as np  # noqa: E402
from faults import EVERYTHING_RANDOM, Fault, differences, kill, run_job, terminate, user_signal  # noqa: E402
from tqdm import tqdm  # noqa: E402

from slowfast.config import load_cfg  # noqa: E402

STEPS_PER_EPOCH, EPOCHS = 6, 2
POINTS = {
    "in a step": "slowfast.engine.train:train_step",
    "in a record": "slowfast.engine.stats:Recorder.write",
    "in writing a checkpoint": "torch:save",
    "in renaming a checkpoint": "os:replace",
    "in removing a checkpoint": "slowfast.engine.saving:superseded",
    "in precise batch norm": "fvcore.nn.precise_bn:update_bn_stats",
    "in an evaluation": "slowfast.tasks.classification:Classification.predict",
    "in building the network": "slowfast.engine.run:build_model",
    "in loading a checkpoint": "torch:load",
}
MULTIGRID = ("MULTIGRID.SHORT_CYCLE", True, "MULTIGRID.EPOCH_FACTOR", 1.0, "TRAIN.BATCH_SIZE", 2)


def make_videos(folder: Path) -> None:
    """Twelve videos of noise to train on, six to validate on, in three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 3)):
        lines = []
        for number in range(count):
            path = folder / f"{split}_{number}.mp4"
            with av.open(str(path), "w") as file:
                stream = file.add_stream("mpeg4", rate=24)
                stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
                for _ in range(12):
                    picture = rng.integers(60 * (number % 3), 60 * (number % 3) + 100, (48, 48, 3), dtype=np.uint8)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                file.mux(stream.encode())
            lines.append(f"{path.name} {number % 3}\n")
        (folder / f"{split}.csv").write_text("".join(lines))


def make_cfg(videos: Path, out: Path, extra: tuple) -> object:
    """The configuration of the training, and where it writes."""
    return load_cfg(
        None,
        [
            *("TRAIN.DATASET", "kinetics", "TEST.DATASET", "kinetics", "NUM_GPUS", 0, "OUTPUT_DIR", str(out)),
            *("DATA.PATH_TO_DATA_DIR", str(videos), "DATA.PATH_PREFIX", str(videos), "TRAIN.EVAL_PERIOD", 1),
            *("DATA.NUM_FRAMES", 4, "DATA.SAMPLING_RATE", 2, "DATA.TEST_CROP_SIZE", 32, "TRAIN.CHECKPOINT_PERIOD", 1),
            *("DATA.TRAIN_JITTER_SCALES", [32, 40], "DATA.INPUT_CHANNEL_NUM", [3], "MODEL.NUM_CLASSES", 3),
            *("SOLVER.BASE_LR", 0.05, *EVERYTHING_RANDOM, "SOLVER.MAX_EPOCH", EPOCHS, *extra),
        ],
    )


def train_counting(cfg: object) -> None:
    """Train, and write a dot for every step that was done."""
    from slowfast import engine

    module = sys.modules["slowfast.engine.train"]
    step_of_training = module.train_step
    path = Path(cfg.OUTPUT_DIR) / "steps.txt"

    def counting(*args: object) -> object:
        result = step_of_training(*args)
        with path.open("a") as file:
            file.write(".")
        return result

    module.train_step = counting
    engine.train(cfg)


def steps_done(out: Path) -> int:
    """How many steps were done in ``out``, those done again included."""
    path = out / "steps.txt"
    return path.stat().st_size if path.exists() else 0


def hurt(job: partial, rng: random.Random, seconds: float) -> tuple[str, int]:
    """Run ``job`` with a fault drawn by ``rng``: what it was, and the exit code."""
    kind = rng.choice(["moment", "moment", "point", "point", "signal"])
    if kind == "moment":  # at any time while it runs, up to when it would end
        return "SIGKILL at any moment", run_job(job, seconds=rng.uniform(0.05, 1.0) * seconds)
    if kind == "signal":
        action, name = rng.choice([(terminate, "SIGTERM"), (user_signal, "SIGUSR1")])
        point, target = rng.choice([item for item in POINTS.items() if "checkpoint" not in item[0]])
        return name, run_job(job, [Fault(target, rng.randint(1, 6), action)])
    point, target = rng.choice(list(POINTS.items()))
    return f"SIGKILL {point}", run_job(job, [Fault(target, rng.randint(1, 6), kill)])


def main() -> int:
    """Hurt trainings until ``--faults`` have struck; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50, help="how many faults to inject")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of faults")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"survived": [], "lost": [], "equal": []})
    count = trainings = unexpected = 0
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=args.faults, unit="fault") as bar:
        videos = Path(scratch) / "videos"
        videos.mkdir()
        make_videos(videos)
        whole: dict[tuple, tuple[Path, float, int]] = {}
        for extra in ((), MULTIGRID):
            out = Path(scratch) / f"whole_{len(extra)}"
            out.mkdir()
            run_job(partial(train_counting, make_cfg(videos, out, extra)))  # the first one also warms up
            shutil.rmtree(out)
            out.mkdir()
            began = time.monotonic()
            if run_job(partial(train_counting, make_cfg(videos, out, extra))):
                raise SystemExit((out / "error.txt").read_text())
            whole[extra] = out, time.monotonic() - began, steps_done(out)
        while count < args.faults:
            extra = (MULTIGRID, ())[trainings % 2]
            unhurt, seconds, needed = whole[extra]
            out = Path(scratch) / f"training_{trainings}"
            out.mkdir()
            job = partial(train_counting, make_cfg(videos, out, extra))
            struck: list[tuple[str, int]] = []  # and the steps done until then
            planned = min(rng.randint(3, 7), args.faults - count)
            while len(struck) < planned:
                done = steps_done(out)
                name, code = hurt(job, rng, seconds)
                if code == 0:  # it ended before the fault came
                    break
                expected = code == (75 if name.startswith("SIG") and "KILL" not in name else -9)
                unexpected += not expected
                struck.append((name if expected else f"{name}: exit code {code}", steps_done(out) - done))
                bar.update()
            finished = run_job(job) == 0
            equal = finished and not differences(unhurt, out)
            lost = steps_done(out) - needed
            for name, _ in struck:
                rows[name]["survived"].append(finished)
                rows[name]["equal"].append(equal)
                rows[name]["lost"].append(lost / len(struck))
            if not equal:
                shutil.copytree(out, Path(tempfile.gettempdir()) / f"faults_unequal_{trainings}", dirs_exist_ok=True)
            count += len(struck)
            trainings += 1
            shutil.rmtree(out)
            if args.output:  # after each training: an interrupted benchmark has its table too
                command = f"python benchmarks/faults.py --faults {args.faults} --seed {args.seed}"
                args.output.write_text(f"{table(rows, trainings)}\n\n`{command}`\n")
    print(table(rows, trainings))
    good = all(all(row["equal"]) for row in rows.values()) and not unexpected
    return 0 if good else 1


def table(rows: dict[str, dict[str, list[int]]], trainings: int) -> str:
    """The result as Markdown."""
    lines = [
        "# Faults survived",
        "",
        f"{sum(len(row['equal']) for row in rows.values())} faults in {trainings} trainings of "
        f"{STEPS_PER_EPOCH} steps in each of {EPOCHS} epochs, a checkpoint every 2 steps; two loader workers, repeated "
        "augmentation, mixup and CutMix, dropout, stochastic depth, precise batch norm, every second training with the "
        "short cycle of multigrid. Equal: all tensors of the last checkpoint and all records are the same to the last "
        "bit as those of a training that nothing happened to.",
        "",
        "| fault | injected | survived | weights and records equal | steps lost, mean |",
        "|---|---|---|---|---|",
    ]
    total: dict[str, list] = {"survived": [], "equal": [], "lost": []}
    for name, row in sorted(rows.items()):
        lines.append(line(name, row))
        for key, values in row.items():
            total[key] += values
    return "\n".join([*lines, line("**all**", total)])


def line(name: str, row: dict[str, list]) -> str:
    """One row of the table."""
    lost = f"{fmean(row['lost']):.1f}" if row["lost"] else "-"
    return f"| {name} | {len(row['equal'])} | {sum(row['survived'])} | {sum(row['equal'])} | {lost} |"


if __name__ == "__main__":
    sys.exit(main())
