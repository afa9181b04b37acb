#!/usr/bin/env python3
"""Write a classification network as one file that runs without its configuration, and compare the two.

    python tools/export.py --cfg A.yaml --checkpoint model.pyth --out model.onnx
    python tools/export.py --zoo x3d_m --out x3d_m.pt2
    python tools/export.py --cfg A.yaml --checkpoint model.pyth --out small.onnx --precision int8 --check-accuracy
    python tools/predict.py video.mp4 --exported model.onnx

The ending of --out says what is written: .onnx, or .pt2 of torch.export. Beside it, OUT.json tells how far its scores
are from those of the network, its size, and how long both take for a clip. With --check-accuracy both see the test
videos of the configuration (DATA.PATH_TO_DATA_DIR): a file that is worse by more than --max-drop is removed again.
Exit status: 0, 1 if the file does not do what the network does, 2 for a wrong option or network.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Threads that wait for one another sleep instead of spinning. NOTE: read when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    network = parser.add_argument_group("the network")
    network.add_argument("--zoo", metavar="NAME", help="a published one (python tools/zoo.py list)")
    network.add_argument("--cfg", metavar="FILE", help="the configuration that it was trained with")
    network.add_argument("--checkpoint", metavar="FILE", default="", help="its weights; default: as the file says")
    network.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="keys of the configuration")
    network.add_argument("--labels", metavar="FILE", help='class names: {"name": id}, ["name", ...] or lines of text')
    result = parser.add_argument_group("the file")
    result.add_argument("--out", required=True, metavar="FILE", help="model.onnx or model.pt2")
    result.add_argument(
        "--precision", default="fp32", metavar="P", help="fp32, fp16, bf16 or int8 (weights); default %(default)s"
    )
    check = parser.add_argument_group("the comparison")
    check.add_argument("--clips", type=int, default=6, metavar="N", help="random clips compared; default %(default)s")
    check.add_argument("--rounds", type=int, default=10, metavar="N", help="of timing; default %(default)s")
    check.add_argument("--check-accuracy", action="store_true", help="both on the test videos of the configuration")
    check.add_argument(
        "--max-drop", type=float, default=1.0, metavar="POINTS", help="of accuracy, in percent; default %(default)s"
    )
    options = parser.parse_args(args)
    if bool(options.zoo) == bool(options.cfg):
        parser.error("name the network: --zoo NAME, or --cfg FILE with --checkpoint FILE")
    if options.zoo and options.checkpoint:
        parser.error("--checkpoint goes with --cfg; --zoo brings its own weights")
    for name in ("clips", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is not 1 or more")
    if len(options.opts) % 2:
        parser.error(f"--opts takes pairs of KEY VALUE, {len(options.opts)} words were given")
    return options


def export(options: argparse.Namespace) -> dict:
    """Write the file, compare, and give the report; ``accepted`` tells whether the file does what the network does."""
    import torch

    from slowfast import zoo
    from slowfast.config import load_cfg
    from slowfast.datasets.build import build_dataset
    from slowfast.export import build_card, compare, load_exported, percent_right, write_exported
    from slowfast.export.compare import TOLERANCES
    from slowfast.export.write import check_suffix
    from slowfast.visualization.predictor import Predictor

    check_suffix(options.out)
    config, checkpoint, opts = options.cfg, options.checkpoint, []
    if options.zoo:
        config, checkpoint, opts = zoo.classifier(options.zoo, ROOT)
    cfg = load_cfg(config, [*opts, "NUM_GPUS", 0, *options.opts])
    predictor = Predictor.from_cfg(cfg, checkpoint, labels=options.labels, folders=[Path(config).parent], device="cpu")
    original = predictor.network
    card = build_card(cfg, predictor.class_names)
    card = write_exported(original, options.out, card, precision=options.precision)
    exported = load_exported(options.out, device="cpu")
    clips = torch.randn(options.clips, *card.shape, generator=torch.Generator().manual_seed(0))
    found = compare(original, exported, options.out, clips, rounds=options.rounds)
    report = {"file": options.out, "network": card.network, "precision": card.precision, **dataclasses.asdict(found)}
    report["tolerance"] = TOLERANCES[card.precision] * max(1.0, found.largest_score)
    report["accepted"] = found.largest_difference <= report["tolerance"]
    if options.check_accuracy:
        dataset = build_dataset(cfg.TEST.DATASET, cfg, "test")
        right = percent_right({"original": original, "exported": exported}, dataset, merge=card.merge)
        report |= {"videos": len(dataset) // dataset.num_views, "accuracy": right, "max_drop": options.max_drop}
        report["accepted"] = right["original"] - right["exported"] <= options.max_drop
    return report


def table_of(report: dict) -> str:
    """The report as text."""
    from slowfast.utils.tables import text_table

    rows = [
        ("file", report["file"]),
        ("network", report["network"]),
        ("precision", report["precision"]),
        ("size", f"{report['size_bytes'] / 1e6:.2f} MB"),
        ("largest difference of a score", f"{report['largest_difference']:.1e}"),
        ("same best class", f"{report['same_best']} of {report['clips']} random clips"),
        ("one clip, the network", f"{report['eager_latency_ms']:.1f} ms"),
        ("one clip, the file", f"{report['latency_ms']:.1f} ms"),
    ]
    if "accuracy" in report:
        rows += [
            (f"{report['videos']} test videos, the {name}", f"{value:.2f} %")
            for name, value in report["accuracy"].items()
        ]
    return text_table(("export", ""), rows)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if the file does not do what the network does, 2 for a wrong option or network."""
    options = parse_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        report = export(options)
    except (ValueError, KeyError, OSError, NotImplementedError, ImportError) as error:
        print(f"export.py: error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    print(table_of(report))
    out = Path(options.out)
    out.with_name(f"{out.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    if report["accepted"]:
        if report["precision"] == "int8" and "accuracy" not in report:
            print("export.py: what 8 bits cost in accuracy is not known: --check-accuracy tells", file=sys.stderr)
        return 0
    return refuse(report, out)


def refuse(report: dict, out: Path) -> int:
    """Say why the file is not what was asked for; one that is measurably worse is removed."""
    if "accuracy" not in report:
        print(
            f"export.py: {out}: a score differs by {report['largest_difference']:.1e}, more than "
            f"{report['tolerance']:g} as expected of {report['precision']}; --check-accuracy tells what that means",
            file=sys.stderr,
        )
        return 1
    drop = report["accuracy"]["original"] - report["accuracy"]["exported"]
    for file in (out, out.with_name(f"{out.name}.data")):
        file.unlink(missing_ok=True)
    print(
        f"export.py: {out} lost {drop:.2f} points of accuracy, more than --max-drop {report['max_drop']:g}: it was "
        "removed. Another --precision may keep them",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
