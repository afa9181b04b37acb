"""What an exported network keeps: accuracy on the motion data set, size and latency of every format and precision.

    python benchmarks/export.py [--cfg output/quickstart/config.yaml] [--files .onnx:fp32 .onnx:int8 ...] [--opts ...]

Exports the network that `make quickstart` trained, shows all test videos to it and to each file, and writes the table
to ``benchmarks/results/export.md``. Exit status 1 if a file loses more than a point of accuracy. Not among the files
unless named: ``.pt2:fp16`` and ``.pt2:bf16``, which are for GPUs and take a second for a clip on two CPU cores.
"""

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from slowfast.config import load_cfg
from slowfast.datasets.build import build_dataset
from slowfast.export import (
    PRECISIONS,
    SUFFIXES,
    Comparison,
    build_card,
    compare,
    load_exported,
    percent_right,
    write_exported,
)
from slowfast.visualization.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
ALL = [f"{suffix}:{precision}" for suffix in SUFFIXES for precision in PRECISIONS]
FOR_CPUS = [name for name in ALL if name not in (".pt2:fp16", ".pt2:bf16")]
MOST_LOST = 1.0  # points


def table(rows: dict[str, Comparison], right: dict[str, float]) -> str:
    """One line for the network and one for each file."""
    lines = [
        "| file | precision | top-1, % | size, MB | one clip, ms | the network beside it, ms | largest difference |",
        "|---|---|---|---|---|---|---|",
        f"| the network | fp32 | {right['network']:.2f} | | | | |",
    ]
    for name, row in rows.items():
        suffix, precision = name.split(":")
        lines.append(
            f"| {suffix} | {precision} | {right[name]:.2f} | {row.size_bytes / 1e6:.2f} | {row.latency_ms:.0f} "
            f"| {row.eager_latency_ms:.0f} | {row.largest_difference:.1e} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Export, compare, write; 1 if a file loses more than ``MOST_LOST``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="output/quickstart/config.yaml", help="of a trained network")
    parser.add_argument("--checkpoint", default="", help="its weights; default: as the file says")
    parser.add_argument("--files", nargs="+", default=FOR_CPUS, choices=ALL, metavar="SUFFIX:PRECISION")
    parser.add_argument("--rounds", type=int, default=20, help="of timing")
    parser.add_argument("--table", type=Path, default=ROOT / "benchmarks" / "results" / "export.md")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="keys of the configuration")
    args = parser.parse_args()
    cfg = load_cfg(args.cfg, ["NUM_GPUS", 0, *args.opts])
    predictor = Predictor.from_cfg(cfg, args.checkpoint, device="cpu")
    card = build_card(cfg, predictor.class_names)
    dataset = build_dataset(cfg.TEST.DATASET, cfg, "test")
    clips = torch.stack([dataset[row].clip for row in range(0, len(dataset), max(len(dataset) // 6, 1))])
    networks, rows = {"network": predictor.network}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.files:
            suffix, precision = name.split(":")
            path = Path(folder) / f"{precision}{suffix}"
            write_exported(predictor.network, path, card, precision=precision)
            networks[name] = load_exported(path, device="cpu")
            rows[name] = compare(predictor.network, networks[name], path, clips, rounds=args.rounds)
            print(name, rows[name], flush=True)
        right = percent_right(networks, dataset, merge=card.merge)
    views, videos = f"{dataset.num_clips} x {dataset.num_crops}", len(dataset) // dataset.num_views
    command = " ".join(["python benchmarks/export.py", *sys.argv[1:]])
    text = "\n".join(
        [
            "# Exported networks",
            "",
            f"`{command}`: {card.network} of {Path(args.cfg).parent.name}, clips of "
            f"{' x '.join(map(str, card.shape))}; top-1 on {videos} test videos of the motion "
            f"data set, {views} views. {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
            f"PyTorch {torch.__version__}. Times are medians of {args.rounds} rounds in which network and file take "
            "turns.",
            "",
            table(rows, right),
            "",
        ]
    )
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(text)
    print(f"\n{text}\nwritten to {args.table}")
    lost = {name: right["network"] - right[name] for name in rows if right["network"] - right[name] > MOST_LOST}
    for name, points in lost.items():
        print(f"{name} loses {points:.2f} points")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
