"""What a job leaves in its output folder: configuration, names of classes, the log, and the list of bad videos."""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slowfast.config.load import save_cfg
from slowfast.datasets.records import CLASS_NAMES_FILE
from slowfast.engine.stats import Recorder, detection_names, plain_names, ssl_names
from slowfast.utils import distributed
from slowfast.utils.logging import setup_logging
from slowfast.visualization.class_names import build_known_names
from slowfast.visualization.tensorboard import build_tensorboard
from slowfast.visualization.wandb_sink import build_wandb

logger = logging.getLogger(__name__)

_MARKER = "json_stats: "


def build_recorder(cfg) -> Recorder:
    """Prepare ``OUTPUT_DIR`` (log files, config.yaml, TensorBoard, Weights & Biases) and return where records go."""
    main = distributed.is_main_process()
    setup_logging(cfg.OUTPUT_DIR, rank=distributed.get_rank())
    sinks = []
    if main:
        save_cfg(cfg, Path(cfg.OUTPUT_DIR) / "config.yaml")
        sinks = [sink for sink in (build_tensorboard(cfg), build_wandb(cfg)) if sink is not None]
    distributed.barrier()
    naming = detection_names if cfg.DETECTION.ENABLE else ssl_names if cfg.TASK == "ssl" else dict
    return Recorder(cfg.OUTPUT_DIR, sinks, naming=naming)


def build_names_file(cfg, *, checkpoint: str = "") -> list[str]:
    """The names of the classes, the same on every process; empty where nothing names them.

    They are left in ``OUTPUT_DIR``, too. Those of the run that wrote ``checkpoint``, the file that is tested, stand
    before those of the data.
    """
    names: list[str] = []
    if distributed.is_main_process():
        names = build_known_names(cfg, checkpoint=checkpoint)
        if os.path.realpath(cfg.OUTPUT_DIR) != os.path.realpath(cfg.DATA.PATH_TO_DATA_DIR):
            write_class_names(Path(cfg.OUTPUT_DIR) / CLASS_NAMES_FILE, names)
    return distributed.all_gather_objects(names)[0]


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Write ``{"name": id}`` as a whole or not at all; nothing where there are no names, or two are the same."""
    if names and len(set(names)) == len(names):
        text = json.dumps({name: index for index, name in enumerate(names)}, indent=1) + "\n"
        _replace(path, text)


class BadVideoLog:
    """Counts videos that could not be decoded and names them in ``bad_videos.csv``."""

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "bad_videos.csv"
        self.seen: Counter[tuple[str, str]] = Counter()

    def add(self, bad: Iterable[Sequence]) -> None:
        """Note the (row, path, reason) entries of one batch."""
        self.seen.update((str(path), str(reason)) for _, path, reason in bad)

    def state(self) -> list[tuple[str, str, int]]:
        """(path, reason, times) of what all ranks have noted since the last flush, on every rank."""
        return [(*key, times) for key, times in sorted(self._gathered().items())]

    def load_state(self, state: Iterable[Sequence]) -> None:
        """Go on from what :meth:`state` gave: the first rank stands in for all."""
        if distributed.is_main_process():
            self.seen.update({(path, reason): times for path, reason, times in state})

    def _gathered(self) -> Counter[tuple[str, str]]:
        total: Counter[tuple[str, str]] = Counter()
        for part in distributed.all_gather_objects(dict(self.seen)):
            total.update(part)
        return total

    def flush(self, split: str, epoch: int | None = None) -> int:
        """Gather from all ranks, log a warning, add to the file; the number of distinct videos.

        Without an ``epoch``, as a test has none, earlier rows of the same videos and reasons make way.
        """
        total = self._gathered()
        self.seen.clear()
        if not total:
            return 0
        paths = sorted({path for path, _ in total})
        if distributed.is_main_process():
            shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            logger.warning(f"{split}: {len(paths)} videos could not be decoded ({shown}); all are named in {self.path}")
            if epoch is None:
                self._forget(split, total)
            is_new = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(["split", "epoch", "path", "reason", "times"])
                for (path, reason), times in sorted(total.items()):
                    writer.writerow([split, "" if epoch is None else epoch + 1, path, reason, times])
        return len(paths)

    def _forget(self, split: str, videos: Container[tuple[str, str]]) -> None:
        """Take out the rows of ``split`` without an epoch that name one of ``videos``, (path, reason)."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        kept = [row for row in rows if row[:2] != [split, ""] or tuple(row[2:4]) not in videos]
        if kept != rows:
            text = io.StringIO(newline="")
            csv.writer(text).writerows(kept)
            _replace(self.path, text.getvalue())


def read_records(output_dir: str | Path) -> list[dict]:
    """The records of ``json_stats.log``, oldest first; an empty list where there is none.

    Whatever the kind of job, ``_type`` is ``train_epoch`` or ``val_epoch`` here.
    """
    path = Path(output_dir) / "json_stats.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(_parse, lines) if record is not None]


def epoch_of(record: Mapping[str, Any]) -> int:
    """The epoch (counted from 1) that a record of training or validation belongs to; 0 for other records."""
    number = str(record.get("epoch", record.get("cur_epoch", ""))).split("/")[0]
    return int(number) if number.isdigit() else 0


def rewind(output_dir: str | Path, epochs: int, *, evaluate_again: bool = False) -> None:
    """Take out of the records what a training that goes on after ``epochs`` whole epochs will write again.

    That is what follows them, a line that was cut off, and with ``evaluate_again`` the evaluation of the last of them.
    Other records (of tests, say) stay. Each file is replaced as a whole, so it does not matter when this is killed.
    """
    folder = Path(output_dir)

    def is_past(record: Mapping[str, Any] | None) -> bool:
        if record is None:
            return True
        epoch = epoch_of(record)
        again = evaluate_again and epoch == epochs and record.get("_type") == "val_epoch"
        return epoch <= epochs and not again

    _keep_lines(folder / "json_stats.log", lambda line: is_past(_parse(line)))

    def is_past_row(line: str) -> bool:
        split, epoch, *_ = (*next(csv.reader([line]), []), "", "")
        return not epoch.isdigit() or int(epoch) <= epochs - (evaluate_again and split == "val")

    _keep_lines(folder / "bad_videos.csv", is_past_row)


def forget_test(output_dir: str | Path, views: str) -> None:
    """Take out of the records the results of earlier tests with as many ``views``: this one stands for them."""

    def is_other(line: str) -> bool:
        record = _parse(line)
        return record is None or record.get("split") != "test_final" or record.get("views") != views

    _keep_lines(Path(output_dir) / "json_stats.log", is_other)


def _keep_lines(path: Path, is_kept: Callable[[str], bool]) -> None:
    if not path.exists():
        return
    text = path.read_text()
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = "".join(line for line in whole if is_kept(line.rstrip("\r\n")))
    if kept != text:
        _replace(path, kept)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _parse(line: str) -> dict | None:
    """The record of a line; None for a line without one, or with half of one."""
    if not line.startswith(_MARKER):
        return None
    try:
        return plain_names(json.loads(line[len(_MARKER) :]))
    except json.JSONDecodeError:
        return None
