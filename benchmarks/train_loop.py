"""What the training loop costs: ``train_epoch`` against a bare forward, backward and optimiser step.

    python benchmarks/train_loop.py [--rounds 15] [--steps 6] [--batch 16] [--opts KEY VALUE ...]

Both sides train the network of ``configs/Motion/SLOWFAST_R18.yaml`` on the same synthetic batches in memory, in turns
and in changing order. The loop does all that it does in a job: learning rate, seeding, gradient norm, check for
NaN, times, scalars, a log line every 20 steps, asking whether to save or stop. Time is processor time of this process.
The claim: at most 3 % more. The table goes to ``benchmarks/results/train_loop.md``.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from motion import describe_machine
from torch.nn import functional as F

from slowfast.config import load_cfg
from slowfast.datasets.batch import Batch
from slowfast.engine.epoch_log import BestErrors
from slowfast.engine.interrupt import Watch
from slowfast.engine.output import BadVideoLog
from slowfast.engine.run import Plan, Run, choose_precision
from slowfast.engine.saving import build_saver
from slowfast.engine.stats import Recorder
from slowfast.engine.train import Desk, train_epoch
from slowfast.models import build_model
from slowfast.solver import build_optimizer, lr_at
from slowfast.tasks import build_task

ROOT = Path(__file__).resolve().parents[1]
LIMIT_PERCENT = 3.0


class BatchesInMemory:
    """Stands for a loader: the same few batches again and again."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.batch_sampler = SimpleNamespace(set_epoch=lambda epoch, start_batch=0: None)
        self.dataset = SimpleNamespace(records=[])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return (replace(self.batches[step % len(self.batches)]) for step in range(self.steps))


def build_training(cfg, steps: int) -> Run:
    """Network, optimiser and batches as ``build_run`` makes them, without a data set."""
    torch.manual_seed(0)
    size = (cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
    count = cfg.TRAIN.BATCH_SIZE
    batches = [
        Batch(torch.randn(count, 3, *size), torch.randint(cfg.MODEL.NUM_CLASSES, (count,)), torch.arange(count))
        for _ in range(2)
    ]
    network, device = build_model(cfg), torch.device("cpu")
    return Run(
        model=network,
        optimizer=build_optimizer(network, cfg),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        task=build_task(cfg),
        plan=Plan.from_cfg(cfg),
        device=device,
        precision=choose_precision(False, device),
        train_loader=BatchesInMemory(batches, steps),
        val_loader=None,
        schedule=lambda epoch: lr_at(cfg, 0.5),
    )


def bare_epoch(run: Run) -> None:
    """What has to be done: forward, backward, step."""
    run.model.train()
    for batch in run.train_loader:
        run.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(run.model(batch.clips), batch.labels).backward()
        run.optimizer.step()


def processor_seconds(work) -> float:
    """Processor time of this process, all its threads, for one ``work()``."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> int:
    """Measure in turns; 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6, help="of each side in each round")
    parser.add_argument("--batch", type=int, default=16, help="clips per step")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks/results/train_loop.md")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    cfg = load_cfg(ROOT / "configs/Motion/SLOWFAST_R18.yaml", ["TRAIN.BATCH_SIZE", args.batch, *args.opts])
    run = build_training(cfg, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        saver = build_saver(load_cfg(None, ["OUTPUT_DIR", folder]), [])
        with saver, Watch(hang_minutes=0.0) as watch:
            desk = Desk(Recorder(folder), BadVideoLog(folder), BestErrors([], 0), saver, watch)
            sides = {"loop": lambda: train_epoch(run, 0, desk), "bare": lambda: bare_epoch(run)}
            for work in sides.values():
                work()  # warm up
            times: dict[str, list[float]] = {"loop": [], "bare": []}
            for number in range(args.rounds):
                for name in ("loop", "bare") if number % 2 else ("bare", "loop"):
                    times[name].append(processor_seconds(sides[name]) / args.steps)
    ratios = sorted(loop / bare for loop, bare in zip(times["loop"], times["bare"], strict=True))
    percent = 100 * (median(times["loop"]) / median(times["bare"]) - 1)
    params = sum(param.numel() for param in run.network.parameters()) / 1e6
    quarter = len(ratios) // 4
    text = "\n".join(
        [
            "# What the training loop costs",
            "",
            f"`python benchmarks/train_loop.py --rounds {args.rounds} --steps {args.steps} --batch {args.batch}`: the "
            f"SlowFast of configs/Motion/SLOWFAST_R18.yaml ({params:.2f} M parameters), {args.batch} clips per step. "
            f"{describe_machine()}, {torch.get_num_threads()} compute thread(s).",
            "",
            "| | processor time per step, median |",
            "|---|---|",
            f"| bare forward, backward, step | {1e3 * median(times['bare']):.1f} ms |",
            f"| the loop | {1e3 * median(times['loop']):.1f} ms |",
            "",
            f"The loop costs {percent:+.1f} % (ratio of medians). Half of the {len(ratios)} ratios of "
            f"neighbours lie between {ratios[quarter]:.3f} and {ratios[-1 - quarter]:.3f}.",
            "",
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text)
    print(f"{text}\nwritten to {args.table}")
    holds = percent <= LIMIT_PERCENT
    print("the claim holds" if holds else f"the claim does not hold: wanted at most {LIMIT_PERCENT} %")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
