"""One logger set-up: plain lines to a file and the terminal, progress bars left intact."""

import io
import logging
import sys
from pathlib import Path

from tqdm import tqdm

_LINE = "[%(asctime)s][%(levelname)s] %(filename)s: %(lineno)4d: %(message)s"


class TerminalHandler(logging.Handler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(self.format(record), file=sys.stderr)


def print_any_name() -> None:
    """From now on ``print`` escapes what the terminal's encoding lacks (bytes of a file name, say)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def setup_logging(output_dir: str | Path | None = None, *, rank: int = 0) -> None:
    """Log the package's messages to the terminal and to ``output_dir/stdout.log``.

    Ranks other than 0 report warnings only, with their rank, and write no file. Calling it again
    replaces what the previous call set up; the root logger is left alone.
    """
    logger = logging.getLogger("slowfast")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    line = _LINE if rank == 0 else _LINE.replace("%(message)s", f"[rank {rank}] %(message)s")
    formatter = logging.Formatter(line, datefmt="%m/%d %H:%M:%S")
    handlers: list[logging.Handler] = [TerminalHandler()]
    if rank == 0 and output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.FileHandler(Path(output_dir) / "stdout.log", encoding="utf-8", errors="backslashreplace")
        )
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.addHandler(handler)
