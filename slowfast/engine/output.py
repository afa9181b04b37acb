"""What a job leaves in its output folder: the merged configuration, the log, and the list of bad videos."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from slowfast.config.load import save_cfg
from slowfast.engine.stats import Recorder
from slowfast.utils import distributed
from slowfast.utils.logging import setup_logging
from slowfast.visualization.tensorboard import build_tensorboard

logger = logging.getLogger(__name__)


def build_recorder(cfg) -> Recorder:
    """Prepare ``OUTPUT_DIR`` (log files, config.yaml, TensorBoard) and return where records go."""
    main = distributed.is_main_process()
    setup_logging(cfg.OUTPUT_DIR, rank=distributed.get_rank())
    sinks = []
    if main:
        save_cfg(cfg, Path(cfg.OUTPUT_DIR) / "config.yaml")
        board = build_tensorboard(cfg) if cfg.TENSORBOARD.ENABLE else None
        sinks = [board] if board is not None else []
    distributed.barrier()
    return Recorder(cfg.OUTPUT_DIR, sinks)


class BadVideoLog:
    """Counts videos that could not be decoded and names them in ``bad_videos.csv``."""

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "bad_videos.csv"
        self.seen: Counter[tuple[str, str]] = Counter()

    def add(self, bad: Iterable[Sequence]) -> None:
        """Note the (row, path, reason) entries of one batch."""
        self.seen.update((str(path), str(reason)) for _, path, reason in bad)

    def flush(self, split: str, epoch: int | None = None) -> int:
        """Gather from all ranks, log a warning, append to the file; the number of distinct videos."""
        total: Counter[tuple[str, str]] = Counter()
        for part in distributed.all_gather_objects(dict(self.seen)):
            total.update(part)
        self.seen.clear()
        if not total:
            return 0
        paths = sorted({path for path, _ in total})
        if distributed.is_main_process():
            shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            logger.warning(f"{split}: {len(paths)} videos could not be decoded ({shown}); all are named in {self.path}")
            is_new = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(["split", "epoch", "path", "reason", "times"])
                for (path, reason), times in sorted(total.items()):
                    writer.writerow([split, "" if epoch is None else epoch + 1, path, reason, times])
        return len(paths)


def read_records(output_dir: str | Path) -> list[dict]:
    """The records of ``json_stats.log``, oldest first; an empty list where there is none."""
    path = Path(output_dir) / "json_stats.log"
    if not path.exists():
        return []
    marker = "json_stats: "
    lines = path.read_text().splitlines()
    return [json.loads(line[len(marker) :]) for line in lines if line.startswith(marker)]
