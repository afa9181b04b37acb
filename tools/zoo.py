#!/usr/bin/env python3
"""Find, download and check published weights, and write the tables of MODEL_ZOO.md."""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slowfast import zoo
from slowfast.config import load_cfg
from slowfast.zoo import Entry, Record, Settings, ZooError

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "MODEL_ZOO.md"
RECORDS = ROOT / "slowfast" / "zoo_data" / "records.csv"
GOLDEN = ROOT / "tests" / "golden"
BEGIN = "<!-- tables: written by `python tools/zoo.py table` -->"
END = "<!-- end of tables -->"

_LINK = {"direct": "download", "manual": "by hand", "wrong": "no address"}


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Files lie under {zoo.CACHE_VARIABLE} (default ~/.cache/slowfast). {zoo.MIRROR_VARIABLE}=URL replaces "
        f"the published addresses; {zoo.OFFLINE_VARIABLE}=1 forbids downloads.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the published models, filtered")
    for field, example in (("task", "classification"), ("dataset", "k400"), ("arch", "slowfast")):
        listing.add_argument(f"--{field}", default="", metavar="WORD", help=f"only these, e.g. {example}")
    show = commands.add_parser("show", help="everything known about one model")
    show.add_argument("name", metavar="NAME")
    fetch = commands.add_parser("download", help="bring weights into the cache and print their paths")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    verify = commands.add_parser("verify", help="load cached weights strictly into the networks of their configs")
    verify.add_argument("names", nargs="*", metavar="NAME", help="default: every file in the cache")
    table = commands.add_parser("table", help="build every network, compare with the records, write MODEL_ZOO.md")
    table.add_argument("--page-only", action="store_true", help="write the page from what was found out before")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where something asked for could not be done."""
    options = parse_args(args)
    try:
        if options.command == "list":
            return show_list(zoo.select(task=options.task, dataset=options.dataset, arch=options.arch))
        if options.command == "show":
            return show_entry(zoo.find(options.name))
        if options.command == "download":
            return for_each([zoo.find(name) for name in options.names], lambda entry: print(zoo.download(entry)))
        if options.command == "verify":
            return verify_files(options.names)
        return write_table(page_only=options.page_only)
    except ZooError as error:
        print(error, file=sys.stderr)
        return 1


def for_each(entries: Iterable[Entry], action: Callable[[Entry], None]) -> int:
    """``action`` on every entry, going on after one that fails; 1 if any did."""
    failed = 0
    for entry in entries:
        try:
            action(entry)
        except (ValueError, OSError) as error:  # ZooError, CheckpointError among them
            print(f"{entry.name}: {error}", file=sys.stderr)
            failed = 1
    return failed


# ---------------------------------------------------------------- list, show, verify


def show_list(entries: Sequence[Entry]) -> int:
    """One line per model."""
    if not entries:
        print("no published model fits; `list` without options shows all", file=sys.stderr)
        return 1
    settings = Settings.from_env()
    rows = [("NAME", "DATA", "ARCHITECTURE", "FRAMES", "TOP-1", "MAP", "WEIGHTS", "NETWORK")]
    for entry in entries:
        rows.append(
            (
                entry.name,
                entry.dataset,
                architecture(entry),
                entry.frames_x_rate,
                percent(entry.top1),
                percent(entry.mean_ap),
                "here" if settings.path(entry).exists() else _LINK[entry.link],
                "builds" if entry.name in zoo.records() else "not yet",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def show_entry(entry: Entry) -> int:
    """All facts of one model, what was found out here, and how to use it."""
    settings = Settings.from_env()
    path = settings.path(entry)
    record = zoo.records().get(entry.name)
    facts = {
        "task": f"{entry.task} on {entry.dataset}",
        "architecture": " ".join(filter(None, [architecture(entry), entry.frames_x_rate, entry.method])),
        "pre-trained on": entry.pretrain,
        "top-1, top-5 (claimed)": " ".join(filter(None, [percent(entry.top1), percent(entry.top5)])),
        "mAP (claimed)": percent(entry.mean_ap),
        "also claimed": entry.other,
        "crops x clips": entry.views,
        "GFLOPs per view": figure(entry.flops_g),
        "parameters (claimed)": f"{entry.params_m:g} M" if entry.params_m else "",
        "parameters (counted)": f"{record.params / 1e6:.3f} M" if record else "",
        "config": f"{entry.config} {entry.opts}".strip(),
        "to fine-tune": entry.config_finetune,
        "the same file as": entry.twin,
        "note": entry.note,
        "stated in": f"the original's {entry.source}",
        "published at": entry.url,
        "file": f"{path} ({'here' if path.exists() else 'not here'})",
    }
    print(entry.name)
    for title, fact in facts.items():
        if fact:
            print(f"  {title + ':':<24}{fact}")
    print()
    for options, purpose in uses(entry) if record else ():
        print(f"  python tools/run_net.py --zoo {entry.name} {options}   # {purpose}")
    if not record:
        print(f"  The network of {entry.config} cannot be built yet.")
    return 0


def uses(entry: Entry) -> list[tuple[str, str]]:
    """What may stand behind ``run_net.py --zoo NAME``, and what it is for."""
    data = "DATA.PATH_TO_DATA_DIR lists"
    if entry.task == "detection":
        data = "AVA.FRAME_DIR frames AVA.FRAME_LIST_DIR frame_lists AVA.ANNOTATION_DIR annotations"
    if entry.task != "pretraining":
        return [(data, "test"), (f"TRAIN.ENABLE True {data} ...", "fine-tune")]
    if entry.config_finetune:
        return [(f"TRAIN.ENABLE True {data} ...", f"fine-tune, as {entry.config_finetune} says")]
    probe = min((ROOT / entry.config).parent.glob("linear_*.yaml")).relative_to(ROOT)
    return [
        (data, "test by nearest neighbours, which needs the training set too"),
        (f"--cfg {probe} {data} ...", "train a classifier on its features; finetune_*.yaml train the whole network"),
    ]


def verify_files(names: Sequence[str]) -> int:
    """Load weights strictly; without ``names``, those of every entry in the cache."""
    settings = Settings.from_env()
    entries = [zoo.find(name) for name in names]
    if not entries:
        entries = [entry for entry in zoo.entries() if settings.path(entry).exists() and not entry.twin]
        if not entries:
            print(f"no weights in {settings.cache}; `download NAME` brings some", file=sys.stderr)
            return 1

    def verify(entry: Entry) -> None:
        path = settings.path(entry)
        if not path.exists():
            raise ZooError(f"not here: {path}")
        zoo.download(entry, settings)  # its sum is the one of the first download
        report = zoo.load_published(zoo.build_network(entry, root=ROOT), path)
        print(f"{entry.name}: {path}\n  sha256 {zoo.sha256_of(path)}\n  {report.table()}, strictly")

    return for_each(entries, verify)


# ---------------------------------------------------------------- the page


def write_table(*, page_only: bool) -> int:
    """Renew records.csv (unless ``page_only``) and the tables of MODEL_ZOO.md."""
    found = dict(zoo.records()) if page_only else examine(zoo.entries(), read_golden(GOLDEN))
    if not page_only:
        with RECORDS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", *Record._fields])
            writer.writerows([name, *record] for name, record in found.items())
    PAGE.write_text(with_tables(PAGE.read_text(), render(zoo.entries(), found)))
    print(f"{len(found)} of {len(zoo.entries())} networks build; wrote {PAGE}")
    return 0


def with_tables(page: str, tables: str) -> str:
    """``page`` with what stands between its two marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ZooError(f"{PAGE} lacks the line {END if begin else BEGIN}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def read_golden(folder: Path) -> dict[str, dict]:
    """Config -> {"names": its recorded state dict, "outputs": whether outputs of the same network are recorded}."""
    golden = {}
    for file in sorted(folder.glob("*/state_dicts.json.gz")):
        stored = json.loads(gzip.decompress(file.read_bytes()))
        if "configs" not in stored:  # names alone, each config with its own
            golden |= {config: {"names": entry["state_dict"], "outputs": False} for config, entry in stored.items()}
            continue
        forward = json.loads((file.parent / "forward.json").read_text())
        run = [stored["configs"][key.removeprefix("config:")]["opts"] for key in forward if key.startswith("config:")]
        for config, entry in stored["configs"].items():
            names = stored["state_dicts"][entry["state_dict"]]
            golden[config] = {"names": names, "outputs": entry["opts"] in run}
    return golden


def examine(entries: Iterable[Entry], golden: Mapping[str, dict]) -> dict[str, Record]:
    """Build each network, without memory for its weights, and compare it with the record of its config."""
    import torch

    records = {}
    for entry in entries:
        try:
            with torch.device("meta"):
                model = zoo.build_network(entry, root=ROOT)
        except ZooError as error:
            print(error, file=sys.stderr)
            continue
        gflops, view = count_cost(entry, model)
        expected = None if entry.opts else golden.get(entry.config)
        found = [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()]
        records[entry.name] = Record(
            params=sum(parameter.numel() for parameter in model.parameters()),
            names="" if expected is None else "equal" if found == expected["names"] else "differ",
            outputs="tested" if expected and expected["outputs"] else "",
            gflops=gflops,
            view=view,
        )
    return records


def count_cost(entry: Entry, model: "nn.Module") -> tuple[float | None, str]:
    """GFLOPs of one view and its frames x pixels; of a pre-training, those of the network that is fine-tuned.

    The rows from PyTorchVideo state the cost of a view in testing, all others that of a clip in training. Networks
    that look at boxes, and pre-trainings without a config to go on with, are not counted.
    """
    import torch

    from slowfast.models import build_model
    from slowfast.models.summary import count_products

    if entry.task == "detection" or (entry.task == "pretraining" and not entry.config_finetune):
        return None, ""
    cfg = load_cfg(ROOT / entry.config, [*entry.opts.split(), "NUM_GPUS", 0])
    with torch.device("meta"):
        if entry.config_finetune:
            cfg = load_cfg(ROOT / entry.config_finetune, ["NUM_GPUS", 0])
            if cfg.DETECTION.ENABLE:
                return None, ""
            model = build_model(cfg)
        side = cfg.DATA.TEST_CROP_SIZE if entry.name.startswith("ptv_") else cfg.DATA.TRAIN_CROP_SIZE
        clip = torch.zeros(1, cfg.DATA.INPUT_CHANNEL_NUM[0], cfg.DATA.NUM_FRAMES, side, side)
        return round(count_products(model, clip), 3), f"{cfg.DATA.NUM_FRAMES}x{side}"


def architecture(entry: Entry) -> str:
    """Family and size in one."""
    return f"{entry.arch} {entry.size}".strip()


def figure(value: float | None) -> str:
    """A number as published, or nothing."""
    return "" if value is None else f"{value:g}"


def cost(record: Record | None) -> str:
    """What was counted, and for which view."""
    return "" if record is None or record.gflops is None else f"{record.gflops:.2f} ({record.view})"


def percent(value: float | None) -> str:
    """A share with one decimal, or two where they were published."""
    return "" if value is None else f"{value:.2f}".removesuffix("0")


def chapter(entry: Entry) -> str:
    """The heading under which an entry stands."""
    names = {"K400": "Kinetics-400", "K600": "Kinetics-600", "SSv2": "Something-Something v2"}
    dataset = names.get(entry.dataset, entry.dataset)
    if entry.task == "pretraining":
        return f"Pre-training without labels, {dataset}"
    if entry.dataset.startswith("AVA"):
        return "AVA (detection)"
    return f"{dataset} (multi-label)" if entry.task == "multi-label" else dataset


def render(entries: Iterable[Entry], records: Mapping[str, Record]) -> str:
    """The tables, one chapter per data set and kind of task."""
    chapters: dict[str, list[Entry]] = {}
    for entry in entries:
        chapters.setdefault(chapter(entry), []).append(entry)
    parts = []
    for title in sorted(chapters, key=lambda title: (title.startswith("Pre-training"), list(chapters).index(title))):
        rows = chapters[title]
        parts.append(f"### {title}\n\n" + "\n".join(table(rows, records)) + "\n")
        notes = [f"* `{entry.name}`: {remark}." for entry in rows for remark in remarks(entry, records)]
        if notes:
            parts.append("\n".join(notes) + "\n")
    return "\n".join(parts)


def table(entries: Sequence[Entry], records: Mapping[str, Record]) -> list[str]:
    """The lines of one Markdown table; columns that are empty throughout are left out."""
    columns: dict[str, Callable[[Entry], str]] = {
        "name": lambda e: f"`{e.name}`",
        "data": lambda e: e.dataset if e.dataset.startswith("AVA") else "",
        "architecture": architecture,
        "method": lambda e: e.method,
        "pre-trained on": lambda e: e.pretrain,
        "frames x rate": lambda e: e.frames_x_rate,
        "crops x clips": lambda e: e.views,
        "top-1": lambda e: percent(e.top1),
        "top-5": lambda e: percent(e.top5),
        "mAP": lambda e: percent(e.mean_ap),
        "also": lambda e: e.other,
        "GFLOPs": lambda e: figure(e.flops_g),
        "params (M)": lambda e: figure(e.params_m),
        "GFLOPs counted": lambda e: cost(records.get(e.name)),
        "counted (M)": lambda e: f"{records[e.name].params / 1e6:.3f}" if e.name in records else "",
        "verified": lambda e: marks(records.get(e.name)),
        "config": lambda e: f"[{e.config.removeprefix('configs/').removesuffix('.yaml')}]({e.config})",
        "weights": lambda e: f"[{'by hand' if e.link == 'manual' else Path(e.url).name}]({e.url})",
    }
    cells = {title: [column(entry) for entry in entries] for title, column in columns.items()}
    kept = [title for title, column in cells.items() if any(column)]
    lines = ["| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
    return lines + ["| " + " | ".join(cells[title][i] for title in kept) + " |" for i in range(len(entries))]


def marks(record: Record | None) -> str:
    """Letters for what was verified here, explained in MODEL_ZOO.md."""
    if record is None:
        return "-"
    names = {"equal": "N", "differ": "names differ!", "": ""}[record.names]
    return " ".join(filter(None, ["B", names, "O" if record.outputs else ""]))


# Why the parameters claimed are not those counted. A test counts the numbers.
_PARAMETERS = {
    "vit_b_16x4_mae": "; the claim is of the network that is fine-tuned, 86.7 M: without decoder, with a head",
    "vit_l_16x4_mae": "; the claim is of the network that is fine-tuned, 304.5 M: without decoder, with a head",
    "vit_h_16x4_mae": "; the claim is of the network that is fine-tuned, 632.4 M: without decoder, with a head",
    "mvitv2_l_40x3": "; the claim may be of k400_MVITv2_L_16x4_FT, whose blocks widen in their MLP instead of their "
    "attention: 217.6 M",
    "rev_mvit_b_in1k_project": "; the claim may be cut off where others are rounded",
}


def remarks(entry: Entry, records: Mapping[str, Record]) -> list[str]:
    """What must be said about an entry below its table."""
    said = [entry.note] if entry.note else []
    if entry.opts:
        said.append(f"its config is used with `{entry.opts}`")
    if entry.config_finetune:
        said.append(f"fine-tuned with [{Path(entry.config_finetune).stem}]({entry.config_finetune})")
    if entry.twin:
        said.append(f"the same file as `{entry.twin}`, stated again in {entry.source}")
    if entry.params_m and entry.name in records:
        counted = records[entry.name].params / 1e6
        if abs(counted / entry.params_m - 1) > 0.015 and round(counted) != entry.params_m:
            reason = _PARAMETERS.get(entry.name, "; why is unknown")
            said.append(f"{entry.params_m:g} M parameters are claimed, its config has {counted:.1f} M{reason}")
    gflops = records[entry.name].gflops if entry.name in records else None
    if entry.flops_g and gflops and abs(gflops / entry.flops_g - 1) > 0.01:
        said.append(f"{entry.flops_g:g} GFLOPs are claimed, {gflops:.2f} are those of its products")
    return said


if __name__ == "__main__":
    sys.exit(main())
