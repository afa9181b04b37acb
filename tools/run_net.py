#!/usr/bin/env python3
"""Train and test what configuration files describe: run_net.py --cfg A.yaml [B.yaml ...] [--opts] KEY VALUE ..."""

import os
import signal
import sys

# While this command starts, a signal to stop ends it with the code on which launchers start it again, as later.
if __name__ == "__main__":
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(75))

import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

from slowfast import zoo
from slowfast.config import Args, ConfigError
from slowfast.config.cli import load_jobs
from slowfast.utils.logging import print_any_name

ROOT = Path(__file__).resolve().parents[1]


def from_zoo(args: Args) -> Args:
    """``args`` with the config, unless there is one, and the weights of the published model that --zoo names.

    Alone, --zoo tests, or fine-tunes if TRAIN.ENABLE True is given; a masked pre-training has nothing to test. Beside a
    file of the user's, that file decides.
    """
    if len(args.cfg_files) > 1:
        raise ConfigError(f"--zoo {args.zoo}: give one file at most with --cfg, not {' and '.join(args.cfg_files)}")
    try:
        entry = zoo.find(args.zoo)
        if not args.cfg_files:
            args = with_published_config(args, entry)
        (cfg,) = args.load()  # what is wrong with the options is said before anything is downloaded
        if not has_job(cfg):
            return args
        path = str(zoo.download(entry))
    except zoo.ZooError as error:
        raise ConfigError(str(error)) from error
    if cfg.TRAIN.ENABLE:
        weights = ("TRAIN.CHECKPOINT_FILE_PATH", path, "TRAIN.CHECKPOINT_EPOCH_RESET", "True")
    else:
        weights = ("TEST.CHECKPOINT_FILE_PATH", path)
    return replace(args, opts=(*weights, *args.opts))


def with_published_config(args: Args, entry: zoo.Entry) -> Args:
    """``args`` with the config of ``entry``, or, where a pre-training is to be trained, that of its fine-tuning."""
    jobs = ["TRAIN.ENABLE", "False"]
    if entry.task != "pretraining":
        jobs += ["TEST.ENABLE", "True"]
    own = (str(zoo.config_file(entry, ROOT)),)
    alone = replace(args, cfg_files=own, opts=(*entry.opts.split(), *jobs, *args.opts))
    if entry.task != "pretraining" or not alone.load()[0].TRAIN.ENABLE:
        return alone
    if not entry.config_finetune:
        raise ConfigError(
            f"--zoo {entry.name} with TRAIN.ENABLE True: it is a pre-training that several configs of "
            f"{Path(entry.config).parent} fine-tune (linear_*, finetune_*): name one with --cfg, or {entry.config} to "
            "go on pre-training"
        )
    return replace(args, cfg_files=(str(ROOT / entry.config_finetune),))


def has_job(cfg) -> bool:
    """Whether ``cfg`` asks for anything."""
    return cfg.TRAIN.ENABLE or cfg.TEST.ENABLE or cfg.DEMO.ENABLE or visualizes(cfg)


def explain_no_job(file: str, args: Args) -> str:
    """What to say where ``file`` asks for nothing."""
    text = (
        f"{file}: nothing to do. TRAIN.ENABLE, TEST.ENABLE and DEMO.ENABLE are False and nothing is visualised "
        "(TENSORBOARD.ENABLE with TENSORBOARD.MODEL_VIS.ENABLE or TENSORBOARD.WRONG_PRED_VIS.ENABLE): set one True"
    )
    if args.zoo is not None and zoo.find(args.zoo).task == "pretraining":
        text += f"; {args.zoo} is a pre-training: TRAIN.ENABLE True fine-tunes it, TEST.ENABLE True measures its loss"
    return text


def run_job(cfg, init_method: str | None) -> None:
    """Train, test, visualise and report, each as far as ``cfg`` asks for it."""
    # Imported here: a wrong option is answered before PyTorch has been loaded.
    from slowfast.engine import launch

    if visualizes(cfg):
        from slowfast.engine.visualize import refuse_other_tasks
        from slowfast.tasks.base import task_name

        refuse_other_tasks(task_name(cfg))
    detector = find_detector(cfg)  # before anything is trained
    launch(
        partial(train_and_test, cfg),
        processes=cfg.NUM_GPUS,
        num_shards=cfg.NUM_SHARDS,
        shard_id=cfg.SHARD_ID,
        init_method=init_method,
        backend=cfg.DIST_BACKEND,
    )
    if cfg.SHARD_ID == 0 and os.environ.get("RANK", "0") == "0":
        finish(cfg)
        if cfg.DEMO.ENABLE:
            from slowfast.engine.demo import demo

            print(f"{'demo:':<13}{demo(cfg, detector)}")


def find_detector(cfg) -> str:
    """The weights of the detector of people that the demo needs, downloaded unless they are here; "" for none."""
    if not cfg.DEMO.ENABLE:
        return ""
    from slowfast.engine.demo import build_detector_name

    name = build_detector_name(cfg)
    return str(zoo.download_detector()) if name == "torchvision" else name


def check_job(cfg, args: Args, number: int) -> bool:
    """Print what a preflight finds about ``cfg``, the job of the file ``number``; whether there is no problem."""
    if int(os.environ.get("RANK", "0")):
        return True  # of several processes the first one looks
    from slowfast.config import load_cfg
    from slowfast.engine.preflight import Recipe, build_preflight

    print(f"{args.cfg_files[number]}: looking at it, training nothing", file=sys.stderr)
    file = load_cfg(args.cfg_files[number])
    published = Recipe(file.TRAIN.BATCH_SIZE * file.NUM_SHARDS, file.SOLVER.BASE_LR)
    preflight = build_preflight(cfg, published=published, init_method=args.init_method)
    print(preflight.table())
    return preflight.ok


def train_and_test(cfg) -> None:
    """What each process does."""
    from slowfast.engine import test, train

    if cfg.TRAIN.ENABLE:
        train(cfg)
    if cfg.TEST.ENABLE:
        test(cfg)
    if visualizes(cfg):
        from slowfast.engine.visualize import visualize

        visualize(cfg)


def visualizes(cfg) -> bool:
    """Whether the visualisation job is asked for."""
    board = cfg.TENSORBOARD
    return board.ENABLE and (board.MODEL_VIS.ENABLE or board.WRONG_PRED_VIS.ENABLE)


def finish(cfg) -> None:
    """Print what came out and where it lies."""
    from slowfast.visualization.report import accuracy_table, write_report
    from slowfast.visualization.results import read_job

    output_dir = Path(cfg.OUTPUT_DIR)
    if cfg.TEST.ENABLE:
        print(accuracy_table(read_job(output_dir).accuracy_rows()))
    made = {
        "checkpoints": output_dir / "checkpoints",
        "numbers": output_dir / "json_stats.log",
        "log": output_dir / "stdout.log",
        "TensorBoard": output_dir / (cfg.TENSORBOARD.LOG_DIR or f"runs-{cfg.TRAIN.DATASET}"),
    }
    if cfg.TEST.ENABLE and cfg.TEST.REPORT:
        made["report"] = write_report(output_dir)
    if visualizes(cfg):
        made["inside"] = output_dir / "visualization" / "index.html"
    for name, path in made.items():
        if path.exists():
            print(f"{name + ':':<13}{path}")


# Threads that wait for one another sleep instead of spinning. Where anything else uses a core (a loader worker is
# enough), spinning makes a training step on the CPU ten times slower. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run every job of the command line, one after another."""
    args, jobs = load_jobs(description=__doc__, from_zoo=from_zoo)
    print_any_name()
    if args.check:
        fine = [check_job(cfg, args, number) for number, cfg in enumerate(jobs)]
        return 0 if all(fine) else 1
    idle = [explain_no_job(file, args) for file, cfg in zip(args.cfg_files, jobs, strict=True) if not has_job(cfg)]
    if idle:
        print(*(f"{Path(sys.argv[0]).name}: error: {text}" for text in idle), sep="\n", file=sys.stderr)
        return 1
    for cfg in jobs:
        try:
            run_job(cfg, args.init_method)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command continues from the newest checkpoint", file=sys.stderr)
            return 130
        except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
            log = Path(cfg.OUTPUT_DIR) / "stdout.log"
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            print(f"{Path(sys.argv[0]).name}: {type(error).__name__}: {text}", file=sys.stderr)
            if log.exists():
                with log.open("a") as file:
                    traceback.print_exc(file=file)
                print(f"(where it happened stands at the end of {log})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
